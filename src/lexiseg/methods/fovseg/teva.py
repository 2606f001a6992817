"""TeVA, the text-guided visual aligner (Sec. IV, Eq. 7-11): what mask tokens do beside CLIP's own attention.

Letters: B images, m masks, n patches, t target classes, C channels of CLIP's tokens, D joint width.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from lexiseg.structures import Size

HIDDEN = 16  # channels between the adapter's convolutions  # [decided]


class MaskTargetAttention(nn.Module):
    """Mask tokens ask the target classes, in a bottleneck; it says nothing before it has learnt.  # [decided]

    Args:
        width: C.
        joint: D.
        bottleneck: width of g_q, g_k and g_v together; a multiple of ``heads``.
        heads: of the attention.
    """

    def __init__(self, width: int, joint: int, bottleneck: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, bottleneck)  # g_q
        self.key, self.value = nn.Linear(joint, bottleneck), nn.Linear(joint, bottleneck)  # g_k, g_v
        self.output = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """What is added to tokens [B, m, C], of targets [t, D]."""
        given = self.query(self.norm(tokens)), self.key(targets).expand(len(tokens), -1, -1), self.value(targets)  # Eq. (10)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in given)
        asked = functional.scaled_dot_product_attention(query, key, value.expand_as(key))  # Eq. (9)
        output: Tensor = self.output(asked.transpose(1, 2).flatten(2))
        return output


class DistributionAdapter(nn.Module):
    """Masks, which are no pictures, brought to CLIP: a bias of each patch, zero before it has learnt.

    Args:
        layers: convolutions, 1 to 3 (Table IV f).
    """

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        channels = [1, *[HIDDEN] * (layers - 1), 1]
        convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels)]
        nn.init.zeros_(convolutions[-1].weight)
        nn.init.zeros_(convolutions[-1].bias)  # type: ignore[arg-type]
        steps = [module for convolution in convolutions for module in (convolution, nn.GELU())]
        self.layers = nn.Sequential(*steps[:-1])

    def forward(self, masks: Tensor, grid: Size) -> Tensor:
        """Mask logits [B, m, H, W] -> [B, m, h, w], to be added to the scores of the patches."""
        adapted = self.layers(masks.sigmoid().flatten(0, 1).unsqueeze(1))
        resized = functional.interpolate(adapted, grid, mode="bilinear", align_corners=False)
        return resized.squeeze(1).unflatten(0, masks.shape[:2])


def bias_of(adapted: Tensor) -> Tensor:
    """The bias of the patches [B, m, h, w] with that of the class token, none, in front: [B, m, 1 + h · w]."""
    return functional.pad(adapted.flatten(2), (1, 0))
