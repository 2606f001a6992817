"""Procedural stuff: each texture is a function of a random generator and a size, with values [H, W, 3] in 0..1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating[Any]]
Painter = Callable[[np.random.Generator, int], Array]

SIZE = 384  # pixels of a tile's side; scenes crop it
VARIANTS = 6  # tiles per texture, each with its own colours and random numbers


@dataclass(frozen=True)
class Texture:
    name: str
    synonyms: tuple[str, ...]
    paint: Painter


@cache
def tile(index: int, variant: int) -> NDArray[np.uint8]:
    """Return tile ``variant`` of texture ``index``: [SIZE, SIZE, 3] uint8, deterministic and cached."""
    rng = np.random.default_rng((7, index, variant))
    return (np.clip(TEXTURES[index].paint(rng, SIZE), 0, 1) * 255).astype(np.uint8)


# --- bricks of all textures -------------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, size: int, cells: tuple[float, float] | float, octaves: int = 4) -> Array:
    """Return smooth fractal noise in 0..1; ``cells`` is the number of blobs along (height, width)."""
    high, wide = cells if isinstance(cells, tuple) else (cells, cells)
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        grid = (max(2, round(high * 2**octave)), max(2, round(wide * 2**octave)))
        if max(grid) > size:
            break
        values = Image.fromarray(rng.random(grid, dtype=np.float32))
        total += np.asarray(values.resize((size, size), Image.Resampling.BICUBIC)) / 2**octave
    low, high_value = total.min(), total.max()
    return (total - low) / (high_value - low + 1e-6)


def _blend(first: object, second: object, amount: Array) -> Array:
    """Interpolate from colour ``first`` to ``second`` (RGB triples or images) by ``amount`` in 0..1."""
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return a + (b - a) * amount[..., None]


def _jitter(rng: np.random.Generator, colour: tuple[float, float, float], spread: float = 0.08) -> Array:
    return np.clip(np.asarray(colour, np.float32) + rng.uniform(-spread, spread, 3).astype(np.float32), 0, 1)


def _axes(size: int) -> tuple[Array, Array]:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    return y, x


def _cells(rng: np.random.Generator, size: int, count: int) -> tuple[Array, NDArray[np.intp]]:
    """Return Voronoi cells of ``count``² jittered points: (distance to the cell's border, cell index)."""
    grid = (
        np.moveaxis(np.mgrid[0 : count + 2, 0 : count + 2], 0, -1) - 0.5 + rng.uniform(-0.42, 0.42, (count + 2, count + 2, 2))
    ) / count
    y, x = _axes(size)
    row, column = (y * count).astype(int) + 1, (x * count).astype(int) + 1
    best = np.full((size, size), 9.0, np.float32)
    second = best.copy()
    winner = np.zeros((size, size), np.intp)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = np.clip(row + down, 0, count + 1), np.clip(column + right, 0, count + 1)
            distance = np.hypot(y - grid[r, c, 0], x - grid[r, c, 1]).astype(np.float32) * count
            closer = distance < best
            second = np.where(closer, best, np.minimum(second, distance))
            winner = np.where(closer, r * (count + 2) + c, winner)
            best = np.where(closer, distance, best)
    return second - best, winner


def _speckle(rng: np.random.Generator, size: int, strength: float) -> Array:
    return (1 + strength * rng.standard_normal((size, size, 1))).astype(np.float32)


# --- the textures -----------------------------------------------------------------------------------------------------


def _grass(rng: np.random.Generator, size: int) -> Array:
    blades = _noise(rng, size, (14, 60), 3)
    return _blend(_jitter(rng, (0.10, 0.36, 0.08)), _jitter(rng, (0.42, 0.72, 0.22)), blades) * _speckle(rng, size, 0.06)


def _sky(rng: np.random.Generator, size: int) -> Array:
    y, _ = _axes(size)
    return _blend(_jitter(rng, (0.25, 0.52, 0.95), 0.05), _jitter(rng, (0.72, 0.87, 1.0), 0.04), y)


def _clouds(rng: np.random.Generator, size: int) -> Array:
    puffs = np.clip((_noise(rng, size, (5, 3), 5) - 0.42) * 4, 0, 1)
    return _blend(_jitter(rng, (0.30, 0.58, 0.93), 0.05), (0.98, 0.98, 1.0), puffs)


def _starry_sky(rng: np.random.Generator, size: int) -> Array:
    image = _blend((0.01, 0.01, 0.06), _jitter(rng, (0.12, 0.08, 0.28), 0.05), _noise(rng, size, 3, 3))
    stars = rng.random((size, size)) > 0.9965
    stars[1:] |= stars[:-1] & (rng.random((size - 1, size)) > 0.5)
    image[stars] = rng.uniform(0.6, 1.0, (int(stars.sum()), 1))
    return image


def _sunset(rng: np.random.Generator, size: int) -> Array:
    y, _ = _axes(size)
    bend = np.clip(y + 0.12 * (_noise(rng, size, (6, 2), 4) - 0.5), 0, 1)
    low = _blend(_jitter(rng, (0.28, 0.20, 0.42), 0.05), _jitter(rng, (0.95, 0.40, 0.22), 0.05), np.clip(bend * 2, 0, 1))
    return _blend(low, _jitter(rng, (1.0, 0.80, 0.40), 0.05), np.clip(bend * 2 - 1, 0, 1))


def _water(rng: np.random.Generator, size: int) -> Array:
    y, x = _axes(size)
    wave = np.sin((y * rng.uniform(16, 26) + 0.9 * _noise(rng, size, 4, 2) + 0.25 * np.sin(x * 9)) * 2 * np.pi)
    return _blend(_jitter(rng, (0.03, 0.26, 0.48), 0.05), _jitter(rng, (0.25, 0.60, 0.78), 0.06), (wave * 0.5 + 0.5) ** 2)


def _sand(rng: np.random.Generator, size: int) -> Array:
    y, _ = _axes(size)
    ripple = np.sin((y * rng.uniform(8, 14) + 1.2 * _noise(rng, size, 3, 3)) * 2 * np.pi) * 0.5 + 0.5
    return _blend(_jitter(rng, (0.76, 0.64, 0.40), 0.05), _jitter(rng, (0.94, 0.86, 0.62), 0.04), ripple) * _speckle(
        rng, size, 0.05
    )


def _snow(rng: np.random.Generator, size: int) -> Array:
    image = _blend(_jitter(rng, (0.80, 0.87, 0.96), 0.03), (1.0, 1.0, 1.0), _noise(rng, size, 4, 4))
    image[rng.random((size, size)) > 0.997] = 1.0
    return image * _speckle(rng, size, 0.012)


def _courses(size: int, rows: int, aspect: float, gap: float) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """A running bond of ``rows`` courses: (is mortar, number of the brick)."""
    y, x = _axes(size)
    row = np.floor(y * rows)
    across = x * rows / aspect + 0.5 * (row % 2)
    inside_y, inside_x = y * rows % 1, across % 1
    mortar = (inside_y < gap) | (inside_x < gap / aspect)
    return mortar, (row * 97 + np.floor(across) * 13).astype(np.intp) % 997


def _brick_wall(rng: np.random.Generator, size: int) -> Array:
    mortar, number = _courses(size, int(rng.integers(12, 20)), 2.4, 0.14)
    shade = rng.uniform(0.72, 1.12, 997).astype(np.float32)[number]
    image = _jitter(rng, (0.66, 0.27, 0.19), 0.06) * shade[..., None] * (0.85 + 0.3 * _noise(rng, size, 24, 2)[..., None])
    image[mortar] = _jitter(rng, (0.74, 0.69, 0.63), 0.06)
    return image


def _stone_wall(rng: np.random.Generator, size: int) -> Array:
    border, number = _cells(rng, size, int(rng.integers(7, 11)))
    shade = rng.uniform(0.40, 0.72, number.max() + 1).astype(np.float32)[number] + 0.14 * (_noise(rng, size, 30, 2) - 0.5)
    image = shade[..., None] * _jitter(rng, (1.0, 0.98, 0.95), 0.03)
    image[border < 0.09] = (0.19, 0.18, 0.17)
    return image


def _wooden_floor(rng: np.random.Generator, size: int) -> Array:
    mortar, number = _courses(size, int(rng.integers(7, 11)), 5.0, 0.05)
    shade = rng.uniform(0.78, 1.12, 997).astype(np.float32)[number]
    grain = 0.78 + 0.35 * _noise(rng, size, (90, 4), 2)
    image = _jitter(rng, (0.56, 0.36, 0.20), 0.09) * (shade * grain)[..., None]
    image[mortar] *= 0.45
    return image


def _tiles(rng: np.random.Generator, size: int) -> Array:
    y, x = _axes(size)
    count = int(rng.integers(6, 10))
    joint = (y * count % 1 < 0.05) | (x * count % 1 < 0.05)
    shade = rng.uniform(0.90, 1.04, (count, count)).astype(np.float32)[(y * count).astype(int), (x * count).astype(int)]
    image = _jitter(rng, (0.86, 0.90, 0.92), 0.07) * shade[..., None]
    image[joint] = (0.55, 0.56, 0.58)
    return image


def _checkered_cloth(rng: np.random.Generator, size: int) -> Array:
    y, x = _axes(size)
    count = int(rng.integers(8, 13))
    amount = 0.5 * ((np.floor(y * 2 * count) % 2) + (np.floor(x * 2 * count) % 2))
    colour = _jitter(rng, ((0.84, 0.12, 0.14), (0.16, 0.30, 0.72), (0.12, 0.50, 0.26))[int(rng.integers(3))], 0.06)
    return _blend((0.98, 0.97, 0.95), colour, amount.astype(np.float32)) * _speckle(rng, size, 0.03)


def _soil(rng: np.random.Generator, size: int) -> Array:
    clods = 0.6 * _noise(rng, size, 10, 5) + 0.4 * _noise(rng, size, 70, 2)
    return _blend(_jitter(rng, (0.20, 0.12, 0.06), 0.03), _jitter(rng, (0.48, 0.32, 0.19), 0.05), clods)


def _gravel(rng: np.random.Generator, size: int) -> Array:
    border, number = _cells(rng, size, int(rng.integers(24, 34)))
    shade = rng.uniform(0.35, 0.92, number.max() + 1).astype(np.float32)[number]
    image = shade[..., None] * _jitter(rng, (0.95, 0.93, 0.90), 0.04)
    return image * np.clip(border * 3.5, 0.25, 1)[..., None]


def _road(rng: np.random.Generator, size: int) -> Array:
    y, x = _axes(size)
    image = _jitter(rng, (0.27, 0.28, 0.30), 0.03) * np.ones((size, size, 1), np.float32) * _speckle(rng, size, 0.14)
    lanes = int(rng.integers(3, 5))
    dash = (np.abs(y * lanes % 1 - 0.5) < 0.035) & (x * 4 % 1 < 0.6)
    image[dash] = (0.93, 0.92, 0.86)
    return image


def _leaves(rng: np.random.Generator, size: int) -> Array:
    border, number = _cells(rng, size, int(rng.integers(15, 22)))
    shade = rng.uniform(0, 1, number.max() + 1).astype(np.float32)[number]
    image = _blend(_jitter(rng, (0.04, 0.22, 0.06), 0.03), _jitter(rng, (0.22, 0.55, 0.14), 0.05), shade)
    return image * np.clip(0.25 + border * 2.2, 0, 1.1)[..., None]


def _lava(rng: np.random.Generator, size: int) -> Array:
    vein = 1 - np.abs(2 * _noise(rng, size, 4, 5) - 1)
    heat = np.clip((vein - 0.72) * 4.5, 0, 1)
    glow = _blend((0.85, 0.16, 0.02), (1.0, 0.86, 0.28), heat)
    return _blend(_jitter(rng, (0.10, 0.05, 0.05), 0.02), glow, np.clip((vein - 0.62) * 6, 0, 1))


def _metal(rng: np.random.Generator, size: int) -> Array:
    brush = _noise(rng, size, (180, 3), 1)
    sheen = _noise(rng, size, (2, 2), 2)
    return _jitter(rng, (0.70, 0.71, 0.74), 0.03) * (0.72 + 0.22 * brush + 0.28 * sheen)[..., None]


def _marble(rng: np.random.Generator, size: int) -> Array:
    vein = np.abs(2 * _noise(rng, size, 3, 5) - 1)
    amount = np.clip(vein * 7, 0, 1) ** 0.7
    return _blend(_jitter(rng, (0.48, 0.52, 0.52), 0.05), _jitter(rng, (0.95, 0.95, 0.93), 0.03), amount)


def _striped_carpet(rng: np.random.Generator, size: int) -> Array:
    y, _ = _axes(size)
    palette = np.clip(rng.uniform(0.1, 0.9, (4, 3)), 0, 1).astype(np.float32)
    band = (np.floor(y * int(rng.integers(12, 20)))).astype(int)
    return palette[rng.permutation(64)[band % 64] % 4] * _speckle(rng, size, 0.10)


def _polka_dots(rng: np.random.Generator, size: int) -> Array:
    y, x = _axes(size)
    count = int(rng.integers(8, 13))
    row = np.floor(y * count)
    dot = np.hypot(y * count % 1 - 0.5, (x * count + 0.5 * (row % 2)) % 1 - 0.5) < 0.26
    return np.where(dot[..., None], np.float32(0.98), np.clip(rng.uniform(0.35, 0.9, 3), 0, 1).astype(np.float32))


def _straw(rng: np.random.Generator, size: int) -> Array:
    first, second = _noise(rng, size, (100, 5), 2), _noise(rng, size, (70, 9), 2)
    return _blend(_jitter(rng, (0.50, 0.36, 0.10), 0.04), _jitter(rng, (0.96, 0.82, 0.42), 0.04), 0.5 * (first + second))


def _concrete(rng: np.random.Generator, size: int) -> Array:
    y, x = _axes(size)
    image = (
        _jitter(rng, (0.62, 0.62, 0.60), 0.04) * (0.86 + 0.2 * _noise(rng, size, 5, 5))[..., None] * _speckle(rng, size, 0.03)
    )
    image[(np.abs(y * 2 % 1 - 0.5) < 0.006) | (np.abs(x * 2 % 1 - 0.5) < 0.006)] *= 0.55
    return image


def _wicker(rng: np.random.Generator, size: int) -> Array:
    y, x = _axes(size)
    count = int(rng.integers(14, 20))
    over = (np.floor(y * count) + np.floor(x * count)) % 2
    along = np.where(over > 0, y * count % 1, x * count % 1)
    return _jitter(rng, (0.74, 0.52, 0.28), 0.05) * (0.35 + 0.75 * np.sin(along * np.pi))[..., None].astype(np.float32)


TEXTURES: tuple[Texture, ...] = (
    Texture("grass", ("lawn", "meadow"), _grass),
    Texture("sky", ("blue sky",), _sky),
    Texture("clouds", ("cloudy sky",), _clouds),
    Texture("starry sky", ("night sky",), _starry_sky),
    Texture("sunset", ("evening sky",), _sunset),
    Texture("water", ("sea", "ocean"), _water),
    Texture("sand", ("beach sand", "dune"), _sand),
    Texture("snow", ("snowfield",), _snow),
    Texture("brick wall", ("bricks",), _brick_wall),
    Texture("stone wall", ("cobblestone",), _stone_wall),
    Texture("wooden floor", ("planks", "parquet"), _wooden_floor),
    Texture("tiles", ("tiled floor",), _tiles),
    Texture("checkered cloth", ("tablecloth", "gingham"), _checkered_cloth),
    Texture("soil", ("dirt", "earth"), _soil),
    Texture("gravel", ("pebbles",), _gravel),
    Texture("road", ("asphalt", "street"), _road),
    Texture("leaves", ("foliage", "hedge"), _leaves),
    Texture("lava", ("magma",), _lava),
    Texture("brushed metal", ("steel plate",), _metal),
    Texture("marble", ("marble slab",), _marble),
    Texture("striped carpet", ("stripes",), _striped_carpet),
    Texture("polka dots", ("dotted wallpaper",), _polka_dots),
    Texture("straw", ("hay", "thatch"), _straw),
    Texture("concrete", ("cement",), _concrete),
    Texture("wicker", ("woven mat",), _wicker),
)
