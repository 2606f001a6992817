"""Score the embedded models on scenes nobody trained on; the scores of docs/tiny.md are printed by this command.

    python -m lexiseg.training.score --scenes 200 --seed 12345

Top-1 is over all names of the world. IoU of a class is over all scenes together; mIoU is the mean over the things that
occur in them (a thing that is predicted but nowhere true costs others their pixels, not a zero of its own).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.metrics import SemanticScores
from lexiseg.structures import TextEmbeddings
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.clip_tiny import crop_embeddings, region_embeddings
from lexiseg.training.sam_tiny import MIN_PIXELS, encode, one_click
from lexiseg.training.tiny import as_images
from lexiseg.world import Scene, scenes, world_classes

SETS = {"trained styles": "val", "new style": "style"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--model", default="sam_clip-tiny")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    pipeline = load(arguments.model, device="cpu")
    rows: dict[str, float] = {}
    for title, split in SETS.items():
        chosen = list(scenes(split, arguments.scenes, seed=arguments.seed))
        rows |= {f"{title}: {name}": value for name, value in score(pipeline, chosen, title)}
    if arguments.json:
        print(json.dumps({"scenes": arguments.scenes, "seed": arguments.seed, "model": arguments.model, "scores": rows}))
        return
    print(f"{arguments.model} on {arguments.scenes} scenes of seed {arguments.seed}, {len(world_classes())} names")
    for name, value in rows.items():
        print(f"  {name:<58} {value:.3f}")


@torch.no_grad()
def score(pipeline: Pipeline, chosen: list[Scene], title: str) -> Iterator[tuple[str, float]]:
    """(what, value) of CLIP on boxes and true masks, of SAM on one click, and of both together."""
    text = pipeline.embed(Vocabulary.builtin("emoji"))
    thing = torch.tensor([row.thing for row in world_classes()])
    seen = np.array([row.seen for row in world_classes()])
    hits, crops, truths, clicks = [], [], [], []
    rng = np.random.default_rng(5)
    for scene in tqdm(chosen, desc=f"{title}: parts", leave=False, disable=None):
        vectors, truth = region_embeddings(pipeline.segmenter.clip, [scene], None)
        hits.append(top1(vectors, text) == truth)
        truths.append(truth)
        vectors, labels = crop_embeddings(pipeline.segmenter.clip, [scene], None, margin=1.15)
        crops.append(top1(vectors, text) == labels)
        sam = pipeline.segmenter.parts()["sam"].model
        embeddings = encode(sam, as_images([scene]))
        for segment in scene.segments:
            mask = scene.panoptic == segment.id
            if segment.style and mask.sum() >= MIN_PIXELS:
                clicks.append(one_click(sam, embeddings, mask, rng))
    right, is_thing = torch.cat(hits).float(), thing[torch.cat(truths)]
    yield "CLIP, boxes of things, top-1", torch.cat(crops).float().mean().item()
    yield "CLIP, true masks, top-1", right.mean().item()
    yield "CLIP, true masks of things, top-1", right[is_thing].mean().item()
    yield "CLIP, true masks of stuff, top-1", right[~is_thing].mean().item()
    yield "SAM, one click on a thing, IoU", float(np.mean(clicks))
    things = frozenset(np.flatnonzero(thing).tolist())
    groups = {
        "things mIoU": things,
        "things mIoU, seen names": things & frozenset(np.flatnonzero(seen).tolist()),
        "things mIoU, unseen names": things & frozenset(np.flatnonzero(~seen).tolist()),
        "stuff mIoU": frozenset(range(len(thing))) - things,
    }
    metric = SemanticScores(len(thing), groups)
    for number, scene in enumerate(tqdm(chosen, desc=f"{title}: whole", leave=False, disable=None)):
        metric.update(number, scene.semantic(), pipeline(scene.image, Vocabulary.builtin("emoji"), task="semantic").semantic)
    for name, numbers in metric.result()["groups"].items():
        yield f"{pipeline.segmenter.__class__.__name__}, {name}", numbers["mIoU"]


def top1(vectors: Tensor, text: TextEmbeddings) -> Tensor:
    """The best class of each embedding [R, D]."""
    return text.per_class(functional.normalize(vectors, dim=-1) @ text.vectors.T).argmax(-1)


if __name__ == "__main__":
    main()
