"""``lexiseg fetch NAME``."""

from __future__ import annotations

import argparse
import json
import sys

from lexiseg.cli.streams import one_line
from lexiseg.cli.weights import fetch, missing
from lexiseg.methods import model_named


def run(arguments: argparse.Namespace) -> int:
    """Fetch the weights of models, and print where they are."""
    models = [model_named(name) for name in arguments.names]
    for model in models:
        trained = {part: source for part, source in model.required.items() if source.recipe}
        for source in trained.values():
            print(f"{model.name}: nobody has published its weights, '{source.recipe}' trains them", file=sys.stderr)
        fetch(model, missing(model, trained), yes=arguments.yes, ask=False)
        # also verifies those that were here before
        files = {part: source.fetch() for part, source in model.required.items() if part not in trained}
        rest = model.sources.keys() - model.required.keys()
        if rest:
            inside = model.parts_within(files[model.method.key])
            files |= {part: model.sources[part].fetch() for part in sorted(rest - inside)}
        if arguments.json:
            print(json.dumps({"name": model.name, "files": {part: str(path) for part, path in files.items()}}))
            continue
        print(model.name)
        for part, file in files.items():
            print(f"  {part}: {one_line(str(file))}")
    return 0
