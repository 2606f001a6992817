"""Write recorded cases as ``X.packed`` (`tests/parity/packed.py`), and find the recipes of their random numbers.

    python -m tools.pack_parity FOLDER/X.safetensors --output tests/parity/data --seeds 136 137 --noise 137 --length 11000000

The seeds of what is there: catseg_clip_dense 1, 123; sam_tiny 3, 21; maskclip_first_blocks 9, 31; 04_frozenseg_transformer_decoder
31, 32, 41 (noise 32); 05_frozenseg_full_rn_weights 136, 137 (noise 137); 05_fcclip_full_convnext_weights 212, 213 (noise 213);
sam_hq_tiny 0. The other files have none.

Weights of these cases are what a constructor draws (uniform, normal or constant) plus, drawn later in one go, normal noise; inputs
are normal. A place in a generator's stream shows itself in the first numbers of a tensor: of normals the angles do, whatever their
deviation. What lies between tensors that were found is looked for at their ends. Every file is read again and compared bit for bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity.packed import Array, drawn, normals, pack, stream, unpack

LEAST, SHOWN, WITHIN = 64, 8, 1e-3  # numbers of a tensor worth a recipe; numbers compared, and how closely
ENOUGH = 4096  # numbers to see noise in what else was drawn


class Streams:
    """The streams of some seeds, sorted to be searched."""

    def __init__(self, seeds: list[int], length: int) -> None:
        self.length = length
        self.numbers = {seed: stream(seed, length) for seed in seeds}
        self.sorted = {seed: np.argsort(numbers) for seed, numbers in self.numbers.items()}

    def find(self, shown: Array) -> Iterator[tuple[int, int]]:
        """(seed, place) of some numbers that follow each other."""
        for seed, order in self.sorted.items():
            numbers = self.numbers[seed]
            first, last = np.searchsorted(numbers, [shown[0] - WITHIN, shown[0] + WITHIN], sorter=order)
            places = order[first:last]
            places = places[places < self.length - SHOWN]
            difference = np.abs(numbers[places[:, None] + np.arange(SHOWN)] - shown)
            for place in places[(np.minimum(difference, 1 - difference) < WITHIN).all(1)]:
                yield seed, int(place)


def extent(count: int) -> int:
    """How many numbers of the stream so many normals use."""
    return count if count % 16 == 0 else count + 16


def deviations(shape: tuple[int, ...]) -> list[float]:
    fan = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
    return [0.1, 1.0, 0.02, 0.01, 0.05, 0.2, 0.3, 0.5, *(factor * fan**-0.5 for factor in (0.4, 0.5, 1.0))]


def bounds(shape: tuple[int, ...]) -> list[float]:
    """Of PyTorch's default, of Xavier's, and of a bias, which knows not how many inputs there were."""
    if len(shape) == 1:
        return [inputs**-0.5 for inputs in (8, 16, 27, 32, 48, 64, 72, 96, 128, 144, 256, 288, 512, 576, 768, 1024, 2048)]
    inner = int(np.prod(shape[2:]))
    return [(shape[1] * inner) ** -0.5, (6 / ((shape[0] + shape[1]) * inner)) ** 0.5, (shape[0] * inner) ** -0.5] + [
        (6 / ((shape[0] / parts + shape[1]) * inner)) ** 0.5 for parts in (3,)
    ] + [(3 / (shape[1] * inner)) ** 0.5, shape[1] ** -0.5, shape[1] ** -0.5 * 3**0.5]  # fmt: skip


def hits(values: Array, recipe: Mapping[str, Any]) -> float:
    """The share of numbers that a recipe gives to about the last bits."""
    found = drawn(recipe, values.size)
    close = 2.0**-10 if values.dtype == np.float16 else 2.0**-20
    return float((np.abs(found - values.reshape(-1).astype(np.float32)) < close * (np.abs(found) + 0.05)).mean())


def start(rest: Array, shape: tuple[int, ...], streams: Streams) -> Iterator[dict[str, Any]]:
    """What may have been drawn where the noise has been taken away."""
    if rest.std() < 2e-3 * max(abs(rest.mean()), 0.05):
        yield {"constant": round(float(rest.mean()), 3)} if abs(rest.mean()) > 1e-3 else {}
        return
    for bound in bounds(shape):
        if 0.9 * bound < np.abs(rest).max() < 1.01 * bound:
            for seed, place in streams.find((rest[:SHOWN] / bound + 1) / 2):
                if place + rest.size <= streams.length:
                    yield {"uniform": [seed, place, bound]}
    yield from ({"start": found} for found in _normal(rest, shape, streams))


def _normal(rest: Array, shape: tuple[int, ...], streams: Streams) -> Iterator[list[Any]]:
    angles = np.arctan2(rest[8:16], rest[:8]) / (2 * np.pi) % 1
    for seed, place in streams.find(angles):
        if place < 8 or place - 8 + extent(rest.size) > streams.length:
            continue
        standard = normals(streams.numbers[seed][place - 8 :], rest.size)
        fitted = float(rest @ standard / (standard @ standard))
        for deviation in sorted({*deviations(shape), fitted, round(fitted, 3), round(fitted, 4)}):
            if abs(deviation / fitted - 1) < 5e-3:
                yield [seed, place - 8, deviation]


def recipes_of(tensors: Mapping[str, Tensor], streams: Streams, noise: list[int]) -> dict[str, dict[str, Any]]:
    """A recipe for every tensor that has one."""
    values = {
        name: tensor.numpy()
        for name, tensor in tensors.items()
        if tensor.dtype in {torch.float32, torch.float16} and tensor.numel() >= LEAST and tensor.float().std() > 0
    }
    found: dict[str, dict[str, Any]] = {}

    def keep(name: str, candidates: Iterator[dict[str, Any]]) -> bool:
        rated = [(hits(values[name], one | {"length": streams.length}), one) for one in candidates]
        best = max(rated, key=lambda pair: pair[0], default=(0.0, {}))
        if best[0] > 0.9:
            found[name] = best[1] | {"length": streams.length}
        return best[0] > 0.9

    for name, array in values.items():
        flat = array.reshape(-1).astype(np.float64)
        for constant in (0.0, 1.0):
            added = {"constant": constant} if constant else {}
            if keep(name, (added | {"normal": one} for one in _normal(flat - constant, array.shape, streams))):
                break
    for name in values.keys() - found.keys():
        keep(name, start(values[name].reshape(-1).astype(np.float64), values[name].shape, streams))
    if not noise:
        return found
    places = {  # where a tensor's noise begins, and whether its own part is known, too
        name: one["normal"][:2] for name, one in found.items() if "normal" in one and one["normal"][0] in noise
    }
    grown = True
    while grown:
        grown = False
        ends = {(seed, place + extent(values[name].size)) for name, (seed, place) in places.items()} | {
            (seed, 0) for seed in noise
        }
        starts = {(seed, place) for seed, place in places.values()}
        ends, starts = ends - starts, starts - ends  # the borders of what is not yet found
        for name in values.keys() - places.keys():
            size, best = values[name].size, (0.0, (0, 0))
            flat = values[name].reshape(-1)[: size if size % 16 else min(size, ENOUGH)].astype(np.float64)
            for seed, place in ends | {(seed, place - extent(size)) for seed, place in starts}:
                if 0 <= place <= streams.length - extent(size):
                    standard = normals(streams.numbers[seed][place:], flat.size)
                    best = max(best, (float(np.corrcoef(flat, standard)[0, 1]), (seed, place)))
            if best[0] * flat.size**0.5 > 7:
                places[name], grown = list(best[1]), True
    for name, (seed, place) in places.items():
        if name in found:
            continue
        array = values[name]
        flat, standard = array.reshape(-1).astype(np.float64), normals(streams.numbers[seed][place:], array.size)
        fitted = float(np.cov(flat, standard)[0, 1])
        for deviation in sorted(deviations(array.shape), key=lambda one: abs(one / fitted - 1))[:3]:
            rest = flat - deviation * standard
            if keep(name, (one | {"normal": [seed, place, deviation]} for one in start(rest, array.shape, streams))):
                break
    print(f"  noise of {len(places)}", flush=True)
    for name in places.keys() - found.keys():
        print("  no start:", name, values[name].shape)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="of generators to look through")
    parser.add_argument(
        "--noise", type=int, nargs="*", default=[], help="those of them that made noise, added to what was drawn before"
    )
    parser.add_argument("--length", type=int, default=2_000_000, help="how many numbers of each")
    arguments = parser.parse_args()
    streams = Streams(arguments.seeds, arguments.length)
    for file in arguments.files:
        tensors = load_file(file)
        recipes = recipes_of(tensors, streams, arguments.noise)
        for one in recipes.values():  # no longer than needed
            one.pop("length")
        length = max(
            [
                0,
                *(
                    one[kind][1] + extent(tensors[name].numel())
                    for name, one in recipes.items()
                    for kind in one
                    if kind != "constant"
                ),
            ]
        )
        data = pack(tensors, {name: one | {"length": length} for name, one in recipes.items()})
        for name, tensor in unpack(data).items():
            assert (tensor.dtype, tensor.shape) == (tensors[name].dtype, tensors[name].shape), name
            assert tensor.numpy().tobytes() == tensors[name].numpy().tobytes(), name
        (arguments.output / f"{file.stem}.packed").write_bytes(data)
        numbers = sum(tensors[name].numel() for name in recipes), sum(tensor.numel() for tensor in tensors.values())
        print(
            f"{file.stem}: {file.stat().st_size} → {len(data)} bytes; recipes of {len(recipes)} tensors, {numbers[0]} of {numbers[1]} numbers"
        )


if __name__ == "__main__":
    main()
