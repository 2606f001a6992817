"""How many of the true regions some mask covers, whatever the masks are called: the recall of mask generators.

The rule is FrozenSeg's (its evaluator of seen and unseen recall): a region counts as recalled at a threshold if the IoU of any
found mask with it is above the threshold; pixels without a truth belong to the union.
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
    """Recall of masks without their classes, over all labels and over groups such as "seen" and "unseen".

    Truth is a map of labels [H, W] (its regions are then those of a class, as in the papers' tables), a `PanopticMap`, or
    `Instances`; crowds are not asked for. Results are a `PanopticMap` or `Instances`.

    ``sums`` is [K, 1 + thresholds]: regions of the truth, and how many are recalled at each threshold.

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

    def count(self, truth: RegionTruth, found: RegionResult) -> NDArray[np.int64]:
        """The sums [K, 1 + thresholds] of one image."""
        labels, regions, size = _regions_of_truth(truth)
        masks, found_size = _masks(found)
        check_size(size, found_size)
        check_labels(labels, self.classes, lowest=0, what="the truth")
        best = overlaps(masks, regions, size).max(axis=0, initial=0.0)
        recalled = best[:, None] > np.array(self.thresholds)
        sums = np.zeros_like(self.sums)
        np.add.at(sums, labels, np.concatenate([np.ones((len(labels), 1), np.int64), recalled], axis=1))
        return sums

    def result(self) -> dict[str, Any]:
        """``recall@0.5`` and so on, ``regions`` (how many there are to recall), and the same of each group."""
        return {
            **self._shares(np.arange(self.classes)),
            "images": len(self._images),
            "groups": {name: self._shares(labels) for name, labels in self.groups.items()},
        }

    def in_truth(self) -> NDArray[np.bool_]:
        """See `Metric`."""
        return self.sums[:, 0] > 0

    def table(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The same of each class."""
        return [
            {"label": label, "name": name, **self._shares(np.array([label]))}
            for label, name in zip(range(self.classes), names, strict=True)
        ]

    def _shares(self, labels: NDArray[np.int64]) -> dict[str, Any]:
        regions, *recalled = self.sums[labels].sum(axis=0)
        shares = divide(np.array(recalled), regions)
        named = {f"recall@{threshold:g}": number(share) for threshold, share in zip(self.thresholds, shares, strict=True)}
        return {**named, "regions": int(regions)}


def _regions_of_truth(truth: RegionTruth) -> tuple[NDArray[np.int64], list[Counts], Size]:
    """The labels of the regions, their masks, and the size of the image."""
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


def _masks(found: RegionResult) -> tuple[list[Counts], Size]:
    if isinstance(found, Instances):
        return [thing.counts for thing in found.things], found.size
    runs = runs_of_regions(found.ids)
    runs.pop(0, None)
    return list(runs.values()), _size(found.ids)


def _size(values: NDArray[np.integer[Any]]) -> Size:
    return int(values.shape[0]), int(values.shape[1])
