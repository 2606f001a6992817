"""Score the embedded models on held-out scenes; prints the scores of docs/tiny.md.

    python -m lexiseg.training.score --scenes 200 --seed 12345 --model cmpf-tiny
    python -m lexiseg.training.score --scenes 100 --far output/far/openmoji.webp --far output/far/photographs.webp

Top-1 accuracy is over all names of the world. The IoU of a class is over all scenes together; mIoU is the mean over the
classes that occur in them (a class that is predicted but never true is not counted as zero). PQ is that of `lexiseg
evaluate`. SAM and CLIP are also scored alone for SAM + CLIP, which has no other trained parts. ``--far`` adds scenes drawn
from an atlas that is not shipped (``tools/far_styles.py``), classified among all names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lexiseg.inference.pipeline import Pipeline, as_segmentation, load, regions_of
from lexiseg.inference.results import measurable
from lexiseg.methods.sam_clip.model import SamClip
from lexiseg.metrics import PanopticQuality, SemanticScores
from lexiseg.ops.allocator import keep_freed_memory
from lexiseg.structures import PanopticMap, PanopticSegment, Task, TextEmbeddings
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.clip_tiny import crop_embeddings, region_embeddings
from lexiseg.training.sam_tiny import prompted
from lexiseg.training.tiny import SceneBatch
from lexiseg.world import Scene, Split, drawn, render, scenes, world_classes

SETS = {"trained styles": "val", "new style": "style"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--model", default="sam_clip-tiny")
    parser.add_argument("--weights", action="append", default=[], metavar="PART=FILE", help="as in 'lexiseg segment'")
    parser.add_argument("--far", action="append", default=[], metavar="ATLAS", help="score scenes of this style, too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()
    pipeline = load(arguments.model, weights=dict(entry.split("=", 1) for entry in arguments.weights), device="cpu")
    rows: dict[str, float] = {}
    for title, chosen in sets(arguments.scenes, arguments.seed, arguments.far):
        encoders = [*parts(pipeline, chosen, title)] if isinstance(pipeline.segmenter, SamClip) else []
        rows |= {f"{title}: {name}": value for name, value in [*encoders, *whole(pipeline, chosen, title)]}
    if arguments.json:
        print(json.dumps({"scenes": arguments.scenes, "seed": arguments.seed, "model": arguments.model, "scores": rows}))
        return
    print(f"{arguments.model} on {arguments.scenes} scenes of seed {arguments.seed}, {len(world_classes())} names")
    for name, value in rows.items():
        print(f"  {name:<58} {value:.3f}")


def sets(count: int, seed: int, far: Sequence[str] = ()) -> Iterator[tuple[str, list[Scene]]]:
    """Yield (title, scenes) of the two splits, and of each atlas in ``far``, whose scenes show only things it contains."""
    for atlas in far:
        drawn(atlas)  # raises for an invalid atlas before the first scenes are scored
    for title, split in SETS.items():
        yield title, list(scenes(split, count, seed=seed))
    for atlas in far:
        split_of_atlas = Split((atlas,), seen_only=False, things=drawn(atlas))
        yield f"far, {Path(atlas).stem}", [render((seed, crc32(b"far"), index), split_of_atlas) for index in range(count)]


@torch.no_grad()
def parts(pipeline: Pipeline, chosen: list[Scene], title: str) -> Iterator[tuple[str, float]]:
    """Yield (name, score) of CLIP on boxes and true masks, and of SAM on clicks and boxes."""
    text = pipeline.embed(Vocabulary.builtin("emoji"))
    assert isinstance(pipeline.segmenter, SamClip)
    clip, sam, side = pipeline.segmenter.clip, pipeline.segmenter.sam, pipeline.segmenter.config.shortest_edge
    thing = torch.tensor([row.thing for row in world_classes()])
    hits, crops, truths, regions = [], [], [], []
    rng = np.random.default_rng(5)
    for scene in tqdm(chosen, desc=f"{title}: parts", leave=False, disable=None):
        batch = SceneBatch.of([scene])
        vectors, truth = region_embeddings(clip, batch, side=side)
        hits.append(top1(vectors, text) == truth)
        truths.append(truth)
        vectors, labels = crop_embeddings(clip, batch, margin=1.15)
        crops.append(top1(vectors, text) == labels)
        regions += [region for region in prompted(sam, scene, rng) if region.thing]
    right, is_thing = torch.cat(hits).float(), thing[torch.cat(truths)]
    yield "CLIP, boxes of things, top-1", torch.cat(crops).float().mean().item()
    yield "CLIP, true masks, top-1", right.mean().item()
    yield "CLIP, true masks of things, top-1", right[is_thing].mean().item()
    yield "CLIP, true masks of stuff, top-1", right[~is_thing].mean().item()
    yield "SAM, one click on a thing, IoU", float(np.mean([region.click for region in regions]))
    yield "SAM, one click at a thing's centre, IoU", float(np.mean([region.centre for region in regions]))
    yield "SAM, box of a thing, IoU", float(np.mean([region.box for region in regions]))


def whole(pipeline: Pipeline, chosen: list[Scene], title: str) -> Iterator[tuple[str, float]]:
    """Yield (name, score) of the semantic and panoptic results over all names."""
    vocabulary, rows = Vocabulary.builtin("emoji"), world_classes()
    things = frozenset(label for label, row in enumerate(rows) if row.thing)
    seen = frozenset(label for label, row in enumerate(rows) if row.seen)
    groups = {
        "things": things,
        "things, seen names": things & seen,
        "things, unseen names": things - seen,
        "stuff": frozenset(range(len(rows))) - things,
    }
    semantic, panoptic = SemanticScores(len(rows), groups), PanopticQuality(len(rows), vocabulary.things, groups)
    text = pipeline.embed(vocabulary)
    for number, scene in enumerate(tqdm(chosen, desc=f"{title}: whole", leave=False, disable=None)):
        truth, results = segmented(pipeline, scene, text)
        semantic.update(number, scene.semantic(), results["semantic"])
        panoptic.update(number, truth, results["panoptic"])
    for name, result in (("mIoU", semantic.result()), ("PQ", panoptic.result())):
        yield name, result[name]
        for group in groups:
            yield f"{name}, {group}", result["groups"][group][name]


def segmented(pipeline: Pipeline, scene: Scene, text: TextEmbeddings) -> tuple[PanopticMap, dict[str, Any]]:
    """The panoptic truth of a scene, and its semantic and panoptic results, for metrics."""
    prediction, policy, vocabulary = pipeline.predict(scene.image, text), pipeline.segmenter.policy, Vocabulary.builtin("emoji")
    truth = PanopticMap(scene.panoptic, tuple(PanopticSegment(segment.id, segment.label) for segment in scene.segments))
    tasks: tuple[Task, ...] = ("semantic", "panoptic")
    return truth, {
        task: measurable(as_segmentation(task, scene.image, vocabulary, regions_of(prediction, text, task, policy)))
        for task in tasks
    }


def top1(vectors: Tensor, text: TextEmbeddings) -> Tensor:
    """Index of the best class for each embedding [R, D]."""
    return text.per_class(functional.normalize(vectors, dim=-1) @ text.vectors.T).argmax(-1)


if __name__ == "__main__":
    main()
