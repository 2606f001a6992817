"""Plain mutation: documents with a value that should not be there, files with bytes that should not be there."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Path = tuple[Any, ...]

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, 1.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e9, -1e9, 1e308, 5e-324,
    255, 256, 65_536, 2**24, 2**31, 2**53, 2**62, 2**63, -(2**63), 2**64, 10**400,
    "", " ", "x", "1", "nan", "0", "../x", "/x", "x\0", "\ud800", "é" * 300, "o" * 60, "\t",
    [], [[]], {}, [None], [0], [{}], [1, 2, 3], ["x"], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, float("nan")]], [[-1e9] * 6],
    [-1e9, -1e9, 1e9, -1e9, 1e9, 1e9], [[10**400] * 6], {"size": [4, 6]}, {"size": [4, 6], "counts": [24]},
    {"size": [4, 6], "counts": [2**62] * 4 + [24]}, {"size": [4, 6], "counts": [-1, 25]}, {"size": 4, "counts": "x"},
    {"size": [4, 6], "counts": "o" * 40}, {"size": [2**31, 2**31], "counts": [2**62]},
)  # fmt: skip


def paths(document: Any, start: Path = ()) -> Iterator[Path]:
    """The place of every value in a document."""
    children = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in children:
        yield (*start, key)
        yield from paths(value, (*start, key))


def mutated_document(document: Any, random: np.random.Generator) -> Any:
    """A copy with one to three values replaced, removed, doubled, renamed or exchanged."""
    document = copy.deepcopy(document)
    for _ in range(int(random.integers(1, 4))):
        places = list(paths(document))
        if not places:
            return ODD[int(random.integers(len(ODD)))]
        *way, key = places[int(random.integers(len(places)))]
        holder = document
        for step in way:
            holder = holder[step]
        kind = random.random()
        if kind < 0.6:
            holder[key] = copy.deepcopy(ODD[int(random.integers(len(ODD)))])
        elif kind < 0.75:
            del holder[key]
        elif kind < 0.85 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind < 0.9 and isinstance(holder, dict):
            holder[f"{key}_"] = holder.pop(key)
        else:
            other: Any = document
            for step in places[int(random.integers(len(places)))]:
                other = other[step] if isinstance(other, dict | list) else other
                break
            holder[key] = copy.deepcopy(other)
    return document


def mutated_bytes(data: bytes, random: np.random.Generator) -> bytes:
    """The bytes, some of them changed, cut off, left out, doubled or put in."""
    start, length = int(random.integers(len(data) + 1)), int(random.integers(1, 40))
    noise = random.integers(0, 256, length).astype(np.uint8).tobytes()
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: data[:start],
        lambda: data[:start] + noise + data[start + length :],
        lambda: data[:start] + noise[:1] + data[start + 1 :],
        lambda: data[:start] + data[start + length :],
        lambda: data[:start] + data[start : start + length] * 3 + data[start + length :],
        lambda: data[:start] + noise + data[start:],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("latin-1").encode("utf-16"),
        lambda: b"[" * 100_000,
    )
    return changes[int(random.integers(len(changes)))]()


def mutated_json(document: Any, random: np.random.Generator) -> bytes:
    """A JSON file of a mutated document, or the mutated file of a sound one."""
    if random.random() < 0.8:
        return json.dumps(mutated_document(document, random)).encode()
    return mutated_bytes(json.dumps(document).encode(), random)
