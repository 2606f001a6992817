"""The tables and figures of the papers, row by row: what lexiseg trains and measures for them.

``assets/reproduce.yaml`` says how a row is had, ``assets/published.yaml`` what the paper prints for it
(`lexiseg.data.published`). A `Sheet` is a table or a figure, of full-size models or of their twins on the emoji world.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

from lexiseg.data.published import METRICS, Figure, figures, titles
from lexiseg.data.published import columns as published_columns
from lexiseg.errors import UsageError
from lexiseg.ops.options import Natural, from_document, options

READINGS = "readings"  # a table of ours: readings of a paper, each trained alone
MADE = "-"  # "data set" of numbers that need none
WORLD = ("val", "style")  # splits of the emoji world that twins are measured on
COSTS = frozenset(metric for metric, (task, _) in METRICS.items() if not task)
UNMEASURED = frozenset({"gpu-hours", "squared-error", "unnamed"})  # no command of lexiseg gives them
_QUALITIES = ("val PQ", "val mIoU", "val mIoU unseen", "style PQ", "style mIoU")  # of twins


@dataclass(frozen=True)
class Column:
    """Column of a sheet.

    Attributes:
        dataset: name in the catalogue, ``mess`` (the mean of MESS), a split of `WORLD`, or `MADE`.
        metric: a key of `lexiseg.data.published.METRICS`.
        group: the classes measured, if not all.
    """

    dataset: str
    metric: str
    group: str = ""

    @classmethod
    def parse(cls, text: str) -> Column:
        """Column of ``DATASET METRIC [GROUP]``."""
        dataset, metric, *group = text.split()
        return cls(dataset, metric, "".join(group))

    @property
    def task(self) -> str:
        """Task of the metric, see `Figure.task`."""
        return METRICS[self.metric][0]

    def __str__(self) -> str:
        shown = () if self.dataset == MADE else (self.dataset,)
        return " ".join((*shown, self.metric, *((self.group,) if self.group else ())))


@dataclass(frozen=True)
class Row:
    """Row of a sheet that lexiseg trains or measures.

    Attributes:
        name: short name, of ``--rows`` and of folders.
        title: in words.
        number: number of the published row; None if there is none.
        model: name of the model.
        train: settings of its training; None if it has the weights that were published or, if none were, of its recipe.
        of: row whose weights are measured; empty: its own.
        weights: files or hub repositories of frozen parts.
        set: options of the model after training.
        arguments: further arguments of ``lexiseg evaluate``.
        reason: why it cannot be run; empty if it can.
        published: the numbers of the paper, by column.
        mask_ensemble: data sets on which the published numbers contain CMPF's ensemble of SAM's masks.
    """

    name: str
    title: str
    number: int | None
    model: str
    train: tuple[str, ...] | None
    of: str
    weights: Mapping[str, str]
    set: tuple[str, ...]
    arguments: tuple[str, ...]
    reason: str
    published: Mapping[Column, float]
    mask_ensemble: frozenset[str]


@dataclass(frozen=True)
class Sheet:
    """Table or figure.

    Attributes:
        paper: as in `lexiseg.data.published`.
        name: ``table6``, ``figure9``, ``readings``.
        caption: its content.
        note: what a reader must know.
        tiny: whether the rows are those of the twin.
        columns: of a table.
        printed: columns of the published table.
        rows: what lexiseg trains and measures.
        quoted: titles of the published rows of methods that lexiseg lacks, with their numbers.
        drawing: whether it is a drawing, not a result.
        reason: why it cannot be had; empty if it can.
        names: "official" for the class lists of the official programs, else empty.
        steps: steps of each training; None: those of the recipe.
        settings: settings of all trainings.
        base: name of the row that the others are compared with; empty: the first one measured.
        draw: of a figure: kind and arguments of ``lexiseg figure``.
        data: of a figure: its data set.
    """

    paper: str
    name: str
    caption: str
    note: str
    tiny: bool
    columns: tuple[Column, ...]
    printed: tuple[Column, ...]
    rows: tuple[Row, ...]
    quoted: tuple[tuple[str, Mapping[Column, float]], ...]
    drawing: bool
    reason: str
    names: str
    steps: int | None
    settings: tuple[str, ...]
    base: str
    draw: tuple[str, ...]
    data: str

    def row(self, name: str) -> Row:
        """The row called ``name``.

        Raises:
            UsageError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in self.rows) or "none"
        raise UsageError(f"{self.name} of {self.paper}{' (--tiny)' if self.tiny else ''} has no row '{name}'; it has {known}")

    def origin(self, row: Row) -> Row:
        """The row that trains or loads the weights of ``row``: itself, if it is not `Row.of` another."""
        return self.origin(self.row(row.of)) if row.of else row

    def wanted(self, row: Row) -> tuple[Column, ...]:
        """Columns to measure for a row: those the paper prints for it, or all if it is not in the paper, or a twin."""
        return self.columns if self.tiny or row.number is None else tuple(c for c in self.columns if c in row.published)


