"""Config of ESC-Net."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from lexiseg.methods.catseg.config import CorrelationConfig
from lexiseg.methods.escnet.prompts import Probability
from lexiseg.ops.options import Depth, Natural, Unit, Width, options

SamBlocks = Literal["pretrained", "random", "none"]
Prompt = Literal["points", "boxes", "masks"]


@options(frozen=True)
class EscNetConfig(CorrelationConfig):
    """Options of `EscNet`; the defaults are the published values (Sec. 4.3)."""

    RUNTIME: ClassVar[frozenset[str]] = CorrelationConfig.RUNTIME | {"num_regions", "threshold", "probability"}

    image_size: Annotated[int, Ge(16), Le(65_535)] = 336
    """Side of the square input of CLIP, in pixels; the image is resized to it."""
    sliding: bool = False
    """Whether to use a sliding window besides the whole image; the paper does not."""
    max_classes: Natural = 0
    """Number of top classes (by their highest cost) that are kept in each image; 0 keeps all."""
    num_blocks: Depth = 4
    """N, number of ESC blocks."""
    num_regions: Width = 5
    """O, number of pseudo points and masks per class."""
    threshold: Unit = 0.5
    """α, probability threshold of the pseudo masks."""
    prompts: tuple[Prompt, ...] = ("points", "masks")
    """Kinds of prompts (Table 3)."""
    probability: Probability = "classes"
    """Axis of the softmax of the correlations."""
    sam_blocks: SamBlocks = "pretrained"
    """Blocks of SAM's decoder (Table 2): "pretrained"; "random", the same architecture with random weights; "none", without
    image refinement and prompts."""
    decoder_channels: tuple[Width, Width] = (64, 32)
    """Channels after each upsampling of the decoder."""
    skip_channels: tuple[Width, Width] = (32, 16)
    """Channels of CLIP's skip connections to them."""
