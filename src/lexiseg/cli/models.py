"""``lexiseg models``."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from lexiseg.cli.weights import size_text
from lexiseg.errors import UsageError
from lexiseg.inference.choice import DATA, METRICS, published_quality
from lexiseg.inference.cost import speed
from lexiseg.inference.pipeline import Pipeline, resolve_device
from lexiseg.methods import MODELS, model_named
from lexiseg.methods.flops import count_flops, made_text
from lexiseg.methods.parts import YOUR_OWN
from lexiseg.methods.variant import Variant
from lexiseg.ops.options import describe

SIDE = 640  # of the image whose operations are counted, in pixels
RUNS = 3  # of the network, whose mean is its speed


def run(arguments: argparse.Namespace) -> int:
    """List the models, or show the parameter counts, options and cost of one."""
    if arguments.describe:
        return _describe(arguments)
    for option in ("flops", "speed"):
        if getattr(arguments, option):
            raise UsageError(f"--{option} needs a model: --describe NAME --{option}")
    rows = [_row(model) for model in MODELS.values()]
    if arguments.json:
        print(json.dumps(rows))
        return 0
    print("\n".join(_table(rows)))
    return 0


def _row(model: Variant) -> dict[str, Any]:
    weights = [
        {
            "part": part,
            "where": source.where,
            "licence": source.licence,
            "gated": source.gated,
            "bytes": source.size,
            "present": source.present(),
        }
        for part, source in model.sources.items()
    ]
    return {
        "name": model.name,
        "summary": model.summary,
        "tasks": list(model.tasks),
        "toy": model.is_toy,
        "published": {METRICS[task]: published_quality(model.name, task) for task in model.tasks},
        "bytes": model.size,
        "licences": list(model.licences),
        "present": model.present,
        "weights": weights,
    }


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of a table of models for photographs, and of toys."""
    width = max(len(row["name"]) for row in rows)
    metrics = list(METRICS.values())
    titles = "".join(f"{name:>5} " for name in metrics)
    yield f"{'for photographs':<{width}}  {'tasks':<28}  {titles} {'size':>7}  {'here':<5}  licence"
    for row in rows:
        if not row["toy"]:
            numbers = "".join(f"{_number(row['published'].get(name)):>5} " for name in metrics)
            untrained = any(licence == YOUR_OWN for licence in row["licences"])
            here = "yes" if row["present"] else "train" if untrained else "no"
            size = "" if untrained else size_text(row["bytes"])
            licences = ", ".join(row["licences"])
            yield f"{row['name']:<{width}}  {', '.join(row['tasks']):<28}  {numbers} {size:>7}  {here:<5}  {licences}"
    toys = ", ".join(row["name"] for row in rows if row["toy"])
    yield f"\ntoys in the package, which know only the drawings of the emoji world: {toys}\n"
    yield f"{', '.join(metrics)}: highest published numbers of its method and backbone on {DATA}, in percent"
    yield "'lexiseg fetch NAME' downloads the weights, 'train' means 'lexiseg train NAME': nobody has published them"
    yield "'lexiseg models --describe NAME' shows parameter counts, weights and options"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _speed(model: Variant, classes: int, device: str) -> dict[str, Any]:
    """Speed of the network with random weights, on noise."""
    resolved = resolve_device(device)
    with torch.device(resolved):
        segmenter = model.empty().eval().to(resolved)  # transformers leaves some tensors on the CPU
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return speed(Pipeline(segmenter, device=resolved), [image] * RUNS, made_text(segmenter, classes, resolved))


def _describe(arguments: argparse.Namespace) -> int:
    """Show one model."""
    name, classes = arguments.describe, arguments.classes
    model = model_named(name)
    counts = model.num_parameters()
    runtime = model.config.RUNTIME
    options = [{**asdict(option), "after_training": option.name.split(".")[0] in runtime} for option in describe(model.config)]
    document: dict[str, Any] = {"name": name, "tasks": list(model.tasks), "parameters": counts, "options": options}
    given = {"image": [SIDE, SIDE], "classes": classes}
    if arguments.flops:
        document["flops"] = {**given, "total": count_flops(model, classes, (SIDE, SIDE))}
    if arguments.speed:
        document["speed"] = {**given, **_speed(model, classes, arguments.device)}
    if arguments.json:
        print(json.dumps(document, default=str))
        return 0
    print(f"{name}: {model.summary}")
    for part, source in model.sources.items():
        size = f", {size_text(source.size)}" if source.size else ""
        print(f"  {part}: {source.where} ({source.licence}{size}; {'here' if source.present() else 'not here'})")
    print(f"  {counts['total']:,} parameters; its recipe trains {counts['trainable']:,} and keeps {counts['frozen']:,} frozen")
    for part, count in counts["by_part"].items():
        print(f"  {part:<18} {count:>14,}")
        for tower, number in counts["by_tower"].get(part, {}).items():
            print(f"    {tower:<32} {number:>14,}")
    if arguments.flops:
        flops = document["flops"]["total"]
        print(f"\n  {flops / 1e9:,.1f} GFLOPs, or {flops / 2e9:,.1f} GMACs (a MAC is two FLOPs):")
    if arguments.speed:
        cost = document["speed"]
        memory = "" if cost["memory_MiB"] is None else f", {cost['memory_MiB']:,.0f} MiB"
        print(f"\n  {cost['seconds']:.3f} s, or {cost['FPS']:.2f} FPS{memory}; {cost['device']}, random weights:")
    if arguments.flops or arguments.speed:
        print(f"  one image of {SIDE} × {SIDE}, {classes} classes, without the text tower")
    print("\n  Options (* can be changed after training, with --set OPTION=VALUE; all by 'lexiseg train', model.OPTION=VALUE):")
    for option in options:
        print(f"  {'*' if option['after_training'] else ' '} {option['name']} = {option['value']!r}  ({option['type']})")
        print(textwrap.fill(option["about"], 110, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return 0
