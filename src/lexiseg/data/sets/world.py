"""The emoji world: synthetic scenes with exact truth, written by `lexiseg world render`."""

from __future__ import annotations

from pathlib import Path

from lexiseg.data.dataset import Dataset
from lexiseg.data.own import open_panoptic
from lexiseg.data.row import Row


def open_world(root: Path) -> Dataset:
    """Open the scenes below emoji-world/, all tasks from their panoptic truth."""
    folder = root / "emoji-world"
    return open_panoptic(folder / "panoptic.json", folder / "images", name="emoji-world")


ROWS: tuple[Row, ...] = (
    Row(
        "emoji-world",
        "the emoji world: synthetic scenes of emoji on textures, made on the spot",
        ("semantic", "panoptic", "instance"),
        ("emoji-world/images", "emoji-world/panoptic.json", "emoji-world/panoptic"),
        "Nothing to download: `lexiseg world render --split val --count 100 --output emoji-world` makes it,"
        " run in the folder of the data sets.",
        open_world,
    ),
)
