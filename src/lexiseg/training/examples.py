"""What a training learns from: a picture with its panoptic truth, by number, in the vocabulary of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lexiseg.data.catalogue import open_dataset
from lexiseg.data.dataset import Dataset
from lexiseg.data.images import Pixels, read_image
from lexiseg.errors import DataError, UsageError
from lexiseg.structures import IGNORED, PanopticMap, PanopticSegment
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.world import scenes, split_named, world_classes

WORLD = "world:"  # begins the names of data that are rendered on the spot
WORLD_SCENES = 1_000_000  # of a split: more than any training looks at


@dataclass(frozen=True)
class Examples:
    """Pictures and truths by number.

    Attributes:
        name: as the recipe says.
        vocabulary: labels are positions here.
        count: how many there are.
        read: number -> picture [H, W, 3] uint8, and its segments; can be sent to other processes. Raises DataError or
            ImageError.
    """

    name: str
    vocabulary: Vocabulary
    count: int
    read: Callable[[int], tuple[Pixels, PanopticMap]]


def open_examples(name: str, root: str | Path | None = None, *, seed: int = 0) -> Examples:
    """The examples of a recipe's ``data``.

    Args:
        name: of the catalogue, a path of the user's own data, or ``world:SPLIT`` or ``world:SPLIT:PIXELS``.
        root: of the catalogue's data sets.
        seed: of rendered scenes.

    Raises:
        UsageError: there is no such data.
        DataError: it lacks files, or has neither a panoptic nor a semantic truth.
    """
    if name.startswith(WORLD):
        return _of_world(name, seed)
    dataset = open_dataset(name, root)
    if not dataset.samples:
        raise DataError(f"{name} has no pictures")
    task = next((task for task in ("panoptic", "semantic") if task in dataset.tasks), None)
    if task is None:
        raise DataError(f"{name} has no panoptic and no semantic truth, only {', '.join(dataset.tasks)}: nothing to train on")
    return Examples(name, dataset.vocabulary, len(dataset.samples), partial(_read, dataset=dataset, task=task))


def world_parts(name: str) -> tuple[str, int]:
    """Split and side in pixels of ``world:SPLIT`` (256) or ``world:SPLIT:PIXELS``."""
    split, _, side = name.removeprefix(WORLD).partition(":")
    split_named(split)
    if side and not (side.isdecimal() and int(side) >= 32):
        raise UsageError(f"'{name}': the side of a scene is a number of at least 32 pixels, as in {WORLD}{split}:256")
    return split, int(side or 256)


def _of_world(name: str, seed: int) -> Examples:
    split, side = world_parts(name)
    seen_only = split_named(split).seen_only
    labels = [label for label, row in enumerate(world_classes()) if row.seen or not seen_only]
    place = {label: number for number, label in enumerate(labels)}
    read = partial(_drawn, split=split, side=side, seed=seed, place=place)
    return Examples(name, Vocabulary.builtin("emoji").select(labels), WORLD_SCENES, read)


def _drawn(number: int, *, split: str, side: int, seed: int, place: Mapping[int, int]) -> tuple[Pixels, PanopticMap]:
    """A scene, its labels as ``place`` translates them."""
    scene = next(scenes(split, 1, seed=seed, size=side, first=number))
    segments = tuple(PanopticSegment(segment.id, place[segment.label]) for segment in scene.segments)
    return scene.image, PanopticMap(scene.panoptic, segments)


def _read(number: int, *, dataset: Dataset, task: str) -> tuple[Pixels, PanopticMap]:
    """A picture of a data set; of a semantic truth each class is one segment."""
    sample = dataset.samples[number]
    truth = dataset.truth(sample, task)
    if isinstance(truth, np.ndarray):
        labels = sorted({int(label) for label in np.unique(truth)} - {IGNORED})
        truth = PanopticMap(truth + np.int32(1), tuple(PanopticSegment(label + 1, label) for label in labels))
    assert isinstance(truth, PanopticMap)
    return read_image(sample.image), truth
