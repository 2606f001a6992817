"""Options of CAT-Seg, and those it shares with SAM-MI and ESC-Net."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from lexiseg.ensembles import Behaviour
from lexiseg.methods.base import MethodConfig, check_heads
from lexiseg.ops.options import Depth, Natural, Positive, Width, options


@options(frozen=True)
class CorrelationConfig(MethodConfig):
    """Options of `lexiseg.methods.correlation.CorrelationSegmenter`."""

    RUNTIME: ClassVar[frozenset[str]] = MethodConfig.RUNTIME | {"image_size", "sliding", "max_classes", "classes_at_once"}

    templates: str = "catseg"
    """Prompts that class names are embedded with: a set of `lexiseg.text.templates`, or one sentence with ``{}``."""
    image_size: Annotated[int, Ge(16), Le(65_535)] = 384
    """Pixels a side of what CLIP looks at; the picture and its crops are squeezed into such squares."""
    sliding: bool = True
    """Whether crops are looked at, too; else the whole picture only."""
    hidden_dim: Width = 128
    """Channels of the cost volume."""
    num_heads: Width = 4
    """Attention heads."""
    window_size: Width = 12
    """Side of the windows of the Swin blocks, in cells."""
    max_classes: Natural = 256
    """Of more classes those are kept in each image that come closest to one of its cells; 0 keeps all."""
    classes_at_once: Positive | None = 32
    """Classes processed at a time, which bounds the memory; the result is the same. None takes all at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden_dim, self.num_heads, "num_heads")


@options(frozen=True)
class CatSegConfig(CorrelationConfig):
    """Options of `CatSeg`; the defaults are the published values (Sec. 4.1 and the official configuration)."""

    RUNTIME: ClassVar[frozenset[str]] = CorrelationConfig.RUNTIME | {"behaviour"}

    num_layers: Depth = 2
    """Layers of the aggregation, each over space and over classes."""
    guide_channels: tuple[Width, Width] = (256, 128)
    """Channels of the decoder's guides, of twice and four times the resolution of CLIP's features."""
    appearance_dim: Width = 128
    """Channels of the guide over space, CLIP's dense features."""
    text_dim: Width = 128
    """Channels of the guide over classes, the class embeddings."""
    decoder_channels: tuple[Width, Width] = (64, 32)
    """Channels of the two stages of the decoder."""
    decoder_guide_channels: tuple[Width, Width] = (32, 16)
    """Channels of the guides inside them."""
    pad_classes: bool = True
    """Whether fewer classes than ``max_classes`` are filled up with a learnt one, in attention over classes."""
    class_attention: Literal["linear", "full"] = "linear"
    """Attention over classes."""
    behaviour: Behaviour = "paper"
    """"official": the first name of a class only, and a picture that is seen whole is padded without taking the padding out
    again; else the best name counts in every cell, and the mean of all guides."""
