"""Scenes with exact panoptic ground truth, composed from glyphs and textures; a scene is a function of its seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lexiseg.errors import UsageError
from lexiseg.world import textures
from lexiseg.world.glyphs import sprites, styles, world_classes
from lexiseg.world.restyle import Restyle

OBJECT_SCALE = (0.12, 0.5)  # longer side of an object as a fraction of the scene's side, log-uniform
MAX_OBJECTS = 7
HIDE_LIMIT = 0.5  # a new object may hide at most this fraction of the visible part of any other


@dataclass(frozen=True)
class SceneSegment:
    """One region of the ground truth: its id in the panoptic map, its label, and its drawing style (None for stuff)."""

    id: int
    label: int
    style: str | None


@dataclass(frozen=True)
class Scene:
    """``image`` [H, W, 3] uint8 RGB; ``panoptic`` [H, W] int32, every pixel the id of one of ``segments``."""

    image: NDArray[np.uint8]
    panoptic: NDArray[np.int32]
    segments: tuple[SceneSegment, ...]

    def semantic(self) -> NDArray[np.int32]:
        """Return the label map [H, W]."""
        table = np.zeros(max(segment.id for segment in self.segments) + 1, np.int32)
        for segment in self.segments:
            table[segment.id] = segment.label
        return table[self.panoptic]


@dataclass(frozen=True)
class Split:
    """Contents of a split.

    Attributes:
        styles: each one of `styles`, or the path of an atlas.
        seen_only: use seen classes only.
        things: labels of the things to use, such as `drawn` returns for an incomplete atlas; None for all. Stuff is not
            limited by it.
    """

    styles: tuple[str, ...]
    seen_only: bool
    things: tuple[int, ...] | None = None


def splits() -> dict[str, Split]:
    """Return ``train`` (trained styles, seen names), ``val`` (trained styles, all names), ``style`` (held-out style, all)."""
    *trained, held_out = styles()
    return {
        "train": Split(tuple(trained), seen_only=True),
        "val": Split(tuple(trained), seen_only=False),
        "style": Split((held_out,), seen_only=False),
    }


def split_named(name: str) -> Split:
    """Return the split called ``name``.

    Raises:
        UsageError: there is no such split.
    """
    try:
        return splits()[name]
    except KeyError:
        raise UsageError(f"unknown split '{name}'; the emoji world has {', '.join(splits())}") from None


def scenes(split: str, count: int, *, seed: int = 0, size: int = 256, first: int = 0) -> Iterator[Scene]:
    """Yield scenes ``first`` … ``first + count - 1`` of a split; scene *i* does not depend on the range."""
    allowed = split_named(split)
    for index in range(first, first + count):
        yield render((seed, crc32(split.encode()), index), allowed, size=size)


def render(
    seed: Sequence[int],
    split: Split,
    *,
    size: int = 256,
    objects: int | None = None,
    scale: tuple[float, float] = OBJECT_SCALE,
    restyle: Restyle | None = None,
) -> Scene:
    """Compose one scene.

    Args:
        seed: the same seed and arguments give the same scene.
        split: the styles and classes to use.
        size: side in pixels.
        objects: number of things to try; None: 2 to 7 at random.
        scale: range of a thing's longer side as a fraction of ``size``; log-uniform.
        restyle: varies each drawing before it is posed, such as `restyled`.

    Raises:
        UsageError: the split allows no thing.
    """
    rng = np.random.default_rng(tuple(seed))
    things, stuff = _labels(split.seen_only, split.things)
    image, panoptic, segments = _background(rng, stuff, size)
    for _ in range(int(rng.integers(2, MAX_OBJECTS + 1)) if objects is None else objects):
        label, style = things[int(rng.integers(len(things)))], split.styles[int(rng.integers(len(split.styles)))]
        fraction = float(np.exp(rng.uniform(*np.log(scale))))
        drawing = sprites(style)[label] if restyle is None else restyle(rng, sprites(style)[label])
        sprite = _posed(rng, drawing, max(8, round(fraction * size)))
        corner = _place(rng, sprite, panoptic, stuff=sum(segment.style is None for segment in segments))
        if corner is None:
            continue
        segments.append(SceneSegment(len(segments) + 1, label, style))
        _paste(rng, image, panoptic, sprite, corner, segments[-1].id)
    _light(rng, image)
    visible = np.bincount(panoptic.ravel(), minlength=len(segments) + 1)
    return Scene(
        np.clip(image, 0, 255).astype(np.uint8), panoptic, tuple(segment for segment in segments if visible[segment.id])
    )


# --- the steps of a scene ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _labels(seen_only: bool, chosen: tuple[int, ...] | None) -> tuple[list[int], list[int]]:
    """Return the allowed labels: (things, stuff)."""
    allowed = [(label, row.thing) for label, row in enumerate(world_classes()) if row.seen or not seen_only]
    things = [label for label, thing in allowed if thing and (chosen is None or label in chosen)]
    if not things:
        raise UsageError("the split allows no thing; give labels of things, and of seen ones with seen_only")
    return things, [label for label, thing in allowed if not thing]


def _background(
    rng: np.random.Generator, stuff: list[int], size: int
) -> tuple[NDArray[np.float32], NDArray[np.int32], list[SceneSegment]]:
    """Draw one to three stuff regions, divided by wavy horizontal or vertical borders."""
    regions = int(rng.choice((1, 2, 3), p=(0.35, 0.45, 0.20)))
    chosen = rng.choice(stuff, regions, replace=False)
    along = np.linspace(0, 1, size, dtype=np.float32)
    panoptic = np.ones((size, size), np.int32)
    for border in range(1, regions):
        wave = sum(rng.uniform(-1, 1) / k * np.sin(2 * np.pi * (k * along + rng.uniform())) for k in (1, 2, 3, 5))
        height = (
            border / regions + rng.uniform(-0.12, 0.12) + rng.uniform(0, 0.06) * wave + rng.uniform(-0.2, 0.2) * (along - 0.5)
        ) * size
        panoptic += np.arange(size)[:, None] >= height[None, :]
    if rng.random() < 0.25:
        panoptic = np.ascontiguousarray(panoptic.T)
    first_stuff = sum(row.thing for row in world_classes())
    image = np.empty((size, size, 3), np.float32)
    for number, label in enumerate(chosen, start=1):
        piece = _cut(rng, textures.tile(int(label) - first_stuff, int(rng.integers(textures.VARIANTS))), size)
        if regions == 1:
            image[:] = piece
        else:
            np.copyto(image, piece, where=(panoptic == number)[..., None])
    return image, panoptic, [SceneSegment(number, int(label), None) for number, label in enumerate(chosen, start=1)]


def _cut(rng: np.random.Generator, tile: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return a random crop of a texture tile, flipped at random and resized to ``size`` pixels."""
    side = int(textures.SIZE * rng.uniform(0.45, 0.95))
    top, left = (int(value) for value in rng.integers(0, textures.SIZE - side + 1, 2))
    box = (left, top, left + side, top + side)
    piece = np.asarray(Image.fromarray(tile).resize((size, size), Image.Resampling.BILINEAR, box))
    return piece[:, ::-1] if rng.random() < 0.5 else piece


