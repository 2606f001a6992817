"""The authors' checkpoints of CMPF (FrozenSeg): FC-CLIP's names and a few more, see `lexiseg.methods.fcclip.weights`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from lexiseg.errors import WeightsError
from lexiseg.methods.cmpf.sam_masks import OFFICIAL
from lexiseg.methods.fcclip.weights import FcClipCheckpoint
from lexiseg.methods.weights import SavedWeights


class CmpfCheckpoint(FcClipCheckpoint):
    """A checkpoint with SAM, and perhaps CLIP, inside."""

    licence: ClassVar[str] = "none stated by the authors"
    options: ClassVar[Mapping[str, Any]] = {"behaviour": "official", "masks": OFFICIAL}
    holds_sam: ClassVar[bool] = True

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        if "sam_features" in saved.parts() and saved.card["config"]["behaviour"] != "official":
            raise WeightsError(
                f"{saved.file} was trained with the paper's own encoder of SAM's features, which the official program does not "
                "have; only weights of behaviour=official can be converted back"
            )
        return super().official(saved)
