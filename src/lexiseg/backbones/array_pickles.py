"""Safe reading of pickled NumPy arrays, the format of detectron2's published weights.

A pickle can call any function by its name. Here the few names that arrays need are replaced by methods that only record their
arguments, every other name is refused, and the arrays are built from the recorded bytes afterwards.
"""

from __future__ import annotations

import mmap
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lexiseg.backbones.pickles import ForeignNameError, check_pickle
from lexiseg.backbones.state_dicts import check_sizes, finished, unwrapped
from lexiseg.errors import WeightsError
from lexiseg.ops.files import is_file

_KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}  # NumPy's codes of the allowed dtypes
_NAMES = re.compile(
    r"numpy (ndarray|dtype)|numpy\.(_core|core)\.(multiarray (_reconstruct|scalar)|numeric _frombuffer)"
    r"|_codecs encode|collections OrderedDict"
)
_DAMAGED = (  # what the unpickler raises on damaged data
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    TypeError,
    OverflowError,
    MemoryError,
)


def read_arrays(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a pickled dictionary of arrays, in their own dtypes; all values must be finite.

    Args:
        path: the file.

    Raises:
        WeightsError: missing, damaged, with other Python objects, not a dictionary of arrays, or with non-finite values.
    """
    path = Path(path)
    if not is_file(path):
        raise WeightsError(f"the weights {path} do not exist; give the path of the checkpoint as published")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            check_pickle(content, _NAMES)
            content.seek(0)
            document = _ArrayUnpickler(content, encoding="latin1").load()
        arrays = unwrapped(document)
        if not isinstance(arrays, dict) or not arrays or not all(isinstance(value, _Array) for value in arrays.values()):
            raise WeightsError(f"{path} is no dictionary of arrays; give the checkpoint as published")
        check_sizes((len(array.data) for array in arrays.values()), path)
        return finished({str(name): array.tensor() for name, array in arrays.items()}, path)
    except ForeignNameError as error:
        raise WeightsError(
            f"cannot read weights from {path}: it holds Python objects ({error}), and no code of a file is run here; where you "
            "trust it, unpickle it and save its tensors alone, with safetensors or torch.save"
        ) from error
    except _DAMAGED as error:
        raise WeightsError(f"cannot read weights from {path}: damaged or no pickle of arrays; fetch it again") from error


@dataclass
class _Kind:
    """Recorded dtype."""

    code: str
    order: str = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        if self.code not in _KINDS or self.order not in {"<", ">", "=", "|"}:
            raise ValueError(f"no number type {self.order}{self.code}")
        return np.dtype(self.order + self.code)


@dataclass
class _Array:
    """Recorded array: dtype, shape and bytes, and whether it is in Fortran order."""

    kind: _Kind | None = None
    shape: tuple[int, ...] = ()
    data: bytes | bytearray | str = b""
    fortran: bool = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, self.fortran, self.data = state

    def tensor(self) -> Tensor:
        if not isinstance(self.kind, _Kind):
            raise ValueError("an array without a number type")
        kind = self.kind.dtype()
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data  # as Python 2 wrote bytes
        numbers = np.frombuffer(data, kind)
        shaped = numbers.reshape(self.shape, order="F" if self.fortran else "C")
        return torch.from_numpy(np.array(shaped, kind.newbyteorder("="), order="C"))


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of dictionaries, lists, strings, numbers, and records of arrays.

    Names resolve to methods, strings and built-in types only, whose attributes a pickle cannot set.
    """

    def find_class(self, module: str, name: str) -> Any:
        match module.replace("numpy.core", "numpy._core"), name:  # before NumPy 2 and since
            case "numpy", "ndarray":
                return name
            case "numpy", "dtype":
                return self._kind
            case "numpy._core.multiarray", "_reconstruct":
                return self._array
            case "numpy._core.multiarray", "scalar":
                return self._scalar
            case "numpy._core.numeric", "_frombuffer":
                return self._from_buffer
            case "_codecs", "encode":
                return self._encode
            case "collections", "OrderedDict":
                return dict
        raise ForeignNameError(f"{module}.{name}")

    def _kind(self, code: str, *_: object) -> _Kind:
        return _Kind(code)

    def _array(self, *_: object) -> _Array:
        return _Array()

    def _scalar(self, kind: _Kind, data: bytes) -> _Array:
        return _Array(kind, (), data)

    def _from_buffer(self, data: bytes, kind: _Kind, shape: tuple[int, ...], order: str, *_: object) -> _Array:
        if order not in {"C", "F"}:
            raise ValueError(f"an array in order {order}")
        return _Array(kind, shape, data, fortran=order == "F")

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise ValueError(f"bytes written as {encoding}")
        return text.encode(encoding)
