"""Options of SAM + CLIP."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Le

from lexiseg.backbones.mask_generator import MaskGeneratorOptions
from lexiseg.methods.base import MethodConfig
from lexiseg.ops.options import Depth, options


@options(frozen=True)
class SamClipConfig(MethodConfig):
    """Options of `SamClip`; nothing is trained, so all may be changed."""

    RUNTIME: ClassVar[frozenset[str]] = MethodConfig.RUNTIME | {
        "shortest_edge", "longest_edge", "points_per_side", "generator"
    }  # fmt: skip

    templates: str = "vild14"
    """Prompts that class names are embedded with: a set of `lexiseg.text.templates`, or one sentence with ``{}``."""
    shortest_edge: Annotated[int, Ge(32), Le(65_535)] = 448
    """Shorter side of the image that CLIP sees, in pixels."""
    longest_edge: Annotated[int, Ge(32), Le(65_535)] = 1333
    """Greatest longer side of it, in pixels."""
    points_per_side: Depth = 32
    """Points a side of the grid of SAM's prompts."""
    generator: MaskGeneratorOptions = MaskGeneratorOptions()
    """How SAM makes masks of them."""
