"""Differences between models on the same images, and their intervals."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from lexiseg.metrics import PanopticQuality, SemanticScores
from lexiseg.metrics.bootstrap import RESAMPLES, Counts, miou, paired, pixel_counts, pq, segment_counts
from lexiseg.structures import PanopticMap, PanopticSegment

CLASSES, IMAGES = 5, 7


def label_maps(seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Truth and prediction of some images; a class does not occur, and some pixels are void."""
    rng = np.random.default_rng(seed)
    truths = rng.integers(-1, CLASSES - 1, (IMAGES, 6, 8)).repeat(4, axis=1)
    return [(truth, np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, CLASSES, truth.shape))) for truth in truths]


def panoptic(labels: NDArray[np.int64]) -> PanopticMap:
    """One segment for each class of a label map."""
    present = [int(label) for label in np.unique(labels) if label >= 0]
    return PanopticMap((labels + 1).astype(np.int32), tuple(PanopticSegment(label + 1, label) for label in present))


def test_metrics_of_counts_are_those_of_evaluation() -> None:
    semantic, quality = SemanticScores(CLASSES), PanopticQuality(CLASSES, [True, False] * 2 + [True])
    pixels, segments = [], []
    for number, (truth, predicted) in enumerate(label_maps(0)):
        semantic.update(number, truth, predicted)
        quality.update(number, panoptic(truth), panoptic(predicted))
        pixels.append(pixel_counts(semantic.count(truth, predicted)))
        segments.append(segment_counts(quality.count(panoptic(truth), panoptic(predicted))))
    assert miou(np.sum(pixels, axis=0)) == pytest.approx(semantic.result()["mIoU"], abs=1e-12)
    assert pq(np.sum(segments, axis=0)) == pytest.approx(quality.result()["PQ"], abs=1e-12)
    assert 0 < semantic.result()["mIoU"] < 1


def counts(seed: int) -> Counts:
    scores = SemanticScores(CLASSES)
    return np.stack([pixel_counts(scores.count(truth, predicted)) for truth, predicted in label_maps(seed)])


def test_a_model_does_not_differ_from_itself() -> None:
    same = paired(counts(1), counts(1), miou)
    assert same.difference == same.low == same.high == 0


def test_the_interval_is_that_of_draws_written_out() -> None:
    """Images drawn one by one, with another generator."""
    model, other = counts(1), counts(1)
    other[:, 0] = other[:, 0] * 3 // 4  # as many right pixels less
    result, draw = paired(model, other, miou), random.Random(3)
    chosen = [[draw.randrange(IMAGES) for _ in range(IMAGES)] for _ in range(RESAMPLES)]
    differences = [float(miou(model[rows].sum(0)) - miou(other[rows].sum(0))) for rows in chosen]
    low, high = np.quantile(differences, (0.025, 0.975))
    assert result.value - result.difference == pytest.approx(float(miou(other.sum(0))))
    assert 0 < result.low < result.difference < result.high
    assert (result.low, result.high) == pytest.approx((low, high), rel=0.05)


def test_the_order_of_the_sign() -> None:
    model, other = counts(1), counts(2)
    there, back = paired(model, other, miou), paired(other, model, miou)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
