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

# An IoU above one half is a multiple of 2^-53 in double precision. Its sum is kept in two integers that cannot overflow, and so
# does not depend on the order of images.
IOU_UNIT, LOW_BITS = 53, 27
HIGH, LOW, MATCHED, WRONG, MISSED = range(5)  # columns of the sums
NO_CLASS = -1  # the class of crowds, which match nothing


class PanopticQuality(CountingMetric[PanopticMap, PanopticMap]):
    """PQ, SQ and RQ of all classes, of things, of stuff and of each group.

    * A truth segment and a predicted segment of the same class match if their IoU is above one half; predicted pixels on void
      truth are not in the union.
    * Crowds are neither matched nor missed. An unmatched prediction is no false positive if more than half of it lies on void
      and on the crowd of its class (the last in the list, should there be two).
    * Means are over the classes with a match, a false positive or a missed segment.

    The area of a truth segment is the stated one, if any, as in the official tool.

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

    def count(self, truth: PanopticMap, prediction: PanopticMap) -> NDArray[np.int64]:
        """Return the sums [K, 5] of one image: IoU in two parts, matched, wrong, missed."""
        check_size(truth.ids.shape, prediction.ids.shape)
        truth_runs, pred_runs, lengths = common_runs(truth.ids, prediction.ids)
        truth_labels, truth_index = _segment_index(truth, truth_runs, self.classes, "the truth")
        pred_labels, pred_index = _segment_index(prediction, pred_runs, self.classes, "the result")
        rows, columns = len(truth_labels) + 1, len(pred_labels) + 1
        # Weighted counts are floating point, exact below 2^53, as all pixel counts here are.
        overlaps = np.bincount(truth_index * columns + pred_index, lengths, rows * columns).reshape(rows, columns)
        intersection, on_void = overlaps[1:, 1:], overlaps[0, 1:]  # [0] is void
        counted, pred_areas = overlaps[1:].sum(axis=1), overlaps[:, 1:].sum(axis=0)
        if not pred_areas.all():
            empty = prediction.segments[int(np.argmin(pred_areas))].id
            raise DataError(f"the result lists segment {empty}, which has no pixels")

        areas = np.array([np.nan if segment.area is None else segment.area for segment in truth.segments])
        areas = np.where(np.isnan(areas), counted, areas)
        crowd = np.array([segment.crowd for segment in truth.segments], bool)
        union = areas[:, None] + (pred_areas - on_void) - intersection
        same_class = np.where(crowd, NO_CLASS, truth_labels)[:, None] == pred_labels
        truth_matched, pred_matched = np.nonzero((2 * intersection > union) & same_class)
        if not union[truth_matched, pred_matched].all():
            raise DataError("the truth states an area of 0 for a segment that has pixels")
        iou = intersection[truth_matched, pred_matched] / union[truth_matched, pred_matched]
        units = np.ldexp(iou, IOU_UNIT).astype(np.int64)
        missed, wrong = ~crowd, np.ones(len(pred_labels), bool)
        missed[truth_matched] = wrong[pred_matched] = False

        crowd_of_class = np.zeros(self.classes, np.int64)  # row of each class's crowd in overlaps; 0 (void) for no crowd
        crowd_of_class[truth_labels[crowd]] = 1 + np.flatnonzero(crowd)
        crowd_row = crowd_of_class[pred_labels]
        on_crowd = np.where(crowd_row > 0, overlaps[crowd_row, np.arange(1, columns)], 0)
        wrong &= 2 * (on_void + on_crowd) <= pred_areas

        label = truth_labels[truth_matched]
        sums = np.empty((self.classes, 5), np.int64)
        sums[:, HIGH] = np.bincount(label, units >> LOW_BITS, self.classes)
        sums[:, LOW] = np.bincount(label, units & ((1 << LOW_BITS) - 1), self.classes)
        sums[:, MATCHED] = np.bincount(label, minlength=self.classes)
        sums[:, WRONG] = np.bincount(pred_labels[wrong], minlength=self.classes)
        sums[:, MISSED] = np.bincount(truth_labels[missed], minlength=self.classes)
        return sums

    def result(self) -> dict[str, Any]:
        """Return ``PQ``, ``SQ``, ``RQ``, ``classes`` (the number of classes averaged), and the same for each group."""
        return {
            **self._means(np.arange(self.classes)),
            "images": len(self._images),
            "groups": {name: self._means(labels) for name, labels in self.groups.items()},
        }

    def in_truth(self) -> NDArray[np.bool_]:
        """See `Metric`."""
        return self.sums[:, [MATCHED, MISSED]].sum(axis=1) > 0

    def table(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return ``PQ``, ``SQ``, ``RQ``, the sum of IoU, and the numbers of matched, wrong and missed segments by class."""
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
        """Return the summed IoU of the matches of each class, [K]."""
        units = [(int(high) << LOW_BITS) + int(low) for high, low in self.sums[:, [HIGH, LOW]]]
        return np.array([unit / (1 << IOU_UNIT) for unit in units])

    def qualities(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return PQ, SQ and RQ of each class, [K]; NaN for classes in neither truth nor predictions."""
        matched, wrong, missed = self.sums[:, [MATCHED, WRONG, MISSED]].T
        iou, all_counted = self.iou_sums(), matched + 0.5 * wrong + 0.5 * missed
        segmentation = np.where(all_counted > 0, iou / np.maximum(matched, 1), np.nan)
        return divide(iou, all_counted), segmentation, divide(matched, all_counted)

    def _means(self, labels: NDArray[np.int64]) -> dict[str, Any]:
        counted = labels[self.sums[labels][:, [MATCHED, WRONG, MISSED]].any(axis=1)]
        panoptic, segmentation, recognition = (quality[counted] for quality in self.qualities())
        return {"PQ": mean(panoptic), "SQ": mean(segmentation), "RQ": mean(recognition), "classes": len(counted)}


def _segment_index(
    panoptic: PanopticMap, runs: NDArray[np.integer[Any]], classes: int, what: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the labels [N] of the segments, and for each run of pixels the index of its segment from 1, 0 for void."""
    labels = np.array([segment.label for segment in panoptic.segments], np.int64)
    check_labels(labels, classes, lowest=0, what=what)
    ids = np.array([0, *[segment.id for segment in panoptic.segments]], runs.dtype)
    order = ids.argsort()
    ascending = ids[order]
    if ascending[0] < 0 or (ascending[1:] == ascending[:-1]).any():
        raise DataError(f"{what} lists a segment id twice, or an id below 1")
    index = ascending[1:].searchsorted(runs, "right")
    if (unlisted := ascending.take(index) != runs).any():
        raise DataError(f"{what} has pixels of segment {runs[unlisted][0]}, which its list of segments lacks")
    return labels, order.take(index)
