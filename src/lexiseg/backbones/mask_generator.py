"""SAM's automatic mask generator (Kirillov et al., 2023): masks of everything in an image.

A grid of points prompts the decoder; masks with a low predicted IoU, unstable masks, masks cut off by a crop and duplicates
are dropped. Two orders of work keep (nearly) the same masks:

* the default measures masks on the decoder's low-resolution grid, and in pixels only near a threshold;
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

from lexiseg.backbones.sam import SamFamily, Skips, best_of, of_image
from lexiseg.errors import UsageError
from lexiseg.ops.files import write_atomically
from lexiseg.ops.masks import (
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
from lexiseg.ops.progress import report
from lexiseg.ops.rle import Counts, decode_counts, encode_masks
from lexiseg.structures import Geometry, Size

Box = tuple[int, int, int, int]  # (left, top, right, bottom), right and bottom exclusive
Prompter = Callable[[Box, float], Tensor]  # crop, divisor of the points per side -> [P, 2] (x, y) in image pixels

STABILITY_DOUBT = 0.006, 2.0  # error of low-resolution stability: constant part, and part divided by the mask's area in cells
PIXELS_AT_ONCE = 2**22  # measured at a time; the allocator reuses 16 MB of float32, larger blocks it does not
CELLS_AT_ONCE = 2**16  # of all points decoded at a time on a CPU: 16 points on the 64 × 64 cells of SAM
OUTSIDE_LOGIT = -32.0  # of a crop's mask outside its crop
PER_MASK = ("logits", "pred_iou", "stability", "boxes", "points", "areas", "crops", "resized")  # fields with a row per mask


@options(frozen=True)
class MaskGeneratorOptions:
    """Options with the official defaults; a threshold of 0 disables its filter."""

    points_per_batch: Positive = 64
    """Points decoded at a time; on a CPU, at most 16 of SAM."""
    multimask: bool = True
    """Whether to predict several masks per point."""
    best_mask_per_point: bool = False
    """Whether to keep only the mask with the highest predicted IoU per point."""
    pred_iou_threshold: float = 0.88
    """Keep masks with a predicted IoU above this."""
    stability_threshold: float = 0.95
    """Keep masks with a stability of at least this."""
    stability_offset: float = 1.0
    """Offset of the two logit thresholds between which stability is measured."""
    box_nms_threshold: Unit = 0.7
    """Box IoU above which the worse of two masks of a crop is removed."""
    crop_layers: Annotated[int, Ge(0), Le(8)] = 0
    """Layers of crops in addition to the whole image; layer i has 2^i × 2^i."""
    crop_nms_threshold: Unit = 0.7
    """Box IoU above which, of masks of different crops, that of the larger crop is removed."""
    crop_overlap: Unit = 512 / 1500
    """Overlap of neighbouring crops in layer 1, as a fraction of the image's shorter side."""
    crop_points_downscale: Positive = 1
    """Divisor of the points per side for each layer."""
    min_region_area: Natural = 0
    """Area in pixels below which holes and islands are removed."""
    full_resolution: bool = False
    """Whether to upsample masks before filtering, in the official order."""


