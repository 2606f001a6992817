"""What sums were measured of, as digests: sums of other weights, options, names, pictures or truths are never served again.

A file counts by its contents, not by its date: one that was copied or unpacked anew is the same, one that was changed in place
with its size and date kept is another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lexiseg.data.dataset import Dataset, Sample
from lexiseg.inference.pipeline import Pipeline
from lexiseg.ops.options import to_document

DIGITS = 16  # of what is compared


def fingerprint(pipeline: Pipeline, samples: Sequence[Sample]) -> dict[str, str]:
    """What a folder of results is refused for, besides the protocol: the weights, the precision, the list of pictures."""
    weights = sha256()
    for name, tensor in pipeline.segmenter.state_dict().items():
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "weights": weights.hexdigest()[:DIGITS],
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "pictures": digest([sample.key for sample in samples]),
    }


class Inputs:
    """Digests of all that the sums of some pictures depend on.

    Args:
        pipeline: the model.
        dataset: its names, its readers with their tables, what it calls its classes.
        document: the protocol with the `fingerprint`.
    """

    def __init__(self, pipeline: Pipeline, dataset: Dataset, document: Mapping[str, Any]) -> None:
        segmenter = pipeline.segmenter
        method = [to_document(segmenter.config), segmenter.training_classes]
        data = [dataset.vocabulary, dataset.readers, dataset.category_ids, dataset.groups, dataset.federated]
        self._contents = cache(_contents)  # a JSON of all pictures is read once
        self._common = self._digest([document, method, data])

    def of(self, samples: Sequence[Sample]) -> str:
        """The digest of some pictures: their files, those their truths are in, and what all pictures have in common."""
        return self._digest([self._common, list(samples)])

    def _digest(self, value: object) -> str:
        return digest(value, self._contents)


def digest(value: object, contents: Callable[[Path], str] | None = None) -> str:
    """A digest of plain values, records, tables and functions; of a path the name, and what ``contents`` says of it."""
    plain = partial(_plain, contents=contents or str)
    return sha256(json.dumps(value, default=plain).encode()).hexdigest()[:DIGITS]


def _contents(path: Path) -> str:
    """A digest of what is in a file, or why there is none."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return type(error).__name__


def _plain(value: Any, contents: Callable[[Path], str]) -> Any:
    """What json is given in place of a value that it does not know."""
    if isinstance(value, Path):
        return [value.name, contents(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, {field.name: getattr(value, field.name) for field in fields(value)}]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), value.shape, sha256(value.tobytes()).hexdigest()]
    if callable(value) and hasattr(value, "__qualname__"):
        cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        return [value.__module__, value.__qualname__, cells]
    if isinstance(value, Sequence):
        return list(value)
    return [type(value).__qualname__, vars(value) if hasattr(value, "__dict__") else repr(value)]
