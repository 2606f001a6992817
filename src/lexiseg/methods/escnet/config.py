"""ESC-Net's options."""

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
    """Pixels a side of what CLIP looks at; the picture is squeezed into such a square."""
    sliding: bool = False
    """Whether crops are looked at, too; the paper looks at the whole picture only."""
    max_classes: Natural = 0
    """Of more classes those are kept in each image that come closest to one of its cells; 0 keeps all."""
    num_blocks: Depth = 4
    """N, ESC blocks."""
    num_regions: Width = 5
    """O, pseudo points and masks of a class."""
    threshold: Unit = 0.5
    """α, probability from which on a cell belongs to a class's pseudo masks."""
    prompts: tuple[Prompt, ...] = ("points", "masks")
    """Kinds of prompts that are used (Table 3)."""
    probability: Probability = "classes"
    """What the softmax of the correlations is over."""
    sam_blocks: SamBlocks = "pretrained"
    """Blocks of SAM's decoder (Table 2): "pretrained"; "random": the same architecture, not trained; "none": images are not
    refined, and there are no prompts."""
    decoder_channels: tuple[Width, Width] = (64, 32)
    """Channels after each upsampling of the decoder."""
    skip_channels: tuple[Width, Width] = (32, 16)
    """Channels of what CLIP adds to them."""
