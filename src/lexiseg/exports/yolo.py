"""Results as a data set for YOLO's segmentation: a text file per picture, a line per region, and ``data.yaml``.

A line is a class and the corners of one polygon, as fractions of width and height. The format has neither holes nor regions in
several pieces, so a hole is joined to the outline around it by a bridge of no width, and each piece is a line. The outline runs
through the centres of the outermost pixels: OpenCV's ``fillPoly``, with which the format is read, fills the outline, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from lexiseg.exports.records import Classes, ResultRecord
from lexiseg.ops.files import path_exists, write_atomically
from lexiseg.ops.outlines import Ring, bridged
from lexiseg.structures import Size

PICTURE, LABELS = "images/{}.yolo.png", "labels/{}.yolo.txt"  # readers replace the folder's name and the ending
INSIDE = 0.25  # [decided] of a pixel, added to corners: rounded or cut off they are the same whole number


def write_folder(path: Path, records: Sequence[ResultRecord]) -> None:
    """Write the labels of the results whose picture is in ``images``, and ``data.yaml``, which names the classes.

    Args:
        path: ``data.yaml``, in the data set's folder.
        records: the results.

    Raises:
        OutputError: if a file cannot be written.
    """
    shown = [record for record in records if path_exists(path.parent / PICTURE.format(record.stem))]
    classes = Classes.of(shown)
    for record in shown:
        write_atomically(path.parent / LABELS.format(record.stem), "".join(lines(record, classes.labels(record))).encode())
    names = dict(enumerate(classes.names))
    content = yaml.safe_dump({"train": "images", "val": "images", "names": names}, allow_unicode=True, sort_keys=False)
    write_atomically(path, content.encode())


def lines(record: ResultRecord, labels: Sequence[int]) -> list[str]:
    """Return the lines of a picture; ``labels`` are the data set's labels of the record's classes."""
    return [
        f"{labels[segment.label]} {_fractions(ring, record.size)}\n"
        for segment, mask in zip(record.segments, record.masks(), strict=True)
        for ring in bridged(mask, "centres")
    ]


def _fractions(ring: Ring, size: Size) -> str:
    return " ".join(f"{value:.8f}" for value in ((ring + INSIDE) / size[::-1]).ravel().tolist())
