"""Reports of an evaluation: its metrics, its settings, and the published results on the same data set."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lexiseg.data import catalogue
from lexiseg.data.dataset import Dataset, Sample
from lexiseg.data.published import METRICS, Figure, published
from lexiseg.data.readers import only_masks_of_bytes, orientations
from lexiseg.inference.evaluation import Metrics, Protocol
from lexiseg.metrics.base import absence, absence_in_words
from lexiseg.ops.files import write_atomically, write_json

LIBRARIES = ("lexiseg", "torch", "torchvision", "numpy", "pillow", "hotcoco", "open_clip_torch", "timm", "transformers")
HEADLINES: Mapping[str, tuple[str, ...]] = {  # columns of the table of each metric
    "semantic": ("mIoU", "FWIoU", "pixel_accuracy", "mean_accuracy"),
    "panoptic": ("PQ", "SQ", "RQ"),
    "instance": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
}


def document(
    protocol: Protocol,
    metrics: Metrics,
    failed: Mapping[str, str],
    dataset: Dataset,
    *,
    command: str,
    speed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All metrics with all settings, as a reproducible document.

    ``speed`` is the result of `lexiseg.inference.cost.speed`, if it was measured.
    ``absent`` holds, for each task, the names of the classes that are not in the ground truth; ``orientations``, for the
    user's own data, the counts of `lexiseg.data.readers.orientations`; ``notes`` further remarks as text.
    """
    absent = {name: absence(metrics[name], dataset.vocabulary.names) for name in protocol.tasks}
    samples = dataset.samples[: protocol.limit]
    own = protocol.data not in {row.name for row in catalogue.rows()}
    turned = orientations(samples) if own else None
    return {
        "model": protocol.model,
        "data": protocol.data,
        "results": {name: metric.result() for name, metric in metrics.items()},
        "absent": absent,
        "orientations": turned,
        "notes": [*_on_orientations(turned, protocol.exif), *_on_masks(absent, dataset, samples)],
        "failed": dict(failed),
        **({} if speed is None else {"speed": dict(speed)}),
        "protocol": protocol.document(),
        "command": command,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
    }


def _on_orientations(counts: Mapping[str, int] | None, exif: str) -> list[str]:
    """Notes on images with an EXIF orientation."""
    if not counts or not counts["pictures"]:
        return []
    notes = [f"Pictures with an EXIF orientation, by which they are turned upright: {counts['pictures']}."]
    if counts["stored"]:
        notes.append(f"Truths that fit only the pixels as they are stored, and are turned as well: {counts['stored']}.")
    if counts["undecided"]:
        taken, other = "drawn on the picture held upright", "stored"
        if exif == "stored":
            taken, other = "drawn on the pixels as they are stored, and turned as well", "upright"
        notes.append(
            f"Truths whose sizes do not tell, taken to be {taken}: {counts['undecided']}. If the tool that made them showed "
            f"the pictures otherwise, run again with --exif {other} and another --output."
        )
    return [" ".join(notes)]


def _on_masks(absent: Mapping[Any, Sequence[str]], dataset: Dataset, samples: Sequence[Sample]) -> list[str]:
    """Notes on label maps that seem to be binary masks of 0 and 255."""
    names = dataset.vocabulary.names
    if not 1 < len(names) <= len(absent.get("semantic", ())) + 1 or not only_masks_of_bytes(dataset, samples):
        return []
    return [
        "The label maps hold nothing but 0 and 255, and 255 is not measured. If they are masks, number the classes in "
        f"classes.txt: '0: {names[0]}' and '255: {names[1]}', a line each."
    ]


def write(folder: Path, report: Mapping[str, Any], metrics: Metrics, dataset: Dataset) -> list[Path]:
    """Write ``metrics.json``, ``report.md`` and for each metric ``classes-….csv``.

    Raises:
        OutputError: a file cannot be written.
    """
    paths = [folder / "metrics.json", folder / "report.md"]
    write_json(paths[0], report, indent=1)
    write_atomically(paths[1], _bytes(markdown(report)))
    for name, metric in metrics.items():
        paths.append(folder / f"classes-{name.replace(', ', '-').replace(' ', '-')}.csv")
        buffer = io.StringIO()
        rows = metric.table(dataset.vocabulary.names)
        table = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomically(paths[-1], _bytes(buffer.getvalue()))
    return paths


def markdown(report: Mapping[str, Any]) -> str:
    """Render a report as Markdown: the metrics in per cent, and the published results on the same data set."""
    lines = [f"# {report['model']} on {report['data']}", "", f"`{report['command']}`", ""]
    for name, result in report["results"].items():
        lines += [f"## {name}", "", *_numbers(name, result), *absence_in_words(report["absent"].get(name, ())), ""]
    if speed := report.get("speed"):
        lines += ["## Speed", "", *_speed(speed), ""]
    for note in report["notes"]:
        lines += [note, ""]
    if report["failed"]:
        lines += [f"{len(report['failed'])} pictures could not be read and are not counted; `metrics.json` names them.", ""]
    lines += ["## Protocol", "", *_protocol(report["protocol"]), ""]
    recall = ["recall"] if report["protocol"]["recall"] else []
    for task in [*report["protocol"]["tasks"], *recall, "referring"]:
        if figures := published(report["data"], task=task, ablations=task == "referring"):
            lines += [f"## Published: {task}", "", *_published(figures), ""]
    return "\n".join(lines)


