"""The results of a table beside the published numbers: means over seeds, their spread, and differences to the first row."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lexiseg.data import catalogue
from lexiseg.data.published import METRICS
from lexiseg.methods import MODELS
from lexiseg.ops.files import write_atomically, write_json
from lexiseg.reproduce.plan import Missing, Run, Settings, evaluation, expanded, recipe_of
from lexiseg.reproduce.tables import MADE, UNMEASURED, Column, Row, Sheet
from lexiseg.training.logger import read_log

TASKS: Mapping[str, str] = {"recall": "mask recall, regions of classes"}  # of a report, by task of a metric
UNTRAINED = "-"  # in place of a seed
Values = Mapping[Column, float]


def measured(sheet: Sheet, run: Run, settings: Settings) -> dict[Column, float]:
    """The numbers of a run, in the units of `METRICS`; columns without a result are left out."""
    values: dict[Column, float | None] = {}
    for column in sheet.wanted(run.row):
        if column.metric in UNMEASURED:
            continue
        if column.metric in ("training-latency", "iterations"):
            values[column] = _of_training(sheet, run, column.metric, settings)
        elif column.metric == "parameters-sam" and "sam" in run.row.weights:
            continue  # the description is that of the model's own SAM
        elif column.dataset == MADE:
            values[column] = _of_model(run.folder / "model.json", column.metric)
        else:
            values[column] = _of_data(sheet, run.folder, column, settings)
    return {column: value for column, value in values.items() if value is not None}


def _of_data(sheet: Sheet, folder: Path, column: Column, settings: Settings) -> float | None:
    """A number of an evaluation; of several data sets the mean, in which the parts of a set count as one."""
    wholes: dict[str, list[float]] = {}
    parts = {row.name: row.part_of for row in catalogue.rows()}
    for name in [column.dataset] if sheet.tiny else expanded(column.dataset):
        path = evaluation(folder, name, settings) / "metrics.json"
        value = _of_report(json.loads(path.read_text(encoding="utf-8")), column) if path.is_file() else None
        if value is None:
            return None
        wholes.setdefault(parts.get(name) or name, []).append(value)
    return statistics.fmean(map(statistics.fmean, wholes.values()))


def _of_report(report: Mapping[str, Any], column: Column) -> float | None:
    if not column.task:
        return _of_speed(report.get("speed"), column.metric)
    result = report["results"].get(TASKS.get(column.task, column.task), {})
    value = (result.get("groups", {}).get(column.group, {}) if column.group else result).get(column.metric)
    return None if value is None else 100 * value


def _of_speed(speed: Mapping[str, Any] | None, metric: str) -> float | None:
    """A cost in its unit."""
    if speed is None:
        return None
    memory = speed["memory_MiB"]
    seconds: float = speed["seconds"]
    return {
        "FPS": speed["FPS"],
        "latency": 1000 * seconds,
        "seconds": seconds,
        "memory": None if memory is None else memory * 2**20 / 1e9,
        "points": speed["points"],
    }.get(metric)


def _of_model(path: Path, metric: str) -> float | None:
    """A number of the description of a model, `lexiseg models --describe --json`."""
    if not path.is_file():
        return None
    described = json.loads(path.read_text(encoding="utf-8"))
    counts = described["parameters"]
    if metric == "GFLOPs":
        return described["flops"]["total"] / 2e9  # MACs: the note of ESC-Net's Table 4
    if metric == "parameters-frozen":  # the papers count the image encoders of CLIP and SAM
        towers = [number for tower in counts["by_tower"].values() for name, number in tower.items() if name.startswith("image")]
        return sum(towers) / 1e6
    named = {
        "parameters": counts["total"],
        "parameters-trainable": counts["trainable"],
        "parameters-sam": counts["by_part"].get("sam"),
    }
    return named[metric] / 1e6 if named.get(metric) is not None else _of_speed(described.get("speed"), metric)


def _of_training(sheet: Sheet, run: Run, metric: str, settings: Settings) -> float | None:
    """Length of a training in 10^3 steps, or milliseconds per step by its log, without the first line."""
    origin = sheet.origin(run.row)
    if MODELS[origin.model].recipe is None:
        return None
    recipe = recipe_of(sheet, origin, run.seed or 0, settings.steps)
    if metric == "iterations":
        return recipe.steps / 1000
    speeds = [line["images_per_second"] for line in read_log(run.training) if "images_per_second" in line]
    return None if not speeds else 1000 * recipe.batch_size / statistics.fmean(speeds[1:] or speeds)


def document(
    sheet: Sheet, rows: Sequence[Row], runs: Sequence[Run], lacking: Mapping[str, Missing], settings: Settings
) -> dict[str, Any]:
    """All numbers of a table so far, as a JSON document.

    Args:
        sheet: the table.
        rows: its rows, in order.
        runs: the runs that are complete.
        lacking: what is missing for each row.
        settings: as given.
    """
    values: dict[str, dict[str, Values]] = {row.name: {} for row in rows}
    for run in runs:
        values[run.row.name][UNTRAINED if run.seed is None else str(run.seed)] = measured(sheet, run, settings)
    with_values = [name for name, by_seed in values.items() if by_seed]
    base = sheet.base if sheet.base in with_values else next(iter(with_values), "")
    entries = [_entry(row, sheet, values, base, lacking[row.name]) for row in rows]
    return {
        "paper": sheet.paper,
        "table": sheet.name,
        "caption": sheet.caption,
        "note": sheet.note,
        "tiny": sheet.tiny,
        "seeds": list(settings.seeds),
        "steps": settings.steps or sheet.steps,
        "scenes": settings.scenes,
        "base": base,
        "columns": [str(column) for column in sheet.columns],
        "published_columns": [str(column) for column in sheet.printed],
        "units": {str(column): METRICS[column.metric][1] for column in sheet.columns},
        "rows": entries,
        "quoted": [{"title": title, "published": _plain(numbers)} for title, numbers in sheet.quoted],
    }


def _entry(row: Row, sheet: Sheet, values: Mapping[str, Mapping[str, Values]], base: str, lacking: Missing) -> dict[str, Any]:
    by_seed = values[row.name]
    numbers: dict[str, Any] = {}
    for column in sheet.columns:
        own = {seed: known[column] for seed, known in by_seed.items() if column in known}
        if not own:
            continue
        cell: dict[str, Any] = {"values": own, **_spread(list(own.values()))}
        others = {seed: known[column] for seed, known in values.get(base, {}).items() if column in known}
        if row.name != base and own.keys() == others.keys():
            cell["difference"] = _spread([own[seed] - others[seed] for seed in own])
        numbers[str(column)] = cell
    return {
        "name": row.name,
        "title": row.title,
        "published_row": row.number,
        "state": lacking.mark,
        "why": lacking.why,
        "published": _plain(row.published),
        "measured": numbers,
    }


def _plain(numbers: Values) -> dict[str, float]:
    return {str(column): value for column, value in numbers.items()}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, and standard deviation of at least two values."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def write(folder: Path, report: Mapping[str, Any]) -> list[Path]:
    """Write a document as JSON and Markdown, ``PAPER-TABLE.json`` and ``.md``, the twin's as ``PAPER-TABLE-tiny``.

    Raises:
        OutputError: a file cannot be written.
    """
    stem = f"{report['paper']}-{report['table']}{'-tiny' if report['tiny'] else ''}"
    paths = [folder / f"{stem}.json", folder / f"{stem}.md"]
    write_json(paths[0], report, indent=1)
    write_atomically(paths[1], markdown(report).encode())
    return paths


def markdown(report: Mapping[str, Any]) -> str:
    """Render a document; a published number stands below ours, or in a table of its own if ours are the twin's."""
    twin = ", twin on the emoji world" if report["tiny"] else ""
    trained = any(seed != UNTRAINED for row in report["rows"] for cell in row["measured"].values() for seed in cell["values"])
    budget = [f"seeds {', '.join(map(str, report['seeds']))}"] if trained else []
    budget += [f"{report['steps']} steps"] if trained and report["steps"] else []
    budget += [f"{report['scenes']} pictures of each data set"] if report["scenes"] else []
    caption = f"{report['caption'][0].upper()}{report['caption'][1:]}"
    lines = [
        f"# {report['paper']} {report['table']}{twin}",
        "",
        ". ".join([caption, *(["; ".join(budget)] if budget else [])]) + ".",
    ]
    lines += ["", f"Note: {report['note']}."] if report["note"] else []
    rows = [row for row in report["rows"] if row["measured"] or not report["tiny"]]
    if rows:
        lines += ["", *_table(report["columns"], _lines(report, rows))]
    base = next((row["title"] for row in rows if row["name"] == report["base"]), "")
    if any("difference" in cell for row in rows for cell in row["measured"].values()):
        lines += ["", f"In brackets the difference to {base}{', paired by seed' if trained else ''}."]
    if any(cell["std"] is not None for row in rows for cell in row["measured"].values()):
        lines += ["", "Mean ± standard deviation over the seeds."]
    lines += ["", *_units(report)]
    missing = [f"* {row['title']}: {row['state']}: {row['why']}" for row in report["rows"] if row["why"]]
    lines += ["", "Not run:", "", *missing] if missing else []
    if report["tiny"] and (printed := _published(report)):
        lines += ["", "## Published, of the full-size models", "", *printed]
    return "\n".join([*lines, ""])


