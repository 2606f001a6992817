"""Turn finished runs into the embedded weights: half precision, safetensors, and a card beside each.

    python -m lexiseg.training.pack clip-tiny-resnet runs/clip-tiny-resnet
    python -m lexiseg.training.pack sam-tiny runs/sam-tiny
    python -m lexiseg.training.pack cmpf-tiny runs/cmpf-tiny          what `lexiseg train` wrote

The card says what the weights were trained on, for how long, and how they learnt; `lexiseg.training.score` prints their
scores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from lexiseg.methods import RECIPES
from lexiseg.methods.weights import LEAN, halved, read_weights, write_safetensors, write_weights
from lexiseg.ops.files import write_json
from lexiseg.training.clip_tiny import ASSETS
from lexiseg.training.journal import read_log
from lexiseg.training.sam_tiny import tiny_sam

ENCODERS = ("clip-tiny-convnext", "clip-tiny-resnet", "clip-tiny-vit", "sam-tiny")
SEGMENTERS = tuple(name for name in RECIPES if name.endswith("-tiny"))
DATA = "scenes of the emoji world, styles noto and fluent, all names; the style twemoji is held out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(*ENCODERS, *SEGMENTERS))
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="the seed of the run, for the card")
    arguments = parser.parse_args()
    folder = ASSETS / arguments.name
    if arguments.name in SEGMENTERS:
        about = pack_segmenter(arguments.run, folder)
        print(f"{arguments.name}: step {about['step']}, in {folder}")
        return
    checkpoint = torch.load(arguments.run / "checkpoint.pt", map_location="cpu", weights_only=True)
    if arguments.name == "sam-tiny":
        model = tiny_sam()
        model.load_state_dict(checkpoint["model"])
        model.half().save_pretrained(folder)
    else:
        state = torch.load(arguments.run / "model.pt", map_location="cpu", weights_only=True)
        write_safetensors(halved(state), folder / "open_clip_model.safetensors")
    write_json(folder / "card.json", card(arguments.run, checkpoint, arguments.seed), indent=1)
    print(f"{arguments.name}: step {checkpoint['step']}, in {folder}")


def pack_segmenter(run: Path, folder: Path) -> dict[str, Any]:
    """Put the weights of a finished training by `lexiseg train` into the package, in half precision. Returns their card.

    Of a part that was trained in part the rest is left out: the package has it in the encoder it comes from.
    """
    saved = read_weights(run / "model")
    untouched = RECIPES[saved.card["model"]]().skeleton(saved.card["options"]).untouched_parameters()
    kept = ("model", "options", "behaviour", "step", "recipe")
    rows = read_log(run)
    about = {
        **{key: saved.card[key] for key in kept},
        **({LEAN: True} if untouched else {}),
        "data": "scenes of the emoji world, styles noto and fluent, seen names only; the style twemoji is held out",
        "licence": "Apache-2.0",
        "curve": [row for row in rows if any("/" in key for key in row)],
    }
    tensors = {name: tensor for name, tensor in saved.tensors.items() if name not in untouched}
    return write_weights(tensors, folder, about, half=True)


def card(run: Path, checkpoint: dict[str, Any], seed: int) -> dict[str, Any]:
    """What a user of the weights should know; ``curve`` holds the evaluations made during training."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    curve = [row for row in rows if any(key.startswith("trained_") for key in row)]
    return {
        "data": DATA,
        "steps": checkpoint["step"],
        "minutes": round(checkpoint["seconds"] / 60),
        "seed": seed,
        "licence": "Apache-2.0",
        "curve": curve,
    }


if __name__ == "__main__":
    main()
