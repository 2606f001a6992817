"""A made-up style outside of the package: a few coloured shapes in an atlas, and the file beside it that says what they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from lexiseg.world import sprites, world_classes


def far_atlas(folder: Path, labels: Sequence[int] = (3, 40, 200)) -> Path:
    """An atlas in which the things with these labels are discs, each of a colour of its own."""
    names = [row.name for row in world_classes() if row.thing]
    cell, columns = sprites("noto")[0].width, 21
    atlas = Image.new("RGBA", (columns * cell, -(-len(names) // columns) * cell))
    for number, label in enumerate(labels):
        left, top = label % columns * cell, label // columns * cell
        ImageDraw.Draw(atlas).ellipse((left, top, left + cell - 1, top + cell - 1), fill=(80 * number, 255, 80, 255))
    path = folder / "far.webp"
    atlas.save(path, quality=85, alpha_quality=95)
    document = {"drawings": {names[label]: "disc" for label in labels}}
    path.with_suffix(".json").write_text(json.dumps(document), encoding="utf-8")
    return path
