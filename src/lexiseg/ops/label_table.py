"""Mapping of raw ids, in label maps and annotations, to labels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import DataError
from lexiseg.structures import IGNORED

VOID_OF_BYTES, VOID_OF_WORDS = 255, 65_535  # maximum values of label maps of 8 and 16 bits
SHOWN = 3  # number of unknown ids in a message

_UNKNOWN = -2
_RANGE = 2**16  # maximum range of values for a dense lookup table; for larger ones each value is searched


@dataclass(frozen=True)
class LabelTable:
    """Labels of the raw ids in files of ground truth or predictions.

    Attributes:
        labels: raw id -> label, an index into the vocabulary; several ids may have the same label.
        ignored: ids without class: their pixels are `IGNORED`, their instances and segments skipped.
    """

    labels: Mapping[int, int]
    ignored: frozenset[int] = frozenset()

    @classmethod
    def counted(cls, classes: int, *, first: int = 0, ignored: Collection[int] = ()) -> LabelTable:
        """Build the table that maps raw ids ``first``, ``first + 1``, … to labels 0, 1, …"""
        return cls({first + label: label for label in range(classes)}, frozenset(ignored))

    @classmethod
    def of_ids(cls, ids: Sequence[int], void: Collection[int] = (), *, ignored: int | None = None) -> LabelTable:
        """Build the table of label maps.

        Args:
            ids: id of each class.
            void: ids without class.
            ignored: another value without class; None: 255, or 65535 if an id is 255 or more.
        """
        if ignored is None:
            ignored = VOID_OF_BYTES if max((*ids, *void), default=0) < VOID_OF_BYTES else VOID_OF_WORDS
        return cls({raw: label for label, raw in enumerate(ids)}, frozenset((ignored, *void)))

    def label(self, raw: int, source: str) -> int:
        """Return the label of an id, `IGNORED` for ids without class.

        Args:
            raw: id.
            source: location of the id for messages.

        Raises:
            DataError: unknown id.
        """
        if raw in self.ignored:
            return IGNORED
        if raw not in self.labels:
            raise DataError(f"{source}: unknown class id {raw}; {self._known()}")
        return self.labels[raw]

    def labels_of(self, raws: Iterable[int], source: str) -> frozenset[int]:
        """Return the labels of ids, without ignored ones.

        Raises:
            DataError: as `label`.
        """
        return frozenset(self.label(raw, source) for raw in raws) - {IGNORED}

    def map(self, values: NDArray[Any], source: str) -> NDArray[np.int32]:
        """Map raw ids [H, W] to labels.

        Raises:
            DataError: as `label`.
        """
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if high - low < _RANGE:
            labels = self._search(np.arange(low, high + 1))[values - low]
        else:
            labels = self._search(values.astype(np.int64))
        if (labels == _UNKNOWN).any():
            unknown, counts = np.unique(values[labels == _UNKNOWN], return_counts=True)
            shown = ", ".join(f"{raw} ({count} pixels)" for raw, count in list(zip(unknown, counts, strict=True))[:SHOWN])
            raise DataError(f"{source}: unknown class id {shown}; {self._known()}")
        return labels

    def _search(self, values: NDArray[np.int64]) -> NDArray[np.int32]:
        """Look up labels of values, `_UNKNOWN` for unknown ones; the memory does not depend on the size of ids."""
        label_of_id = {**self.labels, **dict.fromkeys(self.ignored, IGNORED)}
        known = np.array(sorted(label_of_id), np.int64)
        labels = np.array([label_of_id[raw] for raw in known.tolist()], np.int32)
        nearest = np.minimum(np.searchsorted(known, values), len(known) - 1)
        return np.where(known[nearest] == values, labels[nearest], np.int32(_UNKNOWN))

    def _known(self) -> str:
        ignored = f", ignored {listed(sorted(self.ignored))}" if self.ignored else ""
        return (
            f"known are {listed(sorted(self.labels))}{ignored}: is the file of another version or data set? "
            "In data of your own, a line '11: void' in the list of classes says that id 11 is not measured"
        )


def listed(numbers: Sequence[int]) -> str:
    """Format sorted numbers as ranges, such as ``1..3, 7``, shortened if long."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [str(low) if low == high else f"{low}..{high}" for low, high in spans]
    return ", ".join(words[:8]) + (", …" if len(words) > 8 else "")
