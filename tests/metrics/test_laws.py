"""What holds for every metric: any split adds up, a state comes back, nothing is counted twice or after an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lexiseg.errors import DataError, UsageError
from lexiseg.metrics import AveragePrecision, MaskRecall, Metric, PanopticQuality, SemanticScores
from lexiseg.metrics.base import absence, absence_in_words
from lexiseg.metrics.regions import runs_of_regions
from lexiseg.structures import Instance, Instances, PanopticMap, PanopticSegment

CLASSES, SIZE, IMAGES = 5, (18, 24), 9
GROUPS = {"seen": {0, 2}, "unseen": {1, 3, 4}}


def label_map(random: np.random.Generator) -> np.ndarray:
    values = random.integers(-1, CLASSES, (6, 8)).astype(np.int32)
    return np.kron(values, np.ones((3, 3), np.int32))


def panoptic(random: np.random.Generator, *, crowds: bool) -> PanopticMap:
    ids = np.kron(random.integers(0, 9, (6, 8)), np.ones((3, 3), np.int64)).astype(np.int32)
    there = np.unique(ids[ids > 0]).tolist()
    return PanopticMap(
        ids, tuple(PanopticSegment(number, int(random.integers(CLASSES)), crowds and random.random() < 0.2) for number in there)
    )


def instances(random: np.random.Generator, *, crowds: bool) -> Instances:
    source = panoptic(random, crowds=crowds)
    runs = runs_of_regions(source.ids)
    return Instances(SIZE, tuple(
        Instance(segment.label, runs[segment.id], float(runs[segment.id][1::2].sum()), (0, 0, 0, 0), segment.crowd,
                 round(float(random.random()), 1))
        for segment in source.segments
    ))  # fmt: skip


def noisy(random: np.random.Generator, values: np.ndarray) -> np.ndarray:
    return np.where(np.kron(random.random((6, 8)) < 0.3, np.ones((3, 3))) > 0, label_map(random), values)


def semantic_pair(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    truth = label_map(random)
    return truth, noisy(random, truth)


def panoptic_pair(random: np.random.Generator) -> tuple[PanopticMap, PanopticMap]:
    truth = panoptic(random, crowds=True)
    ids = np.roll(truth.ids, (1, 0), (0, 1))
    return truth, PanopticMap(ids, tuple(PanopticSegment(each.id, each.label) for each in truth.segments))


def instance_pair(random: np.random.Generator) -> tuple[Instances, Instances]:
    truth = instances(random, crowds=True)
    again = tuple(Instance(each.label, each.counts, each.area, each.box, score=each.score) for each in truth.things)
    return truth, Instances(SIZE, again + instances(random, crowds=False).things)


def federated_pair(random: np.random.Generator) -> tuple[Instances, Instances]:
    truth, found = instance_pair(random)
    plain = tuple(Instance(each.label, each.counts, each.area, each.box) for each in truth.things)
    return Instances(SIZE, plain, frozenset({0, 1}), frozenset({2})), found


def recall_pair(random: np.random.Generator) -> tuple[np.ndarray, Instances]:
    truth, found = semantic_pair(random)
    runs = [counts for value, counts in runs_of_regions(found).items() if value >= 0]
    return truth, Instances(SIZE, tuple(Instance(0, counts, 0, (0, 0, 0, 0)) for counts in runs))


THINGS = [True, True, True, False, False]
Case = tuple[Callable[[], Metric[Any, Any]], Callable[[np.random.Generator], tuple[Any, Any]]]
CASES: dict[str, Case] = {
    "semantic": (lambda: SemanticScores(CLASSES, GROUPS), semantic_pair),
    "panoptic": (lambda: PanopticQuality(CLASSES, THINGS, GROUPS), panoptic_pair),
    "instance": (lambda: AveragePrecision(CLASSES, GROUPS), instance_pair),
    "federated": (lambda: AveragePrecision(CLASSES, GROUPS, federated=True), federated_pair),
    "recall": (lambda: MaskRecall(CLASSES, GROUPS), recall_pair),
}
NAMES = [f"class {label}" for label in range(CLASSES)]


def pairs(make_pair: Callable[[np.random.Generator], tuple[Any, Any]]) -> dict[int, tuple[Any, Any]]:
    return {image: make_pair(np.random.default_rng(image)) for image in range(IMAGES)}


def report(metric: Metric[Any, Any]) -> tuple[Any, Any]:
    return metric.result(), metric.table(NAMES)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_split_and_order_give_identical_numbers(case: Case) -> None:
    build, make_pair = case
    images = pairs(make_pair)
    whole = build()
    for image, pair in images.items():
        whole.update(image, *pair)
    parts = [build() for _ in range(3)]
    for image in np.random.default_rng(0).permutation(IMAGES).tolist():
        parts[image % 3].update(image, *images[image])
    total = build()
    for part in parts:
        total.merge(total.from_state(part.state()))
    assert report(total) == report(whole)  # bit for bit, ties of scores included
    assert total.images == whole.images == frozenset(range(IMAGES))
    assert json.loads(json.dumps(report(whole), allow_nan=False)) == [*report(whole)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_state_goes_on_where_it_was_saved(case: Case, tmp_path: Any) -> None:
    build, make_pair = case
    images = pairs(make_pair)
    whole, first = build(), build()
    for image, pair in images.items():
        whole.update(image, *pair)
        if image < 4:
            first.update(image, *pair)
    np.savez(tmp_path / "state.npz", **first.state())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as saved:
        resumed = build().from_state(dict(saved))
    assert report(resumed) == report(first)
    for image in range(4, IMAGES):
        resumed.update(image, *images[image])
    assert report(resumed) == report(whole)
    assert first.images == frozenset(range(4))  # a result does not end a metric, and a copy does not share its sums


def labels_of(truth: Any) -> set[int]:
    """The classes of a truth of any kind; a group that nobody counted makes none."""
    if isinstance(truth, np.ndarray):
        return {label for label in np.unique(truth).tolist() if label >= 0}
    return {each.label for each in (truth.segments if isinstance(truth, PanopticMap) else truth.things) if not each.crowd}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_in_the_truth_is_known(case: Case) -> None:
    build, make_pair = case
    metric, seen = build(), set()
    assert not metric.in_truth().any()
    for image, (truth, found) in pairs(make_pair).items():
        one = build()
        one.update(image, truth, found)
        metric.merge(one)
        assert set(np.flatnonzero(one.in_truth())) == labels_of(truth)
        seen |= labels_of(truth)
        assert set(np.flatnonzero(metric.in_truth())) == seen
    empty = build()
    empty.update(0, *(_without(each, {1, 3}) for each in make_pair(np.random.default_rng(0))))
    assert absence(empty, NAMES) == [NAMES[label] for label in range(CLASSES) if not empty.in_truth()[label]]
    assert {NAMES[1], NAMES[3]} <= set(absence(empty, NAMES))


def _without(truth: Any, labels: set[int]) -> Any:
    """A truth or result without some classes."""
    if isinstance(truth, np.ndarray):
        return np.where(np.isin(truth, list(labels)), -1, truth)
    if isinstance(truth, PanopticMap):
        kept = tuple(each for each in truth.segments if each.label not in labels)
        return PanopticMap(np.where(np.isin(truth.ids, [each.id for each in kept]), truth.ids, 0), kept)
    return replace(truth, things=tuple(each for each in truth.things if each.label not in labels))


def test_absent_classes_in_words() -> None:
    assert absence_in_words([]) == []
    assert absence_in_words(["a\nb"]) == ["Classes that are not in the truth: 1 (a b)."]
    assert absence_in_words([str(number) for number in range(12)])[0].endswith("12 (0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more).")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nothing_is_counted_twice(case: Case) -> None:
    build, make_pair = case
    metric, other = build(), build()
    pair = make_pair(np.random.default_rng(0))
    metric.update(3, *pair)
    other.update(3, *pair)
    before = report(metric)
    with pytest.raises(DataError, match="image 3: was measured before"):
        metric.update(3, *pair)
    with pytest.raises(DataError, match="measured twice, such as 3"):
        metric.merge(other)
    assert report(metric) == before


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_error_leaves_the_sums_alone(case: Case) -> None:
    build, make_pair = case
    metric = build()
    truth, found = make_pair(np.random.default_rng(0))
    metric.update(0, truth, found)
    before = report(metric)
    smaller = {
        np.ndarray: lambda: found[1:],
        PanopticMap: lambda: PanopticMap(found.ids[1:], found.segments),
        Instances: lambda: Instances((SIZE[0] - 1, SIZE[1]), ()),
    }[type(found)]()
    with pytest.raises(DataError, match=r"photo\.jpg: the truth is 18 × 24 pixels, the result 17 × 24"):
        metric.update(1, truth, smaller, name="photo.jpg")
    assert report(metric) == before
    metric.update(1, truth, found)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_nothing_measured_is_none_and_not_a_number(case: Case) -> None:
    result = case[0]().result()
    assert result["images"] == 0
    assert all(value in (None, 0) for value in result.values() if not isinstance(value, str | dict))
    assert set(GROUPS) <= set(result["groups"])


def test_states_of_others_are_refused() -> None:
    state = SemanticScores(4).state()
    with pytest.raises(DataError, match="the classes differ"):
        SemanticScores(5).from_state(state)
    with pytest.raises(DataError, match="lack"):
        AveragePrecision(4).from_state(state)
    with pytest.raises(DataError, match="other rules"):
        AveragePrecision(4).from_state(AveragePrecision(4, federated=True).state())
    damaged = {**AveragePrecision(4).state(), "matches": np.zeros(3, np.uint8)}
    with pytest.raises(DataError, match="cannot be read"):
        AveragePrecision(4).from_state(damaged)


def test_labels_outside_the_classes_and_bad_options() -> None:
    for wrong in ({"bad": {5}}, {"bad": {-1}}):
        with pytest.raises(UsageError, match="group 'bad'"):
            SemanticScores(5, wrong)
    with pytest.raises(UsageError, match="at least one class"):
        SemanticScores(0)
    with pytest.raises(UsageError, match="2 marks of things for 3 classes"):
        PanopticQuality(3, [True, False])
    with pytest.raises(UsageError, match="recall at IoU"):
        MaskRecall(3, thresholds=[1.0])
    one = np.zeros((2, 2), np.int32)
    with pytest.raises(DataError, match="the result has label 7; there are 5 classes"):
        SemanticScores(5).update(0, one, one + 7)
    with pytest.raises(DataError, match="the truth has label -2"):
        SemanticScores(5).update(0, one - 2, one)


def test_the_stated_area_of_a_truth_is_the_one_that_counts():
    ids = np.zeros((4, 10), np.int32)
    ids[:, :5] = 1
    found = PanopticMap(ids, (PanopticSegment(1, 0),))
    quality = []
    for area in (None, 20, 30, 50):
        metric = PanopticQuality(1, [True])
        metric.update(0, PanopticMap(ids, (PanopticSegment(1, 0, area=area),)), found)
        quality.append(metric.result()["PQ"])
    assert quality == pytest.approx([1.0, 1.0, 20 / 30, 0.0])


@pytest.mark.parametrize("number", [2**31, 2**63, 2**70, 1.5, "one", None])
def test_an_image_that_cannot_be_counted_is_named_and_the_others_are_counted(number):
    ids = np.ones((2, 3), np.int32)
    good, bad = (
        PanopticMap(ids, (PanopticSegment(1, 0),)),
        PanopticMap(ids, (PanopticSegment(1, 0), PanopticSegment(number, 0))),
    )
    metric = PanopticQuality(1, [True])
    metric.update(0, good, good)
    for truth, found in ((bad, good), (good, bad)):
        with pytest.raises(DataError, match=r"^second\.png: "):
            metric.update(1, truth, found, name="second.png")
    metric.update(1, good, good)
    assert (metric.result()["PQ"], metric.result()["images"]) == (1.0, 2)
