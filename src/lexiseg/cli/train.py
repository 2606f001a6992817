"""``lexiseg train``."""

from __future__ import annotations

import argparse
import inspect
import json
from functools import partial
from typing import Any

from lexiseg.cli.segment import weights_by_part
from lexiseg.errors import UsageError
from lexiseg.methods import RECIPES, recipe_named
from lexiseg.methods.recipe import with_overrides
from lexiseg.training.dist import distributed
from lexiseg.training.loop import train
from lexiseg.training.plan import plan


def run(arguments: argparse.Namespace) -> int:
    """Train a recipe, show its size with ``--dry-run``, or list all recipes."""
    if arguments.recipe is None:
        _list(arguments.json)
        return 0
    settings = [*arguments.settings, *([f"data={arguments.data}"] if arguments.data else [])]
    recipe = with_overrides(recipe_named(arguments.recipe), settings)
    if arguments.dry_run:
        with distributed(arguments.device) as dist:
            size = plan(recipe, root=arguments.root, dist=dist)
        print(json.dumps({**size, "settings": recipe.to_dict()}) if arguments.json else _summary(size))
        return 0
    if arguments.output is None:
        raise UsageError("give --output DIR, the folder of this training; or --dry-run to see its size")
    weights = weights_by_part(arguments.weights)
    folder = train(
        recipe, arguments.output, root=arguments.root, weights=weights, device=arguments.device, workers=arguments.workers
    )
    print(json.dumps({"model": recipe.name, "weights": str(folder)}) if arguments.json else f"→ {folder}")
    return 0


def _list(as_json: bool) -> None:
    functions = {name: make.func if isinstance(make, partial) else make for name, make in RECIPES.items()}
    descriptions = {name: inspect.getdoc(function) or "" for name, function in functions.items()}
    if as_json:
        print(json.dumps({name: {"about": text, "settings": RECIPES[name]().to_dict()} for name, text in descriptions.items()}))
        return
    longest = max(map(len, descriptions))
    for name, text in descriptions.items():
        print(f"{name:{longest}}  {' '.join(text.split('``')[0].split())}")


def _summary(size: dict[str, Any]) -> str:
    parameters, memory, batch = size["parameters"], size["memory_GiB"], size["batch"]
    lines = [
        f"{size['recipe']}: {size['steps']} steps on {size['data']}",
        f"data         {size['pictures']} pictures, {size['classes']} classes",
        f"parameters   {parameters['total']:,} = {parameters['trainable']:,} trained + {parameters['frozen']:,} frozen",
        f"memory       about {memory['all']:.2f} GiB a process: {memory['weights']:.2f} weights, {memory['optimiser']:.2f} "
        f"gradients and optimiser, {memory['of each image']:.2f} for each of {size['images_at_once']} images at once",
        f"first batch  images {batch['images']}, segments {batch['segments']}",
        *(f"missing      {what}" for what in size["missing"]),
    ]
    return "\n".join(lines)
