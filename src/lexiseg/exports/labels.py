"""Semantic results as label maps: a PNG whose grey values are labels, with the class names in files beside it.

Up to 255 classes take 8 bits, more take 16. The highest value is void: 255 or 65535.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.ops.files import write_atomically, write_json, write_png
from lexiseg.ops.pictures import read_values


def void_value(classes: int) -> int:
    """Return the grey value of pixels without a class, for K classes.

    Raises:
        UsageError: if there are more classes than a PNG has grey values.
    """
    if classes > 65535:
        raise UsageError(f"{classes} classes: a label PNG holds at most 65535; choose fewer classes or another export")
    return 255 if classes <= 255 else 65535


def write_labels(
    path: str | Path, labels: NDArray[np.integer[Any]], classes: int, colours: NDArray[np.uint8] | None = None
) -> None:
    """Write a label map.

    Args:
        path: the PNG file.
        labels: [H, W], 0 to K - 1, or negative for void.
        classes: K.
        colours: [K, 3], shown in place of greys where the map has 8 bits; a PNG of 16 bits has no palette. Void is black.

    Raises:
        UsageError: if a label is not below K, or K is above 65535.
        OutputError: if the file cannot be written.
    """
    values = label_values(labels, classes)
    palette = None
    if colours is not None and values.dtype == np.uint8:
        palette = np.zeros((256, 3), np.uint8)
        palette[:classes] = colours
    write_png(path, values, palette)


def label_values(labels: NDArray[np.integer[Any]], classes: int) -> NDArray[np.unsignedinteger[Any]]:
    """Return the values [H, W] of a label map, 8 or 16 bits; see `write_labels`."""
    void = void_value(classes)
    if labels.size and labels.max() >= classes:
        raise UsageError(f"label {labels.max()} in a map of {classes} classes: labels go to {classes - 1}")
    return np.where(labels < 0, void, labels).astype(np.uint8 if void == 255 else np.uint16)


def read_labels(path: str | Path) -> NDArray[np.int32]:
    """Read the labels [H, W] of a label map, -1 for void.

    Raises:
        DataError: the file is missing, damaged, or not a label map.
    """
    values = read_values(Path(path))
    return np.where(values == np.iinfo(values.dtype).max, -1, values.astype(np.int32))


def write_classes(folder: str | Path, names: Sequence[str], things: Sequence[bool]) -> None:
    """Write the class of each label: ``classes.txt``, a vocabulary file with a class per line, and ``classes.json``.

    Raises:
        OutputError: if a file cannot be written.
    """
    rows = [
        {"label": label, "name": name, "thing": bool(thing)}
        for label, (name, thing) in enumerate(zip(names, things, strict=True))
    ]
    lines = [f"{row['name']} | {'thing' if row['thing'] else 'stuff'}\n" for row in rows]
    write_atomically(Path(folder) / "classes.txt", "".join(lines).encode())
    document = {"void": void_value(len(rows)), "classes": rows}
    write_json(Path(folder) / "classes.json", document, indent=1)
