"""Results as "CVAT for images 1.1": an XML file with a mask per region, which keeps holes and pieces.

A mask is its box with run lengths row by row; the first run is of pixels outside the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from lexiseg.exports.records import Classes, ResultRecord, picture_names
from lexiseg.exports.xml import plain, write_xml
from lexiseg.ops.outlines import bounds


def write_folder(path: Path, records: Sequence[ResultRecord]) -> None:
    """Write the results of a folder for CVAT. Regions without pixels are left out.

    Args:
        path: the XML file.
        records: the results.

    Raises:
        OutputError: if the file cannot be written.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name in Classes.of(records).names:
        declared = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(declared, "name").text = plain(name)
        ElementTree.SubElement(declared, "type").text = "mask"
        ElementTree.SubElement(declared, "attributes")
    for number, (record, name) in enumerate(zip(records, picture_names(records), strict=True)):
        height, width = record.size
        picture = ElementTree.SubElement(root, "image", id=str(number), name=plain(name), width=str(width), height=str(height))
        order = len(record.segments)  # the first segment is on top
        for segment, mask in zip(record.segments, record.masks(), strict=True):
            order -= 1
            if mask.any():
                label = plain(segment.name)
                ElementTree.SubElement(
                    picture, "mask", label=label, source="auto", occluded="0", z_order=str(order), attrib=_runs(mask)
                )
    write_xml(path, root)


def encode_mask(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask [H, W] with pixels as CVAT's API does: run lengths of its box, then left, top, right, bottom, inclusive."""
    rows, columns = bounds(mask)
    flat = mask[rows, columns].ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
    return [*np.diff(changes, prepend=0).tolist(), columns.start, rows.start, columns.stop - 1, rows.stop - 1]


def _runs(mask: NDArray[np.bool_]) -> dict[str, str]:
    *runs, left, top, right, bottom = encode_mask(mask)
    return {
        "rle": ", ".join(map(str, runs)),
        "left": str(left),
        "top": str(top),
        "width": str(right - left + 1),
        "height": str(bottom - top + 1),
    }
