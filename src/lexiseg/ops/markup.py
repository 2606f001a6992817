"""Tables of HTML, for notebooks; all text is escaped, and there are no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

LEFT = 'style="text-align: left"'  # Jupyter aligns cells at the right
ROWS = 200  # of a table; a note says how many further ones there are


def html_table(titles: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """Return a table, of its rows at most the first `ROWS`.

    Args:
        titles: of the columns.
        rows: cells; their text is escaped.
        caption: a line above the table.
    """
    head, body = _row("th", titles), "".join(_row("td", row) for row in rows[:ROWS])
    further = f"<p>… and {len(rows) - ROWS:,} more</p>" if len(rows) > ROWS else ""
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead>{head}</thead><tbody>{body}</tbody></table>{further}"


def _row(tag: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{tag} {LEFT}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
