"""FiSeR, fine-grained semantic reconstruction (FOV-Seg, Eq. 1-6): which of a picture's names was covered up?

A loss that any method may add whose CLIP is a vision transformer that learns: a predictor sees the patches and the names that
are there, one of them covered, and says which it was. It teaches the patches what they show, and is of no use afterwards.

Letters: B images, L patches, K names there in an image, V names of the training, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from lexiseg.backbones.clip_base import ClipBackbone
from lexiseg.structures import MaskTarget, TextEmbeddings

TEMPERATURE = 0.01  # as of the classes of masks  # [decided]


class Fiser(nn.Module):
    """The learnable [M] and the predictor.

    Args:
        clip: its text tower stays as it is.
        layers: of the predictor.  # [decided]
        heads: of each layer; D is a multiple.
    """

    def __init__(self, clip: ClipBackbone, layers: int = 2, heads: int = 8) -> None:
        super().__init__()
        self.covered = nn.Parameter(0.02 * torch.randn(clip.token_width))  # [M]
        layer = nn.TransformerEncoderLayer(
            clip.width, heads, 4 * clip.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.predictor = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.classifier = nn.Linear(clip.width, clip.width)

    def forward(
        self, clip: ClipBackbone, patches: Tensor, text: TextEmbeddings, targets: Sequence[MaskTarget], chance: Tensor
    ) -> Tensor:
        """The loss, a scalar: the mean over the images, of which those without names add nothing.

        Args:
            clip: see above.
            patches: [B, L, D] of any length, with gradients.
            text: the V names of the training, the candidates.
            targets: what is in each image.
            chance: [B], in 0..1, draws the name that is covered.
        """
        there = [target.labels.unique() for target in targets]
        kept = [number for number, labels in enumerate(there) if len(labels)]
        if not kept:
            return 0.0 * (patches.sum() + sum(parameter.sum() for parameter in self.parameters()))
        places = torch.stack([(chance[n] * len(there[n])).long().clamp(max=len(there[n]) - 1) for n in kept])
        truth = torch.stack([there[n][place] for n, place in zip(kept, places, strict=True)])
        names, classes = [text.names[int(label)] for label in truth], text.mean()
        hidden = clip.encode_text(clip.tokenize(names), covered=self.covered)  # Eq. (2)
        rows = [classes[there[n]] for n in kept]
        order = torch.arange(len(kept), device=patches.device)
        tokens = pad_sequence(rows, batch_first=True).index_put((order, places), hidden)
        lengths = torch.tensor([len(row) for row in rows], device=patches.device)
        absent = torch.arange(tokens.shape[1], device=patches.device) >= lengths[:, None]
        seen = patches[kept]  # Eq. (1)
        blocked = torch.cat([absent, absent.new_zeros(seen.shape[:2])], dim=1)
        predicted = self.predictor(torch.cat([tokens, seen], dim=1), src_key_padding_mask=blocked)  # Eq. (3)
        guess = functional.normalize(self.classifier(predicted[order, places]), dim=-1)
        logits = guess @ classes.T / TEMPERATURE  # Eq. (4), Eq. (5)
        loss: Tensor = functional.cross_entropy(logits, truth, reduction="sum") / len(targets)  # Eq. (6)
        return loss
