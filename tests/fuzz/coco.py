"""COCO's files: a truth of one's own for `lexiseg evaluate`, and truths and predictions for `lexiseg metrics`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lexiseg.data.own import open_own
from lexiseg.errors import DataError, LexisegError
from lexiseg.metrics import Score, score_instances, score_panoptic
from tests.data.miniatures import MINIATURES, write_document
from tests.fuzz.mutations import mutated_json

SUFFIX = ".json"
INSTANCES, PANOPTIC = "coco/annotations/instances_val2017.json", "coco/annotations/panoptic_val2017.json"
LVIS, RESULTS = "lvis/lvis_v1_val.json", "results.json"


def prepare(folder: Path) -> None:
    """Pictures, PNGs beside the inputs, and sound files to compare them with."""
    MINIATURES["coco-panoptic"].build(folder)
    MINIATURES["lvis"].build(folder)
    for png in (folder / "coco/panoptic_val2017").iterdir():
        shutil.copy(png, folder)
    results = [{**entry, "score": 0.5} for entry in json.loads((folder / INSTANCES).read_bytes())["annotations"]]
    write_document(folder / RESULTS, results)


def inputs(random: np.random.Generator) -> bytes:
    """A mutated JSON of instances (COCO's, LVIS's), panoptic segments or results."""
    documents = _documents()
    return mutated_json(documents[int(random.integers(len(documents)))], random)


def attempt(path: Path) -> None:
    """Read it as each of the things it could be; it is refused if it can be none."""
    folder = path.parent
    instances, panoptic = folder / INSTANCES, folder / PANOPTIC
    readings: tuple[Callable[[], object], ...] = (
        lambda: _truths(path, folder),
        lambda: _whole(score_instances(path, instances, keep_going=True)),
        lambda: _whole(score_instances(folder / RESULTS, path, keep_going=True)),
        lambda: _whole(score_panoptic(path, panoptic, keep_going=True)),
        lambda: _whole(score_panoptic(panoptic, path, keep_going=True)),
    )
    refusals = []
    for reading in readings:
        try:
            reading()
        except LexisegError as error:
            refusals.append(error)
    if len(refusals) == len(readings):
        raise refusals[0]


def _truths(path: Path, folder: Path) -> None:
    """All truths of a data set; those of a picture with a fault do not keep the others from being read."""
    dataset = open_own(path, images=folder / "coco/val2017", labels=folder)
    refusals = []
    for sample in dataset.samples:
        for task in dataset.tasks:
            try:
                dataset.truth(sample, task)
            except LexisegError as error:
                refusals.append(error)
    if refusals:
        raise refusals[0]


def _whole(score: Score) -> None:
    """The result, if no picture had to be left out; all are tried."""
    score.document()
    if score.problems:
        raise DataError(score.problems[0])


@cache
def _documents() -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        documents = [json.loads((Path(folder) / name).read_bytes()) for name in (INSTANCES, PANOPTIC, LVIS, RESULTS)]
    for image in documents[2]["images"]:
        image["file_name"] = image["coco_url"].rpartition("/")[2]
    return documents
