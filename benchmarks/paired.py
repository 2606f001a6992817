"""Models, or trainings of a model, on the same scenes: mIoU and PQ, and how sure the differences are.

``python benchmarks/paired.py fovseg-tiny maskclip-tiny [catseg-tiny=RUN/model ...] [--scenes 64] [--json]`` segments scenes of
the emoji world (seed 12345, all names) with each model, after "=" with the weights of a folder, and prints mIoU and PQ, and
their differences to the first model with the interval of 95 % over draws of the scenes. ``--split style``: in the new style.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lexiseg.inference.pipeline import load
from lexiseg.metrics import PanopticQuality, SemanticScores
from lexiseg.metrics.bootstrap import Counts, miou, paired, pixel_counts, pq, segment_counts
from lexiseg.ops.allocator import keep_freed_memory
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.score import segmented
from lexiseg.world import Scene, scenes

METRICS = {"mIoU": miou, "PQ": pq}


def counted(model: str, chosen: Sequence[Scene]) -> dict[str, Counts]:
    """Counts of the scenes for each of `METRICS`, by a model given as NAME or NAME=FOLDER."""
    name, _, folder = model.partition("=")
    pipeline, vocabulary = load(name, weights=Path(folder) if folder else None, device="cpu"), Vocabulary.builtin("emoji")
    text = pipeline.embed(vocabulary)
    semantic, panoptic = SemanticScores(len(text)), PanopticQuality(len(text), vocabulary.things)
    counts: dict[str, list[Counts]] = {name: [] for name in METRICS}
    for scene in tqdm(chosen, desc=model, leave=False, disable=None):
        truth, results = segmented(pipeline, scene, text)
        counts["mIoU"].append(pixel_counts(semantic.count(scene.semantic(), results["semantic"])))
        counts["PQ"].append(segment_counts(panoptic.count(truth, results["panoptic"])))
    return {name: np.stack(each) for name, each in counts.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL[=FOLDER]")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--split", choices=("val", "style"), default="val")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    chosen = list(scenes(arguments.split, arguments.scenes, seed=12345))
    every = {model: counted(model, chosen) for model in arguments.models}
    first = every[arguments.models[0]]
    rows = [
        {"model": model, "metric": name, **asdict(paired(counts[name], first[name], metric))}
        for model, counts in every.items()
        for name, metric in METRICS.items()
    ]
    if arguments.json:
        print(json.dumps({"scenes": len(chosen), "split": arguments.split, "rows": rows}))
        return
    print(f"{len(chosen)} scenes of seed 12345, split {arguments.split}; differences to {arguments.models[0]}")
    for row in rows:
        print(
            f"{row['model']:32s} {row['metric']:5s}{row['value']:8.4f}{row['difference']:+10.4f}   "
            f"{row['low']:+.4f} to {row['high']:+.4f}"
        )


if __name__ == "__main__":
    main()
