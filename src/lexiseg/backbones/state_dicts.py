"""Official state dictionaries: reading them without running anything, and rules from their names to ours and back."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lexiseg.errors import WeightsError

# How a pickle begins, and how the first of the pickles in a file of an old PyTorch.
_PICKLE, _BEFORE_ZIP = b"\x80", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_GLOBAL = re.compile(r"GLOBAL (\S+) was not an allowed")
_ONLY_TENSORS = (
    "and no code of a file is run here; where you trust it, unpickle it and save its tensors alone, "
    "with safetensors or torch.save"
)
# Numbers that training programs leave beside the tensors; the second name is that before NumPy 2.
_NUMPY_SCALARS: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool)),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
]

Rules = Sequence[tuple[re.Pattern[str], str]]


def read_state(path: str | Path, *, entry: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a PyTorch file (tensors only, no code).

    Args:
        path: the file.
        entry: where in a training checkpoint the tensors are; a file without it holds nothing else.

    Raises:
        WeightsError: missing, damaged, made of Python objects, or no dictionary of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"the weights {path} do not exist; give the path of the checkpoint as published")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        found = _GLOBAL.search(str(error))
        why = (
            f"it holds Python objects ({found[1]}), {_ONLY_TENSORS}" if found else "damaged or no weights file; fetch it again"
        )
        raise WeightsError(f"cannot read weights from {path}: {why}") from error
    if entry is not None and isinstance(state, dict):
        state = state.get(entry, state)
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path} is no dictionary of tensors; give the checkpoint as published")
    return state


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(len(_BEFORE_ZIP))
    if start.startswith(_PICKLE) and start != _BEFORE_ZIP:
        raise WeightsError(f"cannot read weights from {path}: it is a bare pickle, {_ONLY_TENSORS}")
    with torch.serialization.safe_globals(_NUMPY_SCALARS):
        return torch.load(path, map_location="cpu", weights_only=True)


def compiled(rules: Iterable[tuple[str, str]], source: int) -> Rules:
    """Prefix rules (official, ours) as patterns of side ``source`` and replacements; ``<n>`` is any index, kept."""
    return [
        (re.compile(re.escape(rule[source]).replace("<n>", r"(\d+)")), rule[1 - source].replace("<n>", r"\1")) for rule in rules
    ]


def rename_all(keys: Iterable[str], rules: Rules, side: str) -> dict[str, str]:
    """Each key and its new name, by the first rule whose pattern begins it.

    Raises:
        WeightsError: keys that no rule knows, by name; ``side`` says whose they should be.
    """
    names = {key: _renamed(key, rules) for key in keys}
    unknown = sorted(key for key, name in names.items() if name is None)
    if unknown:
        raise WeightsError(f"{len(unknown)} keys are none of {side}: {some(unknown)}; is this another model's checkpoint?")
    return {key: name for key, name in names.items() if name is not None}


def some(keys: Sequence[str]) -> str:
    """The first few keys, and how many more."""
    return ", ".join(keys[:4]) + (f", … ({len(keys) - 4} more)" if len(keys) > 4 else "")


def _renamed(key: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        found = pattern.match(key)
        if found:
            return found.expand(replacement) + key[found.end() :]
    return None
