"""``make demo``: segment a scene offline by words, with two methods, and print what to try next."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from PIL import Image

from lexiseg.cli.segment import table
from lexiseg.inference.pipeline import load
from lexiseg.ops.allocator import keep_freed_memory
from lexiseg.ops.files import write_atomically, write_png
from lexiseg.visualise.figures import as_webp, sheet
from lexiseg.world import scenes

FOLDER = Path("output/demo")
SEED, SIDE = 0, 384  # the first scene of the first seed: it was not chosen by its result, and no training draws it
CLASSES = "gravel, pebbles; key, door key; palette, artist palette; battery; scorpion; elephant"  # there is no elephant
MODELS = {"SAM + CLIP": "sam_clip-tiny", "ESC-Net": "escnet-tiny"}


def main() -> int:
    """Segment a scene of the emoji world by typed names; write the scene and the results, print the segments."""
    begun = time.monotonic()
    keep_freed_memory()
    scene = FOLDER / "scene.png"
    write_png(scene, next(scenes("val", 1, seed=SEED, size=SIDE)).image)
    print(f"{scene}: the first scene of seed {SEED}, segmented by\n  {CLASSES}\n")
    panels = [Image.open(scene).convert("RGB")]
    for title, name in MODELS.items():
        result = load(name, device="cpu")(scene, CLASSES)
        paths = result.save(FOLDER, name)
        print(f"{title} ({name})\n{table(result, paths)}\n")
        panels.append(result.overlay())
    write_atomically(FOLDER / "demo.webp", as_webp(sheet(["scene", *MODELS], [("", panels)], width=SIDE)))
    print(f"→ {FOLDER / 'demo.webp'}, {time.monotonic() - begun:.1f} s on the CPU, with weights inside the package")
    print("They know only the emoji world. Your own photograph (it asks before it fetches published weights, once):")
    print("  .venv/bin/lexiseg segment photo.jpg --classes 'dog, puppy; grass; sky'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
