"""Data sets: classes, pictures, and for each task a reader of a picture's ground truth.

Reading is lazy: a `Dataset` holds paths and small records, never pixels.
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
        key: its name within the split, unique and stable, used to resume results and to name files: a valid
            `lexiseg.ops.names.relative_name`. Readers check that first, to locate a bad name in their source.
        image: the file.
        image_id: its id in prediction files (COCO's number if there is one).
        annotation: data for the data set's reader only, such as the path of the truth.
        vocabulary: the vocabulary of this picture, if each has its own (referring expressions); else None.
        stored: for a picture with EXIF orientation whose truth fits both ways: whether the truth is aligned with the pixels
            as stored, not with the upright picture.
    """

    key: str
    image: Path
    image_id: int | str
    annotation: Any = field(repr=False)
    vocabulary: Vocabulary | None = None
    stored: bool = False

    def __post_init__(self) -> None:
        if relative_name(self.key, f"{self.image}, its key") != self.key:
            raise DataError(f"{self.image}: its key {self.key!r:.80} is not a name that `relative_name` returns")


@dataclass(frozen=True)
class Dataset:
    """One split of one data set.

    Attributes:
        name: its name in the catalogue, or the path of a user's own data.
        vocabulary: its classes; a label is an index into it.
        samples: the pictures, in the data set's order.
        readers: the function of each task that reads the truth of a sample: "semantic" returns [H, W] int32 labels
            with `IGNORED`, "panoptic" a `PanopticMap`, "instance" `Instances`.
        category_ids: the data set's own id of each label.
        groups: named sets of labels that are also scored on their own (LVIS: rare, common, frequent).
        federated: not every class was annotated in every picture (LVIS; see `Instances`).
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
        """Tasks it has a truth for."""
        return tuple(self.readers)

    def truth(self, sample: Sample, task: str) -> Truth:
        """Read the truth of a sample, aligned with the upright picture.

        Raises:
            DataError: if a file is missing, damaged, of another size than the picture, or has a label outside the classes;
                names the file.
        """
        return self.readers[task](sample)
