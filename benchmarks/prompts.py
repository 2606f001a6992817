"""What it costs and what it brings to ask SAM at few points: SAM-MI with its prompter, and with points as before it.

``python benchmarks/prompts.py [--scenes 24] [--json]`` segments scenes of the emoji world (seed 777) with `sam_mi-tiny`, asked
at learnt points drawn by chance, at the likeliest ones, at as many random ones, and on the grid of 32 × 32, in one run. Time
is that of the whole model, the shortest of three looks at each picture, and the ratio is to the grid's. Points are what is
drawn, mIoU is over all 447 names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lexiseg.inference.cost import measure, num_points
from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.methods.sam_mi.config import PointSampling
from lexiseg.methods.sam_mi.model import SamMi
from lexiseg.structures import Trace
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.score import whole
from lexiseg.world import Scene, scenes

WAYS: tuple[PointSampling, ...] = ("grid", "random", "chance", "top")


def measured(pipeline: Pipeline, chosen: list[Scene], point_sampling: PointSampling, looks: int) -> dict[str, Any]:
    """Points, masks and milliseconds a picture, and mIoU."""
    segmenter = pipeline.segmenter
    assert isinstance(segmenter, SamMi)
    segmenter.config = replace(segmenter.config, point_sampling=point_sampling)
    text = pipeline.embed(Vocabulary.builtin("emoji"))
    seconds, masks, groups, points = 0.0, [], [], []
    for scene in chosen:
        trace = Trace()
        _, cost = measure(partial(pipeline.predict, scene.image, text, trace), looks)
        seconds += cost.wall
        masks.append(len(trace["sam_masks"]))
        groups.append(len(trace["masks"]))
        points.append(num_points(segmenter, trace))
    return {
        "point_sampling": point_sampling,
        "points": float(np.mean(points)),
        "masks": float(np.mean(masks)),
        "put_together": float(np.mean(groups)),
        "milliseconds": 1000 * seconds / len(chosen),
        "mIoU": dict(whole(pipeline, chosen, point_sampling))["mIoU"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--looks", type=int, default=3, help="at each picture, of which the shortest counts")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    pipeline = load("sam_mi-tiny", device="cpu")
    chosen = list(scenes("val", arguments.scenes, seed=777))
    rows = [measured(pipeline, chosen, way, arguments.looks) for way in WAYS]
    for row in rows:
        row["speedup"] = rows[0]["milliseconds"] / row["milliseconds"]
    if arguments.json:
        print(json.dumps({"scenes": arguments.scenes, "threads": torch.get_num_threads(), "rows": rows}))
        return
    print(f"sam_mi-tiny on {arguments.scenes} scenes of seed 777, {torch.get_num_threads()} threads")
    print(f"{'asked at':10s}{'points':>8s}{'masks':>8s}{'put together':>14s}{'ms':>8s}{'speed-up':>10s}{'mIoU':>8s}")
    for row in rows:
        print(
            f"{row['point_sampling']:10s}{row['points']:8.0f}{row['masks']:8.1f}{row['put_together']:14.1f}"
            f"{row['milliseconds']:8.0f}{row['speedup']:9.1f}×{row['mIoU']:8.3f}"
        )


if __name__ == "__main__":
    main()
