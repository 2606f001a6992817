"""Semantic segmentation: mIoU, frequency-weighted IoU and accuracies from one confusion matrix over the data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.metrics.base import CountingMetric, check_labels, check_size, divide, mean, number
from lexiseg.structures import IGNORED

AbsentClasses = Literal["official", "mess"]
ABSENT_CLASSES: dict[AbsentClasses, str] = {
    "official": "mean over the classes that are in the truth (detectron2's SemSegEvaluator)",
    "mess": "mean over the classes that are in the truth or in the results; one that is only in the results scores 0 (MESS)",
}

Labels = NDArray[np.integer[Any]]


class SemanticScores(CountingMetric[Labels, Labels]):
    """mIoU, frequency-weighted IoU, pixel accuracy and mean accuracy.

    ``sums`` is the confusion matrix [K, K + 1]: truth by prediction, its last column the pixels without prediction, which
    count as wrong. Pixels whose truth is `IGNORED` do not count.

    Truth is [H, W] with labels and `IGNORED`; predictions are [H, W] with labels and -1 for void.

    Args:
        classes, groups: see `Metric`.
        absent: which classes are averaged, a key of `ABSENT_CLASSES`.
    """

    def __init__(
        self, classes: int, groups: Mapping[str, Collection[int]] | None = None, absent: AbsentClasses = "official"
    ) -> None:
        super().__init__(classes, classes + 1, groups)
        if absent not in ABSENT_CLASSES:
            raise UsageError(f"unknown rule for absent classes {absent!r}; choose from {', '.join(ABSENT_CLASSES)}")
        self.absent: AbsentClasses = absent

    def count(self, truth: Labels, prediction: Labels) -> NDArray[np.int64]:
        """Return the confusion matrix [K, K + 1] of one image."""
        check_size(truth.shape, prediction.shape)
        check_labels(truth, self.classes, lowest=IGNORED, what="the truth")
        check_labels(prediction, self.classes, lowest=-1, what="the result")
        width = self.classes + 1
        # Both are shifted by one: ignored pixels are the first row, void the first column.
        pairs = (truth.astype(np.int64) + 1) * width + (prediction + 1)
        counts = np.bincount(pairs.ravel(), minlength=width * width).reshape(width, width)[1:]
        return np.roll(counts, -1, axis=1)

    def result(self) -> dict[str, Any]:
        """Return ``mIoU``, ``FWIoU``, ``pixel_accuracy``, ``mean_accuracy``, the rule for absent classes, and the groups."""
        right, truth = np.diagonal(self.sums), self.sums.sum(axis=1)
        iou, total = self.iou(), truth.sum()
        return {
            **self._means(np.arange(self.classes)),
            "FWIoU": number(np.nansum(iou * truth) / total) if total else None,
            "pixel_accuracy": number(right.sum() / total) if total else None,
            "images": len(self._images),
            "pixels": int(total),
            "absent_classes": self.absent,
            "absent_classes_rule": ABSENT_CLASSES[self.absent],
            "groups": {name: self._means(labels) for name, labels in self.groups.items()},
        }

    def in_truth(self) -> NDArray[np.bool_]:
        """See `Metric`."""
        return self.sums.sum(axis=1) > 0

    def table(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return ``IoU``, ``accuracy`` and the numbers of truth and predicted pixels of each class."""
        iou, truth, predicted = self.iou(), self.sums.sum(axis=1), self.sums.sum(axis=0)
        accuracy = divide(np.diagonal(self.sums), truth)
        return [
            {
                "label": label,
                "name": name,
                "IoU": number(iou[label]),
                "accuracy": number(accuracy[label]),
                "truth_pixels": int(truth[label]),
                "found_pixels": int(predicted[label]),
            }
            for label, name in zip(range(self.classes), names, strict=True)
        ]

    def iou(self) -> NDArray[np.float64]:
        """Return the intersection over union of each class, [K]; NaN for classes that are not averaged."""
        right, truth, predicted = np.diagonal(self.sums), self.sums.sum(axis=1), self.sums.sum(axis=0)[:-1]
        counted = truth > 0 if self.absent == "official" else truth + predicted > 0
        return divide(right, np.where(counted, truth + predicted - right, 0))

    def _means(self, labels: NDArray[np.int64]) -> dict[str, Any]:
        iou, truth = self.iou()[labels], self.sums.sum(axis=1)[labels]
        accuracy = divide(np.diagonal(self.sums)[labels], truth)
        return {
            "mIoU": mean(iou[~np.isnan(iou)]),
            "mean_accuracy": mean(accuracy[truth > 0]),
            "classes": int((~np.isnan(iou)).sum()),
        }
