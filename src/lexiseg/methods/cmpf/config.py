"""Config of CMPF."""

from __future__ import annotations

from typing import ClassVar

from lexiseg.errors import UsageError
from lexiseg.methods.cmpf.sam_masks import SamMasks
from lexiseg.methods.fcclip.config import FcClipConfig
from lexiseg.ops.options import Depth, Positive, Unit, options


@options(frozen=True)
class CmpfConfig(FcClipConfig):
    """Options of `Cmpf`; the defaults are the published values (Sec. 4.2)."""

    RUNTIME: ClassVar[frozenset[str]] = (FcClipConfig.RUNTIME - {"behaviour"}) | {"mask_ensemble", "masks", "epsilon", "xi"}

    query_layers: tuple[Positive, ...] = (3, 6, 9)
    """Layers of the mask decoder, from 1, after which the Query Injector is applied; empty disables it (Table 5)."""
    feature_layers: tuple[Positive, ...] = (1, 4, 7)
    """Layers before which the Feature Injector is applied; empty disables it (Table 5)."""
    sam_layers: Depth = 6
    """Layers of the deformable encoder of SAM's features."""
    mask_ensemble: bool | None = None
    """Whether to use the mask ensemble, Eq. (12); None: if a SAM for it is given (``mask_sam``)."""
    masks: SamMasks = SamMasks()
    """Options of SAM's masks."""
    epsilon: Unit = 0.2
    """ε of Eq. (12): weight of SAM's masks in the semantic scores of unseen classes; 0 disables the mask ensemble."""
    xi: Unit = 0.5
    """ξ of Eq. (12): threshold of the best class probability of SAM's masks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("query_layers", "feature_layers"):
            if wrong := [number for number in getattr(self, name) if number > self.num_layers]:
                raise UsageError(f"{name} names layer {wrong[0]}, but the mask decoder has {self.num_layers}")
