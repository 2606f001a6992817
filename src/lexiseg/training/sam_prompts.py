"""Random prompts on scenes of the emoji world, for training the tiny SAM.

Each prompt is on a random visible region, thing or stuff: a point inside it, possibly with a second one inside or outside,
or its box with noise. A correction adds a click where the predicted mask is wrong, and the mask itself as a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.training.tiny import SceneBatch

CELL = 4  # stride of the masks, in input pixels
MIN_PIXELS = 40  # area of the smallest region that is prompted
POSITIVE, NEGATIVE, CORNERS, PADDING = 1, 0, (2, 3), -10  # SAM's point labels


@dataclass(frozen=True)
class Prompts:
    """N prompts of at most two points on each of B images.

    Attributes:
        points: [B, N, 2, 2], (x, y) in pixels.
        labels: [B, N, 2], SAM's point labels.
        masks: [B, N, m, m], the fraction in 0..1 of each cell that the true region covers.
        singles: number of leading prompts with a single point.
        given: [B, N, m, m], logits of a mask prompt, or None.
    """

    points: Tensor
    labels: Tensor
    masks: Tensor
    singles: int
    given: Tensor | None = None


def prompts_on(batch: SceneBatch, count: int) -> Prompts:
    """Draw random prompts: half are a single click; of the others 60 % are a box with noise and 40 % two clicks.

    The second of two clicks is inside or outside the region. 70 % of the regions are things.
    """
    masks = batch.masks()
    number, _, height, width = masks.shape
    device, rows = masks.device, torch.arange(number, device=masks.device)[:, None]
    area = masks.flatten(2).sum(-1)
    eligible = area >= MIN_PIXELS
    things = batch.things() & eligible
    weights = 0.3 * eligible / eligible.sum(1, keepdim=True) + 0.7 * things / things.sum(1, keepdim=True).clamp(min=1)
    chosen = torch.multinomial(weights, count, replacement=True)  # [B, N]

    # Pixels sorted by segment, so that a random pixel of a segment is a random rank.
    order = batch.ids.flatten(1).argsort(dim=1)
    starts = area.cumsum(1) - area
    first, size = starts.gather(1, chosen), area.gather(1, chosen)

    def pixels(rank: Tensor) -> Tensor:
        index = order.gather(1, rank)
        return torch.stack([index % width, index // width], dim=-1) + 0.5

    def random_rank(size: Tensor) -> Tensor:
        return (torch.rand(size.shape, device=device) * size).long().minimum((size - 1).clamp(min=0))

    inside = pixels(first + random_rank(size))
    rest = height * width - size
    outside = pixels((first + size + random_rank(rest)) % (height * width))
    points = torch.stack([inside, pixels(first + random_rank(size))], dim=2)
    labels = torch.full((number, count, 2), POSITIVE, device=device)

    kind = torch.rand(number, count, device=device)
    negative = (kind > 0.8) & (rest > 0)
    points[..., 1, :] = torch.where(negative[..., None], outside, points[..., 1, :])
    labels[..., 1] = torch.where(negative, NEGATIVE, POSITIVE)
    box = kind < 0.6
    corners = batch.boxes()[rows, chosen]  # [B, N, 2, 2]
    noise = 0.04 * torch.randn(corners.shape, device=device) * (corners[..., 1:, :] - corners[..., :1, :])
    points = torch.where(box[..., None, None], corners + noise, points)
    labels = torch.where(box[..., None], torch.tensor(CORNERS, device=device), labels)
    singles = (count + 1) // 2
    points[:, :singles, 0], labels[:, :singles] = inside[:, :singles], torch.tensor((POSITIVE, PADDING), device=device)
    coverage = functional.avg_pool2d(masks.float(), CELL)
    return Prompts(points, labels, coverage[rows, chosen], singles)


def corrections(prompts: Prompts, logits: Tensor, pred_iou: Tensor) -> Prompts:
    """Extend the single clicks of a quarter of the images by a click where the prediction is wrong and by its mask.

    Args:
        prompts: prompts [B, N].
        logits: predicted masks [B, N, 3, m, m], of which the one with the highest ``pred_iou`` counts.
        pred_iou: predicted IoU [B, N, 3].
    """
    images = max(1, len(prompts.points) // 4)
    truth = prompts.masks[:images, : prompts.singles]
    best = pred_iou[:images, : prompts.singles].argmax(-1)
    given = logits[:images, : prompts.singles].gather(2, best[..., None, None, None].expand(-1, -1, 1, *truth.shape[-2:]))[
        :, :, 0
    ]
    wrong = ((given > 0) != (truth > 0.5)).flatten(2).float() + 1e-6
    cell = torch.multinomial(wrong.flatten(0, 1), 1).view(*truth.shape[:2])
    side = truth.shape[-1]
    click = CELL * (torch.stack([cell % side, cell // side], dim=-1) + 0.5)
    inside = truth.flatten(2).gather(2, cell[..., None])[..., 0] > 0.5
    points = torch.stack([prompts.points[:images, : prompts.singles, 0], click], dim=2)
    labels = torch.stack([torch.full_like(cell, POSITIVE), inside.long()], dim=2)
    return Prompts(points, labels, truth, 0, given.clamp(-20, 20))
