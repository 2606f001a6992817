"""LoRA (Hu et al., ICLR 2022): low-rank updates of the attention projections of a vision transformer CLIP."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lexiseg.backbones.clip_vit import ClipViT


class LowRank(nn.Module):
    """Parametrisation W -> W + B A of each of ``groups`` equal row blocks of a weight; zero at initialisation.

    Args:
        weight: [groups · R, C].
        rank: rows of A, columns of B.
        groups: number of projections that the weight packs.
    """

    def __init__(self, weight: Tensor, rank: int, groups: int) -> None:
        super().__init__()
        rows, columns = len(weight) // groups, weight.shape[1]
        self.down = nn.Parameter(torch.randn(groups, rank, columns, device=weight.device) * columns**-0.5)  # A
        self.up = nn.Parameter(torch.zeros(groups, rows, rank, device=weight.device))  # B

    def forward(self, weight: Tensor) -> Tensor:
        """Compute the updated weight."""
        return weight + (self.up @ self.down).flatten(0, 1)


def add_low_rank(clip: ClipViT, rank: int) -> None:
    """Add updates of rank ``rank`` to the query, key, value and output projections of all blocks of the image tower."""
    for module, name, groups in clip.attention_weights():
        parametrize.register_parametrization(module, name, LowRank(getattr(module, name), rank, groups))


def low_rank_parameters(clip: ClipViT) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter of the updates of `add_low_rank`."""
    for name, module in clip.named_modules():
        if isinstance(module, LowRank):
            yield from ((f"{name}.{key}", parameter) for key, parameter in module.named_parameters())
