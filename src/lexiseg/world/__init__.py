"""The emoji world: a small synthetic data set of named things and stuff for offline training and tests."""

from lexiseg.world.glyphs import WorldClass, drawn, sprites, styles, world_classes
from lexiseg.world.restyle import restyled
from lexiseg.world.scenes import Scene, SceneSegment, Split, render, scenes, split_named, splits

__all__ = [
    "Scene",
    "SceneSegment",
    "Split",
    "WorldClass",
    "drawn",
    "render",
    "restyled",
    "scenes",
    "split_named",
    "splits",
    "sprites",
    "styles",
    "world_classes",
]
