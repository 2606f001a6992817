"""Config of CAT-Seg, and its base shared with SAM-MI and ESC-Net."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from lexiseg.ensembles import Behaviour
from lexiseg.layers.cost_aggregation import Ranking
from lexiseg.methods.base import MethodConfig, check_heads
from lexiseg.ops.options import Depth, Natural, Positive, Width, options


@options(frozen=True)
class CorrelationConfig(MethodConfig):
    """Options of `lexiseg.methods.correlation.CorrelationSegmenter`."""

    RUNTIME: ClassVar[frozenset[str]] = MethodConfig.RUNTIME | {
        "image_size", "sliding", "max_classes", "ranking", "classes_at_once",
    }  # fmt: skip

    templates: str = "catseg"
    """Prompt templates of class names: a set of `lexiseg.text.templates`, or one sentence with ``{}``."""
    image_size: Annotated[int, Ge(16), Le(65_535)] = 384
    """Side of the square input of CLIP, in pixels; the image and its crops are resized to it."""
    train_image_size: Annotated[int, Ge(16), Le(65_535)] | None = None
    """The same in training. None: ``image_size``."""
    sliding: bool = True
    """Whether to use a sliding window besides the whole image."""
    hidden_dim: Width = 128
    """Channels of the embedded cost volume."""
    num_heads: Width = 4
    """Attention heads."""
    window_size: Width = 12
    """Side of the windows of the Swin blocks, in cells."""
    max_classes: Natural = 256
    """Number of top classes (``ranking``) that are kept in each image; 0 keeps all."""
    ranking: Ranking = "cost"
    """Order of the classes: "cost", by the highest cost in any cell, as the official code of CAT-Seg; "probability", by the
    highest probability in any patch of 2 × 2 cells."""
    classes_at_once: Positive | None = 32
    """Classes processed at once, which bounds the memory; the result is the same. None: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden_dim, self.num_heads, "num_heads")


@options(frozen=True)
class CatSegConfig(CorrelationConfig):
    """Options of `CatSeg`; the defaults are the published values (Sec. 4.1 and the official configuration)."""

    RUNTIME: ClassVar[frozenset[str]] = CorrelationConfig.RUNTIME | {"behaviour"}

    num_layers: Depth = 2
    """Aggregation layers, each over space and over classes."""
    guide_channels: tuple[Width, Width] = (256, 128)
    """Channels of the decoder guides, at twice and four times the resolution of CLIP's features."""
    appearance_dim: Width = 128
    """Channels of the guide over space, CLIP's dense features."""
    text_dim: Width = 128
    """Channels of the guide over classes, the class embeddings."""
    decoder_channels: tuple[Width, Width] = (64, 32)
    """Channels of the two stages of the decoder."""
    decoder_guide_channels: tuple[Width, Width] = (32, 16)
    """Channels of the projected guides in them."""
    pad_classes: bool = True
    """Whether fewer classes than ``max_classes`` are padded with a learned token, in attention over classes."""
    class_attention: Literal["linear", "full"] = "linear"
    """Kind of attention over classes."""
    behaviour: Behaviour = "paper"
    """"official": only the first name of a class is used, and padding of whole images is not removed from the result; "paper":
    costs are those of the best name in every cell, and the guide is the mean of all names."""
