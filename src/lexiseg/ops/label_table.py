"""Which class the values of label maps and the ids of annotations stand for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import DataError
from lexiseg.structures import IGNORED

VOID_OF_BYTES, VOID_OF_WORDS = 255, 65_535  # the highest values of label maps of 8 and 16 bits
SHOWN = 3  # how many unknown ids a message names

_UNKNOWN = -2
_RANGE = 2**16  # values between which each has an entry of a table; a map with others is searched for its ids


@dataclass(frozen=True)
class LabelTable:
    """What the ids in files of truths or predictions mean.

    Attributes:
        labels: raw id -> label, a position in the vocabulary; several ids may be one label.
        ignored: ids that are no class: such pixels are `IGNORED`, such instances and segments left out.
    """

    labels: Mapping[int, int]
    ignored: frozenset[int] = frozenset()

    @classmethod
    def counted(cls, classes: int, *, first: int = 0, ignored: Collection[int] = ()) -> LabelTable:
        """The raw ids ``first``, ``first + 1``, … are the labels 0, 1, …"""
        return cls({first + label: label for label in range(classes)}, frozenset(ignored))

    @classmethod
    def of_ids(cls, ids: Sequence[int], void: Collection[int] = (), *, ignored: int | None = None) -> LabelTable:
        """The table of label maps.

        Args:
            ids: of each class its id.
            void: ids that are no class.
            ignored: a further value that is no class; None: 255, or 65535 where an id is 255 or more.
        """
        if ignored is None:
            ignored = VOID_OF_BYTES if max((*ids, *void), default=0) < VOID_OF_BYTES else VOID_OF_WORDS
        return cls({raw: label for label, raw in enumerate(ids)}, frozenset((ignored, *void)))

    def label(self, raw: int, source: str) -> int:
        """The label of an id, `IGNORED` if it is no class.

        Raises:
            DataError: if the id is in neither list; ``source`` says where it stood.
        """
        if raw in self.ignored:
            return IGNORED
        if raw not in self.labels:
            raise DataError(f"{source}: unknown class id {raw}; {self._known()}")
        return self.labels[raw]

    def labels_of(self, raws: Iterable[int], source: str) -> frozenset[int]:
        """The labels of ids; those that are no class are left out.

        Raises:
            DataError: as `label`.
        """
        return frozenset(self.label(raw, source) for raw in raws) - {IGNORED}

    def map(self, values: NDArray[Any], source: str) -> NDArray[np.int32]:
        """The labels of raw ids [H, W].

        Raises:
            DataError: as `label`.
        """
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if high - low < _RANGE:
            labels = self._sought(np.arange(low, high + 1))[values - low]
        else:
            labels = self._sought(values.astype(np.int64))
        if (labels == _UNKNOWN).any():
            strange, counts = np.unique(values[labels == _UNKNOWN], return_counts=True)
            shown = ", ".join(f"{raw} ({count} pixels)" for raw, count in list(zip(strange, counts, strict=True))[:SHOWN])
            raise DataError(f"{source}: unknown class id {shown}; {self._known()}")
        return labels

    def _sought(self, values: NDArray[np.int64]) -> NDArray[np.int32]:
        """The labels of values, `_UNKNOWN` of those in neither list; needs memory by the values, however large ids are."""
        meaning = {**self.labels, **dict.fromkeys(self.ignored, IGNORED)}
        known = np.array(sorted(meaning), np.int64)
        labels = np.array([meaning[raw] for raw in known.tolist()], np.int32)
        nearest = np.minimum(np.searchsorted(known, values), len(known) - 1)
        return np.where(known[nearest] == values, labels[nearest], np.int32(_UNKNOWN))

    def _known(self) -> str:
        ignored = f", ignored {listed(sorted(self.ignored))}" if self.ignored else ""
        return (
            f"known are {listed(sorted(self.labels))}{ignored}: is the file of another version or data set? "
            "In data of your own, a line '11: void' in the list of classes says that id 11 is not measured"
        )


def listed(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as ``1..3, 7``, shortened if long."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [str(low) if low == high else f"{low}..{high}" for low, high in spans]
    return ", ".join(words[:8]) + (", …" if len(words) > 8 else "")
