"""``lexiseg train RECIPE KEY=VALUE … --dry-run`` with mutated settings of the tiny recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lexiseg.methods import MODELS, RECIPES, recipe_named
from lexiseg.methods.recipe import with_overrides
from lexiseg.training.optimiser import optimiser_of

SUFFIX = ".json"
TINY = tuple(name for name in RECIPES if name.endswith("-tiny"))
_VALUES = (
    "0", "1", "-1", "2", "3", "7", "1.5", "-0.5", "1e-30", "1e30", "nan", "inf", "-inf", "1e999", str(2**31), str(2**63),
    str(2**64), "9" * 5000, "True", "False", "None", "", " ", "x", "é", "\ud800", "\0", "x" * 10_000, "[]", "()", "{}", "[1]",
    "(1, 2)", "{'a': 1}", "[" * 500, "-" * 2000 + "1", "(" * 150 + ")" * 150, "'x'", "b'x'", "1j", "...", "__import__('os')",
    "lambda: 0", "world:train", "world:x", "world:", "/", "../x", "~", "a,b", ",", "clip,decoder", "float16", "bfloat16",
    "float64", "longer", "shorter", "other", "official", "paper", "=", "==1", "1=1", "0x10", "1_000", "+5", "\u0661",
)  # fmt: skip
_KEYS = (
    "", " ", "build", "name", "stages", "stages.1.lr", "stages.-1.lr", "jitter", "loss", "model", "model.more", "__class__",
    "é", "x" * 10_000, "\n", "lr", "steps", "model.__init__", "stages.x.lr", "stages.99.lr",
)  # fmt: skip


def prepare(folder: Path) -> None:
    """Nothing is needed beside the inputs."""


def inputs(random: np.random.Generator) -> bytes:
    """A recipe's name and one or two settings, as JSON."""

    def pick(choices: Sequence[str]) -> str:
        return choices[int(random.integers(len(choices)))]

    name = pick(TINY)
    keys, settings = tuple(RECIPES[name]().to_dict()), []
    for _ in range(int(random.integers(1, 3))):
        key = pick(keys)
        if random.random() < 0.15:
            key = pick((f"{key}_", key.upper(), f"{key}.x", key.rpartition(".")[0], *_KEYS))
        settings.append(f"{key}={pick(_VALUES)}" if random.random() < 0.97 else key)
    return json.dumps([name, *settings]).encode()


def attempt(path: Path) -> None:
    """Change the recipe, and build its model and its optimiser without memory."""
    name, *settings = json.loads(path.read_bytes())
    recipe = with_overrides(recipe_named(name), settings)
    with torch.device("meta"):
        segmenter = MODELS[recipe_named(name).name].empty(recipe.model)
    for stage in recipe.stages:
        optimiser_of(segmenter, stage)
