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
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.postprocess import VOID
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
    confusion = np.zeros((len(thing), len(thing) + 1), np.int64)
    for scene in tqdm(chosen, desc=f"{title}: whole", leave=False, disable=None):
        result = pipeline(scene.image, Vocabulary.builtin("emoji"), task="semantic")
        count(confusion, scene.semantic(), result.semantic)
    overlap, present = ious(confusion)
    for name, rows in (("", slice(None)), (", seen names", seen), (", unseen names", ~seen)):
        kept = np.zeros(len(thing), bool)
        kept[rows] = True
        yield (
            f"{pipeline.segmenter.__class__.__name__}, things mIoU{name}",
            float(overlap[kept & present & thing.numpy()].mean()),
        )
    yield f"{pipeline.segmenter.__class__.__name__}, stuff mIoU", float(overlap[present & ~thing.numpy()].mean())


def top1(vectors: Tensor, text: TextEmbeddings) -> Tensor:
    """The best class of each embedding [R, D]."""
    return text.per_class(functional.normalize(vectors, dim=-1) @ text.vectors.T).argmax(-1)


def count(confusion: NDArray[np.int64], truth: NDArray[np.int32], found: NDArray[np.int32]) -> None:
    """Add the pixels of one scene to the confusion [K, K + 1] (truth × found; the last column is void), in place."""
    classes = len(confusion)
    columns = np.where(found == VOID, classes, found)
    pairs = np.bincount((truth.astype(np.int64) * (classes + 1) + columns).ravel(), minlength=classes * (classes + 1))
    confusion += pairs.reshape(classes, classes + 1)


def ious(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """IoU of every class [K] and whether it occurs in the truth [K]."""
    inside = np.diag(confusion).astype(float)
    union = confusion.sum(1) + confusion[:, :-1].sum(0) - inside
    return inside / np.maximum(union, 1), confusion.sum(1) > 0


if __name__ == "__main__":
    main()
