"""How much memory a picture needs, stage by stage, by its size.

``python benchmarks/memory.py [--models sam_clip-tiny …] [--task panoptic] [--megapixels 1 25 100] [--picture grey] [--json]``
segments one square picture as ``lexiseg segment`` does and writes the results, each row in a process of its own. A stage's
number is the most memory that the process held during it, in MB of 10^6 bytes, the model and the libraries included ("start").

``grey`` is one colour, ``scene`` a scene of the emoji world, enlarged, so that there is something to find. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

MODELS, CLASSES = ("sam_clip-tiny", "fcclip-tiny", "catseg-tiny"), "dog; cat; house; tree; grass; sky; water; road"
STAGES = ("start", "read", "predict", "post-process", "describe", "save")
Result = TypeVar("Result")


def picture(kind: str, megapixels: float) -> Image.Image:
    """A square picture of so many megapixels."""

    side = round((megapixels * 1e6) ** 0.5)
    if kind == "grey":
        return Image.new("L", (side, side), 128)
    from lexiseg.world.scenes import scenes

    return Image.fromarray(next(scenes("val", 1)).image).resize((side, side))


def measured(name: str, task: str, path: str) -> dict[str, Any]:
    """The peaks of one model on the picture in a file, in this process."""
    from lexiseg.data.images import as_pixels
    from lexiseg.inference.pipeline import as_segmentation, load, regions_of
    from lexiseg.text.vocabulary import Vocabulary

    peaks: dict[str, float] = {}

    def stage(called: str, work: Callable[[], Result]) -> Result:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
        done = work()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peaks[called] = int(status["VmHWM"].split()[0]) * 1024 / 1e6
        return done

    vocabulary, pipeline = Vocabulary.parse(CLASSES), load(name)
    text = stage("start", lambda: pipeline.embed(vocabulary))
    pixels = stage("read", lambda: as_pixels(path))
    policy = pipeline.segmenter.policy
    prediction = stage("predict", lambda: pipeline.predict(pixels, text))
    regions = stage("post-process", lambda: regions_of(prediction, text, task, policy))
    result = stage("describe", lambda: as_segmentation(task, pixels, vocabulary, regions))
    with tempfile.TemporaryDirectory() as folder:
        stage("save", lambda: result.save(folder, "picture"))
    height, width = pixels.shape[:2]
    return {"regions": len(regions), "megapixels": height * width / 1e6, "MB": peaks}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each row in a process of its own, and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--task", default="panoptic")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[1, 25, 100])
    parser.add_argument("--picture", choices=("grey", "scene"), default="grey")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    import open_clip  # noqa: F401 - before the processes are forked, so that it and torch are read once

    import lexiseg.inference.pipeline  # noqa: F401

    rows = []
    if not arguments.json:
        print(f"{arguments.task}, {arguments.picture}; MB")
        print(f"{'model':<16}{'megapixels':>11}{'regions':>9}" + "".join(f"{stage:>14}" for stage in STAGES))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        for size in arguments.megapixels:
            picture(arguments.picture, size).save(path, compress_level=1)
            for name in arguments.models:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as process:
                    try:
                        row = process.submit(measured, name, arguments.task, str(path)).result()
                    except BrokenProcessPool as error:  # killed for its memory
                        print(f"{name}, {size} megapixels: {error}", file=sys.stderr)
                        return 1
                rows.append({"model": name, **row})
                if not arguments.json:
                    row = rows[-1]
                    peaks = "".join(f"{row['MB'][stage]:>14,.0f}" for stage in STAGES)
                    print(f"{name:<16}{row['megapixels']:>11.1f}{row['regions']:>9}{peaks}", flush=True)
    if arguments.json:
        print(json.dumps({"task": arguments.task, "picture": arguments.picture, "rows": rows}))
    return 0


if __name__ == "__main__":
    if os.environ.get("MALLOC_ARENA_MAX") != "1":  # malloc reads it when a process starts
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "MALLOC_ARENA_MAX": "1"})
    sys.exit(main())
