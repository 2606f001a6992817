"""Config of Grounded-SAM."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from lexiseg.methods.base import MethodConfig
from lexiseg.ops.options import Positive, Unit, options


@options(frozen=True)
class GroundedSamConfig(MethodConfig):
    """Options of `GroundedSam`; all may be changed, as nothing is trained."""

    RUNTIME: ClassVar[frozenset[str]] = MethodConfig.RUNTIME | {
        "shortest_edge", "longest_edge", "names_per_prompt", "name_score", "box_threshold", "text_threshold", "nms_threshold",
        "class_nms_threshold", "max_boxes", "multimask", "boxes_per_batch"
    }  # fmt: skip

    templates: Literal["none"] = "none"
    """Only "none": Grounding DINO reads bare names."""
    shortest_edge: Annotated[int, Ge(32), Le(65_535)] = 800
    """Shorter side of the input of Grounding DINO, in pixels."""
    longest_edge: Annotated[int, Ge(32), Le(65_535)] = 1333
    """Maximum longer side of it, in pixels."""
    names_per_prompt: Positive | None = None
    """Maximum number of names in a prompt; None: as many as its tokens allow."""
    name_score: Literal["mean", "max"] = "mean"
    """Score of a name: "mean" of the probabilities of its tokens (official evaluation on COCO), or their "max"."""
    box_threshold: Unit = 0.3
    """Keep boxes with a token whose probability is above this (Grounded-SAM's demo; others take 0.25 to 0.35)."""
    text_threshold: Unit = 0.25
    """A name counts for a box if the probability of one of its tokens is above this (Grounded-SAM's demo)."""
    nms_threshold: Unit = 0.8
    """IoU above which the worse of two boxes is removed, whatever their names (Grounded-SAM's simple demo)."""
    class_nms_threshold: Unit = 0.7
    """IoU above which the worse of two boxes of the same class is removed; synonyms and prompts detect objects repeatedly."""
    max_boxes: Annotated[int, Ge(1), Le(10_000)] = 300
    """Maximum number of boxes per image (official evaluation on COCO)."""
    multimask: bool = False
    """Whether to take, of several masks of a box, the one with the best predicted IoU, instead of SAM's single mask."""
    boxes_per_batch: Positive = 64
    """Boxes decoded at a time; affects memory, not the result."""