@options(frozen=True)
class _RowEntry:
    """Row of ``reproduce.yaml``, which documents the fields."""

    name: str
    title: str | None = None
    row: int | None = None
    model: str = ""
    train: tuple[str, ...] | None = None
    of: str = ""
    weights: Mapping[str, str] = field(default_factory=dict)
    set: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    reason: str = ""
    tiny: Mapping[str, Any] | bool = True


@options(frozen=True)
class _SheetEntry:
    """Sheet of ``reproduce.yaml``, which documents the fields."""

    paper: str
    table: str = ""
    figure: str = ""
    caption: str = ""
    note: str = ""
    drawing: bool = False
    reason: str = ""
    names: str = ""
    steps: Natural | None = None
    tiny_steps: Natural | None = None
    tiny_train: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    tiny_columns: tuple[str, ...] = ()
    base: str = ""
    draw: tuple[str, ...] = ()
    data: str = ""
    rows: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        if self.table == READINGS:
            return READINGS
        if self.table.startswith("Fig."):  # a table that stands in the text of a figure
            return f"figure{self.table.removeprefix('Fig.').strip()}"
        return f"table{self.table}" if self.table else f"figure{self.figure}"


def sheets(paper: str | None = None, *, tiny: bool = False) -> list[Sheet]:
    """All tables and figures, or those of a paper."""
    return [_sheet(entry, tiny=tiny) for entry in _content()[1] if paper in (None, entry.paper)]


def paper_named(name: str) -> str:
    """Name of a paper, which may be written ``sam_mi`` or ``SAM-MI``.

    Raises:
        UsageError: there is none.
    """
    known = {_plain(paper): paper for paper in titles()}
    if _plain(name) not in known:
        near = get_close_matches(_plain(name), known, n=1)
        hint = f"did you mean {known[near[0]]}?" if near else f"there are {', '.join(known.values())}"
        raise UsageError(f"no paper '{name}': {hint} ('lexiseg reproduce list' has all tables)")
    return known[_plain(name)]


def sheet_named(paper: str, name: str, *, tiny: bool = False) -> Sheet:
    """A table or figure of a paper, which may be written ``table6``, ``"Table 6"``, ``6`` or ``fig9``.

    Raises:
        UsageError: there is none.
    """
    paper = paper_named(paper)
    entries = {_plain(entry.name): entry for entry in _content()[1] if entry.paper == paper}
    plain = re.sub(r"^(tab(?!le)|fig(?!ure))", lambda short: {"tab": "table", "fig": "figure"}[short[0]], _plain(name))
    for candidate in (plain, f"table{plain}"):
        if candidate in entries:
            return _sheet(entries[candidate], tiny=tiny)
    raise UsageError(f"no table '{name}' of {paper}; it has {', '.join(entry.name for entry in entries.values())}")


@lru_cache(maxsize=1)
def _content() -> tuple[dict[str, str], tuple[_SheetEntry, ...]]:
    """The twins and the sheets of ``reproduce.yaml``."""
    content = yaml.safe_load((files("lexiseg") / "assets" / "reproduce.yaml").read_text(encoding="utf-8"))
    return content["twins"], tuple(from_document(_SheetEntry, sheet) for sheet in content["sheets"])


