"""Panoptic quality (Kirillov et al., CVPR 2019), with the rules of COCO's official tool for void and crowds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import DataError, UsageError
from lexiseg.metrics.base import CountingMetric, check_labels, check_size, divide, mean, number
from lexiseg.metrics.regions import common_runs
from lexiseg.structures import PanopticMap

# An IoU of more than a half is a multiple of 2^-53 in double precision. Its sum is kept as integers, in two parts that do
# not overflow, and therefore does not depend on the order of images.
IOU_UNIT, LOW_BITS = 53, 27
HIGH, LOW, MATCHED, WRONG, MISSED = range(5)  # columns of the sums
NO_CLASS = -1  # of crowds, which match nothing


class PanopticQuality(CountingMetric[PanopticMap, PanopticMap]):
    """PQ, SQ and RQ: of all classes, of things, of stuff and of any group.

    * A truth segment and a result of the same class match if they share more than half of their union; the part of the
      result on void truth is not in the union.
    * Crowds are not matched and not missed. A result that matches nothing is not wrong if more than half of it lies on void
      and on the crowd of its class (the last in the list, should there be two).
    * Means are over the classes that have a match, a wrong result or a missed segment.

    The area of a truth segment is the stated one, where there is one, as in the official tool.

    Args:
        classes, groups: see `Metric`.
        things: [K] True for things; "things" and "stuff" become groups.
    """

    def __init__(self, classes: int, things: Sequence[bool], groups: Mapping[str, Collection[int]] | None = None) -> None:
        if len(things) != classes:
            raise UsageError(f"{len(things)} marks of things for {classes} classes")
        kinds = {
            "things": [label for label, thing in enumerate(things) if thing],
            "stuff": [label for label, thing in enumerate(things) if not thing],
        }
        super().__init__(classes, 5, {**kinds, **(groups or {})})

    def count(self, truth: PanopticMap, found: PanopticMap) -> NDArray[np.int64]:
        """The sums [K, 5] of one image: IoU in two parts, matched, wrong, missed."""
        check_size(truth.ids.shape, found.ids.shape)
        truth_runs, found_runs, lengths = common_runs(truth.ids, found.ids)
        truth_labels, truth_places = _places(truth, truth_runs, self.classes, "the truth")
        found_labels, found_places = _places(found, found_runs, self.classes, "the result")
        rows, columns = len(truth_labels) + 1, len(found_labels) + 1
        # Weighted counts are floating point, and exact below 2^53; so are all numbers of pixels here.
        overlaps = np.bincount(truth_places * columns + found_places, lengths, rows * columns).reshape(rows, columns)
        shared, on_void = overlaps[1:, 1:], overlaps[0, 1:]  # [0] is void
        counted, found_areas = overlaps[1:].sum(axis=1), overlaps[:, 1:].sum(axis=0)
        if not found_areas.all():
            empty = found.segments[int(np.argmin(found_areas))].id
            raise DataError(f"the result lists segment {empty}, which has no pixels")

        areas = np.array([np.nan if segment.area is None else segment.area for segment in truth.segments])
        areas = np.where(np.isnan(areas), counted, areas)
        crowd = np.array([segment.crowd for segment in truth.segments], bool)
        union = areas[:, None] + (found_areas - on_void) - shared
        same_class = np.where(crowd, NO_CLASS, truth_labels)[:, None] == found_labels
        truth_matched, found_matched = np.nonzero((2 * shared > union) & same_class)
        if not union[truth_matched, found_matched].all():
            raise DataError("the truth states an area of 0 for a segment that has pixels")
        units = np.ldexp(shared[truth_matched, found_matched] / union[truth_matched, found_matched], IOU_UNIT).astype(np.int64)
        missed, wrong = ~crowd, np.ones(len(found_labels), bool)
        missed[truth_matched] = wrong[found_matched] = False

        crowd_of_class = np.zeros(self.classes, np.int64)  # its row in overlaps; none is row 0, void, not to count twice
        crowd_of_class[truth_labels[crowd]] = 1 + np.flatnonzero(crowd)
        crowd_row = crowd_of_class[found_labels]
        on_crowd = np.where(crowd_row > 0, overlaps[crowd_row, np.arange(1, columns)], 0)
        wrong &= 2 * (on_void + on_crowd) <= found_areas

        label = truth_labels[truth_matched]
        sums = np.empty((self.classes, 5), np.int64)
        sums[:, HIGH] = np.bincount(label, units >> LOW_BITS, self.classes)
        sums[:, LOW] = np.bincount(label, units & ((1 << LOW_BITS) - 1), self.classes)
        sums[:, MATCHED] = np.bincount(label, minlength=self.classes)
        sums[:, WRONG] = np.bincount(found_labels[wrong], minlength=self.classes)
        sums[:, MISSED] = np.bincount(truth_labels[missed], minlength=self.classes)
        return sums

    def result(self) -> dict[str, Any]:
        """``PQ``, ``SQ``, ``RQ``, ``classes`` (how many the means are over), and the same of each group."""
        return {
            **self._means(np.arange(self.classes)),
            "images": len(self._images),
            "groups": {name: self._means(labels) for name, labels in self.groups.items()},
        }

    def in_truth(self) -> NDArray[np.bool_]:
        """See `Metric`."""
        return self.sums[:, [MATCHED, MISSED]].sum(axis=1) > 0

    def table(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """``PQ``, ``SQ``, ``RQ``, the sum of IoU, and the segments matched, wrong and missed of each class."""
        panoptic, segmentation, recognition = self.qualities()
        return [
            {
                "label": label,
                "name": name,
                "PQ": number(panoptic[label]),
                "SQ": number(segmentation[label]),
                "RQ": number(recognition[label]),
                "IoU_sum": float(self.iou_sums()[label]),
                "matched": int(self.sums[label, MATCHED]),
                "wrong": int(self.sums[label, WRONG]),
                "missed": int(self.sums[label, MISSED]),
            }
            for label, name in zip(range(self.classes), names, strict=True)
        ]

    def iou_sums(self) -> NDArray[np.float64]:
        """The summed IoU of the matches of each class, [K]."""
        units = [(int(high) << LOW_BITS) + int(low) for high, low in self.sums[:, [HIGH, LOW]]]
        return np.array([unit / (1 << IOU_UNIT) for unit in units])

    def qualities(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """PQ, SQ and RQ of each class, [K]; NaN for classes in neither truth nor results."""
        matched, wrong, missed = self.sums[:, [MATCHED, WRONG, MISSED]].T
        iou, all_counted = self.iou_sums(), matched + 0.5 * wrong + 0.5 * missed
        segmentation = np.where(all_counted > 0, iou / np.maximum(matched, 1), np.nan)
        return divide(iou, all_counted), segmentation, divide(matched, all_counted)

    def _means(self, labels: NDArray[np.int64]) -> dict[str, Any]:
        counted = labels[self.sums[labels][:, [MATCHED, WRONG, MISSED]].any(axis=1)]
        panoptic, segmentation, recognition = (quality[counted] for quality in self.qualities())
        return {"PQ": mean(panoptic), "SQ": mean(segmentation), "RQ": mean(recognition), "classes": len(counted)}


def _places(
    panoptic: PanopticMap, runs: NDArray[np.integer[Any]], classes: int, what: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The labels [N] of the segments, and for each run of pixels the place of its segment, from 1, or 0 for void."""
    labels = np.array([segment.label for segment in panoptic.segments], np.int64)
    check_labels(labels, classes, lowest=0, what=what)
    ids = np.array([0, *[segment.id for segment in panoptic.segments]], runs.dtype)
    order = ids.argsort()
    ascending = ids[order]
    if ascending[0] < 0 or (ascending[1:] == ascending[:-1]).any():
        raise DataError(f"{what} lists a segment id twice, or one that is not above 0")
    found = ascending[1:].searchsorted(runs, "right")
    if (unlisted := ascending.take(found) != runs).any():
        raise DataError(f"{what} has pixels of segment {runs[unlisted][0]}, which its list of segments lacks")
    return labels, order.take(found)
