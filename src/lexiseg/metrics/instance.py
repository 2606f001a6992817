"""Average precision of masks, COCO's and LVIS's.

Matching and precision come from `hotcoco`, which agrees with pycocotools and the ``lvis`` package bit for bit, takes images one
at a time, and keeps only their scores and matches.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from hotcoco import StreamingEval
from numpy.typing import NDArray

from lexiseg.errors import DataError
from lexiseg.metrics.base import Metric, State, check_labels, check_size, mean
from lexiseg.metrics.regions import coco_masks
from lexiseg.structures import Instances

Record = dict[str, Any]

AREAS = {"": 0, "s": 1, "m": 2, "l": 3}  # all, below 32² pixels, from there to 96², above
DETECTIONS = (1, 10, 100)  # results per class and image that count, best first
FEDERATED_DETECTIONS = 300  # LVIS: results per image
IOU_50, IOU_75 = 0, 5  # indices among the thresholds 0.5, 0.55, … 0.95
BATCH = 16  # images matched in one call, which is faster than one by one
TRUTH, CROWD, RESULT = range(3)  # columns of the counts


class AveragePrecision(Metric[Instances, Instances]):
    """AP, AP50, AP75, AP by size, and recall; of all classes and of each group.

    * COCO: at most 100 results per class and image count. Results in a crowd are not false positives; their overlap with it
      is a fraction of their own area.
    * Federated (LVIS): at most 300 results per image count, of all classes together. A result counts only if its class is in
      the image's truth or in ``checked``, and is no false positive if its class is in ``partly``.

    Results of equal score are ordered by the number of their image, then as given. The size of a result is its mask's area in
    pixels.

    Args:
        classes, groups: see `Metric`; LVIS's APr, APc, APf are the groups "rare", "common", "frequent" of its data set.
        federated: LVIS's rules.
    """

    def __init__(self, classes: int, groups: Mapping[str, Collection[int]] | None = None, *, federated: bool = False) -> None:
        super().__init__(classes, groups)
        self.federated = federated
        self.counts = np.zeros((classes, 3), np.int64)
        # hotcoco requires "frequency" for its own LVIS groups; ours are means over the same precision
        categories = [{"id": _category(label), "name": str(label), "frequency": "f"} for label in range(classes)]
        self._stream = StreamingEval(categories, "segm", federated)
        self._waiting: list[tuple[Record, list[Record], list[Record]]] = []

    def _add(self, image: int, truth: Instances, prediction: Instances) -> None:
        check_size(truth.size, prediction.size)
        labels, result_labels = (np.array([thing.label for thing in each.things], np.int64) for each in (truth, prediction))
        check_labels(labels, self.classes, lowest=0, what="the truth")
        check_labels(result_labels, self.classes, lowest=0, what="the result")
        if not all(math.isfinite(thing.score) for thing in prediction.things):
            raise DataError("a result has a score that is not finite")
        if not self.federated and (truth.checked is not None or truth.partly):
            raise DataError("its truth is federated (LVIS): measure with federated=True")
        record: Record = {"id": image, "height": truth.size[0], "width": truth.size[1]}
        if self.federated:
            present = {thing.label for thing in truth.things}
            checked = frozenset(range(self.classes)) if truth.checked is None else truth.checked
            record["neg_category_ids"] = [_category(label) for label in sorted(checked - present)]
            record["not_exhaustive_category_ids"] = [_category(label) for label in sorted(truth.partly)]
        things = (*truth.things, *prediction.things)
        masks = iter(coco_masks([thing.counts for thing in things], truth.size))  # all at once, which is faster
        annotations, results = (
            [{"image_id": image, "category_id": _category(thing.label), "segmentation": next(masks)} for thing in each.things]
            for each in (truth, prediction)
        )
        for thing, annotation in zip(truth.things, annotations, strict=True):
            annotation |= {"area": thing.area, "iscrowd": int(thing.crowd)}
        for thing, result in zip(prediction.things, results, strict=True):
            result["score"] = thing.score
        self._waiting.append((record, annotations, results))
        if len(self._waiting) == BATCH:
            self._match()
        crowd = np.array([thing.crowd for thing in truth.things], bool)
        for column, counted in ((TRUTH, labels[~crowd]), (CROWD, labels[crowd]), (RESULT, result_labels)):
            self.counts[:, column] += np.bincount(counted, minlength=self.classes)

    def _match(self) -> None:
        """Match the waiting images."""
        if self._waiting:
            records, annotations, results = zip(*self._waiting, strict=True)
            flat = chain.from_iterable(annotations)
            numbered = [{**annotation, "id": number} for number, annotation in enumerate(flat, start=1)]
            self._stream.update(list(records), numbered, list(chain.from_iterable(results)))
            self._waiting = []

    def _merge(self, other: AveragePrecision) -> None:
        if self.counts.shape != other.counts.shape or self.federated != other.federated:
            raise DataError("the other metric has other classes or rules; measure again")
        self._match()
        other._match()
        self._stream = StreamingEval.merge([self._stream, other._stream])
        self.counts += other.counts

    def _sums(self) -> State:
        self._match()
        matches = np.frombuffer(self._stream.to_bytes(), np.uint8)
        return {"counts": self.counts.copy(), "matches": matches, "federated": np.array(self.federated)}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        if state["counts"].shape != self.counts.shape or bool(state["federated"]) != self.federated:
            raise DataError("the saved sums are of other classes or other rules; measure again")
        try:
            self._stream = StreamingEval.from_bytes(state["matches"].tobytes())
        except ValueError as error:
            raise DataError(f"the saved matches cannot be read ({error}); measure again") from None
        self.counts = state["counts"].astype(np.int64)
        self._waiting = []

    def result(self) -> dict[str, Any]:
        """Return ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, ``AR…``, and the same for each group."""
        precision, recall = self.curves()
        return {
            **self._means(precision, recall, np.arange(self.classes)),
            "images": len(self._images),
            "truths": int(self.counts[:, TRUTH].sum()),
            "results": int(self.counts[:, RESULT].sum()),
            "rules": "LVIS: 300 results an image, federated" if self.federated else "COCO: 100 results a class and image",
            "groups": {name: self._means(precision, recall, labels) for name, labels in self.groups.items()},
        }

    def in_truth(self) -> NDArray[np.bool_]:
        """See `Metric`."""
        return self.counts[:, TRUTH] > 0

    def table(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return ``AP``, ``AP50``, ``AP75`` of each class, and its numbers of instances, crowds and results."""
        precision = self.curves()[0][..., AREAS[""], -1]
        return [
            {
                "label": label,
                "name": name,
                "AP": _mean(precision[:, :, label]),
                "AP50": _mean(precision[IOU_50, :, label]),
                "AP75": _mean(precision[IOU_75, :, label]),
                "truths": int(self.counts[label, TRUTH]),
                "crowds": int(self.counts[label, CROWD]),
                "results": int(self.counts[label, RESULT]),
            }
            for label, name in zip(range(self.classes), names, strict=True)
        ]

    def curves(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return precision and recall in the layout of pycocotools.

        Returns:
            precision [10 IoU thresholds, 101 recalls, K, 4 areas, M limits of results] and recall [10, K, 4, M], -1 where a
            class is not in the truth; M is 3 for COCO, 1 for LVIS.
        """
        if not self._images:
            limits = 1 if self.federated else len(DETECTIONS)
            return -np.ones((10, 101, self.classes, len(AREAS), limits)), -np.ones((10, self.classes, len(AREAS), limits))
        self._match()
        evaluation = StreamingEval.from_bytes(self._stream.to_bytes()).finalize()  # a copy: finalize consumes it
        evaluation.accumulate()
        curves = evaluation.eval
        assert curves is not None
        return curves["precision"], curves["recall"]

    def _means(self, precision: NDArray[np.float64], recall: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, Any]:
        precision, recall = precision[:, :, labels], recall[:, labels]
        everything = precision[..., AREAS[""], -1]
        limits = (FEDERATED_DETECTIONS,) if self.federated else DETECTIONS
        return {
            "AP": _mean(everything),
            "AP50": _mean(everything[IOU_50]),
            "AP75": _mean(everything[IOU_75]),
            **{f"AP{size}": _mean(precision[..., area, -1]) for size, area in AREAS.items() if size},
            **{f"AR{limit}": _mean(recall[..., AREAS[""], index]) for index, limit in enumerate(limits)},
            **{f"AR{size}": _mean(recall[..., area, -1]) for size, area in AREAS.items() if size},
            "classes": int((everything[IOU_50, 0] > -1).sum()),
        }


def _category(label: int) -> int:
    return label + 1


def _mean(values: NDArray[np.float64]) -> float | None:
    return mean(values[values > -1])
