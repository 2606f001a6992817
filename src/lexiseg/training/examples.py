"""Training examples: images with panoptic ground truth, by index."""

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

WORLD = "world:"  # prefix of data that is rendered during training
WORLD_SCENES = 1_000_000  # per split: more than any training uses


@dataclass(frozen=True)
class Examples:
    """Images and ground truth by index.

    Attributes:
        name: the recipe's ``data``.
        vocabulary: classes; labels are indices into it.
        count: number of examples.
        read: maps an index to the image [H, W, 3] uint8 and its segments; picklable. Raises DataError or ImageError.
    """

    name: str
    vocabulary: Vocabulary
    count: int
    read: Callable[[int], tuple[Pixels, PanopticMap]]


def open_examples(name: str, root: str | Path | None = None, *, seed: int = 0) -> Examples:
    """Open the examples of a recipe's ``data``.

    Args:
        name: a data set of the catalogue, a path to the user's own data, ``world:SPLIT`` or ``world:SPLIT:PIXELS``.
        root: folder of the catalogue's data sets.
        seed: seed of rendered scenes.

    Raises:
        UsageError: the name is unknown.
        DataError: files are missing, or the data has neither panoptic nor semantic ground truth.
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
    remap = {label: index for index, label in enumerate(labels)}
    read = partial(_render, split=split, side=side, seed=seed, remap=remap)
    return Examples(name, Vocabulary.builtin("emoji").select(labels), WORLD_SCENES, read)


def _render(index: int, *, split: str, side: int, seed: int, remap: Mapping[int, int]) -> tuple[Pixels, PanopticMap]:
    """Render a scene, its labels mapped by ``remap``."""
    scene = next(scenes(split, 1, seed=seed, size=side, first=index))
    segments = tuple(PanopticSegment(segment.id, remap[segment.label]) for segment in scene.segments)
    return scene.image, PanopticMap(scene.panoptic, segments)


def _read(index: int, *, dataset: Dataset, task: str) -> tuple[Pixels, PanopticMap]:
    """Read an example of a data set; with semantic ground truth, each class is one segment."""
    sample = dataset.samples[index]
    truth = dataset.truth(sample, task)
    if isinstance(truth, np.ndarray):
        labels = sorted({int(label) for label in np.unique(truth)} - {IGNORED})
        truth = PanopticMap(truth + np.int32(1), tuple(PanopticSegment(label + 1, label) for label in labels))
    assert isinstance(truth, PanopticMap)
    return read_image(sample.image), truth