def _lines(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Cells of the rows: ours, and the paper's if the columns are the same."""
    lines = []
    for row in rows:
        if row["measured"]:
            lines.append([row["title"], "ours", *(_cell(row["measured"].get(column)) for column in report["columns"])])
        if row["published"] and not report["tiny"]:
            lines.append([row["title"], "paper", *(_number(row["published"].get(column)) for column in report["columns"])])
    for row in report["quoted"]:
        lines.append([row["title"], "paper", *(_number(row["published"].get(column)) for column in report["columns"])])
    return lines


def _published(report: Mapping[str, Any]) -> list[str]:
    """The published numbers of the rows of a twin."""
    rows = [row for row in report["rows"] if row["published"]]
    columns = [column for column in report["published_columns"] if any(column in row["published"] for row in rows)]
    return _table(
        columns, [[row["title"], "paper", *(_number(row["published"].get(name)) for name in columns)] for row in rows]
    )


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    header = ["", "", *columns]
    return ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines]]


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    shown = _with_spread(cell)
    return f"{shown} ({_with_spread(cell['difference'], sign='+')})" if "difference" in cell else shown


def _with_spread(cell: Mapping[str, Any], *, sign: str = "") -> str:
    digits = 1 if abs(cell["mean"]) >= 100 and not sign else 2
    spread = "" if cell["std"] is None else f" ± {cell['std']:.{digits}f}"
    return f"{cell['mean']:{sign}.{digits}f}{spread}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _units(report: Mapping[str, Any]) -> list[str]:
    """The units of columns that are not per cent."""
    named = {name: unit for name, unit in report["units"].items() if unit != "%"}
    others = "; ".join(f"{name}: {unit}" for name, unit in named.items())
    return [f"Scores in %{f'; {others}' if others else ''}."]
