"""The commands that reproduce a table or figure on this machine, and what is missing for them.

Each command is a call of `lexiseg`, which a user can also give alone, for instance a training under torchrun; its result is
then used here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lexiseg.backbones.sources import SOURCES
from lexiseg.data import catalogue, official_names
from lexiseg.errors import UsageError
from lexiseg.methods import MODELS, recipe_named
from lexiseg.methods.recipe import Recipe, with_overrides
from lexiseg.methods.variant import Variant
from lexiseg.reproduce.tables import MADE, UNMEASURED, WORLD, Column, Row, Sheet
from lexiseg.training.validation import SEED

SCENES, TINY_SEEDS, FULL_SEEDS = 200, (0, 1, 2), (0,)
TIMED = 16  # images whose prediction is timed
DRAWN = 4  # images of a figure
MASKS = "masks.cache"  # option of CMPF
RUNNABLE, DATA, WEIGHTS = "runnable", "needs data", "needs weights"
NOT_DESCRIBED, NOT_HERE, DRAWING = "not described", "not here", "drawing"
_SPEED = frozenset({"FPS", "latency", "seconds", "memory"})
_TRAINED = frozenset({"training-latency"})


@dataclass(frozen=True)
class Settings:
    """How a sheet is reproduced.

    Attributes:
        output: folder of trainings and results.
        root: folder of the catalogue's data sets; None: the default one.
        weights: files given by the user, by model or by the file's name in the table.
        seeds: of trainings.
        steps: of each training; None: those of the sheet.
        scenes: images of each data set; None: all, or `SCENES` of the twin.
        device: device, as on the command line.
    """

    output: Path
    root: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = FULL_SEEDS
    steps: int | None = None
    scenes: int | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        words: arguments of ``lexiseg``.
        result: folder of its results, or file that its output is written to.
        weights: folder of trained weights that it uses; None if it uses none.
    """

    words: tuple[str, ...]
    result: Path
    weights: Path | None = None


@dataclass(frozen=True)
class Run:
    """A row with one seed.

    Attributes:
        row: the row.
        seed: seed of its training; None if nothing is trained.
        training: folder of its training.
        folder: folder of its results.
        steps: its commands, in order.
    """

    row: Row
    seed: int | None
    training: Path
    folder: Path
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Missing:
    """What a row needs that is not on this machine, or why it cannot be run.

    Attributes:
        data: data sets.
        lists: data sets whose official class list is missing.
        weights: models and files, by their names in ``--weights``.
        reason: see `Row.reason`.
    """

    data: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    reason: str = ""

    @property
    def mark(self) -> str:
        """State in two words."""
        if self.reason:
            return NOT_HERE if self.reason.startswith(NOT_HERE) else NOT_DESCRIBED
        return DATA if self.data or self.lists else WEIGHTS if self.weights else RUNNABLE

    @property
    def why(self) -> str:
        """What is missing, in a few words; empty for nothing."""
        if self.reason:
            return self.reason.removeprefix(f"{NOT_HERE}: ")
        mess = [name for name in self.data if name.startswith("mess-")]
        data = [name for name in self.data if name not in mess] + ([f"mess-* ({len(mess)})"] if mess else [])
        lists = [f"official class list{'s' if self.lists[1:] else ''} of {', '.join(self.lists)}"] if self.lists else []
        weights = [f"weights {', '.join(self.weights)}"] if self.weights else []
        return "; ".join([*([", ".join(data)] if data else []), *lists, *weights])


@dataclass(frozen=True)
class State:
    """State of a sheet on this machine.

    Attributes:
        mark: `RUNNABLE` if all rows that lexiseg has can be run, else what the first of the others needs.
        why: what is missing for any of its rows.
        rows: state of each row.
    """

    mark: str
    why: str
    rows: Mapping[str, Missing]


def state(sheet: Sheet, root: str | None = None, weights: Mapping[str, str] | None = None) -> State:
    """What is missing on this machine for a sheet."""
    rows = {row.name: missing(sheet, row, root, weights or {}) for row in sheet.rows}
    if sheet.drawing:
        return State(DRAWING, "", rows)
    if sheet.reason or not rows:
        whole = Missing(reason=sheet.reason or f"{NOT_HERE}: there is no twin")
        return State(whole.mark, whole.why, rows)
    had = [entry for entry in rows.values() if not entry.reason] or list(rows.values())
    marks = [entry.mark for entry in had]
    mark = next((mark for mark in (DATA, WEIGHTS, NOT_HERE, NOT_DESCRIBED) if mark in marks), RUNNABLE)
    absent = Missing(
        tuple(dict.fromkeys(name for entry in rows.values() for name in entry.data)),
        tuple(dict.fromkeys(name for entry in rows.values() for name in entry.lists)),
        tuple(dict.fromkeys(name for entry in rows.values() for name in entry.weights)),
    )
    reasons = dict.fromkeys(entry.why for entry in rows.values() if entry.reason)
    return State(mark, "; ".join(filter(None, [absent.why, *reasons])), rows)


