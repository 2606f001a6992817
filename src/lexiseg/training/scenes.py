"""Write scenes of the emoji world as a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from lexiseg.exports import coco, labels, panoptic_png
from lexiseg.ops.files import removed, write_png
from lexiseg.structures import Segment
from lexiseg.world import Scene, scenes, world_classes


def write_scenes(folder: Path, split: str, count: int, *, size: int = 256, seed: int = 0, progress: bool = True) -> None:
    """Write scenes with ground truth: images/, panoptic/ + panoptic.json (COCO), labels/ + classes.txt, classes.json.

    The index files are removed first and written last, so an interrupted call leaves no valid data set.

    Args:
        folder: output folder, created if missing.
        split: a split of `lexiseg.world.splits`.
        count: number of scenes.
        size: side of the images in pixels.
        seed: seed of the scenes.
        progress: show a bar on stderr, if that is a terminal.
    """
    rows = world_classes()
    names, things = [row.name for row in rows], [row.thing for row in rows]
    images, annotations = [], []
    for file in ("panoptic.json", "classes.txt", "classes.json"):
        removed(folder / file)
    stream = scenes(split, count, seed=seed, size=size)
    for index, scene in enumerate(tqdm(stream, total=count, unit="scene", disable=None if progress else True)):
        file = f"{index:06d}.png"
        write_png(folder / "images" / file, scene.image)
        panoptic_png.write_panoptic_png(folder / "panoptic" / file, scene.panoptic)
        labels.write_labels(folder / "labels" / file, scene.semantic(), len(rows))
        images.append(coco.image_record(index, file, scene.panoptic.shape))
        annotations.append(panoptic_png.panoptic_annotation(index, file, _segments(scene)))
    labels.write_classes(folder, names, things)
    panoptic_png.write_panoptic_json(folder / "panoptic.json", images, annotations, coco.categories(names, things))


def _segments(scene: Scene) -> list[Segment]:
    segments = []
    for segment in scene.segments:
        rows, columns = np.nonzero(scene.panoptic == segment.id)
        box = (int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
        row = world_classes()[segment.label]
        segments.append(Segment(segment.id, segment.label, row.name, row.thing, 1.0, len(rows), box))
    return segments
