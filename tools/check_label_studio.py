"""Ask `lexiseg serve --label-studio` as Label Studio does, and read the answers with Label Studio's own SDK.

The SDK checks each prediction against the project's labelling interface (``LabelInterface.validate_prediction``), and decodes the
brushes (``decode_rle``); they are compared with what the model computes. From an environment that has label-studio-sdk besides
lexiseg and its extra serve, in the repository's root:

    python tools/check_label_studio.py

Prints a line a control.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from base64 import b64encode
from importlib.metadata import version
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

import lexiseg
from lexiseg.world import scenes, world_classes

MODEL = "fcclip-tiny"
CONTROLS = ("BrushLabels", "PolygonLabels", "RectangleLabels")
Row = dict[str, Any]


def interface(control: str, names: list[str]) -> str:
    """A project's interface, whose first label has an alias."""
    labels = f'<Label value="{names[0]}" alias="first"/>' + "".join(f'<Label value="{name}"/>' for name in names[1:])
    return f'<View><Image name="image" value="$image"/><{control} name="label" toName="image">{labels}</{control}></View>'


def posted(address: str, path: str, body: Row) -> Row:
    """The answer to a request."""
    request = Request(f"{address}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


def check(address: str) -> int:
    """Ask for predictions of a picture with each control."""
    scene = next(scenes("val", 1, seed=3, size=192))
    names = list(dict.fromkeys(world_classes()[segment.label].name for segment in scene.segments))
    shown = ["first", *names[1:]]
    truth = lexiseg.load(MODEL)(scene.image, "; ".join(names))
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, "PNG")
    uri = "data:image/png;base64," + b64encode(buffer.getvalue()).decode()
    failed = 0
    for control in CONTROLS:
        config = interface(control, names)
        set_up = posted(address, "setup", {"project": "1.1", "schema": config, "hostname": "", "access_token": ""})
        body = {
            "tasks": [{"id": 1, "data": {"image": uri}}],
            "project": "1.1",
            "label_config": config,
            "params": {"context": None},
        }
        (prediction,) = posted(address, "predict", body)["results"]
        errors = LabelInterface(config).validate_prediction(prediction, return_errors=True)
        failed += bool(errors) or prediction["model_version"] != set_up["model_version"]
        line = f"{control:<16} {len(prediction['result'])} regions, errors of the SDK: {errors or 'none'}"
        if control == "BrushLabels":
            pairs = zip(prediction["result"], truth.segments, truth.masks, strict=True)
            equal = sum(
                np.array_equal(decode_rle(row["value"]["rle"]).reshape(*truth.size, 4)[..., 3] > 0, mask)
                and row["value"]["brushlabels"] == [shown[segment.label]]
                for row, segment, mask in pairs
            )
            failed += equal < len(truth.segments)
            line += f", {equal} of {len(truth.segments)} masks equal"
        print(line)
    return 1 if failed else 0


def main() -> int:
    """Check a service of its own."""
    print(f"label-studio-sdk {version('label-studio-sdk')}, {MODEL}")
    command = [sys.executable, "-m", "lexiseg", "serve", "--model", MODEL, "--port", "0", "--device", "cpu", "--label-studio"]
    environment = {name: value for name, value in os.environ.items() if name != "LEXISEG_TOKEN"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as service:
        try:
            assert service.stdout is not None
            return check(service.stdout.readline().split()[-1])
        finally:
            service.terminate()


if __name__ == "__main__":
    sys.exit(main())
