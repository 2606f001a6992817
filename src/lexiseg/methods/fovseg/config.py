"""Config of FOV-Seg."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from lexiseg.methods.maskclip.config import MaskTokenConfig, Tuned
from lexiseg.ops.options import Positive, Width, options


@options(frozen=True)
class FovSegConfig(MaskTokenConfig):
    """Options of `FovSeg`; the defaults are the published values (Sec. V-C)."""

    RUNTIME: ClassVar[frozenset[str]] = MaskTokenConfig.RUNTIME

    clip_image_size: Annotated[int, Ge(16), Le(65_535)] = 896
    """Side of the square input of CLIP, in pixels; position embeddings are resized bilinearly."""
    shortest_edge: Annotated[int, Ge(32), Le(65_535)] | None = 800
    """Shorter side of the image in the mask proposer, in pixels; None does not resize."""
    longest_edge: Annotated[int, Ge(32), Le(65_535)] = 1333
    """Maximum longer side of it, in pixels."""
    masks_at_once: Positive | None = None
    """Masks processed at once; each chunk recomputes the keys and values of the image. None: all."""
    teva: bool = True
    """Whether mask tokens attend to the class embeddings, Eq. (9) and (10)."""
    teva_bottleneck: Width = 64
    """Channels of that attention."""
    teva_update: Literal["query", "replace", "add"] = "query"
    """Where class embeddings enter: "query" adds them to the mask token in the query of the mask-image attention only, Eq. (7);
    "replace" makes them that query, Eq. (9) literally; "add" adds them to the mask token for good."""
    teva_shared: bool = False
    """Whether all blocks use the same g_q, g_k, g_v."""
    class_token: Literal["always", "empty"] = "always"
    """Which mask tokens also attend to the class token: all (MaskCLIP), or those of masks that touch no patch, Eq. (11)."""
    adapter_layers: Annotated[int, Ge(0), Le(3)] = 2
    """Convolutions of the distribution adapter (Table IV); 0: no adapter."""
    tuned: tuple[Tuned, ...] = ("f_q",)
    """See `MaskTokenConfig`; the paper's choice."""
