"""``lexiseg world render``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lexiseg.ops.locks import locked
from lexiseg.training.scenes import write_scenes
from lexiseg.world import world_classes


def run(arguments: argparse.Namespace) -> int:
    """Write scenes with their ground truth."""
    folder = Path(arguments.output)
    with locked(folder):
        write_scenes(folder, arguments.split, arguments.count, size=arguments.size, seed=arguments.seed)
    document = {
        "folder": str(folder),
        "split": arguments.split,
        "seed": arguments.seed,
        "scenes": arguments.count,
        "classes": len(world_classes()),
    }
    print(json.dumps(document) if arguments.json else f"{arguments.count} scenes of {len(world_classes())} classes in {folder}")
    return 0