def _sheet(entry: _SheetEntry, *, tiny: bool) -> Sheet:
    printed = [figure for figure in figures() if (figure.paper, figure.table) == (entry.paper, entry.table)]
    known = [Column(dataset or MADE, metric, group) for dataset, metric, group in published_columns(entry.paper, entry.table)]
    columns = tuple(known) or tuple(map(Column.parse, entry.columns))
    specified = [from_document(_RowEntry, row) for row in entry.rows]
    notes = [*dict.fromkeys(figure.note for figure in printed if figure.note), *([entry.note] if entry.note else [])]
    return Sheet(
        paper=entry.paper,
        name=entry.name,
        caption=entry.caption or printed[0].caption,
        note="; ".join(notes),
        tiny=tiny,
        columns=_of_twin(columns, entry) if tiny else columns,
        printed=tuple(known),
        rows=tuple(_rows(specified, printed, tiny=tiny)),
        quoted=() if tiny else tuple(_quoted(specified, printed)),
        drawing=entry.drawing,
        reason=entry.reason,
        names="" if tiny else entry.names,
        steps=entry.tiny_steps if tiny else entry.steps,
        settings=entry.tiny_train if tiny else (),
        base=entry.base,
        draw=entry.draw,
        data=entry.data,
    )


def _rows(specified: Sequence[_RowEntry], printed: Sequence[Figure], *, tiny: bool) -> Iterator[Row]:
    """The rows that full-size models, or twins, have."""
    twins = _content()[0]
    with_twin = {
        entry.name for entry in specified if entry.tiny is not False and (entry.model in twins or entry.tiny is not True)
    }
    for entry in specified:
        own = [figure for figure in printed if figure.row == entry.row]
        title = entry.title or (_title(own[0], tiny=tiny) if own else entry.name)
        if tiny:
            changes: Mapping[str, Any] = entry.tiny if isinstance(entry.tiny, Mapping) else {}
            model = changes.get("model", twins.get(entry.model, ""))
            if entry.tiny is False or not (entry.reason or model or entry.of in with_twin):
                continue
            # the frozen parts of a full-size model are no parts of its twin
            values = {"train": entry.train, "set": entry.set, "weights": {}, **changes, "model": model}
        else:
            if not (entry.model or entry.of or entry.reason):
                continue
            values = {"train": entry.train, "set": entry.set, "weights": entry.weights, "model": entry.model}
        yield Row(
            name=entry.name,
            title=title,
            number=entry.row,
            model=values["model"],
            train=None if values["train"] is None else tuple(values["train"]),
            of=entry.of,
            weights=values["weights"] or {},
            set=tuple(values["set"]),
            arguments=entry.arguments,
            reason=entry.reason,
            published={_column(figure): figure.value for figure in own},
            mask_ensemble=frozenset(figure.dataset for figure in own if figure.mask_ensemble and not tiny),
        )


def _quoted(specified: Sequence[_RowEntry], printed: Sequence[Figure]) -> Iterator[tuple[str, Mapping[Column, float]]]:
    """Titles and numbers of the published rows that lexiseg does not run."""
    mine = {entry.row for entry in specified}
    for number in dict.fromkeys(figure.row for figure in printed if figure.row not in mine):
        own = [figure for figure in printed if figure.row == number]
        yield _title(own[0]), {_column(figure): figure.value for figure in own}


def _of_twin(columns: Sequence[Column], entry: _SheetEntry) -> tuple[Column, ...]:
    """Columns of the twin of a table: its qualities, and the costs that the table has."""
    if not columns:
        return ()
    costs = [
        Column(MADE if column.dataset == MADE else WORLD[0], column.metric) for column in columns if column.metric in COSTS
    ]
    measured = [column for column in costs if column.metric not in UNMEASURED]
    return tuple(dict.fromkeys([*map(Column.parse, (*_QUALITIES, *entry.tiny_columns)), *measured]))


def _column(figure: Figure) -> Column:
    return Column(figure.dataset or MADE, figure.metric, figure.group)


def _title(figure: Figure, *, tiny: bool = False) -> str:
    """Method, variant and backbone of a published row; a twin has another backbone."""
    backbone = () if figure.ablation or tiny else (figure.backbone,)
    return ", ".join(filter(None, (figure.method, figure.variant, *backbone)))


def _plain(name: str) -> str:
    """A name in lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
