"""A large picture in tiles: does the result equal the whole picture's, are objects whole at the seams, how much memory.

``python benchmarks/tiles.py [--model colours] [--task panoptic …] [--size 6000 4000] [--tile 1024] [--overlap 128] [--json]``

The picture is a scene of the emoji world. ``colours`` is a method that knows each region of the ground truth by its colour, in
a picture of flat colours: it needs no context, so tiles must give exactly the result of the whole picture ("equal"). A model
sees each tile without what surrounds it, so that its results differ; for it compare

* "alone": the fraction of the pixels that a single tile covers whose class is that of the tile as a picture of its own (1 for
  semantic results, whose scores are averaged only where tiles overlap), and whose segment there is one segment here;
* "same": the fraction of all pixels whose class is the same without tiles;
* "right": the fraction of all pixels with the true class, with tiles and without;
* "broken": of the pairs of neighbouring pixels across the seams that are things of one class, those with two ids; and "beside"
  the same a quarter of a tile away from the seams, where nothing is merged.

Memory is the most that the process held before the call ("start", with the picture), during it, and without tiles, in MB of
10^6 bytes (Linux).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.inference.tiles import Grid, Tiling
from lexiseg.methods.base import MethodConfig, Segmenter
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Geometry, ImageBatch, MaskPrediction, PixelPrediction, Task, TextEmbeddings, Trace
from lexiseg.text.vocabulary import ClassName, Vocabulary
from lexiseg.world.glyphs import world_classes
from lexiseg.world.scenes import render, split_named

TASKS: tuple[Task, ...] = ("panoptic", "semantic", "instance")
COLOURS, CERTAIN = "colours", 20.0  # logit
OBJECTS, SCALE = 60, (0.02, 0.15)  # things of the scene, and the range of their sizes


class _Tower(nn.Module):
    """A text tower for a method that does not read."""

    identity = "none"

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.zeros(len(texts), 1, dtype=torch.long)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.ones(len(tokens), 1)


class Colours(Segmenter):
    """Method that classifies each pixel by its colour alone: what it says of a pixel does not depend on the others.

    Args:
        colours: [N, 3] uint8, one a region.
        labels: [N], their classes.
        classes: K.
        pixels: predict pixels, not masks.
    """

    tasks = TASKS

    def __init__(self, colours: NDArray[np.uint8], labels: NDArray[np.int64], classes: int, *, pixels: bool = False) -> None:
        super().__init__(MethodConfig())
        self.clip = _Tower()  # type: ignore[assignment]
        self.colours, self.labels, self.classes, self.pixels = torch.from_numpy(colours), labels, classes, pixels

    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip}

    def forward(
        self,
        images: ImageBatch,
        text: TextEmbeddings,  # noqa: ARG002
        *,
        trace: Trace | None = None,  # noqa: ARG002
    ) -> MaskPrediction | PixelPrediction:
        image = (images.image(0) * 255).round().byte()
        known = [colour for colour in range(len(self.colours)) if self._where(image, colour).any()]
        geometries = (Geometry.unresized(images.sizes[0]),)
        if self.pixels:
            probabilities = torch.full((1, self.classes, *images.sizes[0]), 0.1)
            for colour in known:
                probabilities[0, self.labels[colour]].masked_fill_(self._where(image, colour), 0.9 - 0.001 * colour)
            return PixelPrediction(probabilities, geometries)
        masks = torch.full((1, len(known), *images.sizes[0]), -CERTAIN)
        classes = torch.full((1, len(known), self.classes), -torch.inf)
        for query, colour in enumerate(known):
            masks[0, query].masked_fill_(self._where(image, colour), CERTAIN)
            classes[0, query, self.labels[colour]] = float(np.log(0.9 - 0.001 * colour))
        return MaskPrediction(masks, classes, False, geometries)

    def _where(self, image: Tensor, colour: int) -> Tensor:
        return (image == self.colours[colour][:, None, None]).all(0)


def drawn(width: int, height: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int32], list[int]]:
    """A scene: picture [H, W, 3], ids [H, W] from 0, and the label of each id.

    Things are connected: what covers parts of one leaves it its largest, and gives the others to the ground.
    """
    scene = render((seed,), split_named("val"), size=max(width, height), objects=OBJECTS, scale=SCALE)
    ids, image = scene.panoptic[:height, :width].copy(), scene.image[:height, :width]
    ground = next(segment.id for segment in scene.segments if segment.style is None)
    for number in [segment.id for segment in scene.segments if segment.style is not None]:
        pieces, count = ndimage.label(ids == number, structure=np.ones((3, 3)))
        if count > 1:
            ids[(pieces > 0) & (pieces != np.bincount(pieces.ravel())[1:].argmax() + 1)] = ground
    present, dense = np.unique(ids, return_inverse=True)
    labels = {segment.id: segment.label for segment in scene.segments}
    return (
        np.ascontiguousarray(image),
        dense.reshape(ids.shape).astype(np.int32),
        [labels[number] for number in present.tolist()],
    )


def stand_in(ids: NDArray[np.int32], labels: Sequence[int], vocabulary: Vocabulary) -> tuple[Pipeline, NDArray[np.uint8]]:
    """The method that knows the regions by their colours, and the picture in these colours."""
    numbers = np.arange(len(labels))
    colours = np.stack([numbers * 37 % 256, numbers * 101 % 256, numbers // 256], axis=1).astype(np.uint8)
    method = Colours(colours, np.array(labels), len(vocabulary.names))
    return Pipeline(method), colours[ids]


def broken(result: Segmentation, cuts: tuple[list[int], list[int]]) -> tuple[int, int]:
    """Pairs of pixels across horizontal and vertical lines that are things of one class, and those of them with two ids."""
    ids, things = result.panoptic, np.array([False, *(segment.thing for segment in result.segments)])
    labels = np.array([-1, *(segment.label for segment in result.segments)])
    pairs = [(ids[row - 1], ids[row]) for row in cuts[0]] + [(ids[:, column - 1], ids[:, column]) for column in cuts[1]]
    same = [things[a] & (labels[a] == labels[b]) for a, b in pairs]
    return sum(int(each.sum()) for each in same), sum(
        int((each & (a != b)).sum()) for each, (a, b) in zip(same, pairs, strict=True)
    )


def alone(pipeline: Pipeline, image: NDArray[np.uint8], result: Segmentation, grid: Grid, vocabulary: Vocabulary) -> float:
    """Agreement with the tiles as pictures of their own, where each is alone; for panoptic results a segment must stay one."""
    agreeing = pixels = 0
    label_map, ids = result.semantic, result.panoptic
    for rows in grid.rows:
        for columns in grid.columns:
            tile = pipeline(image[rows.pixels, columns.pixels], vocabulary, task=result.task)
            single = ((rows.weights == 1)[:, None] & (columns.weights == 1)).numpy()
            equal = tile.semantic == label_map[rows.pixels, columns.pixels]
            if result.task == "panoptic":
                own, merged = tile.panoptic[single].astype(np.int64), ids[rows.pixels, columns.pixels][single]
                pairs = np.unique(own * (1 + len(result.segments)) + merged) // (1 + len(result.segments))
                equal &= (np.bincount(pairs, minlength=1 + len(tile.segments)) <= 1)[tile.panoptic]  # ids for each id here
            agreeing, pixels = agreeing + int(equal[single].sum()), pixels + int(single.sum())
    return agreeing / pixels


def same_partition(first: Segmentation, second: Segmentation) -> bool:
    """Whether two results have the same masks with the same classes, in any order."""

    def regions(result: Segmentation) -> list[tuple[int, bytes]]:
        return sorted(
            (segment.label, np.packbits(mask).tobytes()) for segment, mask in zip(result.segments, result.masks, strict=True)
        )

    return regions(first) == regions(second)


def peak(*, reset: bool = False) -> float:
    """The most memory that the process held since the last reset, in MB; 0 where the system does not say."""
    if not Path("/proc/self/clear_refs").exists():
        return 0.0
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(status["VmRSS" if reset else "VmHWM"].split()[0]) * 1024 / 1e6


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows of the report by task."""
    (width, height), tiling = arguments.size, Tiling(arguments.tile, arguments.overlap)
    image, ids, labels = drawn(width, height, arguments.seed)
    # Only the classes of the scene, so that a tiny model has a chance.
    classes = sorted(set(labels))
    vocabulary = Vocabulary(
        tuple(ClassName(world_classes()[label].name, thing=world_classes()[label].thing) for label in classes)
    )
    labels = [classes.index(label) for label in labels]
    if arguments.model == COLOURS:
        pipeline, image = stand_in(ids, labels, vocabulary)
    else:
        pipeline = load(arguments.model)
    grid, truth = tiling.grid((height, width)), np.array(labels)[ids]
    rows: dict[str, Any] = {}
    pipeline.embed(vocabulary)  # not part of what is measured
    cuts = [span.core.start for span in grid.rows[1:]], [span.core.start for span in grid.columns[1:]]
    beside = [row - arguments.tile // 4 for row in cuts[0]], [column - arguments.tile // 4 for column in cuts[1]]
    for task in arguments.task or pipeline.segmenter.tasks:
        start, begun = peak(reset=True), time.process_time()
        result = pipeline(image, vocabulary, task=task, tile=tiling.tile, overlap=tiling.overlap)
        row = {"segments": len(result.segments), "CPU s": time.process_time() - begun, "start MB": start, "peak MB": peak()}
        peak(reset=True)
        whole = pipeline(image, vocabulary, task=task)
        row |= {"whole peak MB": peak(), "whole segments": len(whole.segments)}
        row |= {"equal": same_partition(result, whole), "same": float((result.semantic == whole.semantic).mean())}
        row |= {"right": [float((each.semantic == truth).mean()) for each in (result, whole)]}
        row |= {"alone": None if task == "instance" else alone(pipeline, image, result, grid, vocabulary)}
        row |= {"broken": broken(result, cuts), "beside": broken(result, beside)}
        rows[task] = row
    things = [number for number, label in enumerate(labels) if vocabulary.things[label]]
    return {
        "model": arguments.model,
        "size": [width, height],
        "tiles": [len(grid.rows), len(grid.columns)],
        "classes": len(classes),
        "truth": {"things": len(things), "stuff": len({label for label in labels if not vocabulary.things[label]})},
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="catseg-tiny", help=f"a model, or {COLOURS}")
    parser.add_argument("--task", action="append", choices=TASKS)
    parser.add_argument("--size", type=int, nargs=2, default=(6000, 4000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    document = measured(arguments)
    if arguments.json:
        print(json.dumps(document))
        return 0
    truth, (high, wide) = document["truth"], document["tiles"]
    print(
        f"{document['model']}, {arguments.size[0]} × {arguments.size[1]}, {high} × {wide} tiles of {arguments.tile}, overlap",
        end=" ",
    )
    print(f"{arguments.overlap}; {document['classes']} classes, {truth['things']} things, {truth['stuff']} stuff")
    heads = ("segments", "whole's", "equal", "alone", "same", "right", "whole's", "broken", "beside")
    heads += ("CPU s", "MB start", "tiles", "whole")
    print(f"{'task':<10}" + "".join(f"{head:>11}" for head in heads))
    for task, row in document["rows"].items():
        pairs = (f"{divided}/{count}" for count, divided in (row["broken"], row["beside"]))
        agreement = "" if row["alone"] is None else f"{row['alone']:.4f}"
        cells = [
            row["segments"],
            row["whole segments"],
            "yes" if row["equal"] else "no",
            agreement,
            f"{row['same']:.4f}",
            *(f"{fraction:.4f}" for fraction in row["right"]),
            *pairs,
        ]
        cells += [f"{row['CPU s']:.0f}", *(f"{row[name]:.0f}" for name in ("start MB", "peak MB", "whole peak MB"))]
        print(f"{task:<10}" + "".join(f"{cell:>11}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
