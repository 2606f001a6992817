"""How memory and time of a decoder of correlations grow with the number of classes, all at once and some at a time.

``python benchmarks/classes.py [--model escnet-vit-b16] [--classes 150 600 2000] [--at-once 32] [--json]`` decodes what CLIP
might see of one picture with a full-size model, all of it random (so the costs are right and the answers are not), each row
in a process of its own. Memory is what the peak of the process grows by while it decodes; of it the embedded correlations of
all classes are what no splitting saves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lexiseg.errors import UsageError
from lexiseg.inference.cost import measure
from lexiseg.layers.cost_aggregation import correlation
from lexiseg.methods import model_named
from lexiseg.methods.catseg.model import CatSeg
from lexiseg.methods.correlation import LEVELS, CorrelationSegmenter, CostVolume

MIB = 2**20


@torch.no_grad()
def measured(name: str, classes: int, at_once: int) -> dict[str, Any]:
    """One row, in this process; ``at_once`` 0 takes all classes at once."""
    torch.manual_seed(0)
    segmenter = model_named(name).empty().eval()
    if not isinstance(segmenter, CorrelationSegmenter):
        raise UsageError(f"{name} has no correlations to decode; CAT-Seg and ESC-Net have")
    segmenter.config = replace(segmenter.config, max_classes=0, classes_at_once=at_once or None)
    if isinstance(segmenter, CatSeg):
        segmenter.aggregation.classes_at_once = at_once or None
    cells, vectors = segmenter.config.image_size // segmenter.clip.strides[0], torch.randn(classes, segmenter.clip.width)
    dense, *levels = (torch.randn(1, width, cells, cells) for width in (vectors.shape[1], *segmenter.clip.channels[:LEVELS]))
    seen = CostVolume(dense, vectors, correlation(dense, vectors), tuple(levels))
    logits, cost = measure(lambda: segmenter.decode(seen))
    return {
        "classes": classes,
        "at_once": at_once,
        "seconds": cost.wall,
        "MiB": cost.memory,
        "logits_MiB": logits.nbytes / MIB,
        "check": float(logits.abs().mean()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each row in a process of its own, and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="escnet-vit-b16")
    parser.add_argument("--classes", type=int, nargs="+", default=[150, 600, 2000])
    parser.add_argument("--at-once", type=int, nargs="+", default=[32])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.here:
        print(json.dumps(measured(arguments.model, arguments.classes[0], arguments.at_once[0])))
        return 0
    rows = []
    for classes in arguments.classes:
        for at_once in arguments.at_once:
            command = [sys.executable, __file__, "--here", "--model", arguments.model]
            command += ["--classes", str(classes), "--at-once", str(at_once)]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MALLOC_ARENA_MAX": "1"})
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            if not arguments.json:
                row, part = rows[-1], f"{at_once} at once" if at_once else "all at once"
                print(f"{classes:>5} classes, {part:>11}: {row['MiB']:7.0f} MiB, {row['seconds']:6.1f} s", flush=True)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