@dataclass(frozen=True)
class GeneratedMasks:
    """N masks of one image, best predicted IoU first (with crops: smallest crop first).

    Attributes:
        logits: [N, m, m] decoder logits over each mask's crop.
        pred_iou: [N] predicted IoU.
        stability: [N] stability score.
        boxes: [N, 4] integers (left, top, right, bottom) in image pixels, all inside the mask.
        points: [N, 2] double, (x, y) of the prompts in image pixels.
        areas: [N] integers, in pixels. Areas, boxes and stability are estimated on the grid unless ``full_resolution``.
        crops: [N, 4] integers, crop of each mask.
        resized: [N, 2] integers, (height, width) of that crop inside the network's input.
        geometry: of the grid of the whole image.
        edited: run lengths of the masks if small regions were removed from the masks of the logits, else None.
    """

    logits: Tensor
    pred_iou: Tensor
    stability: Tensor
    boxes: Tensor
    points: Tensor
    areas: Tensor
    crops: Tensor
    resized: Tensor
    geometry: Geometry
    edited: tuple[Counts, ...] | None = None

    def __len__(self) -> int:
        return len(self.pred_iou)

    def select(self, rows: Tensor) -> GeneratedMasks:
        """Select masks by indices or a bool mask, in that order."""
        per_mask = {name: getattr(self, name)[rows] for name in PER_MASK}
        if self.edited is None:
            return replace(self, **per_mask)
        indices = torch.arange(len(self))[rows.cpu()].tolist()
        return replace(self, **per_mask, edited=tuple(self.edited[index] for index in indices))

    def binary(self) -> Tensor:
        """Compute binary masks [N, H, W] bool on the CPU."""
        if self.edited is not None:
            decoded = [decode_counts(counts, self.geometry.size) for counts in self.edited]
            return torch.stack(decoded) if decoded else torch.zeros(0, *self.geometry.size, dtype=torch.bool)
        masks = torch.zeros(len(self), *self.geometry.size, dtype=torch.bool)
        for rows, (left, top, right, bottom), geometry in self._by_crop():
            for chunk in rows.split(_chunk_size(geometry)):
                masks[chunk.cpu(), top:bottom, left:right] = (geometry.upsample(self.logits[chunk]) > 0).cpu()
        return masks

    @cached_property
    def runs(self) -> tuple[Counts, ...]:
        """Run lengths of the masks in pixels (COCO's, uncompressed), computed on first access."""
        if self.edited is not None:
            return self.edited
        chunk_size = max(1, PIXELS_AT_ONCE // (self.geometry.size[0] * self.geometry.size[1]))
        chunks = torch.arange(len(self), device=self.logits.device).split(chunk_size)
        return tuple(counts for rows in chunks if len(rows) for counts in encode_masks(self.select(rows).binary()))

    def image_logits(self) -> Tensor:
        """Compute logits [N, m, m] on the grid of the whole image; masks of crops are resampled."""
        grid, (high, wide) = (self.logits.shape[-2], self.logits.shape[-1]), self.geometry.one_step().padded_size
        result = torch.empty_like(self.logits)
        for rows, (left, top, right, bottom), geometry in self._by_crop():
            if geometry.size == self.geometry.size:
                result[rows] = self.logits[rows]
                continue
            across, down = right - left, bottom - top
            box = -left / across, -top / down, (wide - left) / across, (high - top) / down  # of the grid, relative to the crop
            result[rows] = geometry.one_step().sample(self.logits[rows], grid, box, outside=OUTSIDE_LOGIT)
        return result

    def _by_crop(self) -> Iterator[tuple[Tensor, Box, Geometry]]:
        """Iterate over (rows of a crop, the crop, geometry of its grid)."""
        crops, crop_index = torch.unique(torch.cat([self.crops, self.resized], dim=1), dim=0, return_inverse=True)
        for index, (left, top, right, bottom, *resized) in enumerate(crops.tolist()):
            geometry = Geometry(self.geometry.padded_size, (resized[0], resized[1]), (bottom - top, right - left))
            yield torch.nonzero(crop_index == index).flatten(), (left, top, right, bottom), geometry


def _chunk_size(geometry: Geometry) -> int:
    """Number of masks to upsample at a time."""
    return max(1, PIXELS_AT_ONCE // max(high * wide for high, wide in (geometry.padded_size, geometry.size)))


# --- prompters --------------------------------------------------------------------------------------------------------


def grid_points(side: int) -> Prompter:
    """Return a prompter with a grid of ``side`` × ``side`` points over each crop, officially 32."""
    return lambda crop, downscale: _scale(crop, unit_grid(max(1, int(side / downscale))))


def random_points(count: int, seed: int) -> Prompter:
    """Return a prompter with ``count`` uniform points over each crop, determined by the seed."""
    return lambda crop, downscale: _scale(crop, unit_random(max(1, int(count / downscale**2)), seed))


def given_points(points: Tensor | Sequence[Sequence[float]]) -> Prompter:
    """Return a prompter with these points, (x, y) in image pixels; each crop gets those inside it."""
    pixels = torch.as_tensor(points, dtype=torch.float64).reshape(-1, 2).cpu()

    def inside(crop: Box, _downscale: float) -> Tensor:
        left, top, right, bottom = crop
        x, y = pixels.unbind(dim=1)
        return pixels[(x >= left) & (x < right) & (y >= top) & (y < bottom)]

    return inside


def _scale(crop: Box, unit: Tensor) -> Tensor:
    """Scale points [P, 2] in 0..1 to a crop, in image pixels."""
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
    """Generate masks of everything in an image.

    Args:
        backbone: SAM, HQ-SAM or SAM 2.
        image: [3, H, W] float RGB in 0..1.
        options: defaults to the official options.
        prompter: point prompts; defaults to the official 32 × 32 grid.
    """
    return generate_each(backbone, [image], options, [prompter or grid_points(32)])[0]


@torch.no_grad()
def generate_each(
    backbone: SamFamily, images: Sequence[Tensor], options: MaskGeneratorOptions | None, prompters: Sequence[Prompter]
) -> list[GeneratedMasks]:
    """Generate masks as `generate_masks` for images of any sizes, which are encoded as a batch.

    Args:
        backbone, options: as for `generate_masks`.
        images: [3, H, W] each.
        prompters: point prompts of each image.
    """
    options = options or MaskGeneratorOptions()
    plans = [_plan(image, options, prompter) for image, prompter in zip(images, prompters, strict=True)]
    report("encode")
    embeddings, skips = backbone.encode_with_skips(torch.cat([backbone.preprocess(image) for image in images]))
    return [
        _generate(backbone, image, options, plan, (embeddings[index : index + 1], of_image(skips, index)))
        for index, (image, plan) in enumerate(zip(images, plans, strict=True))
    ]


def _plan(image: Tensor, options: MaskGeneratorOptions, prompter: Prompter) -> list[tuple[Box, Tensor]]:
    """Return the crops and the points [P, 2] in each, in image pixels."""
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
    """Generate masks for the output of `_plan`; ``whole`` are embeddings and skips of the image, if already computed."""
    size = (int(image.shape[-2]), int(image.shape[-1]))
    device = next(backbone.parameters()).device
    per_crop = []
    done, total = 0, sum(len(points) for _, points in plan)
    for crop, points in plan:
        left, top, right, bottom = crop
        crop_size = (bottom - top, right - left)
        if len(points) == 0:
            continue
        geometry = backbone.geometry(crop_size)
        if whole is None or crop_size != size:
            report("encode")
            encoded = backbone.encode_with_skips(backbone.preprocess(image[:, top:bottom, left:right]))
        else:
            encoded = whole
        embeddings, skips = encoded
        batches = []
        for batch in points.to(device).split(_points_at_once(backbone, options, device)):
            report("points", done, total)
            done += len(batch)
            prompts = backbone.scale_points(batch - batch.new_tensor([left, top]), crop_size).float()[:, None]
            logits, pred_iou, rows = backbone.decode_promising(
                embeddings, prompts, options.pred_iou_threshold, multimask=options.multimask, skips=skips
            )
            batch = batch[rows]
            if options.best_mask_per_point:
                logits, pred_iou = best_of(logits, pred_iou)
            mask_points = batch.repeat_interleave(logits.shape[1], dim=0)
            with torch.autocast(device.type, enabled=False):  # areas exceed half precision
                batches.append(
                    filter_masks(
                        logits.flatten(0, 1).float(),
                        pred_iou.flatten().float(),
                        mask_points,
                        geometry=geometry,
                        crop=crop,
                        image=backbone.geometry(size),
                        options=options,
                    )
                )
        per_crop.append(suppress(join(batches), options.box_nms_threshold))
    if not per_crop:
        raise UsageError(f"no point prompt lies in the image of {size[1]} × {size[0]} pixels; give points inside it")
    masks = join(per_crop)
    if len(plan) > 1:
        masks = _prefer_small_crops(masks, options.crop_nms_threshold)
    return remove_regions(masks, options)


def _points_at_once(backbone: SamFamily, options: MaskGeneratorOptions, device: torch.device) -> int:
    """Number of points to decode at a time. On a CPU larger batches are slower: their maps do not fit into its caches."""
    if device.type != "cpu":
        return options.points_per_batch
    return min(options.points_per_batch, max(1, CELLS_AT_ONCE // backbone.grid**2))


def crop_boxes(size: Size, layers: int, overlap: float) -> tuple[list[Box], list[int]]:
    """Compute the boxes and layers of crops: the whole image and, for each further layer i, 2^i × 2^i overlapping crops.

    Args:
        size: (height, width) of the image.
        layers: number of further layers.
        overlap: as `MaskGeneratorOptions.crop_overlap`.
    """
    high, wide = size
    crops: list[Box] = [(0, 0, wide, high)]
    layer_of_crop = [0]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(size) * (2 / count))
        crop_high, crop_wide = (ceil((shared * (count - 1) + side) / count) for side in size)
        for column, row in product(range(count), range(count)):
            left, top = (crop_wide - shared) * column, (crop_high - shared) * row
            crops.append((left, top, min(left + crop_wide, wide), min(top + crop_high, high)))
            layer_of_crop.append(layer)
    return crops, layer_of_crop


def filter_masks(
    logits: Tensor,
    pred_iou: Tensor,
    points: Tensor,
    *,
    geometry: Geometry,
    crop: Box,
    image: Geometry,
    options: MaskGeneratorOptions,
) -> GeneratedMasks:
    """Filter the masks of a batch by predicted IoU, stability and edges of the crop.

    Args:
        logits: [N, h, w] decoder logits.
        pred_iou: [N] predicted IoU.
        points: [N, 2] prompts in image pixels.
        geometry: of the grid on the crop.
        crop: box of the crop in the image.
        image: geometry of the grid on the whole image.
        options: thresholds and the order of work.
    """
    if options.pred_iou_threshold > 0:
        good = pred_iou > options.pred_iou_threshold
        logits, pred_iou, points = logits[good], pred_iou[good], points[good]
    measure = _measure_pixels if options.full_resolution else _measure_grid
    stability, boxes, areas = measure(logits, geometry, options)
    if options.stability_threshold > 0:  # drops empty masks, whose stability is NaN
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
        boxes.new_tensor(geometry.resized_size).expand(len(boxes), 2),
        image,
    )
    return masks.select(~near_crop_edge(boxes, crop, image.size))


def _measure_pixels(logits: Tensor, geometry: Geometry, options: MaskGeneratorOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Measure stability, boxes in crop pixels and areas of upsampled masks, in chunks."""
    measures = []
    for chunk in logits.split(_chunk_size(geometry)):
        pixels = geometry.upsample(chunk)
        inside = pixels > 0
        measures.append(
            (stability_score(pixels, offset=options.stability_offset), boxes_of_masks(inside), areas_of_masks(inside))
        )
    stability, boxes, areas = (torch.cat(parts) for parts in zip(*measures, strict=True))
    return stability, boxes, areas


def _measure_grid(logits: Tensor, geometry: Geometry, options: MaskGeneratorOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate the measures of `_measure_pixels` on the grid; a stability near its threshold is measured in pixels."""
    measures = []
    offset = options.stability_offset
    high, wide = geometry.cells((logits.shape[1], logits.shape[2]))
    pixels_per_cell = geometry.size[0] * geometry.size[1] / (high * wide)
    for chunk in logits.split(max(1, PIXELS_AT_ONCE // (logits.shape[1] * logits.shape[2]))):
        inner, area, outer = grid_areas(chunk, geometry, (offset, 0.0, -offset))
        error = STABILITY_DOUBT[0] + STABILITY_DOUBT[1] * pixels_per_cell / outer
        measures.append((inner / outer, grid_boxes(chunk, geometry), area.round().long(), error))
    stability, boxes, areas, errors = (torch.cat(parts) for parts in zip(*measures, strict=True))
    if options.stability_threshold > 0:
        doubtful = torch.nonzero((stability - options.stability_threshold).abs() < errors).flatten()
        for rows in doubtful.split(_chunk_size(geometry)):
            stability[rows] = stability_score(geometry.upsample(logits[rows]), offset=offset)
    return stability, boxes, areas


def suppress(masks: GeneratedMasks, threshold: float) -> GeneratedMasks:
    """Box NMS by predicted IoU: drop the worse of masks with a box IoU above ``threshold``; sorts best first."""
    return masks.select(box_nms(masks.boxes, masks.pred_iou, threshold))


def _prefer_small_crops(masks: GeneratedMasks, threshold: float) -> GeneratedMasks:
    left, top, right, bottom = masks.crops.unbind(dim=1)
    return masks.select(box_nms(masks.boxes, 1 / ((right - left) * (bottom - top)), threshold))


def remove_regions(masks: GeneratedMasks, options: MaskGeneratorOptions) -> GeneratedMasks:
    """Remove holes and islands below `MaskGeneratorOptions.min_region_area` (0: none), then duplicates by box NMS.

    As in the official code unedited masks take precedence over edited ones.
    """
    if options.min_region_area == 0 or len(masks) == 0:
        return masks
    edited, boxes, untouched = [], [], []
    for counts in masks.runs:
        mask, filled = remove_small_regions(decode_counts(counts, masks.geometry.size), options.min_region_area, "holes")
        mask, dropped = remove_small_regions(mask, options.min_region_area, "islands")
        edited.append(encode_masks(mask[None])[0] if filled or dropped else counts)
        boxes.append(boxes_of_masks(mask[None])[0])
        untouched.append(float(not (filled or dropped)))
    new_boxes, scores = torch.stack(boxes).to(masks.boxes.device), masks.pred_iou.new_tensor(untouched)
    keep = box_nms(new_boxes, scores, max(options.box_nms_threshold, options.crop_nms_threshold))
    areas = masks.areas.new_tensor([int(counts[1::2].sum()) for counts in edited])
    return replace(masks, edited=tuple(edited), boxes=new_boxes, areas=areas).select(keep)


def join(parts: Sequence[GeneratedMasks]) -> GeneratedMasks:
    """Concatenate masks of several batches or crops of one image."""
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
    """Generate masks as `generate_masks`, or read them from a cache keyed by image, backbone, options and points.

    Args:
        backbone, image, options, prompter: as for `generate_masks`.
        folder: cache folder, with a safetensors file for each result.
        identity: identifier of the backbone's weights, such as the checkpoint's digest.

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
            path.unlink(missing_ok=True)  # damaged; computed again below
    with torch.no_grad():
        masks = _generate(backbone, image, options, plan)
    write_atomically(path, _bytes(masks))
    return masks


def _digest(image: Tensor, options: MaskGeneratorOptions, plan: list[tuple[Box, Tensor]], identity: str) -> str:
    described = {
        "format": 2,
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
    return save(tensors, metadata={name: json.dumps(size) for name, size in asdict(masks.geometry).items()})


def _read(path: Path, device: torch.device) -> GeneratedMasks:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
        geometry = Geometry(**{name: tuple(json.loads(size)) for name, size in file.metadata().items()})
    edited = None
    if "edited" in tensors:
        lengths = tensors.pop("edited_lengths").tolist()
        edited = tuple(runs.numpy() for runs in tensors.pop("edited").split(lengths))
    return GeneratedMasks(**{name: tensor.to(device) for name, tensor in tensors.items()}, geometry=geometry, edited=edited)
