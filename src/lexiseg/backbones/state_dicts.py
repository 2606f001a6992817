"""Official state dictionaries: safe reading, and renaming of keys by rules in both directions."""

from __future__ import annotations

import re
import reprlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
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
from lexiseg.ops.files import is_file

# First bytes of files: a pickle, the first pickle in a file of old PyTorch, a zip archive of PyTorch.
_PICKLE, _BEFORE_ZIP, _ZIP = b"\x80", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"PK\x03\x04"
_ONLY_TENSORS = (
    "and no code of a file is run here; where you trust it, unpickle it and save its tensors alone, "
    "with safetensors or torch.save"
)
# Names allowed in a file of PyTorch. PyTorch itself allows more, such as ``bytearray`` and ``torch.FloatTensor``, which can
# allocate gigabytes from a single number.
_NAMES = re.compile(
    r"torch\._utils _rebuild_(tensor(_v2|_v3)?|parameter|sparse_tensor|qtensor|meta_tensor_no_storage)"
    r"|torch(\.cuda)? [A-Z]\w*Storage|torch\.storage UntypedStorage|torch [a-z]\w*|torch Size"
    r"|torch\.serialization _get_layout"
    r"|collections (OrderedDict|Counter)|(builtins|__builtin__) (set|complex)|_codecs encode"
    r"|numpy dtype|numpy\.(_core|core)\.multiarray scalar"
)
# Numbers that training programs save beside the tensors, and their types; the last name is that before NumPy 2.
_NUMBERS = ("numpy.dtype", "numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
_LONGEST = 500  # characters of a parameter's name
_TIMES = 4  # maximum total size of tensors, in sizes of their file: some tensors are saved under two names
WRAPPERS = ("model", "state_dict", "model_state_dict", "ema")  # keys of the weights in training checkpoints, in this order
_PREFIXES = ("module.", "_orig_mod.")  # of models wrapped by DistributedDataParallel or torch.compile
_MASK = "attn_mask"  # a buffer that some programs save, infinite where attention is not allowed
_DTYPES = {
    torch.bool,
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
}

Rules = Sequence[tuple[re.Pattern[str], str]]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or PyTorch file without running code; all values must be finite.

    Args:
        path: the file; in a training checkpoint the tensors may be under one of the keys `WRAPPERS`.

    Raises:
        WeightsError: missing, damaged, with Python objects, not a dictionary of tensors, or with non-finite values.
    """
    path = Path(path)
    if not is_file(path):
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
    """Whether a safetensors file has a key with this prefix; False for damaged files and other formats."""
    try:
        with safe_open(path, "pt") as opened:
            return any(name.startswith(beginning) for name in opened.keys())  # noqa: SIM118, it is no dictionary
    except (OSError, SafetensorError):
        return False


def unwrapped(document: object) -> object:
    """Return the content of a training checkpoint under the keys `WRAPPERS`, or else the document itself."""
    for _ in range(3):  # a dictionary in a pickle may contain itself
        names = WRAPPERS if isinstance(document, dict) else ()
        inside = next((document[name] for name in names if isinstance(document.get(name), dict)), None)  # type: ignore[attr-defined, index]
        if inside is None:
            break
        document = inside
    return document


def finished(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Validate tensors, strip prefixes of wrapped models and dequantise; the last step of every reader.

    Args:
        state: name -> tensor.
        path: the file, for messages and its size.

    Raises:
        WeightsError: no tensors, or one that is not a dense array of finite numbers.
    """
    if not state:
        raise WeightsError(f"{path} is no dictionary of tensors: it has none; give the checkpoint as published")
    for name, tensor in state.items():
        if len(name) > _LONGEST or not name.isprintable():
            raise WeightsError(f"{path}: {reprlib.repr(name)} is no name of a parameter; give the checkpoint as published")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
            raise WeightsError(f"{path}: {name} is sparse, quantised, complex or without numbers; save it as a plain tensor")
        if tensor.untyped_storage().nbytes() < tensor.nbytes:  # such as a few bytes with a shape of terabytes
            raise WeightsError(f"{path}: {name} is {tuple(tensor.shape)} but holds fewer numbers; save its contiguous form")
    check_sizes((tensor.nbytes for tensor in state.values()), path)
    while prefix := next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    state = from_eight_bits(state, path)
    for name, tensor in state.items():
        if not name.endswith(_MASK) and not _finite(tensor):
            raise WeightsError(
                f"{path}: {name} has numbers that are infinite or not a number; fetch the file again, or use an earlier "
                "checkpoint of that training"
            )
    return state


def check_sizes(sizes: Iterable[int], path: Path) -> None:
    """Refuse weights that need much more memory than their file, as many tensors with the same storage do.

    Args:
        sizes: size of each tensor in bytes.
        path: the file.

    Raises:
        WeightsError: the total is more than `_TIMES` the size of the file.
    """
    if sum(sizes) > _TIMES * path.stat().st_size:
        raise WeightsError(f"{path}: its tensors are many times larger than the file; save each of them as a tensor of its own")


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite; a finite sum, which is much faster to compute, implies it."""
    if not tensor.is_floating_point():
        return True
    if tensor.itemsize < 2:  # PyTorch cannot add these
        tensor = tensor.float()
    return bool(tensor.sum(dtype=torch.float32 if tensor.itemsize < 4 else tensor.dtype).isfinite() or tensor.isfinite().all())


class _Number:
    """Placeholder for NumPy numbers and their types, which training programs save beside the tensors."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_BESIDE = (bool, int, float, str, bytes, type(None), _Number)  # allowed beside tensors, and ignored


def _load(path: Path) -> Any:
    """Check and load a file of PyTorch."""
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
    """Check that a file is an archive of tensors only, as written by `torch.save`."""
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
    """Compile prefix rules (official, ours) to patterns of side ``source`` (0 or 1) and replacements; ``<n>`` is any index."""
    return [
        (re.compile(re.escape(rule[source]).replace("<n>", r"(\d+)")), rule[1 - source].replace("<n>", r"\1")) for rule in rules
    ]


def rename_all(keys: Iterable[str], rules: Rules, side: str) -> dict[str, str]:
    """Map keys to new names by the first rule whose pattern matches their beginning.

    Args:
        keys: keys to rename.
        rules: output of `compiled`.
        side: description of the expected keys in messages.

    Raises:
        WeightsError: keys without a rule.
    """
    names = {key: _renamed(key, rules) for key in keys}
    unknown = sorted(key for key, name in names.items() if name is None)
    if unknown:
        raise WeightsError(f"{len(unknown)} keys are none of {side}: {some(unknown)}; is this another model's checkpoint?")
    return {key: name for key, name in names.items() if name is not None}


def within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose keys begin with ``prefix``, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def some(keys: Sequence[str]) -> str:
    """Format the first few keys and the number of the others."""
    return ", ".join(keys[:4]) + (f", … ({len(keys) - 4} more)" if len(keys) > 4 else "")


def _renamed(key: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        match = pattern.match(key)
        if match:
            return match.expand(replacement) + key[match.end() :]
    return None
