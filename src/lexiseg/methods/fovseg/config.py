"""FOV-Seg's options."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Le

from lexiseg.methods.maskclip.config import MaskTokenConfig
from lexiseg.ops.options import Positive, Width, options


@options(frozen=True)
class FovSegConfig(MaskTokenConfig):
    """Options of `FovSeg`; the defaults are the published values (Sec. V-C)."""

    RUNTIME: ClassVar[frozenset[str]] = MaskTokenConfig.RUNTIME

    clip_image_size: Annotated[int, Ge(16), Le(65_535)] = 896
    """Pixels a side of the square that CLIP looks at; its positions are resized to it bilinearly."""
    shortest_edge: Annotated[int, Ge(32), Le(65_535)] | None = 800
    """Shorter side of the image that the generator of masks sees, in pixels; None leaves images as they are."""
    longest_edge: Annotated[int, Ge(32), Le(65_535)] = 1333
    """Greatest longer side of it, in pixels."""
    masks_at_once: Positive | None = None
    """Masks processed at a time; each part computes the keys and values of the picture again. None takes all at once."""
    teva: bool = True
    """Whether mask tokens attend to the names, Eq. (9) and (10)."""
    teva_bottleneck: Width = 64
    """Channels of that attention."""
    adapter_layers: Annotated[int, Ge(0), Le(3)] = 2
    """Convolutions of the distribution adapter; 0 leaves it out (Table IV)."""
    fiser_layers: Annotated[int, Ge(0), Le(1000)] = 0
    """Layers of FiSeR's predictor, Eq. (1) to (6), for training; 0 leaves it out, as at inference."""
