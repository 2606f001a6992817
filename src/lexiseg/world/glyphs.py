"""Things and stuff of the emoji world: names, synonyms, the seen/unseen split, and the drawings.

The drawings are 96-pixel sprites, packed in one WebP atlas per style by ``tools/pack_glyphs.py``. Further styles outside the
package are atlases of the same form (``tools/far_styles.py``), named by their path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from zlib import crc32

from PIL import Image

from lexiseg.errors import DataError, UsageError
from lexiseg.world.textures import TEXTURES

UNSEEN_FRACTION = 0.3  # of the names, held out of segmentation training


@dataclass(frozen=True)
class WorldClass:
    """A class: a thing (one drawing per style) or stuff (a procedural texture)."""

    name: str
    synonyms: tuple[str, ...]
    thing: bool
    seen: bool
    group: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.synonyms)


@lru_cache(maxsize=1)
def world_classes() -> tuple[WorldClass, ...]:
    """Return all classes, things first; the index of a class is its label in every ground truth."""
    rows = [(row["name"], tuple(row["synonyms"]), True, row["group"]) for row in _document()["things"]]
    rows += [(texture.name, texture.synonyms, False, "stuff") for texture in TEXTURES]
    unseen: set[str] = set()
    for thing in (True, False):  # the split depends on the name alone, so adding a class moves hardly any other
        names = sorted((row[0] for row in rows if row[2] is thing), key=lambda name: crc32(name.encode()))
        unseen.update(names[: round(UNSEEN_FRACTION * len(names))])
    return tuple(WorldClass(name, synonyms, thing, name not in unseen, group) for name, synonyms, thing, group in rows)


def styles() -> tuple[str, ...]:
    """Return the drawing styles, in the order noto, fluent, twemoji; the last is held out of all training."""
    return tuple(_document()["styles"])


@lru_cache(maxsize=8)
def sprites(style: str) -> tuple[Image.Image, ...]:
    """Return the RGBA sprites of a style, one per thing, in label order.

    Args:
        style: one of `styles`, or the path of an atlas (``.webp``) of the same form; things it lacks are transparent.
    """
    document = _document()
    cell, columns, things = document["cell"], document["columns"], len(document["things"])
    with _atlas(style) as path, Image.open(path) as opened:
        atlas = opened.convert("RGBA")
    if atlas.size != (columns * cell, -(-things // columns) * cell):
        raise DataError(f"{style} has no cells of {cell} pixels for {things} things; pack it again with tools/far_styles.py")
    corners = [(index % columns * cell, index // columns * cell) for index in range(things)]
    return tuple(atlas.crop((left, top, left + cell, top + cell)) for left, top in corners)


@lru_cache(maxsize=8)
def drawn(style: str) -> tuple[int, ...]:
    """Return the labels of the things a style draws.

    Those in `styles` draw all; an atlas outside the package draws what the JSON file beside it lists under ``drawings``.

    Raises:
        DataError: JSON and atlas disagree, as after a class was added to the world.
    """
    names = [row["name"] for row in _document()["things"]]
    if style in styles():
        return tuple(range(len(names)))
    with _atlas(style) as path:
        beside = path.with_suffix(".json")
    if not beside.is_file():
        raise DataError(f"{beside} is missing, the list of the drawings in {style}; pack it with tools/far_styles.py")
    named = json.loads(beside.read_text(encoding="utf-8"))["drawings"]
    visible = [label for label, sprite in enumerate(sprites(style)) if sprite.getchannel("A").point(_opaque).getbbox()]
    if {names[label] for label in visible} != set(named):
        raise DataError(f"{style} does not show the classes that {beside} lists; pack it again with tools/far_styles.py")
    return tuple(visible)


def _opaque(alpha: int) -> int:
    return 255 * (alpha > 128)


@contextmanager
def _atlas(style: str) -> Iterator[Path]:
    """Yield the file of a style's atlas."""
    if style in styles():
        with as_file(files("lexiseg") / "assets/world" / f"{style}.webp") as path:
            yield path
    elif style.endswith(".webp") and Path(style).is_file():
        yield Path(style)
    else:
        raise UsageError(f"no style '{style}'; the emoji world has {', '.join(styles())}, or give an atlas, a .webp file")


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((files("lexiseg") / "assets/world/classes.json").read_text(encoding="utf-8"))
    return document
