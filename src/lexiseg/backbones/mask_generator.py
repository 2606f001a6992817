"""SAM's automatic mask generator (Kirillov et al., 2023): points over the image become masks of everything.

Each point prompts the decoder; masks that are predicted poor, unstable, cut off by a crop or doubled are dropped. Two
orders give (nearly) the same survivors:

* the default measures masks on the decoder's low-resolution grid and looks at pixels only where a measure is close;
* ``full_resolution`` upsamples every mask first, as the official code does; it is the reference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.sam import SamFamily, Skips
from lexiseg.errors import UsageError
from lexiseg.ops.files import write_atomically
from lexiseg.ops.masks import (
    GridGeometry,
    areas_of_masks,
    box_nms,
    boxes_of_masks,
    grid_areas,
    grid_boxes,
    near_crop_edge,
    remove_small_regions,
    stability_score,
)
from lexiseg.ops.options import Natural, Positive, Unit, options
from lexiseg.ops.points import unit_grid, unit_random
from lexiseg.ops.rle import Counts, decode_counts, encode_masks
from lexiseg.structures import Size

Box = tuple[int, int, int, int]  # (left, top, right, bottom), right and bottom beyond the last pixel
Prompter = Callable[[Box, float], Tensor]  # crop, how many times fewer points a side -> [P, 2] (x, y) in image pixels

STABILITY_DOUBT = 0.006, 2.0  # error of low-resolution stability: of any mask, and for a mask of one cell (falls with its area)
PIXELS_AT_ONCE = 2**22  # measured at a time; 16 MB of float32 stay in reused memory, larger blocks do not
OUTSIDE_LOGIT = -32.0  # of a crop's mask beyond its crop
PER_MASK = ("logits", "pred_iou", "stability", "boxes", "points", "areas", "crops", "resized")  # fields with a row a mask


@options(frozen=True)
class MaskGeneratorOptions:
    """Options with the official defaults; a threshold of 0 switches its filter off."""

    points_per_batch: Positive = 64
    """Points decoded at a time."""
    multimask: bool = True
    """Whether a point gives several masks."""
    best_mask_per_point: bool = False
    """Of these only the one with the highest predicted IoU is kept."""
    pred_iou_threshold: float = 0.88
    """Predicted IoU must be greater."""
    stability_threshold: float = 0.95
    """Stability must be at least this."""
    stability_offset: float = 1.0
    """Logits up and down between which stability is measured."""
    box_nms_threshold: Unit = 0.7
    """Box IoU above which the worse of two masks of a crop is removed."""
    crop_layers: Annotated[int, Ge(0), Le(8)] = 0
    """Layers of crops beside the whole image; layer i has 2^i × 2^i."""
    crop_nms_threshold: Unit = 0.7
    """Box IoU above which, of masks of different crops, that of the larger crop is removed."""
    crop_overlap: Unit = 512 / 1500
    """Overlap of neighbouring crops in layer 1, as a fraction of the image's shorter side."""
    crop_points_downscale: Positive = 1
    """Factor by which the points a side decrease with each layer."""
    min_region_area: Natural = 0
    """Smaller holes and islands are removed, in pixels."""
    full_resolution: bool = False
    """The official order: masks are enlarged before they are filtered."""


