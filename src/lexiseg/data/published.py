"""Published results of five papers: every number of their result tables, for comparison.

The numbers are in ``assets/published.yaml``, table by table, as printed, under the papers' protocols: they are comparable with
ours only if backbone and training data are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

# Each metric with its task ("" where it measures cost) and its unit.
METRICS: Mapping[str, tuple[str, str]] = {
    "PQ": ("panoptic", "%"),
    "AP": ("instance", "%"),
    "mIoU": ("semantic", "%"),
    "FWIoU": ("semantic", "%"),
    "recall@0.5": ("recall", "%"),  # of masks, whatever their class, at IoU 0.5
    "recall@0.75": ("recall", "%"),
    "recall@0.9": ("recall", "%"),
    "unnamed": ("referring", "%"),
    "FPS": ("", "images per second"),
    "latency": ("", "ms per image"),
    "seconds": ("", "s per image"),
    "memory": ("", "GB"),
    "GFLOPs": ("", "10^9 operations per image"),
    "points": ("", "point prompts per image"),
    "parameters": ("", "10^6"),
    "parameters-frozen": ("", "10^6"),
    "parameters-trainable": ("", "10^6"),
    "parameters-sam": ("", "10^6"),
    "training-latency": ("", "ms per iteration"),
    "gpu-hours": ("", "h of training"),
    "iterations": ("", "10^3 of training"),
    "squared-error": ("", "10^-3"),
}

# Names of data sets whose split a paper does not name, and the splits they may be.
SPLITS: Mapping[str, tuple[str, ...]] = {
    name: tuple(f"{name}-{split}" for split in ("val", "testa", "testb")) for name in ("refcoco", "refcoco-plus")
}

WORDS = ("method", "variant", "backbone", "training")  # the columns that hold no numbers


@dataclass(frozen=True)
class Figure:
    """One printed number.

    Attributes:
        paper: cmpf, frozenseg, sam-mi, esc-net or fov-seg.
        table: the table's number in that paper: "1", "IVa".
        caption: the table's content, in our words.
        row: row of the table, from 1.
        method: as printed.
        variant: distinguishes the row from others of the method; empty if there are none.
        backbone, training: as printed, spelled alike in all papers; empty if not printed.
        dataset: its name in the catalogue; empty if the number belongs to none. ``mess`` is the mean over the 22 data
            sets of MESS, ``mess-paxray`` that over its four parts; ``refcoco`` and ``refcoco-plus`` are of an unnamed split
            (`SPLITS`).
        metric: a key of `METRICS`.
        group: the classes measured, if not all: seen, unseen, rare.
        value: in the metric's unit; qualities are percentages.
        own: whether the method is the paper's own.
        ablation: whether the table varies the paper's own method, rather than compares methods.
        note: remark on the table; empty if none.
        mask_ensemble: whether the tables tell that it contains CMPF's ensemble of SAM's masks.
    """

    paper: str
    table: str
    caption: str
    row: int
    method: str
    variant: str
    backbone: str
    training: str
    dataset: str
    metric: str
    group: str
    value: float
    own: bool
    ablation: bool
    note: str
    mask_ensemble: bool

    @property
    def task(self) -> str:
        """Task of the metric: semantic, panoptic, instance, recall or referring; empty for costs."""
        return METRICS[self.metric][0]


def published(dataset: str, metric: str | None = None, task: str | None = None, *, ablations: bool = False) -> list[Figure]:
    """Return the published numbers of a data set, paper by paper and row by row.

    Args:
        dataset: its name in the catalogue; the result is empty if no paper measures it. A split also has the numbers whose
            split is not named.
        metric: only this key of `METRICS`.
        task: only metrics of this task, see `Figure.task`.
        ablations: include the tables in which a paper varies its own method.
    """
    return [
        figure
        for figure in figures()
        if dataset in SPLITS.get(figure.dataset, (figure.dataset,))
        and metric in (None, figure.metric)
        and task in (None, figure.task)
        and (ablations or not figure.ablation)
    ]


@lru_cache(maxsize=1)
def figures() -> tuple[Figure, ...]:
    """Return all numbers of all tables."""
    content = _content()
    return tuple(figure for table in content["tables"] for figure in _figures(table, content["papers"][table["paper"]]))


def columns(paper: str, table: str) -> list[tuple[str, str, str]]:
    """Return (data set, metric, group) of the columns of a table in order, see `Figure`; none if there is no such table."""
    wanted = [entry["columns"] for entry in _content()["tables"] if (entry["paper"], entry["table"]) == (paper, table)]
    parts = [column.split(" ") for names in wanted for column in names if column not in WORDS]
    return [("" if dataset == "-" else dataset, metric, "".join(group)) for dataset, metric, *group in parts]


def titles() -> dict[str, str]:
    """Return the titles of the papers by their names, see `Figure.paper`."""
    return {name: paper["title"] for name, paper in _content()["papers"].items()}


@lru_cache(maxsize=1)
def _content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((files("lexiseg") / "assets" / "published.yaml").read_text(encoding="utf-8"))
    return content


def _figures(table: Mapping[str, Any], paper: Mapping[str, Any]) -> Iterator[Figure]:
    for number, cells in enumerate(table["rows"], start=1):
        row = dict(zip(table["columns"], cells, strict=True))
        words = {name: row.pop(name, None) or table.get(name) or "" for name in WORDS}
        words["method"] = words["method"] or paper["own"][0]
        own = words["method"] in paper["own"]
        if own:
            words["backbone"] = words["backbone"] or paper["backbone"]
            words["training"] = words["training"] or paper["training"]
        for column, value in row.items():
            dataset, metric, *group = column.split(" ")
            if value is not None:
                yield Figure(
                    paper=table["paper"],
                    table=table["table"],
                    caption=table["caption"],
                    row=number,
                    **words,
                    dataset="" if dataset == "-" else dataset,
                    metric=metric,
                    group="".join(group),
                    value=float(value),
                    own=own,
                    ablation=table.get("ablation", False),
                    note=table.get("note", ""),
                    mask_ensemble=own and words["backbone"] == "ConvNeXt-L" and column in table.get("mask_ensemble", ()),
                )
