"""Config of MaskCLIP, and its base shared with FOV-Seg."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from lexiseg.ensembles import Behaviour
from lexiseg.methods.base import MethodConfig
from lexiseg.ops.options import Natural, Positive, Unit, options

Tuned = Literal["f_q", "f_k", "f_v", "mlp", "all"]


@options(frozen=True)
class MaskTokenConfig(MethodConfig):
    """Options of methods with one class token of CLIP per mask."""

    RUNTIME: ClassVar[frozenset[str]] = MethodConfig.RUNTIME | {
        "clip_image_size", "shortest_edge", "longest_edge", "masks_at_once"
    }  # fmt: skip

    clip_image_size: Annotated[int, Ge(16), Le(65_535)] = 336
    """Side of the square input of CLIP, in pixels."""
    shortest_edge: Annotated[int, Ge(32), Le(65_535)] | None = 640
    """Shorter side of the image in the mask proposer, in pixels; None does not resize."""
    longest_edge: Annotated[int, Ge(32), Le(65_535)] = 2560
    """Maximum longer side of it, in pixels."""
    templates: str = "none"
    """Prompt templates of class names: a set of `lexiseg.text.templates`, or a sentence with ``{}``. Published: names alone."""
    object_threshold: Unit = 0.3
    """Score that a query must exceed to be a panoptic segment (official configuration for ADE20K)."""
    overlap_threshold: Unit = 0.5
    """Minimum fraction of its mask that a panoptic segment must retain (official configurations)."""
    masks_at_once: Positive | None = 25
    """Masks processed at once, which bounds the memory; the result is the same. None: all."""
    tuned: tuple[Tuned, ...] = ()
    """What is trained of CLIP's image tower: query, key or value projections of all blocks, the MLPs, or all of it (Table IV c
    of FOV-Seg)."""
    lora_rank: Annotated[int, Ge(0), Le(2**16)] = 0
    """Rank of low-rank updates of the attention projections (LoRA), which are trained in place of ``tuned`` (Table IV g); 0: no
    updates."""
    void: Literal["none", "word", "vector"] = "word"
    """"No object": "word" is CLIP's embedding of "other", a further class in training only, as in the official code; "vector"
    is a learned vector, a further class in training and at inference."""


@options(frozen=True)
class MaskClipConfig(MaskTokenConfig):
    """Options of `MaskClip`; the defaults are the published values (Sec. 4.2 and the official configuration)."""

    RUNTIME: ClassVar[frozenset[str]] = MaskTokenConfig.RUNTIME | {"behaviour", "mask2former_rules"}

    relative_blocks: tuple[Natural, ...] = (5, 11, 17, 23)
    """Blocks with relative mask attention, from 0; an empty tuple is plain mask attention."""
    mask2former_rules: bool = False
    """Whether post-processing follows Mask2Former's code where that differs from ours (`postprocess.Policy`)."""
    behaviour: Behaviour = "paper"
    """"official" excludes the last class from semantic results, as the official code, which mistakes it for "no object". (The
    same mistake shifts labels of its instances; that is not repeated.)"""
