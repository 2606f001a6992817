"""Paired bootstrap: the difference of two models on the same images, and its interval over draws of these images.

Counts of one image are [C, K] for K classes, of S images [S, C, K]; mIoU and PQ are functions of their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.metrics.panoptic import HIGH, IOU_UNIT, LOW, LOW_BITS, MATCHED, MISSED, WRONG

Counts = NDArray[Any]
RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """A metric, and its difference to that of another model.

    Attributes:
        value: metric of all images.
        difference: its difference.
        low, high: quantiles 0.025 and 0.975 of the difference over the draws.
    """

    value: float
    difference: float
    low: float
    high: float


def pixel_counts(confusion: NDArray[np.int64]) -> Counts:
    """Pixels that are right, in truth or prediction, and in truth, [3, K], of `SemanticScores.count`."""
    right, truth = np.diagonal(confusion), confusion.sum(axis=1)
    return np.stack([right, truth + confusion.sum(axis=0)[:-1] - right, truth])


def miou(counts: Counts) -> NDArray[np.float64]:
    """mIoU of the classes in the truth, of counts [..., 3, K]."""
    right, union, truth = np.moveaxis(counts, -2, 0)
    result: NDArray[np.float64] = np.nanmean(np.where(truth > 0, right / np.maximum(union, 1), np.nan), axis=-1)
    return result


def segment_counts(sums: NDArray[np.int64]) -> Counts:
    """Summed IoU, matched, wrong and missed segments, [4, K], of `PanopticQuality.count`."""
    iou = np.ldexp(sums[:, HIGH].astype(float), LOW_BITS - IOU_UNIT) + np.ldexp(sums[:, LOW].astype(float), -IOU_UNIT)
    return np.stack([iou, sums[:, MATCHED], sums[:, WRONG], sums[:, MISSED]])


def pq(counts: Counts) -> NDArray[np.float64]:
    """PQ of the classes in truth or prediction, of counts [..., 4, K]."""
    iou, matched, wrong, missed = np.moveaxis(counts, -2, 0)
    segments = matched + (wrong + missed) / 2
    result: NDArray[np.float64] = np.nanmean(np.where(segments > 0, iou / np.maximum(segments, 0.5), np.nan), axis=-1)
    return result


def paired(counts: Counts, other: Counts, metric: Callable[[Counts], NDArray[np.float64]], *, seed: int = 0) -> Difference:
    """Compare a model with another on the same S images.

    Args:
        counts: [S, C, K] of the model.
        other: [S, C, K] of the other model.
        metric: `miou` of `pixel_counts`, or `pq` of `segment_counts`.
        seed: seed of the `RESAMPLES` draws, each of S images with replacement.
    """
    images = len(counts)
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    drawn, of_other = (metric(np.tensordot(draws, each, 1)) for each in (counts, other))
    low, high = np.quantile(drawn - of_other, (0.025, 0.975))
    value = float(metric(counts.sum(axis=0)))
    return Difference(value, value - float(metric(other.sum(axis=0))), float(low), float(high))
