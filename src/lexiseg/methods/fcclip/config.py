"""Config of FC-CLIP."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Le

from lexiseg.ensembles import Behaviour
from lexiseg.methods.base import MethodConfig, check_heads
from lexiseg.ops.options import Depth, Unit, Width, options


@options(frozen=True)
class FcClipConfig(MethodConfig):
    """Options of `FcClip`; the defaults are the published values (Sec. 4.1 of FC-CLIP; Mask2Former for the decoders)."""

    RUNTIME: ClassVar[frozenset[str]] = MethodConfig.RUNTIME | {"alpha", "beta", "shortest_edge", "longest_edge", "behaviour"}

    templates: str = "vild14"
    """Prompt templates of class names: a set of `lexiseg.text.templates`, or one sentence with ``{}``."""
    num_queries: Width = 250
    """Q, number of queries (masks per image)."""
    hidden_dim: Width = 256
    """Channels of pixel decoder and mask decoder."""
    num_layers: Depth = 9
    """Layers of the mask decoder."""
    num_heads: Width = 8
    """Attention heads of mask decoder and pixel decoder."""
    pixel_decoder_layers: Depth = 6
    """Layers of the deformable encoder in the pixel decoder."""
    pixel_decoder_ffn_dim: Width = 1024
    """Hidden channels of its feed-forward networks."""
    ffn_dim: Width = 2048
    """Hidden channels of the feed-forward networks of the mask decoder."""
    alpha: Unit = 0.4
    """α of Eq. (7) of CMPF: weight of CLIP for seen classes; 0 uses the decoder only."""
    beta: Unit = 0.8
    """β of Eq. (7) of CMPF: weight of CLIP for unseen classes."""
    shortest_edge: Annotated[int, Ge(32), Le(65_535)] | None = 800
    """Shorter side of the resized image, in pixels; None does not resize."""
    longest_edge: Annotated[int, Ge(32), Le(65_535)] = 1333
    """Maximum longer side of it, in pixels."""
    behaviour: Behaviour = "paper"
    """"official" follows the official code where it differs from the paper (`lexiseg.ensembles`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.hidden_dim, self.num_heads, "num_heads")
