"""Instances in COCO's JSON: annotations with compressed run-length masks, predictions and ground truth.

Format: https://cocodataset.org/#format-data and #format-results. Category ids are label + 1 unless the data set's own
are given, for many readers take 0 for the background.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.ops.files import write_json
from lexiseg.ops.rle import compress, encode_masks
from lexiseg.structures import Segment, Size

Record = dict[str, Any]


def categories(names: Sequence[str], things: Sequence[bool], category_ids: Sequence[int] | None = None) -> list[Record]:
    """The document's ``categories`` of K classes, ``isthing`` as in COCO panoptic."""
    return [
        {"id": category_id(label, category_ids), "name": name, "isthing": int(thing)}
        for label, (name, thing) in enumerate(zip(names, things, strict=True))
    ]


def category_id(label: int, category_ids: Sequence[int] | None = None) -> int:
    """The id of a class: the data set's own, or label + 1."""
    return label + 1 if category_ids is None else category_ids[label]


def image_record(image_id: int | str, file_name: str, size: Size) -> Record:
    """One entry of the document's ``images``; ``size`` is (height, width) in pixels."""
    return {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}


def segment_record(segment: Segment, category_ids: Sequence[int] | None = None) -> Record:
    """What COCO's instances and panoptic segments both say of a region; COCO's own files have no ``score``."""
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
    """COCO annotations of one image.

    Args:
        masks: [N, H, W]; instances may overlap.
        segments: the N records that belong to them.
        image_id: COCO's number of the image.
        category_ids: the data set's id of each label, or None for label + 1.

    Raises:
        UsageError: if there are not as many masks as segments.
    """
    if len(masks) != len(segments):
        raise UsageError(f"{len(masks)} masks for {len(segments)} segments: give one mask a segment")
    return [
        {
            **segment_record(segment, category_ids),
            "image_id": image_id,
            "segmentation": {"size": list(masks.shape[1:]), "counts": compress(counts)},
        }
        for counts, segment in zip(encode_masks(torch.from_numpy(masks)), segments, strict=True)
    ]


def write_predictions(path: str | Path, annotations: Iterable[Mapping[str, Any]]) -> None:
    """Write COCO's results format: a list of scored masks of all images.

    Only what COCO asks for is written. A box must not be: pycocotools would then take the box's area for the mask's
    when it sorts results into small, medium and large.

    Raises:
        OutputError: if the file cannot be written.
    """
    kept = ("image_id", "category_id", "segmentation", "score")
    write_json(path, [{key: annotation[key] for key in kept} for annotation in annotations])


def write_ground_truth(
    path: str | Path,
    images: Sequence[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    classes: Sequence[Mapping[str, Any]],
) -> None:
    """Write a COCO instances document, for a reader of ground truth.

    Args:
        path: the JSON file.
        images: from `image_record`.
        annotations: from `instance_annotations`, of all images; they are numbered anew from 1, for COCO wants ids unique
            in the document.
        classes: from `categories`.

    Raises:
        OutputError: if the file cannot be written.
    """
    numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
    write_json(path, {"images": list(images), "annotations": numbered, "categories": list(classes)})
