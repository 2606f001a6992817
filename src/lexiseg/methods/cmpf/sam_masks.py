"""SAM's masks for the mask ensemble: made of everything in a picture, and brought to the grid on which CLIP is pooled.

The official program makes them beforehand, stores them at the size of the picture, and lays them on CLIP's grid in a way
that moves and squeezes them (`official_cells`). Here they are made on the fly, or read from a cache of earlier calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.mask_generator import GeneratedMasks, MaskGeneratorOptions, generate_cached, generate_each, grid_points
from lexiseg.backbones.sam import SamFamily
from lexiseg.errors import UsageError
from lexiseg.ops.options import Depth, Positive, options
from lexiseg.postprocess import Placing, resized
from lexiseg.structures import OUTSIDE, Size

OFFICIAL_PADDING = 32  # the official program pads CLIP's cells to multiples of what it pads pixels to
MASKS_AT_ONCE = 8  # at the size of the picture
# The thresholds of the official script; the paper names none. [decided]
THRESHOLDS = MaskGeneratorOptions(pred_iou_threshold=0.8, stability_threshold=0.7)


@options(frozen=True)
class SamMasks:
    """How SAM is asked for masks of everything in a picture."""

    points: Depth = 32
    """Points a side of the grid of prompts."""
    options: MaskGeneratorOptions = THRESHOLDS
    """Of the mask generator."""
    most: Positive | None = None
    """Number of masks that are kept, the largest ones; None keeps all."""
    cache: Path | None = None
    """Folder where masks are kept from one call to the next; None keeps none."""
    identity: str = ""
    """What tells SAM's weights from others in a cache, such as the digest of their file."""

    def __post_init__(self) -> None:
        if self.cache is not None and not self.identity:
            raise UsageError("a cache of SAM's masks needs to know whose they are: give identity, such as the file's sha-256")

    def of(self, sam: SamFamily, images: Sequence[Tensor]) -> list[GeneratedMasks]:
        """The masks that ``sam`` finds in each of some images [3, H, W], float RGB in 0..1.

        Raises:
            OutputError: the cache cannot be written.
        """
        prompter = grid_points(self.points)
        if self.cache is None:
            found = generate_each(sam, images, self.options, [prompter] * len(images))
        else:
            folder, identity = self.cache, self.identity
            found = [generate_cached(sam, image, self.options, prompter, folder=folder, identity=identity) for image in images]
        return [self._largest(masks) for masks in found]

    def _largest(self, masks: GeneratedMasks) -> GeneratedMasks:
        if self.most is None or len(masks) <= self.most:
            return masks
        return masks.select(masks.areas.argsort(descending=True, stable=True)[: self.most])


# As the official script makes them, but of pictures in red, green, blue: it exchanges red and blue by mistake.
OFFICIAL = SamMasks(options=MaskGeneratorOptions(pred_iou_threshold=0.8, stability_threshold=0.7, min_region_area=100), most=50)


def cells_of(masks: Tensor, place: Placing, grid: Size, covered: tuple[float, float]) -> Tensor:
    """Logits of masks at the centres of the cells of another grid over the same image.

    Args:
        masks: [N, m, m] logits.
        place: how they lie on the image.
        grid: (height, width) of the other grid, in cells.
        covered: (height, width) of what it covers from the top-left corner, in heights and widths of the image; more than
            one where padding follows the image.

    Returns:
        [1, N, h, w]; cells whose centre lies beyond the image are in no mask.
    """
    y, x = (
        (torch.arange(cells, device=masks.device) + 0.5) / cells * share for cells, share in zip(grid, covered, strict=True)
    )
    high, wide = (
        resized_size / padded_size for resized_size, padded_size in zip(place.resized_size, place.padded_size, strict=True)
    )
    places = torch.stack(torch.meshgrid(y * high * 2 - 1, x * wide * 2 - 1, indexing="ij")[::-1], -1)
    sampled = functional.grid_sample(
        masks.float()[None], places[None].float(), mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.masked_fill((y[:, None] > 1) | (x > 1), OUTSIDE)


def official_cells(masks: Tensor, place: Placing, grid: Size) -> Tensor:
    """Logits of masks on the grid from which the official program pools CLIP.

    The nearest pixels of the picture, as if CLIP's cells covered it without padding; then zeros to the right and below up to
    multiples of 32 *cells*. Whoever pools squeezes all this onto the cells.

    Args:
        masks: [N, m, m] logits.
        place: how they lie on the image.
        grid: (height, width) of CLIP's cells, those of padding included.

    Returns:
        [1, N, h', w'].
    """
    chunks = [functional.interpolate(resized(some, place)[None], grid, mode="nearest") for some in masks.split(MASKS_AT_ONCE)]
    high, wide = (-cells % OFFICIAL_PADDING for cells in grid)
    return functional.pad(torch.cat(chunks, 1), (0, wide, 0, high))
