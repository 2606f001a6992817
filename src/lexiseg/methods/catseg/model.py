"""CAT-Seg (Cho et al., "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation", CVPR 2024).

How alike each cell of CLIP's dense features and each class are makes a cost volume, which is refined over space and over
classes and decoded pixel by pixel. CLIP is tuned along the way, in the query and value projections of both its towers.

    dense features   values of CLIP's last block, the class token as residual           `backbones/clip_vit.py`
    costs            cosines of cells and classes; the way of a picture through them    `methods/correlation.py`
    aggregation      of the costs, over space and over classes; decoder                 `layers/cost_aggregation.py`
    guides           CLIP's maps after the first and the second third of its blocks, enlarged here
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.layers.cost_aggregation import CostAggregation
from lexiseg.methods.catseg.config import CatSegConfig
from lexiseg.methods.correlation import CorrelationSegmenter, CostVolume
from lexiseg.structures import Trace

POOLING = 2  # cells a side that are one in attention over classes, in training


class CatSeg(CorrelationSegmenter):
    """Cost aggregation on a CLIP with a vision transformer.

    Args:
        clip: tuned by the recipe, in the query and value projections of both towers.
        config: sizes of the aggregation.
    """

    key = "catseg"
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
        logits: Tensor = self.aggregation(volume.cost, volume.classes, volume.dense, guides, pooling=pooling)
        return logits


def guide_upsampling(clip: ClipViT, config: CatSegConfig) -> nn.ModuleList:
    """Transposed convolutions that bring CLIP's levels to two and four times their resolution."""
    sizes = zip(clip.channels, config.guide_channels, (2, 4), strict=False)
    return nn.ModuleList(nn.ConvTranspose2d(channels, own, factor, factor) for channels, own, factor in sizes)


def upsampled(layers: nn.ModuleList, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The guides of the decoder, [B, G, 2h, 2w] and [B, G', 4h, 4w], of CLIP's levels."""
    second, first = (layer(level) for layer, level in zip(layers, levels, strict=True))
    return second, first


def cost_aggregation(clip: ClipViT, config: CatSegConfig) -> CostAggregation:
    """The aggregation of a config, over the features of a CLIP."""
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
        max_classes=config.max_classes,
        pad_classes=config.pad_classes,
        attention=config.class_attention,
        classes_at_once=config.classes_at_once,
    )
