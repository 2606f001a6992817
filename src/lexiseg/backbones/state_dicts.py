"""Official state dictionaries: reading them without running anything, and rules from their names to ours and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lexiseg.backbones.eight_bits import from_eight_bits
from lexiseg.errors import WeightsError

# How a pickle begins, and how the first of the pickles in a file of an old PyTorch.
_PICKLE, _BEFORE_ZIP = b"\x80", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_GLOBAL = re.compile(r"GLOBAL (\S+) was not an allowed")
_ONLY_TENSORS = (
    "and no code of a file is run here; where you trust it, unpickle it and save its tensors alone, "
    "with safetensors or torch.save"
)
# Numbers and texts that training programs leave beside the tensors; the second name is that before NumPy 2.
_NUMPY_SCALARS: list[Any] = [
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdSU"},
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
]
WRAPPERS = ("model", "state_dict", "model_state_dict", "ema")  # where training programs put the weights, the first one first
_PREFIXES = ("module.", "_orig_mod.")  # of models that PyTorch wrapped, to share them out or to compile them
_MASK = "attn_mask"  # a constant that some programs save, infinite where nothing may be looked at
_BESIDE = (bool, int, float, str, bytes, np.generic, type(None))  # what may stand beside tensors and is left out

Rules = Sequence[tuple[re.Pattern[str], str]]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a PyTorch file (tensors only, no code), all numbers finite.

    Args:
        path: the file; in a training checkpoint the tensors may be in one of the usual places (`WRAPPERS`).

    Raises:
        WeightsError: missing, damaged, made of Python objects, no dictionary of tensors, or with numbers that are none.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"the weights {path} do not exist; give the path of the checkpoint as published")
    try:
        document = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except WeightsError:
        raise
    except Exception as error:  # of a damaged file, PyTorch raises nearly everything
        found = _GLOBAL.search(str(error))
        why = (
            f"it holds Python objects ({found[1]}), {_ONLY_TENSORS}" if found else "damaged or no weights file; fetch it again"
        )
        raise WeightsError(f"cannot read weights from {path}: {why}") from error
    state = unwrapped(document)
    if not isinstance(state, dict):
        raise WeightsError(f"{path} is no dictionary of tensors but a {type(state).__name__}; give the checkpoint as published")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, (Tensor, *_BESIDE)):
            raise WeightsError(
                f"{path} is no dictionary of tensors: under {name!r} is a {type(value).__name__}; give the checkpoint as "
                f"published, or put its tensors under '{WRAPPERS[0]}'"
            )
    return finished(from_eight_bits({name: value for name, value in state.items() if isinstance(value, Tensor)}, path), path)


def unwrapped(document: object) -> object:
    """What a training checkpoint has in the usual places for weights, or else the document itself."""
    for _ in range(3):  # a dictionary in a pickle may hold itself
        names = WRAPPERS if isinstance(document, dict) else ()
        inside = next((document[name] for name in names if isinstance(document.get(name), dict)), None)  # type: ignore[attr-defined, index]
        if inside is None:
            break
        document = inside
    return document


def finished(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors as read, under the names that the model gave them; every reader ends here.

    Args:
        state: name -> tensor.
        path: where they were read.

    Raises:
        WeightsError: there are none, or one is not a plain array of finite numbers.
    """
    if not state:
        raise WeightsError(f"{path} is no dictionary of tensors: it has none; give the checkpoint as published")
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise WeightsError(f"{path}: {name} is sparse, quantised, complex or without numbers; save it as a plain tensor")
        if tensor.untyped_storage().nbytes() < tensor.nbytes:  # a few bytes that say they are terabytes
            raise WeightsError(f"{path}: {name} is {tuple(tensor.shape)} but holds fewer numbers; save its contiguous form")
        if not name.endswith(_MASK) and not _finite(tensor):
            raise WeightsError(
                f"{path}: {name} has numbers that are infinite or not a number, so nothing would be found with these weights; "
                "fetch the file again, or take an earlier checkpoint of that training"
            )
    return state


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; where their sum is, they are, and a sum is many times faster to have."""
    if not tensor.is_floating_point():
        return True
    if tensor.itemsize < 2:  # PyTorch cannot add these
        tensor = tensor.float()
    return bool(tensor.sum(dtype=torch.float32 if tensor.itemsize < 4 else tensor.dtype).isfinite() or tensor.isfinite().all())


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(len(_BEFORE_ZIP))
    if start.startswith(_PICKLE) and start != _BEFORE_ZIP:
        raise WeightsError(f"cannot read weights from {path}: it is a bare pickle, {_ONLY_TENSORS}")
    if is_zipfile(path):
        with ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise WeightsError(
                    f"cannot read weights from {path}: it is a TorchScript archive, which is a program, and no code of a file "
                    "is run here; where you trust it, save torch.jit.load(file).state_dict() with torch.save"
                )
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
