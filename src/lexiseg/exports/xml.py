"""XML files."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from lexiseg.ops.files import write_atomically

_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0, also escaped


def plain(text: str) -> str:
    """Replace the characters that XML cannot hold."""
    return _FORBIDDEN.sub("\ufffd", text)


def write_xml(path: str | Path, root: ElementTree.Element) -> None:
    """Write an XML document in UTF-8.

    Raises:
        OutputError: as `lexiseg.ops.files.write_atomically`.
    """
    ElementTree.indent(root)
    write_atomically(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
