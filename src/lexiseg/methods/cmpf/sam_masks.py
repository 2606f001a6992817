"""SAM's masks for the mask ensemble: generation, and resampling to the feature grid of CLIP.

The official code generates them in advance at image size, and resamples them to CLIP's grid with a shift and a distortion
(`official_cells`). Here they are generated on the fly, or read from a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.mask_generator import GeneratedMasks, MaskGeneratorOptions, generate_cached, generate_each, grid_points
from lexiseg.backbones.sam import SamFamily
from lexiseg.methods.weights import digest_of_parameters
from lexiseg.ops.options import Depth, Positive, options
from lexiseg.structures import Geometry, Size

OFFICIAL_PADDING = 32  # the official code pads CLIP's cells, not pixels, to multiples of 32
MASKS_AT_ONCE = 8  # masks resized to image size at once
_IDENTITIES: WeakKeyDictionary[SamFamily, str] = WeakKeyDictionary()
# Thresholds of the official script; the paper gives none. [decided]
THRESHOLDS = MaskGeneratorOptions(pred_iou_threshold=0.8, stability_threshold=0.7)


@options(frozen=True)
class SamMasks:
    """Options of SAM's automatic masks."""

    points: Depth = 32
    """Points per side of the grid of point prompts."""
    options: MaskGeneratorOptions = THRESHOLDS
    """Options of the mask generator."""
    max_masks: Positive | None = None
    """Maximum number of masks, the largest ones are kept; None keeps all."""
    cache: Path | None = None
    """Folder of a mask cache; None: no cache."""
    identity: str = ""
    """Identifier of SAM's weights in the cache; empty: a digest of its parameters."""

    def of(self, sam: SamFamily, images: Sequence[Tensor]) -> list[GeneratedMasks]:
        """Generate the masks of images [3, H, W], float RGB in 0..1.

        Raises:
            OutputError: the cache cannot be written.
        """
        prompter = grid_points(self.points)
        if self.cache is None:
            generated = generate_each(sam, images, self.options, [prompter] * len(images))
        else:
            folder, identity = self.cache, self.identity or _identity_of(sam)
            generated = [
                generate_cached(sam, image, self.options, prompter, folder=folder, identity=identity) for image in images
            ]
        return [self._largest(masks) for masks in generated]

    def _largest(self, masks: GeneratedMasks) -> GeneratedMasks:
        if self.max_masks is None or len(masks) <= self.max_masks:
            return masks
        return masks.select(masks.areas.argsort(descending=True, stable=True)[: self.max_masks])


# As in the official script, but for RGB images: the script swaps red and blue by mistake.
OFFICIAL = SamMasks(
    options=MaskGeneratorOptions(pred_iou_threshold=0.8, stability_threshold=0.7, min_region_area=100), max_masks=50
)


def _identity_of(sam: SamFamily) -> str:
    """Digest of a frozen SAM's parameters, computed once."""
    if sam not in _IDENTITIES:
        _IDENTITIES[sam] = digest_of_parameters(sam)
    return _IDENTITIES[sam]


def official_cells(masks: Tensor, geometry: Geometry, grid: Size) -> Tensor:
    """Resample mask logits to the grid that the official code pools CLIP with.

    Nearest-neighbour resizing of the image to CLIP's grid, as if the grid had no padding; then zero padding, right and bottom,
    to multiples of 32 *cells*. Pooling then resizes this to CLIP's grid.

    Args:
        masks: [N, m, m] logits.
        geometry: of the masks.
        grid: (height, width) of CLIP's features in cells, padding included.

    Returns:
        [1, N, h', w'].
    """
    upsampled = (geometry.upsample(chunk)[None] for chunk in masks.split(MASKS_AT_ONCE))
    chunks = [functional.interpolate(chunk, grid, mode="nearest") for chunk in upsampled]
    high, wide = (-cells % OFFICIAL_PADDING for cells in grid)
    return functional.pad(torch.cat(chunks, 1), (0, wide, 0, high))