def missing(sheet: Sheet, row: Row, root: str | None, given: Mapping[str, str]) -> Missing:
    """What is missing on this machine for a row."""
    origin = sheet.origin(row)
    if reason := row.reason or origin.reason:
        return Missing(reason=reason)
    model, wanted = MODELS[origin.model], sheet.wanted(row)
    if wanted and not _needs_weights(wanted):
        return Missing()
    names = list(_datasets(sheet, row))
    if trains(origin, given):
        names = [with_overrides(recipe_named(origin.model), origin.train or ()).data, *names]
    absent = [name for name in names if not sheet.tiny and catalogue.lacks(name, root)]
    lists = [name for name in _listed(sheet, names) if not official_names.path_of(name).is_file()]
    files = [name for entry in (origin, row) for name in entry.weights.values() if _is_missing(name, given)]
    if not trains(origin, given) and model.official is not None and origin.model not in given and not model.present:
        files.insert(0, origin.model)
    return Missing(tuple(dict.fromkeys(absent)), tuple(lists), tuple(dict.fromkeys(files)))


def trains(row: Row, given: Mapping[str, str]) -> bool:
    """Whether the weights of a row are those of a training: its authors have not published them, or it has settings."""
    model = MODELS[row.model]
    unpublished = model.source is not None and bool(model.source.recipe)
    return row.train is not None or (unpublished and row.model not in given)


def recipe_of(sheet: Sheet, row: Row, seed: int, steps: int | None = None) -> Recipe:
    """The recipe that a row is trained by.

    Raises:
        UsageError: a setting does not fit the model.
    """
    return with_overrides(recipe_named(row.model), _settings(sheet, row, seed, steps))


def _settings(sheet: Sheet, row: Row, seed: int, steps: int | None) -> list[str]:
    """Settings of ``lexiseg train``."""
    steps, stages = steps or sheet.steps, recipe_named(row.model).stages
    counts: list[str] = []
    if steps and len(stages) == 1:
        counts = [f"steps={steps}"]
    elif steps:  # in proportion
        total, rest = sum(stage.steps for stage in stages), steps
        for number, stage in enumerate(stages):
            last = number == len(stages) - 1
            count = max(1, rest if last else round(steps * stage.steps / total))
            counts.append(f"stages.{number}.steps={count}")
            rest -= count
    return [*sheet.settings, *counts, f"seed={seed}", "validation=[]", *(row.train or ())]


def runs(sheet: Sheet, rows: Sequence[Row], settings: Settings) -> Iterator[Run]:
    """The runs of a table, row by row and seed by seed; rows that cannot be run have none."""
    for row in (row for row in rows if not row.reason):
        origin = sheet.origin(row)
        wanted = sheet.wanted(row)
        for seed in settings.seeds if trains(origin, settings.weights) and _needs_weights(wanted) else (None,):
            folder = _results(sheet, row, seed, settings)
            steps = [*_prepared(sheet, settings), *_trained(sheet, origin, seed, settings)]
            if any(column.dataset == MADE for column in wanted):
                steps += _described(origin.model, wanted, folder, settings.device)
            steps += [_evaluated(sheet, row, name, seed, settings) for name in _datasets(sheet, row)]
            yield Run(row, seed, _training(origin, seed, settings), folder, tuple(steps))


def figure(sheet: Sheet, rows: Sequence[Row], settings: Settings) -> tuple[Step, ...]:
    """The commands of a figure: the trainings of its rows, with the first seed, and the drawing."""
    steps, words, folder = list(_prepared(sheet, settings)), list(sheet.draw), None
    data = str(scenes_folder(WORLD[0], settings)) if sheet.tiny else sheet.data
    words += ["--data", data, *_root(settings), "--limit", str(min(DRAWN, settings.scenes or DRAWN))]
    for row in rows:
        origin = sheet.origin(row)
        seed = settings.seeds[0] if trains(origin, settings.weights) else None
        steps += _trained(sheet, origin, seed, settings)
        folder = _training(origin, seed, settings) / "model" if seed is not None else folder
        parts = [f"{name}={path}" for name, path in _weights(sheet, row, seed, settings).items()]
        title = row.title.replace(",", "").replace(":", "")
        words += ["--model", ",".join([f"{title}:{origin.model}", *parts, *row.set])]
    path = settings.output / f"{sheet.paper}-{sheet.name}.png"
    drawn = Step(("figure", *words, "--device", settings.device, "--output", str(path)), path, folder)
    return (*dict.fromkeys(steps), drawn)


