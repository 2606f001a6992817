"""Official checkpoints of CMPF (FrozenSeg); names are converted by `lexiseg.methods.fcclip.weights`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from lexiseg.backbones.sources import NONE_STATED
from lexiseg.errors import WeightsError
from lexiseg.methods.cmpf.sam_masks import OFFICIAL
from lexiseg.methods.fcclip.weights import FcClipCheckpoint
from lexiseg.methods.weights import SavedWeights


class CmpfCheckpoint(FcClipCheckpoint):
    """Official checkpoints of CMPF, which include SAM and possibly CLIP."""

    licence: ClassVar[str] = NONE_STATED
    options: ClassVar[Mapping[str, Any]] = {"behaviour": "official", "masks": OFFICIAL}
    holds_sam: ClassVar[bool] = True

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        if "sam_features" in saved.parts() and saved.card["config"]["behaviour"] != "official":
            raise WeightsError(
                f"{saved.file} was trained with behaviour=paper, whose encoder of SAM's features the official code does not "
                "have; only weights of behaviour=official can be converted back"
            )
        return super().official(saved)
