"""Results as tasks for Label Studio, with a prediction each: a brush per region, which keeps holes and pieces.

Regions may also be polygons, one per piece with its holes joined to it by bridges of no width, or boxes; both in percent of the
picture's sides.

Brushes are run lengths of Label Studio's own, a stream of bits over the picture's four channels, row by row: 32 bits for the
number of values, 5 bits for their width less one, four times 4 bits for the widths of lengths less one; then, for each run, a
bit 1, two bits for which of the widths its length has, the length less one, and the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from lexiseg.exports.records import Classes, ResultRecord, picture_names
from lexiseg.exports.xml import plain, write_xml
from lexiseg.ops.files import write_json
from lexiseg.ops.outlines import bounds, bridged
from lexiseg.structures import Size

LOCAL = "/data/local-files/?d="  # served by Label Studio from the folder of LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT
CHANNELS, VALUE_BITS, LENGTH_BITS = 4, 8, (3, 4, 8, 16)
BRUSH, PICTURE = "brush", "image"  # names of the interface's controls
Kind = Literal["brushlabels", "polygonlabels", "rectanglelabels"]  # of regions; in lower case the names of the controls


def write_folder(path: Path, records: Sequence[ResultRecord]) -> None:
    """Write the tasks of a folder's results, to be imported into a project with the interface of `write_interface`.

    Args:
        path: the JSON file.
        records: the results.

    Raises:
        OutputError: if the file cannot be written.
    """
    tasks = []
    for record, name in zip(records, picture_names(records), strict=True):
        result = [
            region(number, "brushlabels", shape, BRUSH, PICTURE, record.size, plain(segment.name), segment.score)
            for number, (segment, mask) in enumerate(zip(record.segments, record.masks(), strict=True), start=1)
            for shape in shapes("brushlabels", mask)
        ]
        tasks.append({"data": {PICTURE: LOCAL + quote(name)}, "predictions": [{"model_version": "lexiseg", "result": result}]})
    write_json(path, tasks)


def write_interface(path: Path, records: Sequence[ResultRecord]) -> None:
    """Write the labelling interface of a project, with the classes of the results.

    Raises:
        OutputError: if the file cannot be written.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=PICTURE, value=f"${PICTURE}", zoom="true")
    brushes = ElementTree.SubElement(view, "BrushLabels", name=BRUSH, toName=PICTURE)
    for name in Classes.of(records).names:
        ElementTree.SubElement(brushes, "Label", value=plain(name))
    write_xml(path, view)


def region(
    number: int, kind: Kind, shape: dict[str, Any], control: str, picture: str, size: Size, label: str, score: float
) -> dict[str, Any]:
    """Return a region of a prediction.

    Args:
        number: its number within the prediction, from which its id is made.
        kind: kind of the control.
        shape: one of its `shapes`.
        control, picture: names of the control and of the picture's tag in the project's interface.
        size: (height, width) of the picture in pixels.
        label: value, or else alias, of the interface's label.
        score: score in 0..1.
    """
    height, width = size
    return {
        "id": f"region{number}",
        "type": kind,
        "from_name": control,
        "to_name": picture,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": score,
        "value": {**shape, kind: [label]},
    }


def shapes(kind: Kind, mask: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return a mask [H, W] as shapes of a kind: a brush, or the box of all pixels, or a polygon per piece."""
    height, width = mask.shape
    if kind == "brushlabels":
        return [{"format": "rle", "rle": encode_brush(mask)}]
    if kind == "polygonlabels":
        return [{"points": (100 * ring / (width, height)).tolist()} for ring in bridged(mask, "borders")]
    rows, columns = bounds(mask)
    (left, right), (top, bottom) = (
        (100 * part.start / side, 100 * part.stop / side) for part, side in ((columns, width), (rows, height))
    )
    return [{"x": left, "y": top, "width": right - left, "height": bottom - top, "rotation": 0}]


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask [H, W] as Label Studio's run lengths, a list of bytes."""
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size) * CHANNELS
    header = f"{flat.size * CHANNELS:032b}{VALUE_BITS - 1:05b}{''.join(f'{bits - 1:04b}' for bits in LENGTH_BITS)}"
    runs = (_run(length, 255 * value) for length, value in zip(lengths.tolist(), flat[starts].tolist(), strict=True))
    bits = header + "".join(runs)
    whole = bits.ljust(-(-len(bits) // 8) * 8, "0")
    return list(int(whole, 2).to_bytes(len(whole) // 8))


def _run(length: int, value: int) -> str:
    """Bits of a run, in parts where it is longer than the widest length."""
    longest = 2 ** LENGTH_BITS[-1]
    parts = [longest] * (length // longest) + ([length % longest] if length % longest else [])
    return "".join(_part(part, value) for part in parts)


def _part(length: int, value: int) -> str:
    kind = next(number for number, bits in enumerate(LENGTH_BITS) if length <= 2**bits)
    return f"1{kind:02b}{length - 1:0{LENGTH_BITS[kind]}b}{value:0{VALUE_BITS}b}"
