"""Config of SAM + CLIP."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Le

from lexiseg.backbones.mask_generator import MaskGeneratorOptions
from lexiseg.methods.base import MethodConfig
from lexiseg.ops.options import Depth, options


@options(frozen=True)
class SamClipConfig(MethodConfig):
    """Options of `SamClip`; all may be changed, as nothing is trained."""

    RUNTIME: ClassVar[frozenset[str]] = MethodConfig.RUNTIME | {
        "shortest_edge", "longest_edge", "points_per_side", "generator"
    }  # fmt: skip

    templates: str = "vild14"
    """Prompt templates of class names: a set of `lexiseg.text.templates`, or one sentence with ``{}``."""
    shortest_edge: Annotated[int, Ge(32), Le(65_535)] = 448
    """Shorter side of the input of CLIP, in pixels."""
    longest_edge: Annotated[int, Ge(32), Le(65_535)] = 1333
    """Maximum longer side of it, in pixels."""
    points_per_side: Depth = 32
    """Points per side of the grid of SAM's point prompts."""
    generator: MaskGeneratorOptions = MaskGeneratorOptions()
    """Options of SAM's automatic mask generator."""
