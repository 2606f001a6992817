"""CVAT's function returns what the pipeline computes, by the rules of CVAT's SDK.

The SDK is not installed for the tests: what is called of it stands in here, and remembers how it was called.
`tools/check_cvat.py` runs the function in the SDK itself.
"""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from lexiseg.data.images import decode_image
from lexiseg.errors import UsageError
from lexiseg.inference.pipeline import Pipeline
from lexiseg.integrations import cvat
from lexiseg.segmentation import Segmentation
from tests.serve.running import NAME, WORDS, Held, Running, picture, running

PIXELS = decode_image(picture(3))


def _maker(kind: str) -> Any:
    return lambda label, points, **fields: SimpleNamespace(type=kind, label=label, points=points, **fields)


@pytest.fixture(autouse=True)
def sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        label_spec=lambda name, number, **fields: (name, number, fields),
        DetectionFunctionSpec=lambda *, labels: labels,
        **{kind: _maker(kind) for kind in ("mask", "polygon", "rectangle")},
    )
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", module)


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running() as service:
        yield service


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    pipeline = Pipeline(Held())
    monkeypatch.setattr(cvat, "load", lambda *_, **__: pipeline)
    return pipeline


def detected(function: cvat.Function, threshold: float | None = None, *, polygons: bool = False) -> list[Any]:
    context = SimpleNamespace(frame_name="a.png", conf_threshold=threshold, conv_mask_to_poly=polygons)
    shapes = function.detect(context, Image.fromarray(PIXELS))
    assert not [shape for shape in shapes if {"id", "source", "frame"} & vars(shape).keys()], "those are CVAT's to set"
    assert all(type(value) is float for shape in shapes for value in shape.points)
    return shapes


def mask_of(points: list[float], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask by the description of CVAT's API."""
    *runs, left, top, right, bottom = (int(value) for value in points)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(bottom - top + 1, right - left + 1)
    mask = np.zeros(size, bool)
    mask[top : bottom + 1, left : right + 1] = inside
    return mask


def same_masks(shapes: list[Any], truth: Segmentation) -> None:
    assert len(shapes) == len(truth.segments) > 1
    for shape, segment, mask in zip(shapes, truth.segments, truth.masks, strict=True):
        assert (shape.type, shape.label, shape.score) == ("mask", segment.label, segment.score)
        assert np.array_equal(mask_of(shape.points, truth.size), mask)


def test_masks_are_those_of_the_pipeline(pipeline: Pipeline) -> None:
    function = cvat.create(classes=WORDS, model=NAME)
    names = ("dog", "grass", "sky", "red thing")
    assert function.spec == [(name, number, {"type": "mask"}) for number, name in enumerate(names)]
    truth = pipeline(PIXELS, WORDS)
    same_masks(detected(function), truth)
    threshold = sorted(segment.score for segment in truth.segments)[1]
    kept = detected(function, threshold)
    assert 0 < len(kept) < len(truth.segments)
    assert min(shape.score for shape in kept) >= threshold
    assert detected(cvat.create(WORDS, threshold=threshold)) == kept, "the default of a call without a threshold"
    same_masks(detected(cvat.create(WORDS, threshold=threshold), 0.0), truth)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools
def test_polygons_and_rectangles(pipeline: Pipeline) -> None:
    truth = pipeline(PIXELS, WORDS, task="instance", background="wall")
    given = {"task": "instance", "background": "wall"}
    shapes = detected(cvat.create(WORDS, shape="polygon", **given))
    assert detected(cvat.create(WORDS, **given), polygons=True) == shapes
    for segment, mask in zip(truth.segments, truth.masks, strict=True):
        own = [shape.points for shape in shapes if (shape.label, shape.score) == (segment.label, segment.score)]
        assert np.array_equal(coco.decode(coco.merge(coco.frPyObjects(own, *truth.size))), mask)
    function = cvat.create(WORDS, shape="rectangle", **given)
    assert {fields["type"] for _, _, fields in function.spec} == {"rectangle"}
    for shapes in (detected(function), detected(function, polygons=True)):
        assert {shape.type for shape in shapes} == {"rectangle"}
        for shape, segment in zip(shapes, truth.segments, strict=True):
            left, top, wide, high = segment.box
            assert shape.points == [left, top, left + wide, top + high]


def test_a_service_computes_the_same(served: Running) -> None:
    same_masks(detected(cvat.create(WORDS, NAME, served.url)), served.pipeline(PIXELS, WORDS))


def test_the_documentation_names_parameters_of_the_function() -> None:
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("cvat-cli ") and " -p " in line]
    parameters = [after.partition("=") for command in commands for before, after in pairwise(command) if before == "-p"]
    assert {name for name, _, _ in parameters} >= {"classes", "model", "server"}
    assert {name for name, _, _ in parameters} <= inspect.signature(cvat.create).parameters.keys()
    assert {value.partition(":")[0] for _, _, value in parameters} == {"str"}
    assert all(cvat.__name__ in command for command in commands)


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown shape 'box'"):
        cvat.create(WORDS, shape="box")
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(UsageError, match="pip install cvat-cli"):
        cvat.create(WORDS)
