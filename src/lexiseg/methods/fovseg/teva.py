"""TeVA, the text-guided visual aligner (Sec. IV, Eq. 7-11): modules that extend CLIP's attention of mask tokens.

Letters: B images, m masks, n patches, t target classes, C channels of CLIP's tokens, D joint width.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from lexiseg.structures import Size

HIDDEN = 16  # channels between the adapter's convolutions  # [decided]


class MaskTargetAttention(nn.Module):
    """Cross-attention of mask tokens to target classes, in a bottleneck.  # [decided]

    Args:
        width: C.
        joint: D.
        bottleneck: channels of queries, keys and values (g_q, g_k, g_v); a multiple of ``heads``.
        heads: attention heads.
        zero: whether the output is zero at initialisation.
    """

    def __init__(self, width: int, joint: int, bottleneck: int = 64, heads: int = 4, *, zero: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, bottleneck)  # g_q
        self.key, self.value = nn.Linear(joint, bottleneck), nn.Linear(joint, bottleneck)  # g_k, g_v
        self.output = nn.Linear(bottleneck, width)
        if zero:
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Compute the update of tokens [B, m, C] from targets [t, D]."""
        projected = (
            self.query(self.norm(tokens)),
            self.key(targets).expand(len(tokens), -1, -1),
            self.value(targets),
        )  # Eq. (10)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in projected)
        attended = functional.scaled_dot_product_attention(query, key, value.expand_as(key))  # Eq. (9)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class DistributionAdapter(nn.Module):
    """Distribution adapter: attention bias of each patch from mask logits; zero at initialisation.

    Args:
        layers: number of convolutions, 1 to 3 (Table IV f).
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
        """Map mask logits [B, m, H, W] to attention biases of the patches, [B, m, h, w]."""
        adapted = self.layers(masks.sigmoid().flatten(0, 1).unsqueeze(1))
        resized = functional.interpolate(adapted, grid, mode="bilinear", align_corners=False)
        return resized.squeeze(1).unflatten(0, masks.shape[:2])


def bias_of(adapted: Tensor) -> Tensor:
    """Prepend a zero bias of the class token to biases of the patches: [B, m, h, w] -> [B, m, 1 + h · w]."""
    return functional.pad(adapted.flatten(2), (1, 0))
