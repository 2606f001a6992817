"""``lexiseg models``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lexiseg.methods import MODELS, model_named
from lexiseg.methods.base import Source


def run(arguments: argparse.Namespace) -> int:
    """List the models, or count the parameters of one."""
    if arguments.describe:
        return _describe(arguments.describe, as_json=arguments.json)
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
    print("\n'lexiseg models --describe NAME' counts parameters.")
    return 0


def _row(name: str) -> dict[str, Any]:
    model = MODELS[name]
    weights = [
        {
            "part": source.part,
            "where": _where(source),
            "by_hand": bool(source.by_hand),
            "licence": source.licence,
            "present": source.present(),
        }
        for source in model.sources
    ]
    return {"name": name, "summary": model.summary, "tasks": list(model.tasks), "weights": weights}


def _where(source: Source) -> str:
    if source.by_hand:
        return source.by_hand
    return "in the package" if source.repository is None else f"Hugging Face hub, {source.repository}, {source.file}"


def _describe(name: str, *, as_json: bool) -> int:
    model = model_named(name)
    counts = model.parameters()
    document = {"name": name, "tasks": list(model.tasks), "parameters": counts}
    if as_json:
        print(json.dumps(document))
        return 0
    print(f"{name}: {model.summary}")
    print(f"  {counts['total']:,} parameters; its recipe trains {counts['trainable']:,} and keeps {counts['frozen']:,} frozen")
    for part, count in counts["by_part"].items():
        print(f"  {part:<8} {count:>14,}")
    return 0
