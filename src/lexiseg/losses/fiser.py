"""FiSeR, fine-grained semantic reconstruction (FOV-Seg, Eq. 1-6): predict a masked class name from image tokens.

An auxiliary training loss for methods that train a vision transformer CLIP, or mask tokens of one: a predictor receives image
tokens and the names of the classes in the image, one of them masked, and classifies the masked name. It is switched on by
``fiser.weight`` of a recipe (`lexiseg.training.objective`); it is not part of a model and not used at inference.

Letters: B images, L image tokens, K classes present in an image, V training classes, D joint width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from lexiseg.backbones.clip_base import ClipBackbone
from lexiseg.errors import UsageError
from lexiseg.ops.options import NonNegative, PositiveFloat, Width, options
from lexiseg.structures import MaskTarget, TextEmbeddings


@options(frozen=True)
class FiserOptions:
    """Options of `Fiser`."""

    weight: NonNegative = 0.0
    """λ_FiSeR of Eq. (12), weight of the loss; 0: no FiSeR."""
    visual: Literal["patches", "masks", "both"] = "both"
    """P, the image tokens of Eq. (1): CLIP's patch tokens, the tokens of the proposed masks, or patch tokens and, in methods
    with mask tokens, those."""
    words: Literal["names", "tokens"] = "names"
    """O, the text tokens of Eq. (2): a token per class name (its embedding), or a token per word piece."""
    candidates: Literal["training", "image"] = "training"
    """Candidates of Eq. (4) to (6): all training classes, or T, those in the image."""
    temperature: PositiveFloat = 0.07
    """Divisor of the cosines of Eq. (5); 1: none, as the equation reads."""
    learn_temperature: bool = False
    """Whether the temperature is learned, from this value."""
    layers: Annotated[int, Ge(1), Le(1000)] = 2
    """Layers of the predictor."""
    heads: Width = 8
    """Attention heads of the predictor; must divide the joint width of CLIP."""
    identity: bool = True
    """Whether the linear classifier starts as the identity."""


class Fiser(nn.Module):
    """The learnable mask token [M] and the predictor.

    Args:
        clip: determines the widths.
        options: see `FiserOptions`.

    Raises:
        UsageError: ``heads`` does not divide D.
    """

    def __init__(self, clip: ClipBackbone, options: FiserOptions) -> None:
        super().__init__()
        if clip.width % options.heads:
            raise UsageError(f"fiser.heads = {options.heads} does not divide the {clip.width} channels of CLIP's joint space")
        self.options = options
        self.covered = nn.Parameter(0.02 * torch.randn(clip.token_width))  # [M]
        layer = nn.TransformerEncoderLayer(
            clip.width, options.heads, 4 * clip.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.predictor = nn.TransformerEncoder(layer, options.layers, enable_nested_tensor=False)
        self.classifier = nn.Linear(clip.width, clip.width)
        if options.identity:
            nn.init.eye_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)
        scale = torch.tensor(-math.log(options.temperature))
        self.log_scale: nn.Parameter | Tensor
        if options.learn_temperature:
            self.log_scale = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale, persistent=False)

    def forward(
        self, clip: ClipBackbone, image: Tensor, text: TextEmbeddings, targets: Sequence[MaskTarget], chance: Tensor
    ) -> Tensor:
        """Compute the loss, a scalar: the mean over the images; images without classes contribute zero.

        Args:
            clip: encodes the masked names.
            image: image tokens P [B, L, D], not normalised, with gradients.
            text: embeddings of the V training classes.
            targets: ground truth of each image.
            chance: [B] random numbers in 0..1 that select the masked names.
        """
        present = [target.labels.unique() for target in targets]  # T, of K classes
        kept = [number for number, labels in enumerate(present) if len(labels)]
        if not kept:
            return 0.0 * (image.sum() + sum(parameter.sum() for parameter in self.parameters()))
        labels = [present[number] for number in kept]
        masked = [int((chance[n] * len(row)).clamp(max=len(row) - 1)) for n, row in zip(kept, labels, strict=True)]
        classes = text.mean().detach()  # e, pre-computed
        rows, answers = zip(*self._text_tokens(clip, text, classes, labels, masked), strict=True)
        tokens = pad_sequence(list(rows), batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=image.device)
        absent = torch.arange(tokens.shape[1], device=image.device) >= lengths[:, None]
        padding = torch.cat([absent, absent.new_zeros(len(kept), image.shape[1])], dim=1)
        hidden = self.predictor(torch.cat([tokens, image[kept]], dim=1), src_key_padding_mask=padding)  # Eq. (3)
        z = torch.stack([row[answer].mean(0) for row, answer in zip(hidden, answers, strict=True)])
        logits = functional.normalize(self.classifier(z), dim=-1) @ classes.T * self.log_scale.exp()  # Eq. (4), Eq. (5)
        truth = torch.stack([row[position] for row, position in zip(labels, masked, strict=True)])
        if self.options.candidates == "image":
            outside = torch.ones_like(logits, dtype=torch.bool)
            for number, row in enumerate(labels):
                outside[number, row] = False
            logits = logits.masked_fill(outside, -torch.inf)
        loss: Tensor = functional.cross_entropy(logits, truth, reduction="sum") / len(targets)  # Eq. (6)
        return loss

    def _text_tokens(
        self, clip: ClipBackbone, text: TextEmbeddings, classes: Tensor, labels: Sequence[Tensor], masked: Sequence[int]
    ) -> list[tuple[Tensor, slice]]:
        """Text tokens O [N, D] of each image, Eq. (2), and which of them are masked."""
        names = [text.names[int(row[position])] for row, position in zip(labels, masked, strict=True)]
        if self.options.words == "names":
            covered = clip.encode_text(clip.tokenize(names), covered=self.covered)
            parts = zip(labels, masked, covered, strict=True)
            return [
                (
                    torch.cat([classes[row[:position]], vector[None], classes[row[position + 1 :]]]),
                    slice(position, position + 1),
                )
                for row, position, vector in parts
            ]
        covered_words = clip.encode_words(clip.tokenize(names), covered=self.covered)
        every = torch.cat(list(labels)).unique()
        with torch.no_grad():
            words = dict(
                zip(every.tolist(), clip.encode_words(clip.tokenize([text.names[n] for n in every.tolist()])), strict=True)
            )
        rows: list[tuple[Tensor, slice]] = []
        for row, position, own in zip(labels, masked, covered_words, strict=True):
            pieces = [words[label] for label in row.tolist()]
            start = sum(map(len, pieces[:position]))
            pieces[position] = own
            rows.append((torch.cat(pieces), slice(start, start + len(own))))
        return rows
