"""``lexiseg data list | check NAME | prepare NAME | names NAME``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from lexiseg.data import official_names
from lexiseg.data.catalogue import Report, check, prepare, row_named, rows


def run(arguments: argparse.Namespace) -> int:
    """List the data sets, check or prepare one, or fetch its official class list. Exit code 1 if it is not ready afterwards."""
    if arguments.action == "list":
        _list(as_json=arguments.json)
        return 0
    row = row_named(arguments.name)
    if arguments.action == "names":
        path = official_names.fetch(row.name)
        print(json.dumps({"name": row.name, "names": str(path)}) if arguments.json else f"→ {path}")
        return 0
    if arguments.action == "prepare":
        prepare(row, arguments.root)
    report = check(row, arguments.root)
    print(json.dumps(_document(report)) if arguments.json else "\n".join(_lines(report)))
    return 0 if report.step == "ready" else 1


def _list(*, as_json: bool) -> None:
    catalogue = rows()
    if as_json:
        fields = ("name", "title", "tasks", "images", "training", "group")
        print(json.dumps([{field: getattr(row, field) for field in fields} for row in catalogue]))
        return
    width = max(len(row.name) for row in catalogue)
    for row in catalogue:
        print(f"{row.name:<{width}}  {row.images or '':>6}  {', '.join(row.tasks):<28}  {row.title}")
    print("A folder or COCO JSON of your own is named by its path. Next: lexiseg data check NAME", file=sys.stderr)


def _document(report: Report) -> dict[str, Any]:
    return {
        "name": report.row.name,
        "root": str(report.root),
        "parts": [{"path": part.pattern, "files": part.files, "task": part.task or None} for part in report.parts],
        "tasks": report.tasks,
        "pictures": report.pictures,
        "expected": report.row.images or None,
        "problem": report.problem or None,
        "step": report.step,
        "get": report.row.get if report.step == "download" else None,
        "command": report.command,
    }


def _lines(report: Report) -> list[str]:
    row = report.row
    size = f" ({row.images} pictures)" if row.images else ""
    lines = [f"{row.name}: {row.title}{size}", f"in {report.root}:"]
    for part in report.parts:
        state = f"{part.files:>7} file{'s' if part.files > 1 else ' '}" if part.files else f"{'missing':>13}"
        lines.append(f"{state}  {part.pattern}{f'  (for {part.task})' if part.task else ''}")
    if report.tasks:
        lines.append(f"can be measured now: {', '.join(report.tasks)}, on {report.pictures} pictures")
    if report.step == "download":
        lines += ["how to get it:", *(f"  {line}" for line in row.get.splitlines()), f"then: {report.command}"]
    elif report.step == "prepare":
        lines += ["the download is there and has to be prepared once", f"next: {report.command}"]
    elif report.step == "repair":
        lines += [f"wrong: {report.problem}", f"then: {report.command}"]
    else:
        lines.append(f"next: {report.command}")
    return lines