def _posed(rng: np.random.Generator, sprite: Image.Image, longer: int) -> NDArray[np.float32]:
    """Scale, stretch, flip, rotate and light a sprite at random: [h, w, 4], colours 0..255, alpha 0..1."""
    wide, high = longer * rng.uniform(0.88, 1.0), longer * rng.uniform(0.88, 1.0)
    drawn = sprite.resize((max(4, round(wide)), max(4, round(high))), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = rng.uniform(-60, 60) if rng.random() < 0.2 else rng.normal(0, 12)
    drawn = drawn.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    drawn = drawn.crop(drawn.getchannel("A").getbbox())
    array = np.asarray(drawn, np.float32).copy()
    array[..., 3] /= 255
    array[..., :3] *= rng.uniform(0.78, 1.12)
    return array


def _place(
    rng: np.random.Generator, sprite: NDArray[np.floating[Any]], panoptic: NDArray[np.int32], stuff: int
) -> tuple[int, int] | None:
    """Return a corner (top, left) where the sprite keeps to `HIDE_LIMIT`; None if a few tries give none."""
    size, (high, wide) = panoptic.shape[0], sprite.shape[:2]
    counts = np.bincount(panoptic.ravel())
    for _ in range(6):
        top = int(rng.integers(-high // 5, max(1, size - high + high // 5)))
        left = int(rng.integers(-wide // 5, max(1, size - wide + wide // 5)))
        (y0, y1, x0, x1), piece = _window(sprite, (top, left), size)
        hidden = np.bincount(panoptic[y0:y1, x0:x1][piece[..., 3] > 0.5], minlength=len(counts))
        if hidden.any() and np.all(hidden[stuff + 1 :] <= HIDE_LIMIT * counts[stuff + 1 :]):
            return top, left
    return None


def _window(
    sprite: NDArray[np.floating[Any]], corner: tuple[int, int], size: int
) -> tuple[tuple[int, int, int, int], NDArray[np.floating[Any]]]:
    """Crop a sprite to the scene: ((top, bottom, left, right) in the scene, the cropped sprite)."""
    (top, left), (high, wide) = corner, sprite.shape[:2]
    y0, y1, x0, x1 = max(0, top), min(size, top + high), max(0, left), min(size, left + wide)
    return (y0, y1, x0, x1), sprite[y0 - top : y1 - top, x0 - left : x1 - left]


def _paste(
    rng: np.random.Generator,
    image: NDArray[np.float32],
    panoptic: NDArray[np.int32],
    sprite: NDArray[np.floating[Any]],
    corner: tuple[int, int],
    number: int,
) -> None:
    """Draw the sprite with a soft shadow; pixels with alpha above one half become segment ``number``."""
    size = panoptic.shape[0]
    if rng.random() < 0.6:
        offset = max(1, round(0.05 * max(sprite.shape[:2])))
        alpha = Image.fromarray((sprite[..., 3] * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(offset))
        (y0, y1, x0, x1), shade = _window(
            np.asarray(alpha, np.float32)[..., None] / 255, (corner[0] + offset, corner[1] + offset), size
        )
        image[y0:y1, x0:x1] *= 1 - rng.uniform(0.2, 0.45) * shade
    (y0, y1, x0, x1), piece = _window(sprite, corner, size)
    target = image[y0:y1, x0:x1]
    target += (piece[..., :3] - target) * piece[..., 3:]
    panoptic[y0:y1, x0:x1][piece[..., 3] > 0.5] = number


def _light(rng: np.random.Generator, image: NDArray[np.float32]) -> None:
    """Add light from one side, a colour temperature and sensor noise, in place."""
    size = image.shape[0]
    slope = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    across, down = rng.uniform(-0.3, 0.3, 2).astype(np.float32)
    warmth = np.float32(rng.uniform(-0.06, 0.06))
    gain = np.float32(rng.uniform(0.82, 1.12)) * (1 + down * slope[:, None] + across * slope[None, :])
    image *= gain[..., None] * np.array((1 + warmth, 1, 1 - warmth), np.float32)
    strength = np.float32(rng.uniform(0, 6))
    top, left = rng.integers(0, 256, 2)
    image += strength * _grain(-(-(size + 256) // 512))[top : top + size, left : left + size]


@lru_cache(maxsize=1)
def _grain(repeats: int) -> NDArray[np.float32]:
    grain = np.random.default_rng(11).standard_normal((512, 512, 1)).astype(np.float32)
    return np.tile(grain, (repeats, repeats, 1))
