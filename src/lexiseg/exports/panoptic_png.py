"""Panoptic results in COCO's format: segment ids as colours of a PNG, the segments in a JSON.

Format: https://cocodataset.org/#format-data, "panoptic segmentation". A pixel of segment ``id`` has the colour
``id = R + 256 G + 65536 B``; 0 is no segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.exports.coco import Record, categories, images_of, segment_record
from lexiseg.exports.records import Classes, ResultRecord
from lexiseg.ops.colours import ids_of_picture
from lexiseg.ops.files import path_exists, write_json, write_png
from lexiseg.ops.pictures import opened_picture
from lexiseg.structures import Segment

ENDING = ".panoptic.png"


def ids_to_colours(ids: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Encode segment ids [H, W] as RGB [H, W, 3].

    Raises:
        UsageError: if an id does not fit in 24 bits.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= 1 << 24):
        raise UsageError(f"segment ids from {ids.min()} to {ids.max()}: a panoptic PNG holds 0 to {(1 << 24) - 1}")
    colours = np.empty((*ids.shape, 3), np.uint8)
    for channel in range(3):
        colours[..., channel] = ids >> 8 * channel & 255
    return colours


def write_panoptic_png(path: str | Path, ids: NDArray[np.integer[Any]]) -> None:
    """Write segment ids [H, W] as a panoptic PNG.

    Raises:
        UsageError: if an id does not fit in 24 bits.
        OutputError: if the file cannot be written.
    """
    write_png(path, ids_to_colours(ids))


def read_panoptic_png(path: str | Path) -> NDArray[np.int32]:
    """Read the segment ids [H, W] of a panoptic PNG.

    Raises:
        DataError: the file is missing or damaged.
    """
    with opened_picture(Path(path)) as opened:
        return ids_of_picture(opened)


def segments_info(segments: Sequence[Segment], category_ids: Sequence[int] | None = None) -> list[Record]:
    """Return COCO's ``segments_info`` of one image."""
    return [{**segment_record(segment, category_ids), "isthing": int(segment.thing)} for segment in segments]


def panoptic_annotation(
    image_id: int | str, file_name: str, segments: Sequence[Segment], category_ids: Sequence[int] | None = None
) -> Record:
    """Return the annotation of one image, whose panoptic PNG is ``file_name``."""
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments_info(segments, category_ids)}


def write_panoptic_json(
    path: str | Path,
    images: Sequence[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    classes: Sequence[Mapping[str, Any]],
) -> None:
    """Write the JSON of a folder of panoptic PNGs, of ground truth or predictions.

    Args:
        path: the JSON file.
        images: from `lexiseg.exports.coco.image_record`.
        annotations: from `panoptic_annotation`, one per image.
        classes: from `lexiseg.exports.coco.categories`.

    Raises:
        OutputError: if the file cannot be written.
    """
    document = {"images": list(images), "annotations": list(annotations), "categories": list(classes)}
    write_json(path, document)


def write_folder(path: Path, records: Sequence[ResultRecord]) -> None:
    """Write the COCO panoptic JSON of the results whose panoptic PNG is in the JSON's folder.

    Args:
        path: the JSON file.
        records: the results; images are numbered from 1 in their order.

    Raises:
        OutputError: if the file cannot be written.
    """
    shown = [record for record in records if path_exists(path.parent / f"{record.stem}{ENDING}")]
    classes = Classes.of(shown)
    images, annotations = [], []
    for record, image, category_ids in images_of(shown, classes):
        images.append(image)
        annotations.append(panoptic_annotation(image["id"], f"{record.stem}{ENDING}", record.segments, category_ids))
    write_panoptic_json(path, images, annotations, categories(classes.names, classes.things))
