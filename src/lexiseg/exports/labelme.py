"""Results as LabelMe's JSON: a shape of the type "mask" per region, a PNG of the region's box, which keeps holes and pieces."""

from __future__ import annotations

import io
import os
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.exports.records import ResultRecord
from lexiseg.ops.files import write_json
from lexiseg.ops.outlines import bounds

VERSION = "5.5.0"  # of LabelMe, whose format this is; it has masks since 5.3


def write_labelme(path: Path, record: ResultRecord, image: NDArray[np.uint8]) -> None:
    """Write a result for LabelMe. Regions without pixels are left out.

    Args:
        path: the JSON file.
        record: the result.
        image: its picture [H, W, 3]. It is stored in the JSON only if it has no file, else its path is.

    Raises:
        OutputError: if the file cannot be written.
    """
    shapes = [
        {
            "label": segment.name,
            "points": [[columns.start, rows.start], [columns.stop - 1, rows.stop - 1]],
            "group_id": segment.id,
            "description": f"score {segment.score:.4f}",
            "shape_type": "mask",
            "flags": {},
            "mask": _png(mask[rows, columns].astype(np.uint8) * 255),
        }
        for segment, mask in zip(record.segments, record.masks(), strict=True)
        if mask.any()
        for rows, columns in [bounds(mask)]
    ]
    document: dict[str, Any] = {"version": VERSION, "flags": {}, "shapes": shapes}
    if record.source is not None and record.has_file:
        document |= {"imagePath": _relative(record.source, path.parent), "imageData": None}
    else:
        document |= {"imagePath": f"{path.name}.png", "imageData": _png(image)}
    write_json(path, {**document, "imageHeight": record.size[0], "imageWidth": record.size[1]})


def _relative(source: str, folder: Path) -> str:
    """Path of the picture as seen from the JSON's folder, or else absolute: on Windows there may be none between two drives."""
    try:
        return Path(os.path.relpath(source, folder)).as_posix()
    except ValueError:
        return Path(source).absolute().as_posix()


def _png(values: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return b64encode(buffer.getvalue()).decode()