def scenes_folder(split: str, settings: Settings) -> Path:
    """Folder of the rendered scenes of a split."""
    return settings.output / "scenes" / f"{split}-{settings.scenes or SCENES}"


def evaluation(folder: Path, dataset: str, settings: Settings) -> Path:
    """Folder of the evaluation on a data set, below the folder of a run."""
    return folder / (dataset if settings.scenes is None else f"{dataset}-{settings.scenes}")


def expanded(dataset: str) -> list[str]:
    """Data sets of the catalogue that a column's data set consists of."""
    names = [row.name for row in catalogue.rows()]
    if dataset == "mess":
        return [name for name in names if name.startswith("mess-")]
    parts = [row.name for row in catalogue.rows() if row.part_of and row.name.startswith(f"{dataset}-")]
    return parts or [dataset]


def _needs_weights(wanted: Sequence[Column]) -> bool:
    """Whether columns, or a figure without any, need the trained weights of a model."""
    return not wanted or any(column.dataset != MADE or column.metric in _TRAINED for column in wanted)


def _datasets(sheet: Sheet, row: Row) -> Iterator[str]:
    """Data sets that a row is measured or drawn on."""
    if sheet.draw:
        yield WORLD[0] if sheet.tiny else sheet.data
        return
    columns = [column for column in sheet.wanted(row) if column.dataset != MADE and column.metric not in UNMEASURED]
    tasks = MODELS[sheet.origin(row).model].tasks
    able = [column.dataset for column in columns if column.task in (*tasks, "", "recall")]
    yield from dict.fromkeys(name for dataset in able for name in ([dataset] if sheet.tiny else expanded(dataset)))


def _listed(sheet: Sheet, names: Sequence[str]) -> list[str]:
    """Data sets whose official class lists are needed."""
    if sheet.names != "official" or sheet.draw:
        return []
    plain = dict.fromkeys(name.removesuffix("-train") for name in (official_names.TRAINING, *names))
    return [name for name in plain if name in official_names.LISTS]


def _is_missing(name: str, given: Mapping[str, str]) -> bool:
    """Whether weights are a file that is neither given nor fetched; those of a hub repository are downloaded when used."""
    return "/" not in name and name not in given and not (name in SOURCES and SOURCES[name].present())


def _training(origin: Row, seed: int | None, settings: Settings) -> Path:
    """Folder of a training, which several tables may use."""
    return settings.output / f"{origin.name}-{seed}"


def _results(sheet: Sheet, row: Row, seed: int | None, settings: Settings) -> Path:
    """Folder of the results of a row."""
    return settings.output / sheet.name / (row.name if seed is None else f"{row.name}-{seed}")


def _root(settings: Settings) -> list[str]:
    return [] if settings.root is None else ["--root", settings.root]


def _prepared(sheet: Sheet, settings: Settings) -> Iterator[Step]:
    """Rendering of the scenes that a twin is measured on; they are not those of any training."""
    for split in WORLD if sheet.tiny else ():
        folder, count = scenes_folder(split, settings), settings.scenes or SCENES
        words = ("--split", split, "--count", str(count), "--seed", str(SEED), "--output", str(folder))
        yield Step(("world", "render", *words), folder / "panoptic.json")


def _trained(sheet: Sheet, origin: Row, seed: int | None, settings: Settings) -> Iterator[Step]:
    """The training of a row."""
    if seed is None or not trains(origin, settings.weights):
        return
    folder = _training(origin, seed, settings)
    words = [origin.model, *_settings(sheet, origin, seed, settings.steps), *_root(settings)]
    for name, path in _given(origin, settings).items():
        words += ["--weights", f"{name}={path}"]
    words += ["--device", settings.device, *(("--workers", "0") if sheet.tiny else ()), "--output", str(folder)]
    yield Step(("train", *words), folder / "model")


def _given(row: Row, settings: Settings) -> dict[str, str]:
    """Weights of a row's frozen parts: files of the user, published files that were fetched, or repositories of the hub."""
    fetched = {name: str(SOURCES[name].path() or SOURCES[name].file) for name in row.weights.values() if name in SOURCES}
    return {part: settings.weights.get(name) or fetched.get(name, name) for part, name in row.weights.items()}


def _weights(sheet: Sheet, row: Row, seed: int | None, settings: Settings) -> dict[str, str]:
    """Weights that a row is measured with, by part."""
    origin = sheet.origin(row)
    model = MODELS[origin.model]
    own: dict[str, str] = {}
    if seed is not None:
        own[model.method.key] = str(_training(origin, seed, settings) / "model")
    elif origin.model in settings.weights:
        own[model.method.key] = settings.weights[origin.model]
    return {**own, **_given(origin, settings), **_given(row, settings)}


