"""The objective of a training: the losses of the method, and FiSeR where a recipe switches it on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lexiseg.backbones.clip_vit import ClipViT, ImageTokens
from lexiseg.errors import UsageError
from lexiseg.losses.fiser import Fiser, FiserOptions
from lexiseg.losses.matching import PointSource
from lexiseg.methods.base import Segmenter
from lexiseg.methods.maskclip.model import MaskClip
from lexiseg.methods.recipe import Recipe, Trainable
from lexiseg.training.batches import Batch
from lexiseg.training.text_sampler import TextSampler


class Objective(nn.Module):
    """The losses of a batch as a module's forward, as `DistributedDataParallel` requires.

    Args:
        segmenter: a `Trainable` method.
        text_sampler: classes of a batch.
        recipe: options of the losses.
        fiser: result of `fiser_of`.
    """

    def __init__(self, segmenter: Segmenter, text_sampler: TextSampler, recipe: Recipe, fiser: Fiser | None) -> None:
        super().__init__()
        self.segmenter, self.fiser = segmenter, fiser
        self.text_sampler, self.recipe = text_sampler, recipe

    def forward(self, batch: Batch, draw: PointSource) -> dict[str, Tensor]:
        """Compute the losses by name; their sum is minimised."""
        segmenter, clip = self.segmenter, self.segmenter.clip
        assert isinstance(segmenter, Trainable)
        text, targets = self.text_sampler.sample(batch)
        if self.fiser is None:
            return segmenter.loss(batch.images, text, targets, self.recipe.loss, draw)
        assert isinstance(clip, ClipViT)
        with clip.recorded() as computed:
            losses = segmenter.loss(batch.images, text, targets, self.recipe.loss, draw)
        image = image_tokens(clip, computed, self.recipe.fiser)
        chance = torch.stack([draw(number, 1, 1)[0, 0, 0] for number in range(len(targets))])
        return losses | {"fiser": self.recipe.fiser.weight * self.fiser(clip, image, text, targets, chance)}  # Eq. (12)


def fiser_of(segmenter: Segmenter, options: FiserOptions) -> Fiser | None:
    """Create FiSeR for a method; None if its weight is 0.

    Raises:
        UsageError: the method has no image tokens that training changes.
    """
    if not options.weight:
        return None
    if not isinstance(segmenter.clip, ClipViT):
        raise UsageError("FiSeR needs a CLIP with a vision transformer, which this model has not; set fiser.weight=0")
    if options.visual == "masks" and not isinstance(segmenter, MaskClip):
        raise UsageError("fiser.visual=masks needs a method with mask tokens; set fiser.visual=patches")
    trained = segmenter.trained_parts()
    if "clip" not in trained and (options.visual == "patches" or not trained or not isinstance(segmenter, MaskClip)):
        raise UsageError(
            "FiSeR has nothing to train: this training does not change the image tokens; set model.tuned=f_q, or fiser.weight=0"
        )
    return Fiser(segmenter.clip, options)


def image_tokens(clip: ClipViT, computed: ImageTokens, options: FiserOptions) -> Tensor:
    """P [B, L, D], Eq. (1): CLIP's patch tokens of a batch, its mask tokens, or both."""
    parts = [] if options.visual == "masks" else [clip.patch_tokens(computed.features[-1])]
    if options.visual != "patches":
        parts += computed.masks
    return torch.cat(parts, dim=1)
