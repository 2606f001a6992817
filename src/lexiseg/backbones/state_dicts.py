"""Official state dictionaries: reading them without running anything, and rules from their names to ours and back."""

from __future__ import annotations

import re
import reprlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lexiseg.backbones.eight_bits import from_eight_bits
from lexiseg.backbones.pickles import ForeignNameError, check_pickle
from lexiseg.errors import WeightsError

# How files begin: a pickle, the first of the pickles in a file of an old PyTorch, a zip archive of PyTorch.
_PICKLE, _BEFORE_ZIP, _ZIP = b"\x80", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"PK\x03\x04"
_ONLY_TENSORS = (
    "and no code of a file is run here; where you trust it, unpickle it and save its tensors alone, "
    "with safetensors or torch.save"
)
# What a file of PyTorch may name. PyTorch allows more by itself, such as ``bytearray`` and ``torch.FloatTensor``, which make
# gigabytes of a single number.
_NAMES = re.compile(
    r"torch\._utils _rebuild_(tensor(_v2|_v3)?|parameter|sparse_tensor|qtensor|meta_tensor_no_storage)"
    r"|torch(\.cuda)? [A-Z]\w*Storage|torch\.storage UntypedStorage|torch [a-z]\w*|torch Size"
    r"|torch\.serialization _get_layout"
    r"|collections (OrderedDict|Counter)|(builtins|__builtin__) (set|complex)|_codecs encode"
    r"|numpy dtype|numpy\.(_core|core)\.multiarray scalar"
)
# Numbers that training programs leave beside the tensors, and their types; the last name is that before NumPy 2.
_NUMBERS = ("numpy.dtype", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
_LONGEST = 500  # characters of a parameter's name
_TIMES = 4  # how much larger than their file tensors may be together: a few may be the same numbers under two names
WRAPPERS = ("model", "state_dict", "model_state_dict", "ema")  # where training programs put the weights, the first one first
_PREFIXES = ("module.", "_orig_mod.")  # of models that PyTorch wrapped, to share them out or to compile them
_MASK = "attn_mask"  # a constant that some programs save, infinite where nothing may be looked at
_DTYPES = {
    torch.bool,
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
}

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
    except ForeignNameError as error:
        raise WeightsError(f"cannot read weights from {path}: it holds Python objects ({error}), {_ONLY_TENSORS}") from error
    except Exception as error:  # of a damaged file, PyTorch raises nearly everything
        raise WeightsError(f"cannot read weights from {path}: damaged or no weights file; fetch it again") from error
    state = unwrapped(document)
    if not isinstance(state, dict):
        raise WeightsError(f"{path} is no dictionary of tensors but a {type(state).__name__}; give the checkpoint as published")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, (Tensor, *_BESIDE)):
            raise WeightsError(
                f"{path} is no dictionary of tensors: under {reprlib.repr(name)} is a {type(value).__name__}; give the "
                f"checkpoint as published, or put its tensors under '{WRAPPERS[0]}'"
            )
    return finished({name: value for name, value in state.items() if isinstance(value, Tensor)}, path)


def has_names(path: Path, beginning: str) -> bool:
    """Whether a safetensors file has tensors whose names begin so; False of files that are damaged or of another kind."""
    try:
        with safe_open(path, "pt") as opened:
            return any(name.startswith(beginning) for name in opened.keys())  # noqa: SIM118, it is no dictionary
    except (OSError, SafetensorError):
        return False


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
    for name, tensor in state.items():
        if len(name) > _LONGEST or not name.isprintable():
            raise WeightsError(f"{path}: {reprlib.repr(name)} is no name of a parameter; give the checkpoint as published")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
            raise WeightsError(f"{path}: {name} is sparse, quantised, complex or without numbers; save it as a plain tensor")
        if tensor.untyped_storage().nbytes() < tensor.nbytes:  # a few bytes that say they are terabytes
            raise WeightsError(f"{path}: {name} is {tuple(tensor.shape)} but holds fewer numbers; save its contiguous form")
    check_sizes((tensor.nbytes for tensor in state.values()), path)
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    state = from_eight_bits(state, path)
    for name, tensor in state.items():
        if not name.endswith(_MASK) and not _finite(tensor):
            raise WeightsError(
                f"{path}: {name} has numbers that are infinite or not a number, so nothing would be found with these weights; "
                "fetch the file again, or take an earlier checkpoint of that training"
            )
    return state


def check_sizes(sizes: Iterable[int], path: Path) -> None:
    """Refuse weights that would need much more memory than their file, because many of them are the same bytes of it.

    Args:
        sizes: bytes of each.
        path: the file.

    Raises:
        WeightsError: together they are more than `_TIMES` the size of the file.
    """
    if sum(sizes) > _TIMES * path.stat().st_size:
        raise WeightsError(f"{path}: its tensors are many times larger than the file; save each of them as a tensor of its own")


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; where their sum is, they are, and a sum is many times faster to have."""
    if not tensor.is_floating_point():
        return True
    if tensor.itemsize < 2:  # PyTorch cannot add these
        tensor = tensor.float()
    return bool(tensor.sum(dtype=torch.float32 if tensor.itemsize < 4 else tensor.dtype).isfinite() or tensor.isfinite().all())


class _Number:
    """Stands for a number of NumPy or its type, which training programs leave beside the tensors."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_BESIDE = (bool, int, float, str, bytes, type(None), _Number)  # what may stand beside tensors and is left out


def _load(path: Path) -> Any:
    """What is in a file of PyTorch, which is looked at first."""
    with path.open("rb") as file:
        if file.read(len(_BEFORE_ZIP)) == _BEFORE_ZIP:
            for _ in range(4):  # the version, the machine, the tensors, the keys of their numbers
                check_pickle(file, _NAMES)
        else:
            file.seek(0)
            _check_archive(file, path)
    numbers: list[Any] = [(_Number, name) for name in _NUMBERS]
    with torch.serialization.safe_globals(numbers), warnings.catch_warnings(action="ignore"):  # of protocols, of sparse tensors
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(file: IO[bytes], path: Path) -> None:
    """That a file is an archive as `torch.save` writes it, of tensors and nothing else."""
    start = file.read(len(_ZIP))
    if start.startswith(_PICKLE):
        raise WeightsError(f"cannot read weights from {path}: it is a bare pickle, {_ONLY_TENSORS}")
    if start != _ZIP:
        raise BadZipFile("neither of an old nor of a new PyTorch")
    with ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any(name.endswith("/constants.pkl") for name in names):
            raise WeightsError(
                f"cannot read weights from {path}: it is a TorchScript archive, which is a program, and no code of a file "
                "is run here; where you trust it, save torch.jit.load(file).state_dict() with torch.save"
            )
        if len(set(names)) < len(names) or any(member.compress_type != ZIP_STORED for member in members):
            raise WeightsError(
                f"cannot read weights from {path}: its parts are compressed or called the same, which torch.save never does; "
                "fetch it again, or save it with torch.save"
            )
        for name in names:
            if name.endswith(".pkl"):
                with archive.open(name) as pickled:
                    check_pickle(pickled, _NAMES)


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
