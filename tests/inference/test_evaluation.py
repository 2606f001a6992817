"""Evaluation: the same numbers however the work is split or interrupted, and equal to the metrics computed at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lexiseg.data.dataset import Dataset, Sample
from lexiseg.errors import DataError, RunError, UsageError
from lexiseg.inference import evaluation, report, results
from lexiseg.inference.evaluation import FORGIVING, RECALL, Protocol, Shard, collect, evaluate, forgive
from lexiseg.inference.pipeline import Pipeline
from lexiseg.methods.base import MethodConfig, Segmenter
from lexiseg.metrics.panoptic import PanopticQuality
from lexiseg.metrics.semantic import SemanticScores
from lexiseg.ops.rle import encode_masks
from lexiseg.structures import (
    IGNORED,
    Geometry,
    ImageBatch,
    Instance,
    Instances,
    MaskPrediction,
    PanopticMap,
    PanopticSegment,
    TextEmbeddings,
    Trace,
)
from lexiseg.text.vocabulary import ClassName, Vocabulary

NAMES = Vocabulary((ClassName("red"), ClassName("green"), ClassName("blue", thing=False)))
SIZE, PICTURES = (20, 24), 11
TASKS = ("panoptic", "semantic", "instance")


class Words(nn.Module):
    """A text tower that knows three words."""

    identity = "three words"

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.tensor([[NAMES.names.index(text.split()[-1].strip("."))] for text in texts])

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.eye(3)[tokens[:, 0]]


class Colours(Segmenter):
    """Says where a picture is red, green and blue."""

    tasks = TASKS

    def __init__(self) -> None:
        super().__init__(MethodConfig(overlap_threshold=0.5))
        self.clip = Words()  # type: ignore[assignment]
        self.calls = 0

    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip}

    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> MaskPrediction:  # noqa: ARG002
        self.calls += 1
        masks = 12 * (images.pixels - 0.5)
        classes = (4 * text.vectors + 0.01 * torch.arange(3)[:, None]).log_softmax(-1)[None]
        return MaskPrediction(masks, classes.expand(len(images), -1, -1), False, tuple(map(Geometry.unresized, images.sizes)))


def blocks(sample: Sample) -> PanopticMap:
    """Three blocks of which the picture shows a noisy version."""
    ids = np.zeros(SIZE, np.int32)
    cut = 6 + sample.annotation
    ids[2:, :6], ids[2:, 6:cut], ids[2:, cut:] = 1, 2, 3
    if sample.key == "broken":
        raise DataError(f"{sample.image}: damaged")
    return PanopticMap(ids, tuple(PanopticSegment(number, number - 1, crowd=number == 2) for number in (1, 2, 3)))


def as_labels(sample: Sample) -> np.ndarray:
    return np.where(blocks(sample).ids == 0, IGNORED, blocks(sample).ids - 1).astype(np.int32)


def as_instances(sample: Sample) -> Instances:
    masks = torch.from_numpy(np.stack([blocks(sample).ids == number for number in (1, 2)]))
    things = (Instance(k, counts, float(masks[k].sum()), (0, 0, 1, 1)) for k, counts in enumerate(encode_masks(masks)))
    return Instances(SIZE, tuple(things))


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    rng, samples = np.random.default_rng(0), []
    for number in range(PICTURES):
        sample = Sample(f"p{number}", tmp_path / f"p{number}.png", number + 100, annotation=number % 5 + 1)
        ids = np.where(rng.random(SIZE) < 0.3, rng.integers(0, 4, SIZE), blocks(sample).ids)
        Image.fromarray((255 * (ids[..., None] == (1, 2, 3))).astype(np.uint8)).save(sample.image)
        samples.append(sample)
    readers = {"semantic": as_labels, "panoptic": blocks, "instance": as_instances}
    return Dataset("blocks", NAMES, tuple(samples), readers, (7, 8, 9))


GREEN_PASSES_FOR_RED = (frozenset({0, 1}), frozenset({1}), frozenset({2}))
PROTOCOL = Protocol("colours", "blocks", TASKS, recall=True, groups={"seen": frozenset({0})}, forgiven=GREEN_PASSES_FOR_RED)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "CHUNK", 3)


def numbers(dataset: Dataset, folder: Path, protocol: Protocol = PROTOCOL) -> str:
    metrics, failed = collect(dataset, protocol, folder)
    return json.dumps(report.document(protocol, metrics, failed, dataset, command="x"), sort_keys=True)


def test_the_numbers_are_those_of_the_metrics_alone(dataset, tmp_path):
    pipeline = Pipeline(Colours())
    evaluate(pipeline, dataset, PROTOCOL, tmp_path / "out")
    metrics, failed = collect(dataset, PROTOCOL, tmp_path / "out")
    assert failed == {}
    semantic, panoptic = SemanticScores(3, {"seen": {0}}), PanopticQuality(3, NAMES.things, {"seen": {0}})
    for number, sample in enumerate(dataset.samples):
        for metric, task in ((semantic, "semantic"), (panoptic, "panoptic")):
            found = pipeline(sample.image, NAMES, task=task)
            metric.update(number, dataset.truth(sample, task), results.measurable(found))
    assert metrics["semantic"].result() == semantic.result()
    assert metrics["panoptic"].result() == panoptic.result()
    assert 0.2 < semantic.result()["mIoU"] < 0.95
    assert metrics[FORGIVING].result()["mIoU"] >= semantic.result()["mIoU"]
    assert metrics["instance"].result()["AP50"] > 0.5
    assert metrics[f"{RECALL}, regions of classes"].result()["recall@0.5"] > 0.5


def test_interrupted_split_or_whole_is_all_the_same(dataset, tmp_path, monkeypatch):
    evaluate(Pipeline(Colours()), dataset, PROTOCOL, tmp_path / "whole")
    expected = numbers(dataset, tmp_path / "whole")
    for number in range(3):
        evaluate(Pipeline(Colours()), dataset, PROTOCOL, tmp_path / "split", shard=Shard(number, 3))
    assert numbers(dataset, tmp_path / "split") == expected

    segmenter = Colours()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "measure", partial(_interrupted_at, 7, evaluation.measure))
        with pytest.raises(KeyboardInterrupt):
            evaluate(Pipeline(segmenter), dataset, PROTOCOL, tmp_path / "cut")
    with pytest.raises(DataError, match="is missing: run the same command again"):
        collect(dataset, PROTOCOL, tmp_path / "cut")
    before = segmenter.calls
    evaluate(Pipeline(segmenter), dataset, PROTOCOL, tmp_path / "cut")
    assert segmenter.calls - before == PICTURES - 6, "two whole chunks were kept"
    assert numbers(dataset, tmp_path / "cut") == expected


def test_pictures_together_with_readers_may_be_interrupted_too(dataset, tmp_path, monkeypatch):
    evaluate(Pipeline(Colours()), dataset, PROTOCOL, tmp_path / "whole")
    segmenter, before = Colours(), threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "measure", partial(_interrupted_at, 7, evaluation.measure))
        with pytest.raises(KeyboardInterrupt):
            evaluate(Pipeline(segmenter), dataset, PROTOCOL, tmp_path / "cut", batch=2, workers=3)
    assert threading.active_count() == before, "no reader goes on"
    assert segmenter.calls == 2 + 2 + 1, "of the chunks of three each a batch of two and one of one; the last is interrupted"
    evaluate(Pipeline(segmenter), dataset, PROTOCOL, tmp_path / "cut", batch=2, workers=3)
    assert segmenter.calls == 5 + 2 + 1, "two whole chunks were kept"
    assert numbers(dataset, tmp_path / "cut") == numbers(dataset, tmp_path / "whole")


def _interrupted_at(number: int, measure, *arguments):
    if arguments[-1] == number:
        raise KeyboardInterrupt
    return measure(*arguments)


def test_a_folder_of_another_protocol_or_model_is_refused(dataset, tmp_path):
    small = Protocol("colours", "blocks", ("semantic",), limit=2)
    evaluate(Pipeline(Colours()), dataset, small, tmp_path / "out")
    with pytest.raises(UsageError, match=r"another limit \(2, now None\); choose another --output"):
        evaluate(Pipeline(Colours()), dataset, Protocol("colours", "blocks", ("semantic",)), tmp_path / "out")
    changed = Colours()
    changed.register_buffer("extra", torch.ones(1))
    with pytest.raises(UsageError, match="another weights"):
        evaluate(Pipeline(changed), dataset, small, tmp_path / "out")
    with pytest.raises(UsageError, match="blocks has no task 'depth'"):
        evaluate(Pipeline(_with_depth()), dataset, Protocol("colours", "blocks", ("depth",)), tmp_path / "new")


def _with_depth() -> Colours:
    segmenter = Colours()
    segmenter.tasks = ("depth",)
    return segmenter


def test_what_is_broken_stops_the_run_or_is_counted(dataset, tmp_path):
    broken = replace(dataset.samples[4], key="broken")
    damaged = replace(dataset, samples=(*dataset.samples[:4], broken, *dataset.samples[5:]))
    with pytest.raises(DataError, match=r"p4\.png: damaged"):
        evaluate(Pipeline(Colours()), damaged, PROTOCOL, tmp_path / "strict")
    evaluate(Pipeline(Colours()), damaged, PROTOCOL, tmp_path / "out", keep_going=True)
    metrics, failed = collect(damaged, PROTOCOL, tmp_path / "out")
    assert list(failed) == ["broken"]
    assert {metric.result()["images"] for metric in metrics.values()} == {PICTURES - 1}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("a decoder fell over"), "unexpected RuntimeError: a decoder fell over (inference/evaluation.py:"),
        (NotImplementedError(), "unexpected NotImplementedError (inference/evaluation.py:"),
        (RecursionError("too deep"), "unexpected RecursionError: too deep"),
        (MemoryError(), "there is not enough memory for it"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "there is not enough memory for it"),
        (RunError("the score of 'x' is not a number"), "the score of 'x' is not a number"),
    ],
)
def test_whatever_goes_wrong_with_a_picture_is_that_picture_s(dataset, tmp_path, monkeypatch, error, said):
    measure = evaluation.measure
    monkeypatch.setattr(evaluation, "measure", partial(_failing_at, 7, error, measure))
    with pytest.raises(RunError) as raised:
        evaluate(Pipeline(Colours()), dataset, PROTOCOL, tmp_path / "strict")
    assert said in str(raised.value)
    assert isinstance(error, RunError) or str(dataset.samples[7].image) in str(raised.value)
    evaluate(Pipeline(Colours()), dataset, PROTOCOL, tmp_path / "out", keep_going=True)
    metrics, failed = collect(dataset, PROTOCOL, tmp_path / "out")
    assert list(failed) == ["p7"]
    assert said in failed["p7"]
    assert {metric.result()["images"] for metric in metrics.values()} == {PICTURES - 1}


def test_a_wrong_call_is_not_the_pictures_fault(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "measure", partial(_failing_at, 7, UsageError("no masks"), evaluation.measure))
    with pytest.raises(UsageError, match="no masks"):
        evaluate(Pipeline(Colours()), dataset, PROTOCOL, tmp_path / "out", keep_going=True)


def _failing_at(number: int, error: Exception, measure, *arguments):
    if arguments[-1] == number:
        raise error
    return measure(*arguments)


def test_predictions_are_written_and_score_the_same(dataset, tmp_path):
    evaluate(Pipeline(Colours()), dataset, PROTOCOL, tmp_path / "out", keep_predictions=True)
    folder = tmp_path / "out/predictions"
    written = results.assemble(folder, dataset, TASKS, range(0, PICTURES, 3))
    assert [path.name for path in written] == ["panoptic.json", "instances.json"]
    panoptic = json.loads(written[0].read_text())
    assert [record["image_id"] for record in panoptic["annotations"]] == [sample.image_id for sample in dataset.samples]
    assert {info["category_id"] for record in panoptic["annotations"] for info in record["segments_info"]} <= {7, 8, 9}
    assert len(list((folder / "semantic").glob("p*.png"))) == PICTURES
    assert {record["image_id"] for record in json.loads(written[1].read_text())} <= set(range(100, 100 + PICTURES))


@pytest.mark.parametrize("key", ["../p0", "/p0", "a/../../p0", "..\\p0"])
def test_predictions_are_never_written_elsewhere(dataset, tmp_path, key):
    pipeline, sample = Pipeline(Colours()), dataset.samples[0]
    by_task = {task: pipeline(sample.image, NAMES, task=task) for task in TASKS}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    object.__setattr__(sample, "key", key)  # no reader makes such a sample; this is the second look
    for task in ("semantic", "panoptic"):
        with pytest.raises(DataError, match=r"p0\.png, its key: the name"):
            results.write_chunk(tmp_path / "out/predictions", dataset, [sample], [(sample, {task: by_task[task]})], 0)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


@pytest.mark.parametrize("other", ["P3", "\N{KELVIN SIGN}", "e\u0301"])
def test_keys_that_some_disks_do_not_tell_apart_are_refused_if_predictions_are_kept(dataset, tmp_path, other):
    first = {"P3": "p3", "\N{KELVIN SIGN}": "k", "e\u0301": "\u00e9"}[other]
    renamed = [replace(sample, key=key) for sample, key in zip(dataset.samples, (first, other), strict=False)]
    doubtful = replace(dataset, samples=tuple(renamed))
    with pytest.raises(DataError, match=r"p0\.png and .*p1\.png: their predictions would be the same file"):
        evaluate(Pipeline(Colours()), doubtful, PROTOCOL, tmp_path / "out", keep_predictions=True)
    evaluate(Pipeline(Colours()), doubtful, PROTOCOL, tmp_path / "out")


def test_a_hypernym_is_forgiven_only_where_it_is_one():
    truth = np.array([[0, 0, 1, 1, IGNORED]], np.int32)
    found = np.array([[1, -1, 0, 1, 2]], np.int32)
    np.testing.assert_array_equal(forgive(truth, found, GREEN_PASSES_FOR_RED), [[0, -1, 0, 1, 2]])


def test_the_report_stands_beside_the_papers(dataset, tmp_path):
    protocol = Protocol("colours", "ade20k-150", ("semantic",), limit=3, corrupt="blur:1")
    evaluate(Pipeline(Colours()), dataset, protocol, tmp_path / "out")
    metrics, failed = collect(dataset, protocol, tmp_path / "out")
    document = report.document(protocol, metrics, failed, dataset, command="lexiseg evaluate")
    paths = report.write(tmp_path / "out", document, metrics, dataset)
    assert [path.name for path in paths] == ["metrics.json", "report.md", "classes-semantic.csv"]
    page = paths[1].read_text()
    assert "Not the published protocol: limit 3, corrupt blur:1." in page
    assert "| cmpf, " in page
    assert paths[2].read_text().splitlines()[1].startswith("0,red,")


def test_a_summary_means_parts_first_then_groups_then_all():
    def one(name: str, value: float) -> dict[str, object]:
        return {"data": name, "results": {"semantic": {"mIoU": value}}}

    reports = [one("lungs", 0.2), one("bones", 0.4), one("cells", 0.5), one("cracks", 0.8)]
    groups = {"lungs": "Medicine", "bones": "Medicine", "cells": "Medicine", "cracks": "Engineering"}
    rows = report.summary(reports, groups, {"lungs": "x-rays", "bones": "x-rays"})
    assert [row["data"] for row in rows[4:]] == ["mean of Engineering", "mean of Medicine", "mean"]
    assert [row["mIoU"] for row in rows[4:]] == pytest.approx([0.8, (0.3 + 0.5) / 2, (0.3 + 0.5 + 0.8) / 3])
