"""Class-agnostic recall of masks: the fraction of truth regions that some predicted mask covers.

The rule is that of FrozenSeg's evaluator of seen and unseen recall: a region is recalled at a threshold if its IoU with any
predicted mask is above the threshold; pixels without truth are in the union.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.metrics.base import CountingMetric, check_labels, check_size, divide, number
from lexiseg.metrics.regions import Counts, overlaps, runs_of_regions
from lexiseg.structures import IGNORED, Instances, PanopticMap, Size

RegionTruth = NDArray[np.integer[Any]] | PanopticMap | Instances
RegionResult = PanopticMap | Instances


class MaskRecall(CountingMetric[RegionTruth, RegionResult]):
    """Recall of masks regardless of class, over all labels and over groups such as "seen" and "unseen".

    Truth is a label map [H, W] (a region per class, as in the papers' tables), a `PanopticMap`, or `Instances`; crowds are
    ignored. Predictions are a `PanopticMap` or `Instances`.

    ``sums`` is [K, 1 + thresholds]: the number of truth regions, and of those recalled at each threshold.

    Args:
        classes, groups: see `Metric`.
        thresholds: IoU that a mask must exceed.
    """

    def __init__(
        self,
        classes: int,
        groups: Mapping[str, Collection[int]] | None = None,
        thresholds: Sequence[float] = (0.5, 0.75, 0.9),
    ) -> None:
        super().__init__(classes, 1 + len(thresholds), groups)
        if not thresholds or not all(0 <= threshold < 1 for threshold in thresholds):
            raise UsageError(f"recall at IoU {list(thresholds)}: give thresholds of at least 0 and below 1")
        self.thresholds = tuple(thresholds)

    def count(self, truth: RegionTruth, prediction: RegionResult) -> NDArray[np.int64]:
        """Return the sums [K, 1 + thresholds] of one image."""
        labels, regions, size = _regions_of_truth(truth)
        masks, pred_size = _masks(prediction)
        check_size(size, pred_size)
        check_labels(labels, self.classes, lowest=0, what="the truth")
        best = overlaps(masks, regions, size).max(axis=0, initial=0.0)
        recalled = best[:, None] > np.array(self.thresholds)
        sums = np.zeros_like(self.sums)
        np.add.at(sums, labels, np.concatenate([np.ones((len(labels), 1), np.int64), recalled], axis=1))
        return sums

    def result(self) -> dict[str, Any]:
        """Return ``recall@0.5`` and so on, ``regions`` (the number of truth regions), and the same for each group."""
        return {
            **self._recall(np.arange(self.classes)),
            "images": len(self._images),
            "groups": {name: self._recall(labels) for name, labels in self.groups.items()},
        }

    def in_truth(self) -> NDArray[np.bool_]:
        """See `Metric`."""
        return self.sums[:, 0] > 0

    def table(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return ``recall@…`` and ``regions`` of each class."""
        return [
            {"label": label, "name": name, **self._recall(np.array([label]))}
            for label, name in zip(range(self.classes), names, strict=True)
        ]

    def _recall(self, labels: NDArray[np.int64]) -> dict[str, Any]:
        regions, *recalled = self.sums[labels].sum(axis=0)
        recall = divide(np.array(recalled), regions)
        named = {f"recall@{threshold:g}": number(value) for threshold, value in zip(self.thresholds, recall, strict=True)}
        return {**named, "regions": int(regions)}


def _regions_of_truth(truth: RegionTruth) -> tuple[NDArray[np.int64], list[Counts], Size]:
    """Return the labels of the regions, their masks, and the size of the image."""
    if isinstance(truth, Instances):
        things = [thing for thing in truth.things if not thing.crowd]
        return np.array([thing.label for thing in things], np.int64), [thing.counts for thing in things], truth.size
    if isinstance(truth, PanopticMap):
        runs = runs_of_regions(truth.ids)
        segments = [segment for segment in truth.segments if not segment.crowd and segment.id in runs]
        labels = np.array([segment.label for segment in segments], np.int64)
        return labels, [runs[segment.id] for segment in segments], _size(truth.ids)
    runs = runs_of_regions(truth)
    runs.pop(IGNORED, None)
    return np.array(list(runs), np.int64), list(runs.values()), _size(truth)


def _masks(prediction: RegionResult) -> tuple[list[Counts], Size]:
    if isinstance(prediction, Instances):
        return [thing.counts for thing in prediction.things], prediction.size
    runs = runs_of_regions(prediction.ids)
    runs.pop(0, None)
    return list(runs.values()), _size(prediction.ids)


def _size(values: NDArray[np.integer[Any]]) -> Size:
    return int(values.shape[0]), int(values.shape[1])
