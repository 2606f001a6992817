"""Points and boxes in an image that a user points with, and SAM's mask of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexiseg.backbones.sam import SamFamily, best_of
from lexiseg.errors import UsageError
from lexiseg.methods.base import in_groups
from lexiseg.ops.progress import report
from lexiseg.structures import MaskPrediction, Size, TextEmbeddings, size_of

PROMPTS_AT_ONCE = 16  # decoded at a time, bounds the memory


@dataclass(frozen=True)
class Prompt:
    """What a user points at.

    Attributes:
        points: P points of one object, or the corners (left, top) and (right, bottom) of a box; (x, y) in pixels of the image.
        is_box: whether they are the corners of a box.
    """

    points: tuple[tuple[float, float], ...]
    is_box: bool = False

    def __str__(self) -> str:
        kind = "box" if self.is_box else "point" if len(self.points) == 1 else "points"
        return f"{kind} {','.join(f'{value:g}' for point in self.points for value in point)}"


@runtime_checkable
class TakesPrompts(Protocol):
    """Protocol of methods that segment and classify what is at given points and boxes."""

    def predict_prompts(self, image: Tensor, prompts: Sequence[Prompt], text: TextEmbeddings) -> MaskPrediction:
        """Predict one mask per prompt, in their order, each independent of the others.

        Args:
            image: [3, H, W], float RGB in 0..1.
            prompts: at least one, inside the image.
            text: K classes.
        """
        ...


def parse_prompts(points: Iterable[Any] | None, boxes: Iterable[Any] | None, size: Size) -> list[Prompt]:
    """Check points and boxes, see `lexiseg.Pipeline.__call__`. Returns the prompts, points first.

    Args:
        points: (x, y) each, or lists of those.
        boxes: (left, top, right, bottom) each.
        size: (height, width) of the image.

    Raises:
        UsageError: there are none, or one is not of numbers, not in the image, or a box without area.
    """
    prompts = [
        *(_prompt(value, size, is_box=False) for value in _listed(points, "points", "[(x, y), …]")),
        *(_prompt(value, size, is_box=True) for value in _listed(boxes, "boxes", "[(left, top, right, bottom), …]")),
    ]
    if not prompts:
        raise UsageError("there are neither points nor boxes: give at least one, or leave both out")
    return prompts


def _listed(values: Iterable[Any] | None, name: str, form: str) -> list[Any]:
    if values is None:
        return []
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UsageError(f"{name} must be a list, {form}, not {values!r:.60}")
    return list(values)


def _prompt(value: Any, size: Size, *, is_box: bool) -> Prompt:
    numbers = _numbers(value)
    if is_box:
        if numbers is None or numbers.shape != (4,):
            raise UsageError(f"a box is (left, top, right, bottom) in pixels, not {value!r:.60}")
        corners = numbers.reshape(2, 2)
    else:
        if numbers is None or numbers.shape[-1:] != (2,) or numbers.ndim > 2 or numbers.size == 0:
            raise UsageError(f"a point is (x, y) in pixels, or a list of several points of one object, not {value!r:.60}")
        corners = numbers.reshape(-1, 2)
    prompt = Prompt(tuple((float(x), float(y)) for x, y in corners), is_box)
    limit = np.array(size[::-1])
    inside = (corners >= 0) & ((corners <= limit) if is_box else (corners < limit))  # false for NaN
    if not inside.all():
        raise UsageError(f"{prompt} is not in the image of {size[1]} × {size[0]} pixels")
    if is_box and not (corners[0] < corners[1]).all():
        raise UsageError(f"{prompt} has no area: write left, top, right, bottom, with left < right and top < bottom")
    return prompt


def _numbers(value: Any) -> NDArray[np.float64] | None:
    """The value as an array; None if it is not of numbers, or ragged."""
    try:
        array = np.asarray(value)
        return array.astype(np.float64) if array.dtype.kind in "iuf" else None
    except (TypeError, ValueError, OverflowError):
        return None


@torch.no_grad()
def prompted_masks(sam: SamFamily, image: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Segment what prompts point at: of the masks SAM predicts for each, the one with the highest predicted IoU.

    Args:
        sam: any SAM.
        image: [3, H, W], float RGB in 0..1.
        prompts: N prompts in pixels of the image.

    Returns:
        Logits [N, m, m], whose geometry is ``sam.geometry(size_of(image))``, and predicted IoU [N].
    """
    report("encode")
    embeddings, skips = sam.encode_with_skips(sam.preprocess(image))

    def decoded(group: Sequence[Prompt]) -> list[tuple[Tensor, Tensor]]:
        points = torch.tensor([prompt.points for prompt in group], dtype=torch.float64)
        pixels = sam.scale_points(points, size_of(image)).float().to(embeddings.device)
        masks: list[tuple[Tensor, Tensor]] = []
        for batch in pixels.split(PROMPTS_AT_ONCE):
            report("points", len(masks), len(group))
            corners = {"boxes": batch.flatten(1)} if group[0].is_box else {"points": batch}
            logits, pred_iou = best_of(*sam.decode(embeddings, skips=skips, multimask=True, **corners))
            masks += zip(logits[:, 0].float(), pred_iou[:, 0].float(), strict=True)
        return masks

    pairs = in_groups(prompts, lambda prompt: (prompt.is_box, len(prompt.points)), decoded)
    return torch.stack([logits for logits, _ in pairs]), torch.stack([pred_iou for _, pred_iou in pairs])
