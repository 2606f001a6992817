"""MobileSAM (Zhang et al., "Faster Segment Anything", 2023): SAM with a TinyViT as image encoder.

The trunk is timm's TinyViT-5M (Wu et al., 2022) except that the last stage does not downsample, so the encoder has SAM's
output stride of 16. Neck, prompt encoder and mask decoder are SAM's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lexiseg.backbones.sam import SamBackbone, Skips

STRIDE, CHANNELS = 16, 256
TRUNK: dict[str, Any] = {
    "embed_dims": (64, 128, 160, 320),
    "depths": (2, 2, 6, 2),
    "num_heads": (2, 4, 5, 10),
    "window_sizes": (7, 7, 14, 7),
}


class TinyViTEncoder(nn.Module):
    """Image encoder, images [B, 3, S, S] -> embeddings [B, 256, S / 16, S / 16]; S is any multiple of 16."""

    def __init__(self) -> None:
        from timm.models.tiny_vit import TinyVit
        from transformers.models.sam.modeling_sam import SamVisionConfig, SamVisionNeck

        super().__init__()
        self.trunk: Any = TinyVit(num_classes=0, drop_path_rate=0.0, **TRUNK)
        self.trunk.head = nn.Identity()
        self.trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = SamVisionNeck(SamVisionConfig(hidden_size=TRUNK["embed_dims"][-1], output_channels=CHANNELS))
        self.trunk.register_load_state_dict_post_hook(_forget_biases)

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.neck(self.trunk.forward_features(images).permute(0, 2, 3, 1))
        return embeddings


def _forget_biases(trunk: nn.Module, _: Any) -> None:
    """Clear timm's cache of position biases, which setting the mode does."""
    trunk.train(trunk.training)


class MobileSamBackbone(SamBackbone):
    """MobileSAM; ``model`` is transformers' SAM with a `TinyViTEncoder`."""

    def encode_with_skips(self, images: Tensor) -> tuple[Tensor, Skips]:
        return self.model.vision_encoder(images), ()
