"""The metrics against pixel-by-pixel counters, and against pycocotools."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexiseg.errors import DataError
from lexiseg.metrics import AveragePrecision, MaskRecall, PanopticQuality, SemanticScores, seen_classes, seen_groups
from lexiseg.metrics.regions import common_runs, compress_all, overlaps, runs_of_regions
from lexiseg.ops.rle import compress, decode_counts, encode_masks
from lexiseg.structures import IGNORED, Instance, Instances, PanopticMap, PanopticSegment

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

CLASSES = 4
few = settings(max_examples=40, deadline=None, derandomize=True)


def maps(lowest: int, highest: int) -> st.SearchStrategy[np.ndarray]:
    cells = st.lists(st.integers(lowest, highest), min_size=24, max_size=24)
    return cells.map(lambda values: np.array(values, np.int32).reshape(4, 6))


@few
@given(maps(IGNORED, CLASSES - 1), maps(-1, CLASSES - 1), st.sampled_from(["official", "mess"]))
def test_semantic_scores_against_sets_of_pixels(truth: np.ndarray, found: np.ndarray, absent: Any) -> None:
    metric = SemanticScores(CLASSES, {"some": [0, 2]}, absent)
    metric.update(0, truth, found)
    kept = truth != IGNORED
    iou, accuracy, shares = {}, {}, {}
    for label in range(CLASSES):
        there, given_ = (truth == label) & kept, (found == label) & kept
        if there.any() or (absent == "mess" and given_.any()):
            iou[label] = (there & given_).sum() / (there | given_).sum()
        if there.any():
            accuracy[label] = (there & given_).sum() / there.sum()
            shares[label] = there.sum() / kept.sum()
    result = metric.result()
    assert result["mIoU"] == (pytest.approx(np.mean(list(iou.values()))) if iou else None)
    assert result["mean_accuracy"] == (pytest.approx(np.mean(list(accuracy.values()))) if accuracy else None)
    if kept.any():
        assert result["pixel_accuracy"] == pytest.approx((truth == found)[kept].mean())
        assert result["FWIoU"] == pytest.approx(sum(iou[label] * share for label, share in shares.items()))
    some = [iou[label] for label in (0, 2) if label in iou]
    assert result["groups"]["some"] == {
        "mIoU": pytest.approx(np.mean(some)) if some else None,
        "mean_accuracy": pytest.approx(np.mean([accuracy[label] for label in (0, 2) if label in accuracy]))
        if any(label in accuracy for label in (0, 2)) else None,
        "classes": len(some),
    }  # fmt: skip
    assert [row["IoU"] for row in metric.table("abcd")] == [pytest.approx(iou[x]) if x in iou else None for x in range(CLASSES)]


def panoptic_map(ids: np.ndarray, labels: list[int], crowds: list[bool]) -> PanopticMap:
    scattered = np.array([0, 70_000, 5, 16_777_215, 256, 9, 300], np.int32)  # ids like colours
    there = [number for number in range(1, 7) if (ids == number).any()]
    return PanopticMap(scattered[ids], tuple(PanopticSegment(int(scattered[n]), labels[n - 1], crowds[n - 1]) for n in there))


def counts_by_pixels(truth: PanopticMap, found: PanopticMap) -> dict[int, list[float]]:
    """IoU, matched, wrong and missed of each class, from masks and the rules as the paper and the official tool state them."""
    sums: dict[int, list[float]] = {label: [0.0, 0, 0, 0] for label in range(CLASSES)}
    matched = set()
    for segment in truth.segments:
        mask = truth.ids == segment.id
        hit = False
        for other in found.segments:
            if segment.crowd or other.label != segment.label:
                continue
            area = (found.ids == other.id) & (truth.ids != 0)
            iou = (mask & area).sum() / (mask | area).sum()
            if iou > 0.5:
                hit = True
                matched.add(other.id)
                sums[segment.label][0] += iou
                sums[segment.label][1] += 1
        sums[segment.label][3] += not hit and not segment.crowd
    for other in found.segments:
        if other.id in matched:
            continue
        mask = found.ids == other.id
        crowds = [segment.id for segment in truth.segments if segment.crowd and segment.label == other.label][-1:]
        sums[other.label][2] += np.isin(truth.ids[mask], [0, *crowds]).mean() <= 0.5
    return sums


segment_labels = st.lists(st.integers(0, CLASSES - 1), min_size=6, max_size=6)


@few
@given(maps(0, 4), maps(0, 4), segment_labels, segment_labels, st.lists(st.booleans(), min_size=6, max_size=6), st.booleans())
def test_panoptic_quality_against_masks(
    first: np.ndarray, second: np.ndarray, labels: list[int], others: list[int], crowds: list[bool], alike: bool
) -> None:
    if alike:  # unrelated maps never match
        second, others = np.where(second == 1, second, first), labels
    truth, found = panoptic_map(first, labels, crowds), panoptic_map(second, others, [False] * 6)
    metric = PanopticQuality(CLASSES, [True, True, False, False])
    metric.update(0, truth, found)
    expected = counts_by_pixels(truth, found)
    for label, row in enumerate(metric.table("abcd")):
        iou, *counts = expected[label]
        assert [row["matched"], row["wrong"], row["missed"]] == counts
        assert row["IoU_sum"] == pytest.approx(iou, abs=1e-12)
        total = counts[0] + counts[1] / 2 + counts[2] / 2
        assert row["PQ"] == (pytest.approx(iou / total) if total else None)


def test_a_perfect_result_has_quality_one_and_void_forgives() -> None:
    ids = np.array([[1, 1, 2, 2], [1, 1, 0, 0]], np.int32)
    truth = PanopticMap(ids, (PanopticSegment(1, 0), PanopticSegment(2, 1)))
    metric = PanopticQuality(2, [True, False])
    metric.update(0, truth, truth)
    assert metric.result()["PQ"] == metric.result()["groups"]["things"]["PQ"] == 1
    spilled = PanopticMap(np.where(ids == 0, 2, ids), truth.segments)
    metric.update(1, truth, spilled)
    assert metric.result()["PQ"] == 1


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ((PanopticSegment(1, 0),), "pixels of segment 2, which its list"),
        ((PanopticSegment(1, 0), PanopticSegment(2, 0), PanopticSegment(3, 1)), "segment 3, which has no pixels"),
        ((PanopticSegment(1, 0), PanopticSegment(2, 0), PanopticSegment(2, 1)), "segment id twice"),
        ((PanopticSegment(1, 0), PanopticSegment(2, 0), PanopticSegment(0, 1)), "an id below 1"),
        ((PanopticSegment(1, 0), PanopticSegment(2, 9)), "the result has label 9"),
    ],
)
def test_maps_and_lists_that_disagree(segments: tuple[PanopticSegment, ...], message: str) -> None:
    ids = np.array([[1, 2]], np.int32)
    truth = PanopticMap(ids, (PanopticSegment(1, 0), PanopticSegment(2, 1)))
    with pytest.raises(DataError, match=f"image 0: .*{message}"):
        PanopticQuality(2, [True, False]).update(0, truth, PanopticMap(ids, segments))


# --- average precision --------------------------------------------------------------------------------------------------

HIGH, WIDE = 130, 140


def blob(random: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[:HIGH, :WIDE]
    centre, radii = random.uniform(0, (HIGH, WIDE)), random.uniform(3, (HIGH * 0.6, WIDE * 0.6)) * random.uniform(0.1, 1)
    return ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 <= 1


def instance(random: np.random.Generator, mask: np.ndarray, label: int, **more: Any) -> Instance:
    counts = encode_masks(torch.from_numpy(mask)[None])[0]
    return Instance(label, counts, float(mask.sum() * random.uniform(0.8, 1.2)), (0, 0, 0, 0), **more)


def synthetic_images(seed: int, images: int, results: int) -> dict[int, tuple[Instances, Instances]]:
    """Truth with crowds and areas unlike their masks', results with few different scores; ids are not in order."""
    random = np.random.default_rng(seed)
    pairs = {}
    for image in random.choice(1000, images, replace=False).tolist():
        masks = [(mask, int(random.integers(CLASSES - 1))) for mask in (blob(random) for _ in range(random.integers(0, 7)))
                 if mask.any()]  # fmt: skip
        there = [instance(random, mask, label, crowd=bool(random.random() < 0.25)) for mask, label in masks]
        found = []
        for _ in range(random.integers(0, results)):
            mask, label = masks[random.integers(len(masks))] if masks and random.random() < 0.8 else (blob(random), 0)
            mask = np.roll(mask, tuple(random.integers(-5, 6, 2)), (0, 1))
            if mask.any():
                found.append(instance(random, mask, label, score=round(float(random.random()), 1)))
        pairs[image] = (Instances((HIGH, WIDE), tuple(there)), Instances((HIGH, WIDE), tuple(found)))
    return pairs


