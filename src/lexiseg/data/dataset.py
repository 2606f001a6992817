"""What a data set is to lexiseg: classes, pictures, and for each task a way to read the truth of one picture.

Nothing is read before it is asked for: a `Dataset` holds paths and small records, never pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import DataError
from lexiseg.ops.names import relative_name
from lexiseg.structures import Instances, PanopticMap
from lexiseg.text.vocabulary import Vocabulary

Truth = NDArray[np.int32] | PanopticMap | Instances  # of "semantic", "panoptic", "instance"


@dataclass(frozen=True)
class Sample:
    """One picture of a data set.

    Attributes:
        key: its name within the split, unique and stable; results are resumed by it, and files called so, therefore it is
            a name as `lexiseg.ops.names.relative_name` gives it. Readers ask that themselves, to say where a bad one stands.
        image: the file.
        image_id: what prediction files call it (COCO's number where there is one).
        annotation: what the data set's reader needs to find the truth; nobody else looks at it.
        vocabulary: the names of this picture alone, where each has its own (referring expressions); else None.
        stored: where the picture has an EXIF orientation and the truth's size does not tell: whether the truth is drawn on the
            pixels as they are stored, not on the picture held upright.
    """

    key: str
    image: Path
    image_id: int | str
    annotation: Any = field(repr=False)
    vocabulary: Vocabulary | None = None
    stored: bool = False

    def __post_init__(self) -> None:
        if relative_name(self.key, f"{self.image}, its key") != self.key:
            raise DataError(f"{self.image}: its key {self.key!r:.80} is not as `relative_name` gives it")


@dataclass(frozen=True)
class Dataset:
    """One split of one data set.

    Attributes:
        name: the catalogue's, or the path of a user's own.
        vocabulary: its classes; a label is a position here.
        samples: the pictures, in the data set's order.
        readers: for each task the function that reads the truth of a sample: "semantic" gives [H, W] int32 labels
            with `IGNORED`, "panoptic" a `PanopticMap`, "instance" `Instances`.
        category_ids: what the data set's own files call each label.
        groups: names for sets of labels that have scores of their own (LVIS: rare, common, frequent).
        federated: not every class was looked for in every picture (LVIS; see `Instances`).
    """

    name: str
    vocabulary: Vocabulary
    samples: Sequence[Sample]
    readers: Mapping[str, Callable[[Sample], Truth]]
    category_ids: tuple[int, ...]
    groups: Mapping[str, frozenset[int]] = field(default_factory=dict)
    federated: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it has a truth for."""
        return tuple(self.readers)

    def truth(self, sample: Sample, task: str) -> Truth:
        """The truth of a sample, on the picture held upright.

        Raises:
            DataError: if a file is missing, damaged, of another size than the picture, or has a label outside the classes;
                the message names the file.
        """
        return self.readers[task](sample)
