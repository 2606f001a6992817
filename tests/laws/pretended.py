"""A GPU that is not there: tensors that say they are on "cuda:0", do not mix with the CPU's, and are computed on the CPU.

So it is found without a GPU what only a GPU would complain of: tensors and generators of two devices, ``.numpy()`` of what is
not on the CPU. `PretendedGpu.waits` counts, line by line, where a real GPU would have to be waited for.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

Part = TypeVar("Part", bound=nn.Module)

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
BETWEEN = {"aten::_to_copy", "aten::copy_"}  # have to do with two devices
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}  # of a GPU's tensor by the CPU's
STRICT = {"aten::cat", "aten::stack", "aten::mm", "aten::bmm", "aten::addmm", "aten::index_select", "aten::gather"}  # no scalar
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}


class OnGpu(Tensor):
    """A tensor that claims to be on the GPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=GPU
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"OnGpu({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    """While it lasts there is a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # so that nobody looks for a driver
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> Self:
        torch._C._ensureCUDADeviceGuardSet()  # of no effect where there is a GPU
        self._cudnn, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
        self._attention = sdpa_kernel(SDPBackend.MATH)  # where there is a GPU, PyTorch would choose a kernel of its own
        self._attention.__enter__()
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        torch.backends.cudnn.enabled = self._cudnn
        self._attention.__exit__(None, None, None)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if _waits(name, args, kwargs or {}):
            self.waits[_line()] += 1
        return _computed(func, args, kwargs or {})


def on_gpu(module: Part) -> Part:
    """A module with its parameters and buffers there, in place; what is shared stays so."""
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                there = moved.setdefault(id(parameter), nn.Parameter(OnGpu(parameter.detach()), parameter.requires_grad))
                part._parameters[name] = there  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = moved.setdefault(id(buffer), OnGpu(buffer))
    return module


def _line() -> str:
    """The line of the package that is being carried out."""
    frame: Any = sys._getframe()
    while frame is not None and "/lexiseg/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{frame.f_code.co_filename.split('/lexiseg/')[-1]}:{frame.f_lineno}"


def _waits(name: str, args: Any, kwargs: Any) -> bool:
    leaves = tree_leaves((args, kwargs))
    if not any(isinstance(leaf, OnGpu) for leaf in leaves):
        return False
    if name in BETWEEN:
        target = kwargs.get("device") if name == "aten::_to_copy" else args[0].device
        return target is not None and torch.device(target).type == "cpu"
    by_mask = name in INDEXED and any(isinstance(leaf, OnGpu) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))
    return name in WAITING or by_mask


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    name, leaves = func._schema.name, tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    device = kwargs.get("device")
    to_gpu = bool(there) if device is None else torch.device(device).type == "cuda"
    if name not in BETWEEN:
        _check(name, tensors, there, args)
    generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
    if to_gpu and any(generator.device.type == "cpu" for generator in generators):
        raise RuntimeError(f"{name}: expected a generator of the GPU, but found one of the CPU")
    if name == "aten::copy_":
        to_gpu = isinstance(args[0], OnGpu)
    own = {**kwargs, "device": CPU} if device is not None else kwargs
    plain_args, plain_kwargs = tree_map(_inner, (args, own))
    found = func(*plain_args, **plain_kwargs)
    if to_gpu:
        found = tree_map(_outer, found)
    if there and to_gpu and name != "aten::_to_copy":
        return return_and_correct_aliasing(func, args, kwargs, found)
    return found


def _outer(value: Any) -> Any:
    return OnGpu(value) if isinstance(value, Tensor) and not isinstance(value, OnGpu) else value


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnGpu) else value


def _check(name: str, tensors: list[Tensor], there: list[Tensor], args: Any) -> None:
    if not there:
        return
    if name in INDEXED and isinstance(args[0], OnGpu):
        values = args[2:] if name != "aten::index" else ()
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and (tensor.dim() > 0 or name in STRICT)]
    if here:
        raise RuntimeError(
            f"{name}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu"
        )