def pycocotools_evaluation(pairs: dict[int, tuple[Instances, Instances]]) -> COCOeval:
    def record(image: int, thing: Instance) -> dict[str, Any]:
        mask = {"size": [HIGH, WIDE], "counts": compress(thing.counts)}
        return {"image_id": image, "category_id": thing.label + 1, "segmentation": mask}

    annotations = [
        {**record(image, thing), "area": thing.area, "iscrowd": int(thing.crowd)}
        for image, (truth, _) in pairs.items() for thing in truth.things
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image, "height": HIGH, "width": WIDE} for image in pairs],
            "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
            "categories": [{"id": label + 1, "name": str(label)} for label in range(CLASSES)],
        }
        coco.createIndex()
        results = [
            {**record(image, thing), "score": thing.score} for image, (_, found) in pairs.items() for thing in found.things
        ]
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize(("seed", "images", "results"), [(0, 20, 12), (1, 3, 420)])
def test_average_precision_equals_pycocotools(seed: int, images: int, results: int) -> None:
    pairs = synthetic_images(seed, images, results)
    if results > 100:
        most = max(np.bincount([thing.label for thing in found.things]).max() for _, found in pairs.values() if found.things)
        assert most > 100
    evaluation = pycocotools_evaluation(pairs)
    metric = AveragePrecision(CLASSES)
    for image, pair in pairs.items():
        metric.update(image, *pair)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    result = metric.result()
    assert [-1 if result[name] is None else result[name] for name in names] == pytest.approx(evaluation.stats, abs=1e-9)
    precision, recall = metric.curves()
    np.testing.assert_allclose(precision, evaluation.eval["precision"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(recall, evaluation.eval["recall"], rtol=0, atol=1e-9)
    assert 0 < result["AP"] < 1
    assert metric.table("abcd")[CLASSES - 1]["AP"] is None  # a class that nobody has


def test_federated_truth_needs_federated_rules_and_finite_scores() -> None:
    empty, federated = Instances((2, 2), ()), Instances((2, 2), (), frozenset({0}))
    with pytest.raises(DataError, match="federated=True"):
        AveragePrecision(1).update(0, federated, empty)
    mask = np.array([1, 3])
    for thing, message in (
        (Instance(0, mask, 3, (0, 0, 0, 0), score=float("nan")), "not finite"),
        (Instance(0, np.array([1, 9]), 3, (0, 0, 0, 0)), "do not fill an image of 2 × 2"),
        (Instance(0, np.array([5, -1]), 3, (0, 0, 0, 0)), "do not fill"),
        (Instance(0, np.array([], np.int64), 3, (0, 0, 0, 0)), "do not fill"),
        (Instance(4, mask, 3, (0, 0, 0, 0)), "label 4"),
    ):
        with pytest.raises(DataError, match=message):
            AveragePrecision(1).update(0, empty, Instances((2, 2), (thing,)))


def test_results_of_classes_nobody_looked_for_are_not_measured() -> None:
    whole, part, box = np.array([0, 4]), np.array([0, 1, 3]), (0.0, 0.0, 0.0, 0.0)
    truth, right = Instance(0, whole, 4, box), Instance(0, whole, 4, box, score=0.5)
    better = Instance(0, part, 1, box, score=0.9)  # scores higher, and covers nothing well

    def precision(first: Instances, second: Instances) -> float | None:
        metric = AveragePrecision(2, federated=True)
        metric.update(0, first, Instances((2, 2), (right,)))
        metric.update(1, second, Instances((2, 2), (better,)))
        return metric.result()["AP"]

    there = Instances((2, 2), (truth,), frozenset())
    assert precision(there, Instances((2, 2), (), frozenset({0}))) == pytest.approx(0.5)  # it is not there: wrong
    assert precision(there, Instances((2, 2), ())) == pytest.approx(0.5)  # all classes were looked for
    assert precision(there, Instances((2, 2), (), frozenset({1}))) == pytest.approx(1)  # nobody looked
    assert precision(there, Instances((2, 2), (), frozenset({0}), frozenset({0}))) == pytest.approx(1)  # nobody marked all


# --- recall, regions, seen classes ------------------------------------------------------------------------------------


@few
@given(maps(IGNORED, CLASSES - 1), maps(0, 3))
def test_recall_against_masks(truth: np.ndarray, found: np.ndarray) -> None:
    metric = MaskRecall(CLASSES, {"seen": [0, 1]}, thresholds=(0.25, 0.5))
    metric.update(0, truth, PanopticMap(found, ()))
    masks = [found == number for number in range(1, 4) if (found == number).any()]
    best = {
        label: max([((truth == label) & mask).sum() / ((truth == label) | mask).sum() for mask in masks], default=0)
        for label in range(CLASSES) if (truth == label).any()
    }  # fmt: skip
    result = metric.result()
    for name, labels in (("all", range(CLASSES)), ("seen", (0, 1))):
        numbers = result if name == "all" else result["groups"][name]
        known = [best[label] for label in labels if label in best]
        assert numbers["regions"] == len(known)
        for threshold in (0.25, 0.5):
            expected = np.mean([iou > threshold for iou in known]) if known else None
            assert numbers[f"recall@{threshold:g}"] == (None if expected is None else pytest.approx(expected))


def test_recall_takes_any_kind_of_truth_and_asks_for_no_crowd() -> None:
    ids = np.array([[1, 1, 2], [1, 1, 2]], np.int32)
    runs = runs_of_regions(ids)
    panoptic = PanopticMap(ids, (PanopticSegment(1, 0), PanopticSegment(2, 1, crowd=True)))
    things = tuple(Instance(label, runs[label + 1], 0, (0, 0, 0, 0), crowd=label == 1) for label in (0, 1))
    masks = Instances((2, 3), (Instance(7, runs[1], 0, (0, 0, 0, 0)),))
    for truth in (panoptic, Instances((2, 3), things)):
        metric = MaskRecall(2)
        metric.update(0, truth, masks)
        assert metric.result()["recall@0.9"] == 1
        assert metric.result()["regions"] == 1


@few
@given(maps(-2, 3), maps(0, 2))
def test_regions_runs_and_overlaps(values: np.ndarray, others: np.ndarray) -> None:
    first, second = runs_of_regions(values), runs_of_regions(others)
    for value, counts in first.items():
        assert (decode_counts(counts, (4, 6)).numpy() == (values == value)).all()
        np.testing.assert_array_equal(counts, encode_masks(torch.from_numpy(values == value)[None])[0])
    assert set(first) == set(np.unique(values).tolist())
    masks = [values == value for value in first], [others == value for value in second]
    expected = [[(one & two).sum() / (one | two).sum() for two in masks[1]] for one in masks[0]]
    np.testing.assert_allclose(overlaps(list(first.values()), list(second.values()), (4, 6)), expected, atol=1e-12)
    here, there, lengths = common_runs(values, others)
    np.testing.assert_array_equal(np.repeat(here, lengths), values.ravel())
    np.testing.assert_array_equal(np.repeat(there, lengths), others.ravel())


@few
@given(st.lists(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=9), max_size=5))
def test_strings_of_many_masks(runs: list[list[int]]) -> None:
    masks = [np.array(counts, np.int64) for counts in runs]
    assert [text.decode() for text in compress_all(masks)] == [compress(counts) for counts in masks]


def test_a_class_is_seen_if_it_shares_any_name() -> None:
    names = (("Dog", "puppy"), ("cab", "taxi"), ("zebra",), ("tree house",))
    training = (("dog",), ("car", " taxi "), ("tree", "house"))
    assert seen_classes(names, training).tolist() == [True, True, False, False]
    assert seen_groups(names, training) == {"seen": frozenset({0, 1}), "unseen": frozenset({2, 3})}
