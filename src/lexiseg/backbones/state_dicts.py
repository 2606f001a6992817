"""Official state dictionaries: reading them without running anything, and rules from their names to ours and back."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lexiseg.errors import WeightsError

Rules = Sequence[tuple[re.Pattern[str], str]]


def read_state(path: str | Path, *, entry: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a PyTorch file (tensors only, no code).

    Args:
        path: the file.
        entry: where in a training checkpoint the tensors are; a file without it holds nothing else.

    Raises:
        WeightsError: missing, damaged, or no dictionary of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"the weights {path} do not exist; give the path of the checkpoint as published")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"cannot read weights from {path}: damaged or no weights file; fetch it again") from error
    if entry is not None and isinstance(state, dict):
        state = state.get(entry, state)
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path} is no dictionary of tensors; give the checkpoint as published")
    return state


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
