"""What every metric is: integer sums over images, which add up exactly however the images were shared out.

metric = PanopticQuality(len(names), things)
metric.update(139, truth, found)              # image by image; nothing but the sums is kept
metric.merge(metric.from_state(state))        # what another process, or a run before a crash, had measured
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
FoundT = TypeVar("FoundT")
State = dict[str, NDArray[Any]]
SHOWN = 10  # how many classes a line names


class Metric(ABC, Generic[TruthT, FoundT]):
    """A measure over the images of a data set.

    Args:
        classes: K; labels are 0 to K - 1.
        groups: names for sets of labels that get numbers of their own, such as "seen" and "unseen".

    Raises:
        UsageError: if there is no class, or a group has a label outside the classes.
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
        """The numbers of the images measured so far."""
        return frozenset(self._images)

    def update(self, image: int, truth: TruthT, found: FoundT, name: str | None = None) -> None:
        """Measure one image.

        Args:
            image: its number, each only once; where the order of images matters (ties of scores) it is that of numbers.
            truth: what is there.
            found: the result to be measured.
            name: what messages call the image.

        Raises:
            DataError: if the image was measured before, or truth and result do not fit each other or the classes;
                nothing is counted then.
        """
        try:
            if image in self._images:
                raise DataError("was measured before; give each image once")
            self._add(image, truth, found)
        except DataError as error:
            raise DataError(f"{name or f'image {image}'}: {error}") from None
        self._images.add(image)

    def merge(self, other: Self) -> None:
        """Add what another metric of the same options has measured.

        Raises:
            DataError: if both measured the same image, or the options differ.
        """
        if common := self._images & other._images:
            raise DataError(f"{len(common)} images were measured twice, {min(common)} for one; share them out without overlap")
        self._merge(other)
        self._images |= other._images

    def state(self) -> State:
        """All that was measured, as arrays that can be saved or sent."""
        return {"images": np.array(sorted(self._images), np.int64), **self._sums()}

    def from_state(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """A metric of the same options that has measured what ``state`` holds.

        Raises:
            DataError: if the state is that of another metric, or of other classes.
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
        """The numbers, shares in 0..1, ready for JSON; None where there was nothing to measure."""

    @abstractmethod
    def table(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """One row a class, in the order of labels."""

    @abstractmethod
    def in_truth(self) -> NDArray[np.bool_]:
        """Which classes the truth has, [K]; groups that nobody counted do not make one."""

    @abstractmethod
    def _add(self, image: int, truth: TruthT, found: FoundT) -> None: ...

    @abstractmethod
    def _merge(self, other: Self) -> None: ...

    @abstractmethod
    def _sums(self) -> State: ...

    @abstractmethod
    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None: ...


class CountingMetric(Metric[TruthT, FoundT]):
    """A metric whose sums are one array of integers, one row a class."""

    def __init__(self, classes: int, columns: int, groups: Mapping[str, Collection[int]] | None = None) -> None:
        super().__init__(classes, groups)
        self.sums = np.zeros((classes, columns), np.int64)

    def _add(self, image: int, truth: TruthT, found: FoundT) -> None:  # noqa: ARG002
        try:
            sums = self.count(truth, found)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # an id beyond 64 bits, a map that is none, …
            raise DataError(explained(error)) from error
        self.sums += sums

    @abstractmethod
    def count(self, truth: TruthT, found: FoundT) -> NDArray[np.int64]:
        """The sums [K, columns] of one image."""

    def _merge(self, other: Self) -> None:
        if self.sums.shape != other.sums.shape:
            raise DataError(f"sums of shape {other.sums.shape} cannot be added to {self.sums.shape}: other classes")
        self.sums += other.sums

    def _sums(self) -> State:
        return {"sums": self.sums.copy()}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        if state["sums"].shape != self.sums.shape:
            raise DataError(
                f"saved sums of shape {state['sums'].shape}, expected {self.sums.shape}: other classes; measure again"
            )
        self.sums = state["sums"].astype(np.int64)


def absence(metric: Metric[Any, Any], names: Sequence[str]) -> list[str]:
    """The names of the classes that are not in the truth."""
    return [name for name, there in zip(names, metric.in_truth(), strict=True) if not there]


def absence_in_words(absent: Sequence[str]) -> list[str]:
    """A line that says how many classes are not in the truth and names some; none if all are."""
    more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
    named = ", ".join(" ".join(name.split()) for name in absent[:SHOWN])
    return [f"Classes that are not in the truth: {len(absent)} ({named}{more})."] if absent else []


def number(value: float) -> float | None:
    """A number for JSON: None for NaN."""
    return None if np.isnan(value) else float(value)


def mean(values: NDArray[np.float64]) -> float | None:
    """The mean for JSON: None of nothing."""
    return number(values.mean()) if values.size else None


def divide(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """Shares; NaN where there is nothing to share."""
    shares = np.full(np.broadcast(above, below).shape, np.nan)
    np.divide(above, below, out=shares, where=np.asarray(below) != 0)
    return shares


def check_labels(labels: NDArray[np.integer[Any]], classes: int, *, lowest: int, what: str) -> None:
    """Raise DataError if a label is below ``lowest`` or no class."""
    if labels.size and (labels.min() < lowest or labels.max() >= classes):
        wrong = labels.min() if labels.min() < lowest else labels.max()
        raise DataError(f"{what} has label {wrong}; there are {classes} classes, 0 to {classes - 1}")


def check_size(truth: tuple[int, ...], found: tuple[int, ...]) -> None:
    """Raise DataError if truth and result are not of the same size."""
    if truth != found:
        raise DataError(f"the truth is {' × '.join(map(str, truth))} pixels, the result {' × '.join(map(str, found))}")