def _evaluated(sheet: Sheet, row: Row, dataset: str, seed: int | None, settings: Settings) -> Step:
    """The evaluation of a row on a data set."""
    origin = sheet.origin(row)
    model, weights = MODELS[origin.model], _weights(sheet, row, seed, settings)
    options = [*row.set]
    if dataset in row.mask_ensemble:
        weights |= {"mask_sam": "facebook/sam-vit-huge"}
    if dataset in row.mask_ensemble or any(option.startswith("mask_ensemble") for option in options):
        options.append(f"{MASKS}={settings.output / 'masks'}")
    columns = [
        column for column in sheet.wanted(row) if dataset in ([column.dataset] if sheet.tiny else expanded(column.dataset))
    ]
    tasks, timed = _tasks(columns, model), any(column.metric in (*_SPEED, "points") for column in columns)
    words = ["evaluate", "--model", origin.model]
    words += [word for part, path in weights.items() for word in ("--weights", f"{part}={path}")]
    words += [word for option in options for word in ("--set", option)]
    words += ["--data", str(scenes_folder(dataset, settings)) if sheet.tiny else dataset]
    words += [word for task in tasks or model.tasks[:1] for word in ("--task", task)]
    if sheet.tiny:
        words += ["--seen", "emoji-seen"]
    elif _listed(sheet, [dataset]) and dataset in official_names.LISTS:
        words += ["--names", "official", "--seen", "official"]
    if any(column.task == "recall" for column in columns):
        words.append("--recall")
    if timed:
        words += ["--speed", str(min(TIMED, settings.scenes or TIMED))]
    limit = settings.scenes or (None if tasks else TIMED)
    words += [*row.arguments, *_root(settings), *(() if sheet.tiny or limit is None else ("--limit", str(limit)))]
    folder = evaluation(_results(sheet, row, seed, settings), dataset, settings)
    trained = _training(origin, seed, settings) / "model" if seed is not None else None
    return Step((*words, "--device", settings.device, "--output", str(folder)), folder, trained)


def _tasks(columns: Sequence[Column], model: Variant) -> list[str]:
    """Tasks of columns that a model has; the recall of masks is over the regions of classes."""
    wanted = {"semantic" if column.task == "recall" else column.task for column in columns}
    return [task for task in model.tasks if task in wanted]


def _described(model: str, wanted: Sequence[Column], folder: Path, device: str) -> Iterator[Step]:
    """The description of a model: parameters, operations and speed on a made image."""
    metrics = {column.metric for column in wanted if column.dataset == MADE}
    words = ["models", "--describe", model, "--json", *(["--flops"] if "GFLOPs" in metrics else [])]
    yield Step((*words, *(["--speed", "--device", device] if metrics & _SPEED else [])), folder / "model.json")


def command_of(step: Step) -> str:
    """The command as a user types it."""
    return shlex.join(["lexiseg", *step.words])


def is_done(step: Step, sheet: Sheet, row: Row, seed: int | None, settings: Settings) -> bool:
    """Whether the results of a command are there."""
    if step.words[0] == "train":
        return _is_trained(step.result, recipe_of(sheet, sheet.origin(row), seed or 0, settings.steps))
    if step.words[0] == "evaluate":
        return _is_evaluated(step)
    return step.words[0] != "figure" and step.result.is_file()


def _is_trained(folder: Path, recipe: Recipe) -> bool:
    """Whether a training by this recipe is complete; that of another recipe is an error of the training command."""
    record = folder.parent / "recipe.json"
    if not (folder / "model.safetensors").is_file() or not record.is_file():
        return False
    known: object = json.loads(record.read_text(encoding="utf-8"))
    return known == json.loads(json.dumps(recipe.to_dict()))


def _is_evaluated(step: Step) -> bool:
    """Whether the evaluation by this command is complete, and its weights have not changed since."""
    path = step.result / "metrics.json"
    if not path.is_file():
        return False
    weights = None if step.weights is None else step.weights / "model.safetensors"
    if weights is not None and (not weights.is_file() or weights.stat().st_mtime > path.stat().st_mtime):
        return False
    command: object = json.loads(path.read_text(encoding="utf-8")).get("command")
    return command == command_of(step)


def chosen(sheet: Sheet, names: Sequence[str] | None) -> list[Row]:
    """Rows of a sheet by name; all if no names are given.

    Raises:
        UsageError: an unknown name, or the sheet has no rows.
    """
    if sheet.drawing or sheet.reason:
        why = "it is a drawing, not a result" if sheet.drawing else sheet.reason
        raise UsageError(f"{sheet.name} of {sheet.paper} cannot be reproduced: {why}")
    if not sheet.rows:
        raise UsageError(f"{sheet.name} of {sheet.paper} has no twin on the emoji world; without --tiny it needs its data sets")
    return [sheet.row(name) for name in names] if names else list(sheet.rows)
