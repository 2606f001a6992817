"""``lexiseg serve``."""

from __future__ import annotations

import argparse
import os
import webbrowser
from importlib.util import find_spec

from lexiseg.cli.segment import parse_model
from lexiseg.client import read_token
from lexiseg.errors import UsageError
from lexiseg.inference.pipeline import resolve_device

LIBRARIES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def run(arguments: argparse.Namespace) -> int:
    """Serve the page and the REST service until SIGTERM or Ctrl-C."""
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise UsageError(f"'lexiseg serve' needs {missing[0]}: pip install 'lexiseg[serve]'")
    from lexiseg.serve.label_studio import KEY, Pictures  # here, because of the line above
    from lexiseg.serve.limits import Limits
    from lexiseg.serve.models import Models, ModelSpec, models_at_hand
    from lexiseg.serve.server import serve

    limits = Limits(
        upload=arguments.max_upload,
        pixels=arguments.max_pixels,
        names=arguments.max_names,
        queue=arguments.queue,
        batch=arguments.batch,
        seconds=arguments.timeout,
        memory=round(arguments.memory * 1e9),
    )
    specs = [ModelSpec(name, weights, options) for _, name, weights, options in map(parse_model, arguments.model)]
    if len({spec.name for spec in specs}) < len(specs):
        raise UsageError("--model names a model twice; give each once, with all its options")
    for spec in specs:
        spec.config()
    label_studio = None
    if arguments.label_studio or arguments.label_studio_url:
        label_studio = Pictures.of(arguments.label_studio_url, os.environ.get(KEY))
    models = Models(
        specs or models_at_hand(), device=resolve_device(arguments.device), dtype=arguments.dtype, memory=limits.memory
    )

    def started(address: str) -> None:
        print(f"lexiseg serves {', '.join(models.specs)} at {address}", flush=True)
        if arguments.open:
            webbrowser.open(address)

    token = read_token(arguments.token_file)
    serve(
        models,
        limits,
        host=arguments.host,
        port=arguments.port,
        token=token,
        insecure=arguments.insecure,
        started=started,
        label_studio=label_studio,
    )
    return 0
