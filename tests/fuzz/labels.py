"""Label maps and panoptic PNGs, as `lexiseg metrics` and `lexiseg evaluate` read them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from lexiseg.data.own import open_own
from lexiseg.data.readers import read_colours
from lexiseg.errors import DataError, LexisegError
from lexiseg.metrics import Score, score_panoptic, score_semantic
from tests.data.miniatures import MINIATURES, REGIONS, write
from tests.fuzz.pictures import encoded, mutated_picture

SUFFIX = ".png"
NAMES = ("grass", "dog", "sky", "cat")
PANOPTIC, PNGS = "coco/annotations/panoptic_val2017.json", "coco/panoptic_val2017"


def prepare(folder: Path) -> None:
    """A data set of label maps, one of panoptic segments, and predictions of both kinds; the input takes the place of one."""
    write(folder / "own/images/1.png", np.zeros((*REGIONS.shape, 3), np.uint8))
    (folder / "own/classes.txt").write_text("\n".join(NAMES))
    for place in ("own/labels", "sound"):
        write(folder / place / "1.png", REGIONS.astype(np.uint8))
    (folder / "found").mkdir()
    MINIATURES["coco-panoptic"].build(folder)
    shutil.copytree(folder / PNGS, folder / "found/panoptic")
    shutil.copy(folder / PANOPTIC, folder / "found/panoptic.json")


def inputs(random: np.random.Generator) -> bytes:
    """A mutated label map or panoptic PNG."""
    sound = _sound()
    return mutated_picture(sound[int(random.integers(len(sound)))], random)


def attempt(path: Path) -> None:
    """Read it as each of the things it could be; it is refused if it can be none."""
    folder = path.parent
    panoptic = folder / PANOPTIC
    png = next((folder / PNGS).iterdir()).name
    for place in ("own/labels/1.png", "found/1.png", f"found/panoptic/{png}"):
        shutil.copy(path, folder / place)
    readings: tuple[Callable[[], object], ...] = (
        lambda: _truths(folder),
        lambda: read_colours(path),
        lambda: _whole(score_semantic(folder / "found", folder / "sound", NAMES, keep_going=True)),
        lambda: _whole(score_semantic(folder / "sound", folder / "found", NAMES, keep_going=True)),
        lambda: _whole(score_panoptic(folder / "found/panoptic.json", panoptic, keep_going=True)),
        lambda: _whole(score_panoptic(panoptic, folder / "found/panoptic.json", keep_going=True)),
    )
    refusals = []
    for reading in readings:
        try:
            reading()
        except LexisegError as error:
            refusals.append(error)
    if len(refusals) == len(readings):
        raise refusals[0]


def _truths(folder: Path) -> None:
    """The truths of a user's own data set."""
    dataset = open_own(folder / "own")
    for sample in dataset.samples:
        dataset.truth(sample, "semantic")


def _whole(score: Score) -> None:
    """The result, if no picture had to be left out."""
    score.document()
    if score.problems:
        assert not any("unexpected" in problem for problem in score.problems), score.problems
        raise DataError(score.problems[0])


@cache
def _sound() -> list[bytes]:
    """Label maps of every kind of pixels, and panoptic PNGs, of the size that the picture has."""
    labels = REGIONS.astype(np.uint8)
    grey, words, whole = Image.fromarray(labels), Image.fromarray(labels.astype(np.uint16)), labels.astype(np.int32)
    palette = Image.fromarray(labels, "P")
    palette.putpalette(list(range(48)))
    ids = REGIONS * 1000 + 1000
    colours = Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))
    plain = (grey, palette, words, grey.convert("1"), grey.convert("LA"), grey.convert("RGB"), colours, colours.convert("RGBA"))
    tiff = [encoded(kind, "TIFF") for kind in (grey, words, palette, Image.fromarray(whole), grey.convert("F"), colours)]
    packed = [encoded(kind, "TIFF", compression=name) for kind in (grey, words) for name in ("tiff_lzw", "tiff_adobe_deflate")]
    few = [encoded(palette, "PNG", bits=2), encoded(colours.quantize(4), "PNG"), encoded(grey, "PNG", transparency=0)]
    return [*(encoded(kind, "PNG") for kind in plain), *few, *tiff, *packed]
