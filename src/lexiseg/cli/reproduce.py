"""``lexiseg reproduce``."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from lexiseg.cli.parser import build_parser
from lexiseg.cli.segment import weights_by_part
from lexiseg.data.published import titles
from lexiseg.errors import DataError, RunError, UsageError
from lexiseg.ops.files import write_atomically
from lexiseg.reproduce import plan, report
from lexiseg.reproduce.plan import RUNNABLE, Missing, Run, Settings, Step
from lexiseg.reproduce.tables import Row, Sheet, paper_named, sheet_named, sheets

LIST = "list"
WRITTEN_TO_FILE = "models"  # command whose output is its result


def run(arguments: argparse.Namespace) -> int:
    """List the tables and figures, or reproduce one."""
    weights = weights_by_part(arguments.weights)
    if arguments.paper == LIST:
        _list(None if arguments.table is None else paper_named(arguments.table), weights, arguments)
        return 0
    paper = paper_named(arguments.paper)
    if arguments.table is None:
        raise UsageError(f"name a table of {paper}, such as {sheets(paper)[0].name}; 'lexiseg reproduce list {paper}' has all")
    sheet = sheet_named(paper, arguments.table, tiny=arguments.tiny)
    rows = plan.chosen(sheet, arguments.rows)
    settings = Settings(
        output=Path(arguments.output or f"runs/{paper}{'-tiny' if sheet.tiny else ''}"),
        root=arguments.root,
        weights=weights,
        seeds=tuple(arguments.seeds or (plan.TINY_SEEDS if sheet.tiny else plan.FULL_SEEDS)),
        steps=arguments.steps,
        scenes=arguments.scenes or (plan.SCENES if sheet.tiny else None),
        device=arguments.device,
    )
    lacking = {row.name: plan.missing(sheet, row, settings.root, weights) for row in rows}
    if arguments.dry_run:
        _show(sheet, rows, lacking, settings, as_json=arguments.json)
        return 0
    ready = [row for row in rows if lacking[row.name].mark == RUNNABLE]
    for row in rows:
        if row not in ready:
            print(f"{row.name}: {lacking[row.name].mark}: {lacking[row.name].why}", file=sys.stderr)
    if not ready:
        first = lacking[rows[0].name]
        raise DataError(
            f"no row of {sheet.name} of {paper} can be run here; {rows[0].name} {first.mark}: {first.why}; 'lexiseg data check "
            "NAME' says how to get a data set, 'lexiseg fetch MODEL' gets published weights, --tiny needs neither"
        )
    if sheet.draw:
        return _draw(sheet, ready, settings, as_json=arguments.json)
    return _measure(sheet, rows, ready, lacking, settings, as_json=arguments.json)


def _list(paper: str | None, weights: dict[str, str], arguments: argparse.Namespace) -> None:
    """Print all tables and figures with their state on this machine."""
    entries = [_summary(sheet, arguments.root, weights) for sheet in sheets(paper)]
    if arguments.json:
        print(json.dumps(entries))
        return
    for name, title in titles().items():
        own = [entry for entry in entries if entry["paper"] == name]
        if own:
            print(f"{name}: {title}")
        for entry in own:
            twin = f"; twin: {entry['twin']}" if entry["twin"] else ""
            rows = "" if not entry["rows"] else f" ({entry['runnable']} of {entry['rows']} rows{twin})"
            print(f"  {entry['table']:<10} {entry['state']:<14} {entry['caption']}{rows}")
            if entry["why"]:
                print(f"  {'':<10} {'':<14} {entry['why']}")


def _summary(sheet: Sheet, root: str | None, weights: dict[str, str]) -> dict[str, Any]:
    state = plan.state(sheet, root, weights)
    return {
        "paper": sheet.paper,
        "table": sheet.name,
        "caption": sheet.caption,
        "note": sheet.note,
        "state": state.mark,
        "why": state.why,
        "rows": len(sheet.rows),
        "runnable": sum(entry.mark == RUNNABLE for entry in state.rows.values()),
        "quoted": len(sheet.quoted),
        "twin": len(sheet_named(sheet.paper, sheet.name, tiny=True).rows),
    }


def _show(sheet: Sheet, rows: Sequence[Row], lacking: dict[str, Missing], settings: Settings, *, as_json: bool) -> None:
    """Print what is there, what is missing, and the commands."""
    if sheet.draw:
        commands = {"": [plan.command_of(step) for step in plan.figure(sheet, rows, settings)]}
    else:
        commands = {run.folder.name: [plan.command_of(step) for step in run.steps] for run in plan.runs(sheet, rows, settings)}
    if as_json:
        states = {name: {"state": entry.mark, "why": entry.why} for name, entry in lacking.items()}
        print(json.dumps({"paper": sheet.paper, "table": sheet.name, "rows": states, "commands": commands}))
        return
    print(f"{sheet.paper} {sheet.name}: {sheet.caption}")
    for row in rows:
        entry = lacking[row.name]
        print(f"  {row.name:<16} {entry.mark:<14} {row.title}{f': {entry.why}' if entry.why else ''}")
    shown: set[str] = set()
    for folder, words in commands.items():
        for command in words:
            if command not in shown:
                print(f"{folder:<18} {command}" if folder else command)
            shown.add(command)


def _draw(sheet: Sheet, rows: Sequence[Row], settings: Settings, *, as_json: bool) -> int:
    """Train the rows of a figure, and draw it."""
    steps = plan.figure(sheet, rows, settings)
    for step in steps:
        _carry_out(step, sheet, rows[0], settings.seeds[0], settings)
    print(
        json.dumps({"paper": sheet.paper, "table": sheet.name, "file": str(steps[-1].result)}) if as_json else steps[-1].result
    )
    return 0


def _measure(
    sheet: Sheet, rows: Sequence[Row], ready: Sequence[Row], lacking: dict[str, Missing], settings: Settings, *, as_json: bool
) -> int:
    """Carry out the runs of a table, and write it after each."""
    complete: list[Run] = []
    paths: list[Path] = []
    document: dict[str, Any] = {}
    for each in plan.runs(sheet, ready, settings):
        for step in each.steps:
            _carry_out(step, sheet, each.row, each.seed, settings)
        complete.append(each)
        document = report.document(sheet, rows, complete, lacking, settings)
        paths = report.write(settings.output, document)
    print(json.dumps(document) if as_json else report.markdown(document))
    for path in paths:
        print(f"→ {path}", file=sys.stderr if as_json else sys.stdout)
    return 0


def _carry_out(step: Step, sheet: Sheet, row: Row, seed: int | None, settings: Settings) -> None:
    """Run a command unless its results are there.

    Raises:
        RunError: the command reported a failure.
    """
    if plan.is_done(step, sheet, row, seed, settings):
        return
    print(f"→ {plan.command_of(step)}", file=sys.stderr, flush=True)
    arguments = build_parser().parse_args(step.words)
    arguments.typed = list(step.words)
    command = import_module(f"lexiseg.cli.{step.words[0]}")
    output = io.StringIO()
    with redirect_stdout(output):  # of commands that print their results besides writing them
        code = command.run(arguments)
    if code:
        raise RunError(f"'{plan.command_of(step)}' failed; what is complete is kept in {settings.output}")
    if step.words[0] == WRITTEN_TO_FILE:
        write_atomically(step.result, output.getvalue().encode())
