"""What pictures cost in a batch: eight of three sizes together, beside the same one by one.

``python benchmarks/batches.py [--model NAME] [--repeat 3] [--device cpu] [--json]`` predicts scenes of the emoji world (seed
777) with each tiny model, without post-processing. Both ways take turns in one run; of each the shortest counts, in seconds of
the processor (other programs do not count) and of the clock. The ratio is what one by one takes for one second together. Both
must find the same: what is apart most, of all class scores, is printed, and the exit status is 1 if that is more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from lexiseg.data.images import Pixels
from lexiseg.inference.cost import measure
from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.methods import MODELS
from lexiseg.structures import MaskPrediction, PixelPrediction, TextEmbeddings
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.world import scenes

SIZES = ((256, 256), (192, 256), (256, 192))  # (height, width) in turns
PICTURES, CLASSES = 8, 24
TOLERANCE = 1e-4  # of scores; those of the laws are smaller, and so are their models
WORDS = Vocabulary(Vocabulary.builtin("emoji").classes[:CLASSES])

Prediction = MaskPrediction | PixelPrediction


def pictures() -> list[Pixels]:
    """Scenes cut to the three sizes."""
    cut = (SIZES[number % len(SIZES)] for number in range(PICTURES))
    return [scene.image[:high, :wide] for scene, (high, wide) in zip(scenes("val", PICTURES, seed=777), cut, strict=True)]


def one_by_one(pipeline: Pipeline, given: Sequence[Pixels], text: TextEmbeddings) -> list[Prediction]:
    return [pipeline.predict(pixels, text) for pixels in given]


def together(pipeline: Pipeline, given: Sequence[Pixels], text: TextEmbeddings) -> list[Prediction]:
    return list(pipeline.predict_batch(given, text))


def apart(one: Prediction, other: Prediction) -> float:
    """By how much the probabilities of classes differ at most; masks that only fill up a batch do not count."""
    ours, theirs = one.per_class()[0], other.per_class()[0]
    if isinstance(one, PixelPrediction):
        return float((ours - theirs).abs().max())
    if isinstance(one, MaskPrediction) and one.valid is not None:
        ours = ours[one.valid[0]]
    if isinstance(other, MaskPrediction) and other.valid is not None:
        theirs = theirs[other.valid[0]]
    return float((ours.exp() - theirs.exp()).abs().max()) if ours.shape == theirs.shape else float("inf")


def measured(name: str, device: str, repeat: int) -> dict[str, Any]:
    """One row of the table."""
    pipeline = load(name, device=device)
    text, given, ways = pipeline.embed(WORDS), pictures(), (one_by_one, together)
    found = [way(pipeline, given, text) for way in ways]  # and a warm-up
    best = {way: [float("inf")] * 2 for way in ways}
    for _ in range(repeat):
        for way in ways:
            _, cost = measure(lambda way=way: way(pipeline, given, text), device=pipeline.device)  # type: ignore[misc]
            best[way] = [min(pair) for pair in zip(best[way], (cost.cpu, cost.wall), strict=True)]
    alone, batch = best[one_by_one], best[together]
    return {
        "model": name,
        "one_by_one": {"cpu": alone[0], "wall": alone[1]},
        "together": {"cpu": batch[0], "wall": batch[1]},
        "ratio": {"cpu": alone[0] / batch[0], "wall": alone[1] / batch[1]},
        "apart": max(apart(*pair) for pair in zip(*found, strict=True)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether both ways agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tiny = [name for name in MODELS if name.endswith("-tiny")]
    parser.add_argument("--model", action="append", choices=list(MODELS), help="may be repeated (default: all tiny ones)")
    parser.add_argument("--repeat", type=int, default=3, help="runs each, of which the shortest counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    rows = []
    if not arguments.json:
        threads = torch.get_num_threads()
        print(f"{PICTURES} pictures of {len(SIZES)} sizes, {CLASSES} classes, {threads} threads, {arguments.device}")
        print(f"{'':<16}{'one by one':>18}{'together':>18}{'ratio':>16}")
        print(f"{'model':<16}{'cpu s':>10}{'wall s':>8}{'cpu s':>10}{'wall s':>8}{'cpu':>9}{'wall':>7}{'apart':>9}")
    for name in arguments.model or tiny:
        rows.append(row := measured(name, arguments.device, arguments.repeat))
        if not arguments.json:
            alone, batch, ratio = row["one_by_one"], row["together"], row["ratio"]
            print(
                f"{name:<16}{alone['cpu']:>10.2f}{alone['wall']:>8.2f}{batch['cpu']:>10.2f}{batch['wall']:>8.2f}"
                f"{ratio['cpu']:>8.2f}x{ratio['wall']:>6.2f}x{row['apart']:>9.0e}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads(), "device": arguments.device, "rows": rows}))
    return int(any(row["apart"] > TOLERANCE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
