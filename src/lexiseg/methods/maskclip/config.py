"""Options of MaskCLIP, and those it shares with FOV-Seg."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Le

from lexiseg.ensembles import Behaviour
from lexiseg.methods.base import MethodConfig
from lexiseg.ops.options import Natural, Positive, Unit, options


@options(frozen=True)
class MaskTokenConfig(MethodConfig):
    """Options of methods whose masks have class tokens of their own in CLIP."""

    RUNTIME: ClassVar[frozenset[str]] = MethodConfig.RUNTIME | {
        "clip_image_size", "shortest_edge", "longest_edge", "masks_at_once"
    }  # fmt: skip

    clip_image_size: Annotated[int, Ge(16), Le(65_535)] = 336
    """Pixels a side of the square that CLIP looks at."""
    shortest_edge: Annotated[int, Ge(32), Le(65_535)] | None = 640
    """Shorter side of the image that the generator of masks sees, in pixels; None leaves images as they are."""
    longest_edge: Annotated[int, Ge(32), Le(65_535)] = 2560
    """Greatest longer side of it, in pixels."""
    masks_at_once: Positive | None = 25
    """Masks processed at a time, which bounds the memory; the result is the same. None takes all at once."""


@options(frozen=True)
class MaskClipConfig(MaskTokenConfig):
    """Options of `MaskClip`; the defaults are the published values (Sec. 4.2 and the official configuration)."""

    RUNTIME: ClassVar[frozenset[str]] = MaskTokenConfig.RUNTIME | {"behaviour"}

    overlap_threshold: Unit = 0.5
    """A panoptic segment is kept if at least this fraction of its mask is not covered by better ones (Mask2Former)."""
    relative_blocks: tuple[Natural, ...] = (5, 11, 17, 23)
    """Blocks of the vision transformer with relative mask attention, from 0; none is plain mask attention."""
    behaviour: Behaviour = "paper"
    """"official" leaves the last class out of semantic results, as the official program, which takes it for "no object" by
    mistake (so it does with instances, whose labels drift as a consequence; that is not repeated)."""