def _speed(speed: Mapping[str, Any]) -> list[str]:
    """The cost of the network in words."""
    memory = "" if speed["memory_MiB"] is None else f", {speed['memory_MiB']:.0f} MiB"
    points = "" if speed["points"] is None else f", {speed['points']:.1f} point prompts"
    return [
        f"{1000 * speed['seconds']:.1f} ms, {speed['FPS']:.2f} pictures per second{memory}{points}; network alone, mean of "
        f"{speed['images']} pictures one at a time, {speed['device']}, {speed['threads']} threads."
    ]


def _protocol(protocol: Mapping[str, Any]) -> list[str]:
    """A list of the settings that the numbers depend on."""
    rows = {
        "names": protocol["names"],
        "seen": protocol["seen"],
        "options": ", ".join(f"{name} {_setting(value)}" for name, value in protocol["options"].items()),
        "post-processing": ", ".join(f"{name} {_setting(value)}" for name, value in protocol["policy"].items()),
        **{f"published for {protocol['data']}": source for source in protocol["published"]},
        "given": ", ".join(protocol["given"]),
    }
    lines = [f"* {name}: {value}" for name, value in rows.items() if value]
    changed = {key: protocol[key] for key in ("limit", "oracle", "corrupt") if protocol[key] is not None}
    if changed:
        settings = ", ".join(f"{key} {value}" for key, value in changed.items())
        lines += ["", f"Not the published protocol: {settings}."]
    return lines


def _setting(value: Any) -> str:
    return f"'{value}'" if value == "" or (isinstance(value, str) and " " in value) else str(value)


def summary(reports: Sequence[Mapping[str, Any]], groups: Mapping[str, str], parts: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per data set, then the means over each group (MESS: its domains) and over all.

    Args:
        reports: reports of `document`, one per data set.
        groups: group of each data set that belongs to one.
        parts: collection of each data set whose mean counts as a single data set (MESS: PAXRay).
    """
    rows = [{"data": report["data"], "group": groups.get(report["data"], ""), **_headlines(report)} for report in reports]
    wholes: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        wholes.setdefault(parts.get(row["data"]) or row["data"], []).append(row)
    members = [_mean(name, group) if len(group) > 1 else group[0] for name, group in wholes.items()]
    named = sorted({row["group"] for row in members} - {""})
    by_group = [_mean(f"mean of {group}", [row for row in members if row["group"] == group]) for group in named]
    return [*rows, *by_group, _mean("mean", members)]


def _mean(title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of the columns that all rows have; the group if it is the same in all."""
    columns = [key for key in rows[0] if key not in {"data", "group"} and all(row.get(key) is not None for row in rows)]
    groups = {row["group"] for row in rows}
    group = groups.pop() if len(groups) == 1 else ""
    return {"data": title, "group": group, **{key: sum(row[key] for row in rows) / len(rows) for key in columns}}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Render rows as a Markdown table, with fractions in per cent."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells]]


def _headlines(report: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: result[key] for name, result in report["results"].items() for key in HEADLINES.get(name, ())[:1]}


def _numbers(name: str, result: Mapping[str, Any]) -> list[str]:
    wanted = HEADLINES.get(name.split(",")[0]) or tuple(key for key in result if key.startswith("recall@"))
    rows = [{"classes": "all", **{key: result[key] for key in wanted}}]
    rows += [{"classes": group, **{key: numbers.get(key) for key in wanted}} for group, numbers in result["groups"].items()]
    remarks = [str(result[key]) for key in ("absent_classes_rule", "rules") if key in result]
    return [*table(rows), "", *(f"{remark[0].upper()}{remark[1:]}." for remark in [*remarks, f"{result['images']} pictures"])]


def _published(figures: Sequence[Figure]) -> list[str]:
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for figure in figures:
        key = (figure.paper, figure.table, str(figure.row))
        rows.setdefault(
            key,
            {
                "paper, table": f"{figure.paper}, {figure.table}",
                "method": f"**{figure.method}**" if figure.own else figure.method,
                "variant": figure.variant,
                "backbone": figure.backbone,
                "trained on": figure.training,
            },
        )[" ".join(filter(None, (figure.metric, figure.group, METRICS[figure.metric][1])))] = (
            f"{figure.value:g} †" if figure.mask_ensemble else f"{figure.value:g}"
        )
    notes = dict.fromkeys(f"{figure.paper}, {figure.table}: {figure.note}." for figure in figures if figure.note)
    daggers = ["† with the ensemble of SAM's masks."] if any(figure.mask_ensemble for figure in figures) else []
    return [*table(list(rows.values())), "", *daggers, *notes]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if isinstance(value, float) else str(value)


def _bytes(text: str) -> bytes:
    """Encode as UTF-8; surrogates in names of files and classes become ``\\udce9``."""
    return text.encode(errors="backslashreplace")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
