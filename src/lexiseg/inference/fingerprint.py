"""Digests of everything that partial results depend on, so that stale ones are never reused.

They cover weights, options, class names, images and ground truth. Files are compared by content, not by date or size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np

from lexiseg.data.dataset import Dataset, Sample
from lexiseg.inference.pipeline import Pipeline
from lexiseg.methods.weights import digest_of_parameters
from lexiseg.ops.options import to_document

DIGITS = 16  # hexadecimal digits of a digest


def fingerprint(pipeline: Pipeline, samples: Sequence[Sample]) -> dict[str, str]:
    """Digests of weights, precision and image list, which a folder of results must match besides the protocol."""
    return {
        "weights": digest_of_parameters(pipeline.segmenter)[:DIGITS],
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "pictures": digest([sample.key for sample in samples]),
    }


class Inputs:
    """Computes digests of all inputs that the results of some images depend on.

    Args:
        pipeline: model with its config and training classes.
        dataset: data set with its vocabulary, readers and category ids.
        document: protocol with the `fingerprint`.
    """

    def __init__(self, pipeline: Pipeline, dataset: Dataset, document: Mapping[str, Any]) -> None:
        segmenter = pipeline.segmenter
        method = [to_document(segmenter.config), segmenter.training_classes]
        data = [dataset.vocabulary, dataset.readers, dataset.category_ids, dataset.groups, dataset.federated]
        self._contents = cache(_contents)  # files that many samples use are read once
        self._common = self._digest([document, method, data])

    def of(self, samples: Sequence[Sample]) -> str:
        """Digest of some samples: their image and ground-truth files, and the inputs common to all."""
        return self._digest([self._common, list(samples)])

    def _digest(self, value: object) -> str:
        return digest(value, self._contents)


def digest(value: object, contents: Callable[[Path], str] | None = None) -> str:
    """Digest of plain values, dataclasses, arrays and functions; of a path, its name and ``contents(path)``."""
    plain = partial(_plain, contents=contents or str)
    return sha256(json.dumps(value, default=plain).encode()).hexdigest()[:DIGITS]


def state_of(path: str | Path) -> list[int]:
    """Size and date of a file, in nanoseconds; none for other names."""
    with suppress(OSError, ValueError):
        stat = Path(path).stat()
        return [stat.st_size, stat.st_mtime_ns]
    return []


def _contents(path: Path) -> str:
    """Digest of a file's content, or the name of the error if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return type(error).__name__


def _plain(value: Any, contents: Callable[[Path], str]) -> Any:
    """Encode a value that json does not support."""
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
