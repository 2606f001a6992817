"""``lexiseg world render``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lexiseg.exports import coco, labels, panoptic_png
from lexiseg.ops.files import write_png
from lexiseg.structures import Segment
from lexiseg.world import Scene, scenes, world_classes


def run(arguments: argparse.Namespace) -> int:
    """Write scenes with their ground truth: images/, panoptic/ + panoptic.json (COCO), labels/ + classes.json."""
    folder, rows = Path(arguments.output), world_classes()
    names, things = [row.name for row in rows], [row.thing for row in rows]
    images, annotations = [], []
    stream = scenes(arguments.split, arguments.count, seed=arguments.seed, size=arguments.size)
    for index, scene in enumerate(tqdm(stream, total=arguments.count, unit="scene", disable=None)):
        file = f"{index:06d}.png"
        write_png(folder / "images" / file, scene.image)
        panoptic_png.write_panoptic_png(folder / "panoptic" / file, scene.panoptic)
        labels.write_labels(folder / "labels" / file, scene.semantic(), len(rows))
        images.append(coco.image_record(index, file, scene.panoptic.shape))
        annotations.append(panoptic_png.panoptic_annotation(index, file, _segments(scene)))
    panoptic_png.write_panoptic_json(folder / "panoptic.json", images, annotations, coco.categories(names, things))
    labels.write_classes(folder, names, things)
    document = {
        "folder": str(folder),
        "split": arguments.split,
        "seed": arguments.seed,
        "scenes": len(images),
        "classes": len(rows),
    }
    print(json.dumps(document) if arguments.json else f"{len(images)} scenes of {len(rows)} classes in {folder}")
    return 0


def _segments(scene: Scene) -> list[Segment]:
    found = []
    for segment in scene.segments:
        rows, columns = np.nonzero(scene.panoptic == segment.id)
        box = (int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
        row = world_classes()[segment.label]
        found.append(Segment(segment.id, segment.label, row.name, row.thing, 1.0, len(rows), box))
    return found
