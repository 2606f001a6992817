"""A page of HTML with the overlays of a folder and what is in them; regions show their names under the pointer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from lexiseg.exports.hover import STYLE, with_regions
from lexiseg.exports.records import ResultRecord, picture_names
from lexiseg.ops.files import path_exists, write_atomically

OVERLAY = ".overlay.png"
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fafafa }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem }
figure { margin: 0; padding: 0.75rem; background: white; border: 1px solid #ddd; border-radius: 6px }
figcaption { overflow-wrap: anywhere }
p { margin: 0.25rem 0 0; color: #555 }
"""


def write_folder(path: Path, records: Sequence[ResultRecord]) -> None:
    """Write the page, with the results whose overlay is in its folder.

    Args:
        path: the HTML file; it refers to the overlays by their names.
        records: the results.

    Raises:
        OutputError: if the file cannot be written.
    """
    shown = [record for record in records if path_exists(path.parent / f"{record.stem}{OVERLAY}")]
    figures = [_figure(record, name) for record, name in zip(shown, picture_names(shown), strict=True)]
    head = f'<meta charset="utf-8">\n<title>lexiseg: {len(shown)} pictures</title>\n<style>{_STYLE}{STYLE}</style>'
    body = f"<body>\n<main>\n{''.join(figures)}</main>\n</body>"
    page = f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n{body}\n</html>\n'
    write_atomically(path, page.encode(errors="replace"))


def _figure(record: ResultRecord, name: str) -> str:
    address = quote(f"{record.stem}{OVERLAY}", errors="surrogateescape")
    counts = Counter(segment.name for segment in record.segments)
    best = {name: max(segment.score for segment in record.segments if segment.name == name) for name in counts}
    contents = ", ".join(f"{name}{f' × {count}' if count > 1 else ''} ({best[name]:.2f})" for name, count in counts.items())
    height, width = record.size
    picture = with_regions(address, name, record.size, record.masks(), record.segments)
    return (
        f'<figure><a href="{address}">{picture}</a>\n'
        f"<figcaption>{escape(name)}</figcaption><p>{width} × {height}, {record.task}</p>"
        f"<p>{escape(contents) or 'nothing named'}</p></figure>\n"
    )
