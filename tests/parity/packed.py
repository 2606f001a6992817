"""Recorded tensors in less room, bit for bit: ``X.packed`` instead of ``X.safetensors``.

Most weights and inputs of the small official models are random numbers that ``torch.randn`` and ``Tensor.uniform_`` drew from a
generator with a small seed. Both are defined by the outputs of the Mersenne Twister, which NumPy promises to keep
(``RandomState``), so that these numbers are computed again here, without torch: a recipe says seed and place in the stream.
What a recipe does not hit to the last bit, and what has none, is kept: the difference of the bits, compressed byte by byte.
`tools/pack_parity.py` finds recipes and writes the files.

A file is one xz stream: the length of a JSON header in 8 bytes, the header, the bytes of all tensors in turn.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
BLOCK = 16  # torch draws normals in blocks, half of it radii, half angles


@lru_cache(maxsize=4)
def stream(seed: int, length: int) -> Array:
    """The first numbers in [0, 1) of torch's generator on the CPU, float32: the lower 24 bits of the twister's outputs."""
    raw = np.random.RandomState(seed).randint(0, 1 << 32, length, dtype=np.uint32)
    return (raw & 0xFFFFFF).astype(np.float32) / np.float32(1 << 24)


def normals(uniform: Array, count: int) -> Array:
    """What ``torch.randn`` makes of the numbers at hand [count, and 16 more if it is no multiple of 16], float32."""
    found = np.empty(count, np.float32)
    whole = count // BLOCK * BLOCK
    found[:whole] = _blocks(uniform[:whole])
    if whole < count:  # the last block is drawn anew
        found[-BLOCK:] = _blocks(uniform[count : count + BLOCK])
    return found


def _blocks(uniform: Array) -> Array:
    """Box and Muller's transform within blocks, rounded to float32 where torch rounds; its functions in double precision."""
    first, second = np.moveaxis(uniform.reshape(-1, 2, BLOCK // 2), 1, 0)
    logarithm = np.log((1 - first).astype(np.float64)).astype(np.float32)
    radius, angle = np.sqrt(np.float32(-2) * logarithm), (np.float32(2 * np.pi) * second).astype(np.float64)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    return (radius[:, None] * circle).reshape(-1)


def drawn(recipe: Mapping[str, Any], count: int) -> Array:
    """What a recipe says, float32 as torch computes it.

    The sum of what is named: ``uniform``: [seed, place, bound], between -bound and bound; ``normal``: [seed, place, deviation];
    ``start``: as ``normal``, of what had noise added later; ``constant``.
    """
    found = np.full(count, recipe.get("constant", 0), np.float32)
    if "uniform" in recipe:
        seed, place, bound = recipe["uniform"]
        found += stream(seed, recipe["length"])[place : place + count] * np.float32(2 * bound) - np.float32(bound)
    for kind in sorted(recipe.keys() & {"normal", "start"}, reverse=True):
        seed, place, deviation = recipe[kind]
        found += normals(stream(seed, recipe["length"])[place:], count) * np.float32(deviation)
    return found


def pack(tensors: Mapping[str, Tensor], recipes: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The file of some tensors, those with a recipe as differences from it."""
    header, planes = [], []
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[0] in recipes, item[1].element_size(), item[0])):
        values = np.ascontiguousarray(tensor.numpy())
        entry: dict[str, Any] = {"name": name, "dtype": values.dtype.str, "shape": list(tensor.shape)}
        bits = values.reshape(-1).view(BITS[values.itemsize])
        if name in recipes:
            entry["recipe"] = dict(recipes[name])
            bits = bits - drawn(entry["recipe"], len(bits)).astype(values.dtype).view(bits.dtype)
            shift = 8 * values.itemsize - 1
            bits = (bits << 1) ^ np.where(
                bits >> shift, np.array(-1).astype(bits.dtype), bits.dtype.type(0)
            )  # small ones small
        header.append(entry)
        planes.append(np.frombuffer(bits.tobytes(), np.uint8).reshape(-1, values.itemsize).T.tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    return lzma.compress(len(text).to_bytes(8, "little") + text + b"".join(planes), preset=9 | lzma.PRESET_EXTREME)


def unpack(data: bytes) -> dict[str, Tensor]:
    """The tensors of a file."""
    data = lzma.decompress(data)
    length = int.from_bytes(data[:8], "little")
    position, tensors = 8 + length, {}
    for entry in json.loads(data[8 : 8 + length]):
        dtype = np.dtype(entry["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        planes = np.frombuffer(data, np.uint8, count * dtype.itemsize, position).reshape(dtype.itemsize, count)
        position += count * dtype.itemsize
        bits = np.frombuffer(planes.T.tobytes(), BITS[dtype.itemsize])
        if "recipe" in entry:
            bits = (bits >> 1) ^ np.where(bits & 1, np.array(-1).astype(bits.dtype), bits.dtype.type(0))
            bits = bits + drawn(entry["recipe"], count).astype(dtype).view(bits.dtype)
        tensors[entry["name"]] = torch.from_numpy(bits.view(dtype).reshape(entry["shape"]).copy())
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))  # as safetensors returns them
