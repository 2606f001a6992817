"""``lexiseg models``."""

from __future__ import annotations

import argparse
import json
import textwrap
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from lexiseg.errors import UsageError
from lexiseg.inference.cost import speed
from lexiseg.inference.pipeline import Pipeline, resolve_device
from lexiseg.methods import MODELS, model_named
from lexiseg.methods.flops import count_flops, made_text
from lexiseg.methods.variant import Source, Variant
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
    rows = [_row(name) for name in MODELS]
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['name']}\n  {row['summary']}\n  tasks: {', '.join(row['tasks'])}")
        for source in row["weights"]:
            absent = (
                "fetched by hand, given with --weights" if source["by_hand"] else "not on this machine; fetched at first use"
            )
            state = "present" if source["present"] else absent
            print(f"  {source['part']}: {source['where']} ({source['licence']}; {state})")
    print("\n'lexiseg models --describe NAME' shows parameter counts and options.")
    return 0


def _row(name: str) -> dict[str, Any]:
    model = MODELS[name]
    weights = [
        {
            "part": part,
            "where": _where(source),
            "by_hand": bool(source.manual_url),
            "licence": source.licence,
            "present": source.present(),
        }
        for part, source in model.sources.items()
    ]
    return {"name": name, "summary": model.summary, "tasks": list(model.tasks), "weights": weights}


def _where(source: Source) -> str:
    if source.manual_url:
        return source.manual_url
    return "in the package" if source.repository is None else f"Hugging Face hub, {source.repository}, {source.file}"


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
