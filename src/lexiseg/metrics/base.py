"""Base classes of metrics: integer sums over images, exact however the images are split among processes.

metric = PanopticQuality(len(names), things)
metric.update(139, truth, prediction)         # image by image; only the sums are kept
metric.merge(metric.from_state(state))        # the sums of another process, or of an interrupted run
metric.result(), metric.table(names)
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import DataError, UsageError, explained

TruthT = TypeVar("TruthT")
PredictionT = TypeVar("PredictionT")
State = dict[str, NDArray[Any]]
SHOWN = 10  # classes named in a line


class Metric(ABC, Generic[TruthT, PredictionT]):
    """Metric over the images of a data set.

    Args:
        classes: K, the number of classes; labels are 0 to K - 1.
        groups: named sets of labels that are also scored on their own, such as "seen" and "unseen".

    Raises:
        UsageError: if ``classes`` is below 1, or a group has a label outside the classes.
    """

    def __init__(self, classes: int, groups: Mapping[str, Collection[int]] | None = None) -> None:
        if classes < 1:
            raise UsageError("a metric needs at least one class")
        self.classes = classes
        self.groups = {name: np.array(sorted(labels), np.int64) for name, labels in (groups or {}).items()}
        for name, labels in self.groups.items():
            if labels.size and not (labels[0] >= 0 and labels[-1] < classes):
                raise UsageError(f"group {name!r} has labels {labels[0]} to {labels[-1]}; there are {classes} classes")
        self._images: set[int] = set()

    @property
    def images(self) -> frozenset[int]:
        """Numbers of the images measured so far."""
        return frozenset(self._images)

    def update(self, image: int, truth: TruthT, prediction: PredictionT, name: str | None = None) -> None:
        """Measure one image.

        Args:
            image: its number, unique; equal scores are ordered by it.
            truth: the ground truth.
            prediction: the result to measure.
            name: the image's name in error messages.

        Raises:
            DataError: if the image was measured before, or truth and prediction do not fit each other or the classes;
                nothing is counted then.
        """
        try:
            if image in self._images:
                raise DataError("was measured before; give each image once")
            self._add(image, truth, prediction)
        except DataError as error:
            raise DataError(f"{name or f'image {image}'}: {error}") from None
        self._images.add(image)

    def merge(self, other: Self) -> None:
        """Add the sums of another metric with the same options.

        Raises:
            DataError: if both measured the same image, or the options differ.
        """
        if common := self._images & other._images:
            raise DataError(f"{len(common)} images were measured twice, such as {min(common)}; give each image to one metric")
        self._merge(other)
        self._images |= other._images

    def state(self) -> State:
        """Return the sums as arrays that can be saved or sent."""
        return {"images": np.array(sorted(self._images), np.int64), **self._sums()}

    def from_state(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Return a metric with the same options and the sums of ``state``.

        Raises:
            DataError: if the state belongs to another metric, or to other classes.
        """
        fresh = copy.copy(self)
        try:
            fresh._images = set(state["images"].tolist())
            fresh._restore(state)
        except KeyError as error:
            raise DataError(f"the saved sums lack {error}; measure again") from None
        return fresh

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Return the scores in 0..1, ready for JSON; None where there was nothing to measure."""

    @abstractmethod
    def table(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return one row per class, in label order."""

    @abstractmethod
    def in_truth(self) -> NDArray[np.bool_]:
        """Return which classes occur in the truth, [K] bool; crowds do not count."""

    @abstractmethod
    def _add(self, image: int, truth: TruthT, prediction: PredictionT) -> None: ...

    @abstractmethod
    def _merge(self, other: Self) -> None: ...

    @abstractmethod
    def _sums(self) -> State: ...

    @abstractmethod
    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None: ...


class CountingMetric(Metric[TruthT, PredictionT]):
    """Metric whose sums are one integer array with a row per class."""

    def __init__(self, classes: int, columns: int, groups: Mapping[str, Collection[int]] | None = None) -> None:
        super().__init__(classes, groups)
        self.sums = np.zeros((classes, columns), np.int64)

    def _add(self, image: int, truth: TruthT, prediction: PredictionT) -> None:  # noqa: ARG002
        try:
            sums = self.count(truth, prediction)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # an id beyond 64 bits, a map of another type, …
            raise DataError(explained(error)) from error
        self.sums += sums

    @abstractmethod
    def count(self, truth: TruthT, prediction: PredictionT) -> NDArray[np.int64]:
        """Return the sums [K, columns] of one image."""

    def _merge(self, other: Self) -> None:
        if self.sums.shape != other.sums.shape:
            raise DataError(f"sums of shape {other.sums.shape} cannot be added to {self.sums.shape}: the classes differ")
        self.sums += other.sums

    def _sums(self) -> State:
        return {"sums": self.sums.copy()}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        if state["sums"].shape != self.sums.shape:
            raise DataError(
                f"saved sums of shape {state['sums'].shape}, expected {self.sums.shape}: the classes differ; measure again"
            )
        self.sums = state["sums"].astype(np.int64)


def absence(metric: Metric[Any, Any], names: Sequence[str]) -> list[str]:
    """Return the names of the classes that are not in the truth."""
    return [name for name, present in zip(names, metric.in_truth(), strict=True) if not present]


def absence_in_words(absent: Sequence[str]) -> list[str]:
    """Return a line with the number of classes not in the truth and some of their names; no line if there are none."""
    more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
    named = ", ".join(" ".join(name.split()) for name in absent[:SHOWN])
    return [f"Classes that are not in the truth: {len(absent)} ({named}{more})."] if absent else []


def number(value: float) -> float | None:
    """Convert a number for JSON: None for NaN."""
    return None if np.isnan(value) else float(value)


def mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean for JSON: None for an empty array."""
    return number(values.mean()) if values.size else None


def divide(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """Divide elementwise; NaN where the denominator is 0."""
    fractions = np.full(np.broadcast(above, below).shape, np.nan)
    np.divide(above, below, out=fractions, where=np.asarray(below) != 0)
    return fractions


def check_labels(labels: NDArray[np.integer[Any]], classes: int, *, lowest: int, what: str) -> None:
    """Raise DataError if a label is below ``lowest`` or not below ``classes``."""
    if labels.size and (labels.min() < lowest or labels.max() >= classes):
        wrong = labels.min() if labels.min() < lowest else labels.max()
        raise DataError(f"{what} has label {wrong}; there are {classes} classes, 0 to {classes - 1}")


def check_size(truth: tuple[int, ...], prediction: tuple[int, ...]) -> None:
    """Raise DataError if truth and prediction differ in size."""
    if truth != prediction:
        raise DataError(f"the truth is {' × '.join(map(str, truth))} pixels, the result {' × '.join(map(str, prediction))}")
