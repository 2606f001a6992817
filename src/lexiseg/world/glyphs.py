"""The things and stuff of the emoji world: names, synonyms, the seen/unseen split, and the drawings themselves.

The drawings are 96-pixel sprites packed in one WebP atlas a style by ``tools/pack_glyphs.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any
from zlib import crc32

from PIL import Image

from lexiseg.world.textures import TEXTURES

UNSEEN_SHARE = 0.3  # of the names, kept out of segmentation training


@dataclass(frozen=True)
class WorldClass:
    """A nameable class: a thing (drawn once a style) or a stuff (a procedural texture)."""

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
    """All classes, things first; the position of a class is its label in every ground truth."""
    rows = [(row["name"], tuple(row["synonyms"]), True, row["group"]) for row in _document()["things"]]
    rows += [(texture.name, texture.synonyms, False, "stuff") for texture in TEXTURES]
    unseen: set[str] = set()
    for thing in (True, False):  # the split is a property of the name alone, so adding a class moves hardly any other
        names = sorted((row[0] for row in rows if row[2] is thing), key=lambda name: crc32(name.encode()))
        unseen.update(names[: round(UNSEEN_SHARE * len(names))])
    return tuple(WorldClass(name, synonyms, thing, name not in unseen, group) for name, synonyms, thing, group in rows)


def styles() -> tuple[str, ...]:
    """The drawing styles, in the order noto, fluent, twemoji; the last is held out of all training."""
    return tuple(_document()["styles"])


@lru_cache(maxsize=8)
def sprites(style: str) -> tuple[Image.Image, ...]:
    """The RGBA sprites of one style, one a thing, in class order."""
    document = _document()
    cell, columns = document["cell"], document["columns"]
    with as_file(files("lexiseg") / "assets/world" / f"{style}.webp") as path, Image.open(path) as opened:
        atlas = opened.convert("RGBA")
    corners = [(index % columns * cell, index // columns * cell) for index in range(len(document["things"]))]
    return tuple(atlas.crop((left, top, left + cell, top + cell)) for left, top in corners)


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((files("lexiseg") / "assets/world/classes.json").read_text(encoding="utf-8"))
    return document