@dataclass(frozen=True)
class GeneratedMasks:
    """N masks of one image, best predicted IoU first (with crops: smallest crop first).

    Attributes:
        logits: [N, m, m] of the decoder, over its own crop.
        pred_iou: [N] predicted IoU.
        stability: [N].
        boxes: [N, 4] integers (left, top, right, bottom) in image pixels, all inside the mask.
        points: [N, 2] double, (x, y) of the prompts in image pixels.
        areas: [N] integers, pixels. Like boxes and stability estimated on the grid, unless ``full_resolution``.
        crops: [N, 4] integers, the crop each mask was found in.
        resized: [N, 2] integers, (height, width) of that crop inside the network's input.
        input_size: (height, width) of the network's input.
        size: (height, width) of the image.
        padded_size: (height, width) in image pixels of what a grid of the whole image covers.
        edited: runs of masks that are no longer those of the logits (small regions removed); None if all are.
    """

    logits: Tensor
    pred_iou: Tensor
    stability: Tensor
    boxes: Tensor
    points: Tensor
    areas: Tensor
    crops: Tensor
    resized: Tensor
    input_size: Size
    size: Size
    padded_size: Size
    edited: tuple[Counts, ...] | None = None

    def __len__(self) -> int:
        return len(self.pred_iou)

    def select(self, rows: Tensor) -> GeneratedMasks:
        """The same masks for some rows (indices or a mask), in their order."""
        per_mask = {name: getattr(self, name)[rows] for name in PER_MASK}
        if self.edited is None:
            return replace(self, **per_mask)
        indices = torch.arange(len(self))[rows.cpu()].tolist()
        return replace(self, **per_mask, edited=tuple(self.edited[index] for index in indices))

    def binary(self) -> Tensor:
        """Masks in pixels, [N, H, W] bool on the CPU."""
        if self.edited is not None:
            decoded = [decode_counts(counts, self.size) for counts in self.edited]
            return torch.stack(decoded) if decoded else torch.zeros(0, *self.size, dtype=torch.bool)
        masks = torch.zeros(len(self), *self.size, dtype=torch.bool)
        for rows, (left, top, right, bottom), geometry in self._by_crop():
            for some in rows.split(_chunk(geometry)):
                masks[some.cpu(), top:bottom, left:right] = (geometry.upsample(self.logits[some]) > 0).cpu()
        return masks

    @cached_property
    def runs(self) -> tuple[Counts, ...]:
        """Run lengths of the masks in pixels (COCO's, uncompressed), computed when first asked for."""
        if self.edited is not None:
            return self.edited
        one = torch.arange(len(self), device=self.logits.device).split(max(1, PIXELS_AT_ONCE // (self.size[0] * self.size[1])))
        return tuple(counts for rows in one if len(rows) for counts in encode_masks(self.select(rows).binary()))

    def image_logits(self) -> Tensor:
        """Logits [N, m, m] over `padded_size` of the whole image; masks found in crops are resampled to it."""
        whole = (0, 0, self.size[1], self.size[0])
        side = self.logits.shape[-1]
        result = torch.full_like(self.logits, OUTSIDE_LOGIT)
        for rows, crop, geometry in self._by_crop():
            if crop == whole:
                result[rows] = self.logits[rows]
                continue
            steps = (torch.arange(side, device=self.logits.device) + 0.5) / side
            places = [
                (steps * padded_size - start) / crop_extent
                for padded_size, start, crop_extent in zip(
                    self.padded_size, (crop[1], crop[0]), geometry.padded_size, strict=True
                )
            ]
            inside = [
                (place > 0) & (place < (stop - start) / crop_extent)
                for place, start, stop, crop_extent in zip(places, crop[1::-1], crop[:1:-1], geometry.padded_size, strict=True)
            ]
            grid = torch.stack(torch.meshgrid(*places, indexing="ij")[::-1], dim=-1).to(self.logits.dtype) * 2 - 1
            moved = functional.grid_sample(self.logits[None, rows], grid[None], padding_mode="border", align_corners=False)[0]
            result[rows] = torch.where(inside[0][:, None] & inside[1], moved, OUTSIDE_LOGIT)
        return result

    def _by_crop(self) -> Iterator[tuple[Tensor, Box, GridGeometry]]:
        """Rows of each crop, the crop, and how the grid lies on it."""
        crops, owner = torch.unique(torch.cat([self.crops, self.resized], dim=1), dim=0, return_inverse=True)
        for number, (left, top, right, bottom, *resized) in enumerate(crops.tolist()):
            geometry = GridGeometry(self.input_size, (resized[0], resized[1]), (bottom - top, right - left))
            yield torch.nonzero(owner == number).flatten(), (left, top, right, bottom), geometry


def _chunk(geometry: GridGeometry) -> int:
    """Masks to upsample at a time."""
    return max(1, PIXELS_AT_ONCE // max(high * wide for high, wide in (geometry.input_size, geometry.size)))


# --- prompters --------------------------------------------------------------------------------------------------------


def grid_points(side: int) -> Prompter:
    """A grid of ``side`` × ``side`` points over each crop; the official prompter has 32."""
    return lambda crop, fewer: _over(crop, unit_grid(max(1, int(side / fewer))))


def random_points(count: int, seed: int) -> Prompter:
    """``count`` uniform points over each crop; the same for the same seed."""
    return lambda crop, fewer: _over(crop, unit_random(max(1, int(count / fewer**2)), seed))


def given_points(points: Tensor | Sequence[Sequence[float]]) -> Prompter:
    """These points, (x, y) in image pixels; each crop gets those inside it."""
    given = torch.as_tensor(points, dtype=torch.float64).reshape(-1, 2).cpu()

    def inside(crop: Box, _fewer: float) -> Tensor:
        left, top, right, bottom = crop
        x, y = given.unbind(dim=1)
        return given[(x >= left) & (x < right) & (y >= top) & (y < bottom)]

    return inside


def _over(crop: Box, unit: Tensor) -> Tensor:
    left, top, right, bottom = crop
    return unit * unit.new_tensor([right - left, bottom - top]) + unit.new_tensor([left, top])


# --- the generator ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def generate_masks(
    backbone: SamFamily,
    image: Tensor,
    options: MaskGeneratorOptions | None = None,
    prompter: Prompter | None = None,
) -> GeneratedMasks:
    """Masks of everything in an image.

    Args:
        backbone: SAM, HQ-SAM or SAM 2.
        image: [3, H, W] float RGB in 0..1.
        options: the official ones if left out.
        prompter: where to ask; the official 32 × 32 grid if left out.
    """
    return generate_each(backbone, [image], options, [prompter or grid_points(32)])[0]


@torch.no_grad()
def generate_each(
    backbone: SamFamily, images: Sequence[Tensor], options: MaskGeneratorOptions | None, prompters: Sequence[Prompter]
) -> list[GeneratedMasks]:
    """`generate_masks` of several images of any sizes, which are encoded together.

    Args:
        backbone, options: as `generate_masks`.
        images: [3, H, W] each.
        prompters: where to ask, for each image.
    """
    options = options or MaskGeneratorOptions()
    plans = [_plan(image, options, prompter) for image, prompter in zip(images, prompters, strict=True)]
    embeddings, skips = backbone.encode_with_skips(torch.cat([backbone.preprocess(image) for image in images]))
    return [
        _generate(backbone, image, options, plan, (embeddings[number : number + 1], _of_image(skips, number)))
        for number, (image, plan) in enumerate(zip(images, plans, strict=True))
    ]


def _of_image(skips: Skips, number: int) -> Skips:
    return tuple(maps[number : number + 1] for maps in skips)


def _plan(image: Tensor, options: MaskGeneratorOptions, prompter: Prompter) -> list[tuple[Box, Tensor]]:
    """Crops and the points [P, 2] in each, in image pixels."""
    size = (int(image.shape[-2]), int(image.shape[-1]))
    crops, layers = crop_boxes(size, options.crop_layers, options.crop_overlap)
    return [(crop, prompter(crop, options.crop_points_downscale**layer)) for crop, layer in zip(crops, layers, strict=True)]


def _generate(
    backbone: SamFamily,
    image: Tensor,
    options: MaskGeneratorOptions,
    plan: list[tuple[Box, Tensor]],
    whole: tuple[Tensor, Skips] | None = None,
) -> GeneratedMasks:
    """The masks of a plan of `_plan`; ``whole`` is the image encoded, where that is done already."""
    size = (int(image.shape[-2]), int(image.shape[-1]))
    device = next(backbone.parameters()).device
    found = []
    for crop, points in plan:
        left, top, right, bottom = crop
        crop_size = (bottom - top, right - left)
        if len(points) == 0:
            continue
        geometry = backbone.geometry(crop_size)
        if whole is None or crop_size != size:
            encoded = backbone.encode_with_skips(backbone.preprocess(image[:, top:bottom, left:right]))
        else:
            encoded = whole
        embeddings, skips = encoded
        batches = []
        for some in points.to(device).split(options.points_per_batch):
            prompts = backbone.scale_points(some - some.new_tensor([left, top]), crop_size).float()[:, None]
            logits, pred_iou = backbone.decode(embeddings, points=prompts, multimask=options.multimask, skips=skips)
            if options.best_mask_per_point:
                best = pred_iou.argmax(1, keepdim=True)
                logits, pred_iou = logits.take_along_dim(best[..., None, None], 1), pred_iou.take_along_dim(best, 1)
            owners = some.repeat_interleave(logits.shape[1], dim=0)
            with torch.autocast(device.type, enabled=False):  # areas have more digits than half precision
                batches.append(
                    filter_masks(
                        logits.flatten(0, 1).float(),
                        pred_iou.flatten().float(),
                        owners,
                        geometry=geometry,
                        crop=crop,
                        size=size,
                        padded_size=backbone.geometry(size).padded_size,
                        options=options,
                    )
                )
        found.append(suppress(join(batches), options.box_nms_threshold))
    if not found:
        raise UsageError(f"no point prompt lies in the image of {size[1]} × {size[0]} pixels; give points inside it")
    masks = join(found)
    if len(plan) > 1:
        masks = _prefer_small_crops(masks, options.crop_nms_threshold)
    return remove_regions(masks, options)


def crop_boxes(size: Size, layers: int, overlap: float) -> tuple[list[Box], list[int]]:
    """The whole image and, for each further layer i, 2^i × 2^i overlapping crops; and the layer of each.

    Args:
        size: (height, width) of the image.
        layers: further layers.
        overlap: as `MaskGeneratorOptions.crop_overlap`.
    """
    high, wide = size
    crops: list[Box] = [(0, 0, wide, high)]
    numbers = [0]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(size) * (2 / count))
        crop_high, crop_wide = (ceil((shared * (count - 1) + side) / count) for side in size)
        for column, row in product(range(count), range(count)):
            left, top = (crop_wide - shared) * column, (crop_high - shared) * row
            crops.append((left, top, min(left + crop_wide, wide), min(top + crop_high, high)))
            numbers.append(layer)
    return crops, numbers


def filter_masks(
    logits: Tensor,
    pred_iou: Tensor,
    points: Tensor,
    *,
    geometry: GridGeometry,
    crop: Box,
    size: Size,
    padded_size: Size,
    options: MaskGeneratorOptions,
) -> GeneratedMasks:
    """The masks of one batch that are good, stable and not cut off by their crop.

    Args:
        logits: [N, h, w] of the decoder.
        pred_iou: [N] predicted IoU.
        points: [N, 2] prompts in image pixels.
        geometry: how the grid lies on the crop.
        crop: box of the crop in the image.
        size, padded_size: (height, width) of the image, and of what a grid of the whole image covers.
        options: thresholds, and the order of work.
    """
    if options.pred_iou_threshold > 0:
        good = pred_iou > options.pred_iou_threshold
        logits, pred_iou, points = logits[good], pred_iou[good], points[good]
    measure = _measure_pixels if options.full_resolution else _measure_grid
    stability, boxes, areas = measure(logits, geometry, options)
    if options.stability_threshold > 0:  # an empty mask, whose stability is NaN, stays only without a threshold
        stable = stability >= options.stability_threshold
        logits, pred_iou, points = logits[stable], pred_iou[stable], points[stable]
        stability, boxes, areas = stability[stable], boxes[stable], areas[stable]
    masks = GeneratedMasks(
        logits,
        pred_iou,
        stability,
        boxes + boxes.new_tensor([crop[0], crop[1], crop[0], crop[1]]),
        points,
        areas,
        boxes.new_tensor(crop).expand(len(boxes), 4),
        boxes.new_tensor(geometry.resized).expand(len(boxes), 2),
        geometry.input_size,
        size,
        padded_size,
    )
    return masks.select(~near_crop_edge(boxes, crop, size))


def _measure_pixels(logits: Tensor, geometry: GridGeometry, options: MaskGeneratorOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Stability, boxes in crop pixels and areas of upsampled masks, a few at a time."""
    measures = []
    for some in logits.split(_chunk(geometry)):
        pixels = geometry.upsample(some)
        inside = pixels > 0
        measures.append(
            (stability_score(pixels, offset=options.stability_offset), boxes_of_masks(inside), areas_of_masks(inside))
        )
    stability, boxes, areas = (torch.cat(parts) for parts in zip(*measures, strict=True))
    return stability, boxes, areas


def _measure_grid(logits: Tensor, geometry: GridGeometry, options: MaskGeneratorOptions) -> tuple[Tensor, Tensor, Tensor]:
    """The same, estimated on the grid; a stability near its threshold is measured in pixels."""
    measures = []
    offset = options.stability_offset
    high, wide = geometry.cells((logits.shape[1], logits.shape[2]))
    pixels_per_cell = geometry.size[0] * geometry.size[1] / (high * wide)
    for some in logits.split(max(1, PIXELS_AT_ONCE // (logits.shape[1] * logits.shape[2]))):
        inner, area, outer = grid_areas(some, geometry, (offset, 0.0, -offset))
        error = STABILITY_DOUBT[0] + STABILITY_DOUBT[1] * pixels_per_cell / outer
        measures.append((inner / outer, grid_boxes(some, geometry), area.round().long(), error))
    stability, boxes, areas, errors = (torch.cat(parts) for parts in zip(*measures, strict=True))
    if options.stability_threshold > 0:
        doubtful = torch.nonzero((stability - options.stability_threshold).abs() < errors).flatten()
        for rows in doubtful.split(_chunk(geometry)):
            stability[rows] = stability_score(geometry.upsample(logits[rows]), offset=offset)
    return stability, boxes, areas


def suppress(masks: GeneratedMasks, threshold: float) -> GeneratedMasks:
    """Of masks whose boxes overlap by more than ``threshold``, those of the best predicted IoU, best first."""
    return masks.select(box_nms(masks.boxes, masks.pred_iou, threshold))


def _prefer_small_crops(masks: GeneratedMasks, threshold: float) -> GeneratedMasks:
    left, top, right, bottom = masks.crops.unbind(dim=1)
    return masks.select(box_nms(masks.boxes, 1 / ((right - left) * (bottom - top)), threshold))


def remove_regions(masks: GeneratedMasks, options: MaskGeneratorOptions) -> GeneratedMasks:
    """Holes and islands below `MaskGeneratorOptions.min_region_area` removed (0: nothing to do), doubles once more dropped.

    As in the official code untouched masks win over edited ones.
    """
    if options.min_region_area == 0 or len(masks) == 0:
        return masks
    edited, boxes, untouched = [], [], []
    for counts in masks.runs:
        mask, filled = remove_small_regions(decode_counts(counts, masks.size), options.min_region_area, "holes")
        mask, dropped = remove_small_regions(mask, options.min_region_area, "islands")
        edited.append(encode_masks(mask[None])[0] if filled or dropped else counts)
        boxes.append(boxes_of_masks(mask[None])[0])
        untouched.append(float(not (filled or dropped)))
    new_boxes, scores = torch.stack(boxes).to(masks.boxes.device), masks.pred_iou.new_tensor(untouched)
    keep = box_nms(new_boxes, scores, max(options.box_nms_threshold, options.crop_nms_threshold))
    areas = masks.areas.new_tensor([int(counts[1::2].sum()) for counts in edited])
    return replace(masks, edited=tuple(edited), boxes=new_boxes, areas=areas).select(keep)


def join(parts: Sequence[GeneratedMasks]) -> GeneratedMasks:
    """Masks of several batches or crops of one image, in order."""
    per_mask: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in PER_MASK}
    return replace(parts[0], **per_mask)


# --- the cache --------------------------------------------------------------------------------------------------------


def generate_cached(
    backbone: SamFamily,
    image: Tensor,
    options: MaskGeneratorOptions | None = None,
    prompter: Prompter | None = None,
    *,
    folder: str | Path,
    identity: str,
) -> GeneratedMasks:
    """`generate_masks`, or its result of an earlier call with the same image, backbone, options and points.

    Args:
        backbone, image, options, prompter: as `generate_masks`.
        folder: where results are kept, one safetensors file each.
        identity: what tells this backbone's weights from others, such as the checkpoint's digest.

    Raises:
        OutputError: the folder cannot be written.
    """
    options = options or MaskGeneratorOptions()
    plan = _plan(image, options, prompter or grid_points(32))
    path = Path(folder) / f"{_digest(image, options, plan, identity)}.safetensors"
    device = next(backbone.parameters()).device
    if path.is_file():
        try:
            return _read(path, device)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            path.unlink(missing_ok=True)  # half a file of another time: computed again below
    with torch.no_grad():
        masks = _generate(backbone, image, options, plan)
    write_atomically(path, _bytes(masks))
    return masks


def _digest(image: Tensor, options: MaskGeneratorOptions, plan: list[tuple[Box, Tensor]], identity: str) -> str:
    described = {
        "format": 1,
        "identity": identity,
        "options": asdict(options),
        "image": [str(image.dtype), list(image.shape)],
        "crops": [crop for crop, _ in plan],
    }
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for tensor in (image, *(points for _, points in plan)):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _bytes(masks: GeneratedMasks) -> bytes:
    tensors = {name: getattr(masks, name).cpu().contiguous() for name in PER_MASK}
    if masks.edited is not None:
        tensors["edited"] = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *masks.edited]))
        tensors["edited_lengths"] = torch.tensor([len(counts) for counts in masks.edited], dtype=torch.int64)
    sizes = {"input_size": masks.input_size, "size": masks.size, "padded_size": masks.padded_size}
    return save(tensors, metadata={name: json.dumps(value) for name, value in sizes.items()})


def _read(path: Path, device: torch.device) -> GeneratedMasks:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
        sizes: dict[str, Any] = {name: tuple(json.loads(value)) for name, value in file.metadata().items()}
    edited = None
    if "edited" in tensors:
        lengths = tensors.pop("edited_lengths").tolist()
        edited = tuple(runs.numpy() for runs in tensors.pop("edited").split(lengths))
    return GeneratedMasks(**{name: tensor.to(device) for name, tensor in tensors.items()}, **sizes, edited=edited)
