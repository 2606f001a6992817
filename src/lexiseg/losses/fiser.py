"""FiSeR, fine-grained semantic reconstruction (FOV-Seg, Eq. 1-6): predict a masked class name from image patches.

An auxiliary training loss for methods that train a vision transformer CLIP: a predictor receives the patches and the names of
the classes in the image, one of them masked, and classifies the masked name. It is not used at inference.

Letters: B images, L patches, K classes present in an image, V training classes, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from lexiseg.backbones.clip_base import ClipBackbone
from lexiseg.structures import MaskTarget, TextEmbeddings

TEMPERATURE = 0.01  # as in mask classification  # [decided]


class Fiser(nn.Module):
    """The learnable mask token [M] and the predictor.

    Args:
        clip: determines the widths; its text tower is not trained.
        layers: layers of the predictor.  # [decided]
        heads: attention heads; must divide D.
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
        """Compute the loss, a scalar: the mean over the images; images without classes contribute zero.

        Args:
            clip: encodes the masked names.
            patches: [B, L, D], not normalised, with gradients.
            text: embeddings of the V training classes, the candidates.
            targets: ground truth of each image.
            chance: [B] random numbers in 0..1 that select the masked names.
        """
        present = [target.labels.unique() for target in targets]
        kept = [number for number, labels in enumerate(present) if len(labels)]
        if not kept:
            return 0.0 * (patches.sum() + sum(parameter.sum() for parameter in self.parameters()))
        positions = torch.stack([(chance[n] * len(present[n])).long().clamp(max=len(present[n]) - 1) for n in kept])
        truth = torch.stack([present[n][position] for n, position in zip(kept, positions, strict=True)])
        names, classes = [text.names[int(label)] for label in truth], text.mean()
        hidden = clip.encode_text(clip.tokenize(names), covered=self.covered)  # Eq. (2)
        rows = [classes[present[n]] for n in kept]
        order = torch.arange(len(kept), device=patches.device)
        tokens = pad_sequence(rows, batch_first=True).index_put((order, positions), hidden)
        lengths = torch.tensor([len(row) for row in rows], device=patches.device)
        absent = torch.arange(tokens.shape[1], device=patches.device) >= lengths[:, None]
        image = patches[kept]  # Eq. (1)
        padding = torch.cat([absent, absent.new_zeros(image.shape[:2])], dim=1)
        predicted = self.predictor(torch.cat([tokens, image], dim=1), src_key_padding_mask=padding)  # Eq. (3)
        guess = functional.normalize(self.classifier(predicted[order, positions]), dim=-1)
        logits = guess @ classes.T / TEMPERATURE  # Eq. (4), Eq. (5)
        loss: Tensor = functional.cross_entropy(logits, truth, reduction="sum") / len(targets)  # Eq. (6)
        return loss
