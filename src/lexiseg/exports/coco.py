"""Instances in COCO's JSON: annotations with compressed run-length masks or polygons, predictions and ground truth.

Format: https://cocodataset.org/#format-data and #format-results. Category ids default to label + 1, since many readers take
0 for the background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.exports.records import Classes, ResultRecord, picture_names
from lexiseg.ops.files import write_json
from lexiseg.ops.outlines import bridged
from lexiseg.ops.rle import Counts, compress, decode_counts, encode_masks
from lexiseg.structures import Segment, Size

Record = dict[str, Any]


def categories(names: Sequence[str], things: Sequence[bool], category_ids: Sequence[int] | None = None) -> list[Record]:
    """Return the ``categories`` of K classes, with ``isthing`` as in COCO panoptic."""
    return [
        {"id": category_id(label, category_ids), "name": name, "isthing": int(thing)}
        for label, (name, thing) in enumerate(zip(names, things, strict=True))
    ]


def category_id(label: int, category_ids: Sequence[int] | None = None) -> int:
    """Return the category id of a label: the data set's own, or label + 1."""
    return label + 1 if category_ids is None else category_ids[label]


def image_record(image_id: int | str, file_name: str, size: Size) -> Record:
    """Return an entry of ``images``; ``size`` is (height, width) in pixels."""
    return {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}


def segment_record(segment: Segment, category_ids: Sequence[int] | None = None) -> Record:
    """Return the fields common to COCO's instances and panoptic segments; ``score`` is an addition to COCO's format."""
    return {
        "id": segment.id,
        "category_id": category_id(segment.label, category_ids),
        "area": segment.area,
        "bbox": list(segment.box),
        "iscrowd": 0,
        "score": segment.score,
    }


def instance_annotations(
    masks: NDArray[np.bool_], segments: Sequence[Segment], image_id: int | str, category_ids: Sequence[int] | None = None
) -> list[Record]:
    """Return the COCO annotations of one image.

    Args:
        masks: [N, H, W] bool; instances may overlap.
        segments: the N segments of the masks.
        image_id: the image's id in COCO.
        category_ids: the data set's id of each label, or None for label + 1.

    Raises:
        UsageError: if the numbers of masks and segments differ.
    """
    if len(masks) != len(segments):
        raise UsageError(f"{len(masks)} masks for {len(segments)} segments: give one mask per segment")
    high, wide = masks.shape[1:]
    return [
        annotation(segment, run_lengths(counts, (high, wide)), image_id, category_ids)
        for counts, segment in zip(encode_masks(torch.from_numpy(masks)), segments, strict=True)
    ]


def annotation(
    segment: Segment, segmentation: object, image_id: int | str, category_ids: Sequence[int] | None = None
) -> Record:
    """Return the COCO annotation of a segment, its mask as `run_lengths` or `polygons`."""
    return {**segment_record(segment, category_ids), "image_id": image_id, "segmentation": segmentation}


def run_lengths(counts: Counts, size: Size) -> Record:
    """Return a mask as COCO's compressed run lengths."""
    return {"size": list(size), "counts": compress(counts)}


def polygons(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Return a mask [H, W] as COCO's polygons, one per region, along the borders of pixels.

    COCO's polygons know no holes: a hole is joined to the outline around it by a bridge of no width. COCO's tools rasterise the
    polygons to the same mask.
    """
    return [ring.ravel().tolist() for ring in bridged(mask, "borders")]


def write_predictions(path: str | Path, annotations: Iterable[Mapping[str, Any]]) -> None:
    """Write COCO's results format: a list of scored masks of all images.

    Only required fields are written, without boxes: pycocotools would use the box's area in place of the mask's to sort
    results into small, medium and large.

    Raises:
        OutputError: if the file cannot be written.
    """
    kept = ("image_id", "category_id", "segmentation", "score")
    write_json(path, [{key: row[key] for key in kept} for row in annotations])


def write_ground_truth(
    path: str | Path,
    images: Sequence[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    classes: Sequence[Mapping[str, Any]],
) -> None:
    """Write a COCO instances JSON of ground truth.

    Args:
        path: the JSON file.
        images: from `image_record`.
        annotations: from `instance_annotations`, of all images; they are renumbered from 1, since COCO's ids are unique in
            the file.
        classes: from `categories`.

    Raises:
        OutputError: if the file cannot be written.
    """
    numbered = [{**row, "id": number} for number, row in enumerate(annotations, start=1)]
    write_json(path, {"images": list(images), "annotations": numbered, "categories": list(classes)})


def write_folder(path: Path, records: Sequence[ResultRecord]) -> None:
    """Write the results of a folder as a COCO instances JSON: things and stuff, with scores, masks as run lengths.

    Args:
        path: the JSON file.
        records: the results; images are numbered from 1 in their order.

    Raises:
        OutputError: if the file cannot be written.
    """
    _write_folder(path, records, run_lengths)


def write_folder_of_polygons(path: Path, records: Sequence[ResultRecord]) -> None:
    """Write the results of a folder as `write_folder` does, masks as `polygons`.

    Raises:
        OutputError: if the file cannot be written.
    """
    _write_folder(path, records, lambda counts, size: polygons(decode_counts(counts, size).numpy()))


def _write_folder(path: Path, records: Sequence[ResultRecord], segmentation: Callable[[Counts, Size], object]) -> None:
    classes = Classes.of(records)
    images, annotations = [], []
    for record, image, category_ids in images_of(records, classes):
        images.append(image)
        annotations += [
            annotation(segment, segmentation(counts, record.size), image["id"], category_ids)
            for segment, counts in zip(record.segments, record.counts, strict=True)
        ]
    write_ground_truth(path, images, annotations, categories(classes.names, classes.things))


def images_of(records: Sequence[ResultRecord], classes: Classes) -> Iterator[tuple[ResultRecord, Record, list[int]]]:
    """Yield each result with its entry of ``images``, numbered from 1, and the category ids of its labels."""
    for number, (record, name) in enumerate(zip(records, picture_names(records), strict=True), start=1):
        yield record, image_record(number, name, record.size), [label + 1 for label in classes.labels(record)]
