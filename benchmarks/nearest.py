"""Recall of the classes that are in an image among its top classes, by both rankings of `max_classes`, and mIoU with them.

``python benchmarks/nearest.py [--model catseg-tiny] [--scenes 64] [--seed 12345] [--miou] [--json]`` computes the cost volumes
of scenes of the emoji world, with all its names, and prints the fraction of the classes in them that are among the top M:
by the highest cost in any cell ("cost"), by the sum of the cells' probabilities ("sum of probabilities", not an option of the
models), and by the highest probability in any patch of 2 × 2 cells ("probability"). With ``--miou`` it then segments the scenes
with both rankings, and, as an upper bound, with one that has the classes of the scene first ("truth"), at the model's M.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexiseg.errors import UsageError
from lexiseg.inference.pipeline import Pipeline, as_segmentation, load, regions_of
from lexiseg.inference.results import measurable
from lexiseg.layers.cost_aggregation import class_probabilities
from lexiseg.methods.correlation import CorrelationSegmenter
from lexiseg.metrics import SemanticScores
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.world import Scene, scenes, world_classes

TOP = (16, 32, 48, 64, 96, 128)
RANKINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cost": lambda cost, _: cost.amax((-2, -1)),
    "sum of probabilities": lambda cost, scale: (scale * cost).softmax(1).sum((-2, -1)),
    "probability": lambda cost, scale: class_probabilities(cost, scale).amax((-2, -1)),
}


@torch.no_grad()
def recalls(pipeline: Pipeline, chosen: Sequence[Scene]) -> list[dict[str, Any]]:
    """Recall among the top M classes for each ranking, over all classes of all scenes."""
    segmenter, text = pipeline.segmenter, pipeline.embed(Vocabulary.builtin("emoji"))
    assert isinstance(segmenter, CorrelationSegmenter)
    ranks: dict[str, list[Tensor]] = {name: [] for name in RANKINGS}
    for scene in chosen:
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
        cost, labels = segmenter.encode(image, text).cost, labels_of(scene)
        for name, score in RANKINGS.items():
            order = score(cost, segmenter.clip.logit_scale)[0].argsort(descending=True)
            ranks[name].append(order.argsort()[labels])
    return [
        {"ranking": name, **{str(m): float((torch.cat(each) < m).float().mean()) for m in TOP}} for name, each in ranks.items()
    ]


def labels_of(scene: Scene) -> Tensor:
    """Labels of the classes in a scene."""
    truth = torch.from_numpy(scene.semantic())
    return truth[truth >= 0].unique().long()


@contextmanager
def truth_first(segmenter: CorrelationSegmenter, labels: Tensor) -> Iterator[None]:
    """Rank the classes of a scene before all others within the block."""
    ranked = segmenter.nearest

    def nearest(cost: Tensor) -> Tensor | None:
        first = torch.zeros_like(cost).index_fill_(1, labels, 2.0)  # a cosine is at most 1
        return ranked(cost + first)

    segmenter.nearest = nearest  # type: ignore[method-assign]
    try:
        yield
    finally:
        segmenter.nearest = ranked  # type: ignore[method-assign]


def miou(pipeline: Pipeline, chosen: Sequence[Scene], ranking: str) -> float:
    """mIoU with a ranking: one of the models', or "truth"."""
    vocabulary, segmenter, scores = Vocabulary.builtin("emoji"), pipeline.segmenter, SemanticScores(len(world_classes()))
    assert isinstance(segmenter, CorrelationSegmenter)
    text, config = pipeline.embed(vocabulary), segmenter.config
    segmenter.config = replace(config, ranking="cost" if ranking == "truth" else ranking)
    for number, scene in enumerate(chosen):
        with truth_first(segmenter, labels_of(scene)) if ranking == "truth" else nullcontext():
            regions = regions_of(pipeline.predict(scene.image, text), text, "semantic", segmenter.policy)
        scores.update(number, scene.semantic(), measurable(as_segmentation("semantic", scene.image, vocabulary, regions)))
    segmenter.config = config
    return float(scores.result()["mIoU"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="catseg-tiny")
    parser.add_argument("--weights", type=Path, help="folder of trained weights in place of the package's")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--miou", action="store_true", help="segment the scenes, too")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    pipeline = load(arguments.model, weights=arguments.weights, device="cpu")
    if not isinstance(pipeline.segmenter, CorrelationSegmenter):
        raise UsageError(f"{arguments.model} has no cost volume; choose a model of CAT-Seg, SAM-MI or ESC-Net")
    chosen = list(scenes("val", arguments.scenes, seed=arguments.seed))
    rows = recalls(pipeline, chosen)
    scores = {each: miou(pipeline, chosen, each) for each in ("cost", "probability", "truth")} if arguments.miou else {}
    if arguments.json:
        print(json.dumps({"model": arguments.model, "scenes": arguments.scenes, "recall": rows, "mIoU": scores}))
        return
    print(f"{arguments.model} on {arguments.scenes} scenes of seed {arguments.seed}, {len(world_classes())} names")
    print(f"{'recall among the top':22s}" + "".join(f"{m:8d}" for m in TOP))
    for row in rows:
        print(f"{row['ranking']:22s}" + "".join(f"{row[str(m)]:8.3f}" for m in TOP))
    for name, score in scores.items():
        print(f"mIoU, {name:11s} {score:.4f} ({pipeline.segmenter.config.max_classes} classes)")


if __name__ == "__main__":
    main()
