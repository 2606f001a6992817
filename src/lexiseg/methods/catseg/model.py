"""CAT-Seg (Cho et al., "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation", CVPR 2024).

The cosine similarities of CLIP's dense features and class embeddings form a cost volume, which is aggregated over space and
over classes and decoded to class logits. Training fine-tunes the query and value projections of both towers of CLIP.

    dense features   values of CLIP's last block, with the class token as residual      `backbones/clip_vit.py`
    cost volume      cosine similarities, sliding window                                `methods/correlation.py`
    aggregation      over space and over classes; decoder                               `layers/cost_aggregation.py`
    guides           upsampled features after the first and second third of CLIP's blocks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.layers.cost_aggregation import CostAggregation, Embedding
from lexiseg.methods.catseg.config import CatSegConfig
from lexiseg.methods.correlation import CorrelationSegmenter, CostVolume
from lexiseg.structures import Trace

POOLING = 2  # factor of average pooling in attention over classes, in training


class CatSeg(CorrelationSegmenter):
    """CAT-Seg on a vision transformer CLIP.

    Args:
        clip: fine-tuned by the recipe, in the query and value projections of both towers.
        config: options of the model.
    """

    key = "catseg"
    reference = 'Cho et al.: "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation", CVPR 2024'
    config: CatSegConfig

    def __init__(self, clip: ClipViT, config: CatSegConfig = CatSegConfig()) -> None:
        super().__init__(clip, config)
        self.behaviour = config.behaviour
        self.upsample = guide_upsampling(clip, config)
        self.aggregation = cost_aggregation(clip, config)

    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip, "upsample": self.upsample, "aggregation": self.aggregation}

    def decode_in_training(self, volume: CostVolume) -> Tensor:
        return self._aggregated(volume, pooling=POOLING)

    def decode(self, volume: CostVolume, _trace: Trace | None = None, /) -> Tensor:
        return self._aggregated(volume)

    def _aggregated(self, volume: CostVolume, *, pooling: int = 1) -> Tensor:
        guides = upsampled(self.upsample, volume.levels)
        kept = self.nearest(volume.cost)
        logits: Tensor = self.aggregation(volume.cost, volume.classes, volume.dense, guides, kept=kept, pooling=pooling)
        return logits


def guide_upsampling(clip: ClipViT, config: CatSegConfig) -> nn.ModuleList:
    """Transposed convolutions that upsample CLIP's levels by two and four."""
    sizes = zip(clip.channels, config.guide_channels, (2, 4), strict=False)
    return nn.ModuleList(nn.ConvTranspose2d(inputs, outputs, factor, factor) for inputs, outputs, factor in sizes)


def upsampled(layers: nn.ModuleList, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Upsample CLIP's levels to the decoder guides [B, G, 2h, 2w] and [B, G', 4h, 4w]."""
    second, first = (layer(level) for layer, level in zip(layers, levels, strict=True))
    return second, first


def cost_aggregation(
    clip: ClipViT, config: CatSegConfig, *, embedding: Embedding = "conv", guide_values: bool = False
) -> CostAggregation:
    """Build the cost aggregation of a config for a CLIP; the other options are those of SAM-MI."""
    return CostAggregation(
        clip.width,
        config.guide_channels,
        width=config.hidden_dim,
        appearance=config.appearance_dim,
        text=config.text_dim,
        decoder=config.decoder_channels,
        decoder_guides=config.decoder_guide_channels,
        layers=config.num_layers,
        heads=config.num_heads,
        window=config.window_size,
        length=config.max_classes if config.pad_classes else 0,
        attention=config.class_attention,
        embedding=embedding,
        guide_values=guide_values,
        classes_at_once=config.classes_at_once,
    )
