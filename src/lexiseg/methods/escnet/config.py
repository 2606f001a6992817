"""Config of ESC-Net."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from lexiseg.methods.catseg.config import CorrelationConfig
from lexiseg.methods.escnet.prompts import MaskPrompts, Probability
from lexiseg.ops.options import Depth, Natural, Unit, Width, options

SamBlocks = Literal["pretrained", "random", "none"]
Prompt = Literal["points", "boxes", "masks"]
Guidance = Literal["class", "cell", "mean"]


@options(frozen=True)
class EscNetConfig(CorrelationConfig):
    """Options of `EscNet`; the defaults are the published values (Sec. 4.3), and of the ways to read the paper those that
    docs/methods/escnet.md compares and prefers."""

    RUNTIME: ClassVar[frozenset[str]] = CorrelationConfig.RUNTIME | {
        "num_regions", "threshold", "probability", "normalise",
    }  # fmt: skip

    image_size: Annotated[int, Ge(16), Le(65_535)] = 336
    """Side of the square input of CLIP, in pixels; the image is resized to it."""
    sliding: bool = False
    """Whether to use a sliding window besides the whole image; the paper does not."""
    max_classes: Natural = 0
    """Number of top classes (``ranking``) that are kept in each image; 0 keeps all."""
    num_blocks: Depth = 4
    """N, number of ESC blocks."""
    num_regions: Width = 5
    """O, number of pseudo points and masks per class."""
    threshold: Unit = 0.5
    """α, probability threshold of the pseudo masks."""
    prompts: tuple[Prompt, ...] = ("points", "masks")
    """Kinds of prompts (Table 3)."""
    mask_prompts: MaskPrompts = "union"
    """P_dense of a class (Sec. 3.3): "union", SAM's embedding of its pseudo masks together ("dense prompt features P_dense^n",
    in the singular); "mean", the mean of the embeddings of its O pseudo masks ("N_o pseudo masks are generated").
    # [decided]"""
    probability: Probability = "classes"
    """Axis of the softmax of the pseudo prompts' probabilities: "classes" or "space" (Sec. 3.3: "a softmax operation to the
    correlation map C_vl^n ∈ R^(1×H×W) for each n-th class").  # [decided]"""
    normalise: bool = False
    """Whether each class's probabilities are normalised to 0..1 over the cells. If not ("a predefined threshold value α"), a
    class that is below α everywhere has no points and an empty mask.  # [decided]"""
    guidance: Guidance = "class"
    """F'_v of Eq. (2), which a concatenation of all classes would tie to their number: "class", each class is guided by its own
    (F_v^n)' (Sec. 3.5: "batch-level parallel operations for all classes, similar to the SAM block"); "cell", all by one map,
    of each cell the mean weighted by the class probabilities there; "mean", the plain mean (Sec. 3.1: "class-agnostic").
    # [decided]"""
    bypass: bool = False
    """Whether F_v is added to F'_v; Eq. (2) does not, and SAM's block has a residual of its own."""
    guide_values: bool = True
    """Whether the values of the Swin blocks' attention see the guide, too (Sec. 3.5: C_e^n "is then concatenated with F'_v and
    used as input to the transformer block"), and not queries and keys alone, as in CAT-Seg ("similar to CAT-Seg")."""
    num_swin_blocks: Annotated[int, Ge(1), Le(2)] = 2
    """Swin blocks of each fusion: 2 as in CAT-Seg, or 1 ("the transformer block").  # [decided]"""
    sam_blocks: SamBlocks = "pretrained"
    """Blocks of SAM's decoder (Table 2): "pretrained"; "random", the same architecture with random weights; "none", without
    image refinement and prompts."""
    decoder_channels: tuple[Width, Width] = (64, 32)
    """Channels after each upsampling of the decoder."""
    skip_channels: tuple[Width, Width] = (32, 16)
    """Channels of CLIP's skip connections to them."""
