"""``make demo``: segment one picture offline, and print what to try next."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from lexiseg.cli.segment import table
from lexiseg.inference.pipeline import load
from lexiseg.ops.allocator import keep_freed_memory
from lexiseg.ops.files import write_png
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.world import scenes

FOLDER = Path("output/demo")
SEED = 2026  # of the picture; no training draws scenes of the split "val" with a seed


def main() -> int:
    """Segment a scene with all 447 names of the emoji world; write the picture and the result, print the segments."""
    begun = time.monotonic()
    keep_freed_memory()
    scene = next(scenes("val", 1, seed=SEED, size=384))
    write_png(FOLDER / "picture.png", scene.image)
    segment = load("sam_clip-tiny", device="cpu")
    result = segment(FOLDER / "picture.png", Vocabulary.builtin("emoji"))
    paths = result.save(FOLDER, "result")
    drawn = result.overlay()
    before = Image.fromarray(scene.image).resize(
        (drawn.width, round(drawn.width * scene.image.shape[0] / scene.image.shape[1]))
    )
    both = Image.new("RGB", (2 * drawn.width + 8, drawn.height), "white")
    both.paste(before, (0, 0))
    both.paste(drawn, (drawn.width + 8, 0))
    paths.append(FOLDER / "demo.png")
    write_png(paths[-1], np.asarray(both))
    print(table(result, paths))
    print(f"\n{time.monotonic() - begun:.1f} s, among {len(result.names)} names, on the CPU, with weights inside the package.")
    print("The embedded model knows only the emoji world. For photographs (fetches published weights once):")
    print("  .venv/bin/lexiseg segment photo.jpg --classes 'dog, puppy; grass; sky' --model sam_clip-vit-b16")
    return 0


if __name__ == "__main__":
    sys.exit(main())
