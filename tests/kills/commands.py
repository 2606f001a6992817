"""The commands that are killed, on tiny data and with models that take next to no time, so that a kill hits what is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock  # noqa: F401 - slow to import, and not what is to be killed
import numpy as np
import torch.utils.tensorboard  # noqa: F401

from lexiseg import cli
from lexiseg.cli import evaluate as cli_evaluate
from lexiseg.cli import segment as cli_segment
from lexiseg.cli import world  # noqa: F401
from lexiseg.exports import coco, panoptic_png
from lexiseg.inference import evaluation
from lexiseg.inference.pipeline import Pipeline
from lexiseg.ops.files import write_png
from lexiseg.structures import Segment
from lexiseg.training.loop import train
from tests.data.clips import moving, write_clip
from tests.inference.test_evaluation import NAMES, Colours
from tests.training.recipes import recipe

OUTPUT = Path("out")  # in the working folder
PICTURES, CHUNK, SIZE = 9, 2, (24, 20)


def prepare(data: Path) -> None:
    """Write what the commands read: noisy pictures of three colours, with a panoptic truth."""
    random, images, annotations = np.random.default_rng(0), [], []
    for number in range(PICTURES):
        labels = random.integers(0, 3, SIZE)
        shown = np.where(random.random(SIZE) < 0.3, random.integers(0, 3, SIZE), labels)
        file = f"{number}.png"
        write_png(data / "images" / file, (255 * (shown[..., None] == (0, 1, 2))).astype(np.uint8))
        panoptic_png.write_panoptic_png(data / "panoptic" / file, labels + 1)
        box = (0, 0, SIZE[1], SIZE[0])
        segments = [
            Segment(label + 1, label, name, thing, 1.0, int((labels == label).sum()), box)
            for label, (name, thing) in enumerate(zip(NAMES.names, NAMES.things, strict=True))
        ]
        images.append(coco.image_record(number, file, SIZE))
        annotations.append(panoptic_png.panoptic_annotation(number, file, segments))
    write_clip(data / "clip.mkv", moving(6))
    classes = coco.categories(NAMES.names, NAMES.things)
    panoptic_png.write_panoptic_json(data / "panoptic.json", images, annotations, classes)


def _called(*arguments: str) -> None:
    if code := cli.main(arguments):
        raise SystemExit(code)


def _colours(*_: Any, **__: Any) -> Pipeline:
    return Pipeline(Colours())


def _segment(data: Path, *options: str) -> None:
    cli_segment.load = _colours
    names = "; ".join(NAMES.names)
    _called("segment", str(data / "images"), "--classes", names, "--model", "fcclip-tiny", "--output", str(OUTPUT), *options)


def _video(data: Path) -> None:
    cli_segment.load = _colours
    names = "; ".join(NAMES.names)
    _called("segment", str(data / "clip.mkv"), "--classes", names, "--model", "fcclip-tiny", "--output", str(OUTPUT))


def _formats(data: Path) -> None:
    _segment(data, "--format", "coco,coco-polygons,coco-panoptic,yolo,label-studio,cvat,geojson,html")


def _evaluate(data: Path, *options: str) -> None:
    cli_evaluate.load = _colours
    evaluation.CHUNK = cli_evaluate.CHUNK = CHUNK
    _called("evaluate", "--data", str(data), "--model", "fcclip-tiny", "--output", str(OUTPUT), *options)


def _predictions(data: Path) -> None:
    _evaluate(data, "--save-predictions")


def _train(_: Path) -> None:
    measured = ("validation=world:val:64", "validate_every=2", "validate_limit=2")
    train(recipe("steps=4", "save_every=1", "log_every=1", *measured), OUTPUT, device="cpu", workers=0)


def _render(_: Path, seed: int = 1) -> None:
    _called("world", "render", "--count", "3", "--size", "64", "--seed", str(seed), "--output", str(OUTPUT))


@dataclass(frozen=True)
class Command:
    """A command whose output is compared.

    Attributes:
        run: reads the data of `prepare`, and writes below `OUTPUT`.
        before: another one that has been there before it.
    """

    run: Callable[[Path], None]
    before: Callable[[Path], None] | None = None


COMMANDS = {
    "segment": Command(_segment),
    "formats": Command(_formats),
    "video": Command(_video),
    "evaluate": Command(_evaluate),
    "predictions": Command(_predictions, _evaluate),
    "train": Command(_train),
    "render": Command(_render, partial(_render, seed=2)),
}
