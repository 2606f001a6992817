"""Turn finished runs into the embedded weights: eight bits, safetensors, and a card beside each.

    python -m lexiseg.training.pack clip-tiny-vit runs/clip-tiny-vit
    python -m lexiseg.training.pack sam-tiny runs/sam-tiny
    python -m lexiseg.training.pack cmpf-tiny runs/cmpf-tiny          what `lexiseg train` wrote

The card records the training data, its length and the learning curves; `lexiseg.training.score` prints the scores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lexiseg.backbones.configs import ASSETS
from lexiseg.backbones.eight_bits import in_eight_bits
from lexiseg.methods import MODELS, RECIPES
from lexiseg.methods.weights import LEAN, read_weights, write_safetensors, write_weights
from lexiseg.ops.files import write_json
from lexiseg.ops.options import from_document
from lexiseg.training.clip_tiny import of_images
from lexiseg.training.logger import read_log
from lexiseg.training.sam_tiny import tiny_sam

ENCODERS = ("clip-tiny-efficientnet", "clip-tiny-vit", "sam-tiny")
TEXT = "clip-tiny-text.safetensors"  # the text tower, which all tiny CLIPs share
SEGMENTERS = tuple(name for name in RECIPES if name.endswith("-tiny") and MODELS[name].source is not None)
DATA = "scenes of the emoji world, styles noto and fluent with their drawings varied, all names; the style twemoji is held out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(*ENCODERS, *SEGMENTERS))
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="the seed of the run, for the card")
    parser.add_argument("--start", help="what the training began with, for the card")
    parser.add_argument("--machine", help="what it was trained on, for the card")
    arguments = parser.parse_args()
    folder = ASSETS / arguments.name
    if arguments.name in SEGMENTERS:
        about = pack_segmenter(arguments.run, folder, {"start": arguments.start} if arguments.start else {})
        print(f"{arguments.name}: step {about['step']}, in {folder}")
        return
    extra = {key: value for key, value in (("start", arguments.start), ("machine", arguments.machine)) if value}
    about = pack_encoder(arguments.name, arguments.run, arguments.seed, extra)
    print(f"{arguments.name}: step {about['steps']}, in {folder}")


def pack_encoder(name: str, run: Path, seed: int, extra: Mapping[str, str]) -> dict[str, Any]:
    """Write the weights of a trained encoder into the package, in eight bits. Returns their card."""
    folder = ASSETS / name
    checkpoint = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    if name == "sam-tiny":
        model = tiny_sam()
        model.load_state_dict(checkpoint["model"])
        write_json(folder / "config.json", model.config.to_dict(), indent=1)
        write_safetensors(in_eight_bits(model.state_dict()), folder / "model.safetensors")
    else:
        state = torch.load(run / "model.pt", map_location="cpu", weights_only=True)
        image = {key: value for key, value in state.items() if of_images(key)}
        write_safetensors(in_eight_bits(image), folder / "open_clip_model.safetensors")
        if (run / "names").is_file():  # the text tower was trained in this run
            text = {key: value for key, value in state.items() if key not in image}
            write_safetensors(in_eight_bits(text), ASSETS / TEXT)
    about = card(run, checkpoint, seed, extra)
    write_json(folder / "card.json", about, indent=1)
    return about


def pack_segmenter(run: Path, folder: Path, extra: Mapping[str, str]) -> dict[str, Any]:
    """Write the weights of a finished `lexiseg train` into the package, in eight bits. Returns their card.

    Frozen parameters of a partly trained part are left out: the package has them in the encoder's own weights.
    """
    saved = read_weights(run / "model")
    variant = MODELS[saved.card["model"]]
    untouched = variant.empty(from_document(type(variant.config), saved.card["config"])).untouched_parameters()
    kept = ("model", "config", "training_classes", "backbones", "step", "recipe")
    rows = read_log(run)
    about = {
        **{key: saved.card[key] for key in kept},
        **({LEAN: True} if untouched else {}),
        **({"older": older} if (older := other_than_recipe(saved.card)) else {}),
        "data": "scenes of the emoji world, styles noto and fluent, seen names only; the style twemoji is held out",
        "licence": "Apache-2.0",
        **extra,
        "curve": [row for row in rows if any("/" in key for key in row)],
    }
    tensors = {name: tensor for name, tensor in saved.tensors.items() if name not in untouched}
    return write_weights(in_eight_bits(tensors), folder, about)


def other_than_recipe(card: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which a training differed from its current recipe."""
    recipe = json.loads(json.dumps(RECIPES[card["model"]]().to_dict()))
    return sorted(key for key, value in card["recipe"].items() if recipe.get(key) != value)


def card(run: Path, checkpoint: dict[str, Any], seed: int, extra: Mapping[str, str]) -> dict[str, Any]:
    """The card of an encoder's weights.

    ``curve`` holds the evaluations during training, ``learning`` about 24 rows of its log.
    """
    rows = read_rows(run / "log.jsonl")
    steps = [row for row in rows if "loss" in row]
    return {
        "data": DATA,
        "steps": checkpoint["step"],
        "minutes": round(checkpoint["seconds"] / 60),
        "seed": seed,
        **extra,
        "licence": "Apache-2.0",
        "curve": [row for row in rows if any(key.startswith("trained_") for key in row)],
        "learning": steps[len(steps) // 24 :: max(1, len(steps) // 24)],
    }


def read_rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


if __name__ == "__main__":
    main()
