"""Run `lexiseg.integrations.cvat` in CVAT's own SDK, and compare what it would upload with what the model computes.

cvat-cli loads the module (``FunctionLoader``), and the SDK's ``annotate_task`` calls the function on the pictures of a task, checks
every annotation, and uploads them. Only the server is a stand-in, which has a picture of the emoji world and keeps the upload. The
SDK's ``decode_mask`` reads the masks. cvat-cli's parser has to take the commands of docs/serve.md. From an environment that has cvat-cli besides lexiseg, in the repository's root:

    python tools/check_cvat.py

Prints a line a call: the shapes that CVAT would get, and how many masks are equal.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cvat_sdk.auto_annotation as cvataa
import numpy as np
from cvat_cli._internal.commands_all import COMMANDS
from cvat_cli._internal.common import FunctionLoader, configure_common_arguments
from cvat_sdk import models
from cvat_sdk.auto_annotation import driver
from cvat_sdk.masks import decode_mask
from PIL import Image

import lexiseg
from lexiseg.segmentation import Segmentation
from lexiseg.world import scenes, world_classes

MODEL, TASK, FRAME = "fcclip-tiny", 137, 5


def uploaded(names: list[str], kind: str, image: Image.Image, parameters: dict[str, Any], **options: Any) -> list[Any]:
    """What ``cvat-cli task auto-annotate`` uploads for a task with one picture and labels of a kind."""
    function = FunctionLoader("lexiseg.integrations.cvat", None, parameters).load()
    labels = [
        models.Label._from_openapi_data(id=100 + number, name=name, type=kind, attributes=[], sublabels=[])
        for number, name in enumerate(names)
    ]
    media = SimpleNamespace(load_image=lambda: image)
    samples = [SimpleNamespace(frame_index=FRAME, frame_name="a.png", media=media)]
    client = mock.Mock(logger=logging.getLogger("check"))
    with mock.patch.object(driver, "TaskDataset", return_value=SimpleNamespace(labels=labels, samples=samples)):
        cvataa.annotate_task(client, TASK, function, **options)
    ((_, task), fields) = client.tasks.api.partial_update_annotations.call_args
    assert task == TASK
    shapes = fields["patched_labeled_data_request"].shapes
    assert {(shape.frame, shape.source) for shape in shapes} <= {(FRAME, "auto")}
    return shapes


def equal(shapes: list[Any], truth: Segmentation) -> int:
    """How many masks are those of a result."""
    high, wide = truth.size
    pairs = zip(shapes, truth.segments, truth.masks, strict=True)
    return sum(
        shape.label_id == 100 + segment.label
        and abs(shape.score - segment.score) < 1e-9
        and np.array_equal(decode_mask(shape.points, image_width=wide, image_height=high), mask)
        for shape, segment, mask in pairs
    )


def accepted(arguments: list[str]) -> None:
    """End the program if cvat-cli does not take these arguments."""
    parser = argparse.ArgumentParser()
    configure_common_arguments(parser)
    COMMANDS.configure_parser(parser)
    parser.parse_args(arguments)


def main() -> int:
    """Run the calls."""
    scene = next(scenes("val", 1, seed=3, size=192))
    names = list(dict.fromkeys(world_classes()[segment.label].name for segment in scene.segments))
    image, words = Image.fromarray(scene.image), "; ".join(names)
    parameters = {"model": MODEL, "classes": words}
    pipeline = lexiseg.load(MODEL)
    truth = pipeline(image, words)
    threshold = sorted(segment.score for segment in truth.segments)[len(truth.segments) // 2]
    print(f"cvat-cli {version('cvat-cli')}, cvat-sdk {version('cvat-sdk')}, {MODEL}, {len(names)} labels")
    failed = 0
    for line in Path("docs/serve.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("cvat-cli ") and "--function-module" in line:
            accepted(shlex.split(line)[1:])
    for what, kind, more, options in (
        ("masks", "mask", {}, {}),
        ("masks of labels of any type", "any", {}, {}),
        ("--conf-threshold", "mask", {}, {"conf_threshold": threshold}),
        ("--conv-mask-to-poly", "polygon", {}, {"conv_mask_to_poly": True}),
        ("-p shape=str:rectangle", "rectangle", {"shape": "rectangle"}, {}),
        ("-p shape=str:polygon", "polygon", {"shape": "polygon"}, {}),
    ):
        shapes = uploaded(names, kind, image, {**parameters, **more}, **options)
        expected = pipeline(image, words, threshold=options.get("conf_threshold", 0.0))
        line = f"{what:<28} {len(shapes)} shapes of type {', '.join(sorted({shape.type.value for shape in shapes}))}"
        if kind in ("mask", "any"):
            same = equal(shapes, expected)
            failed += same < len(expected.segments)
            line += f", {same} of {len(expected.segments)} equal"
        print(line)
    try:
        uploaded([*names[1:], "else"], "mask", image, parameters)
    except cvataa.BadFunctionError as error:
        print(f"{'a label that is missing':<28} {error}")
    else:
        failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
