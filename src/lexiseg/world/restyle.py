"""Random restyling of drawings, an augmentation of the emoji world.

A model trained on two drawings per class learns these two drawings. Emoji sets differ in palette, outlines, shading and
proportions; each of these is varied on its own, so that the shape remains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from lexiseg.world import textures

KEPT = 0.2  # probability that a drawing stays as it is
MARGIN = 6  # pixels around a sprite, for outlines and for bent shapes

Restyle = Callable[[np.random.Generator, Image.Image], Image.Image]


def restyled(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """Vary a drawing at random.

    Args:
        rng: the random generator.
        sprite: RGBA, as in `sprites`.

    Returns:
        RGBA, cropped to the visible pixels.
    """
    if rng.random() < KEPT:
        return sprite
    varied = Image.new("RGBA", (sprite.width + 2 * MARGIN, sprite.height + 2 * MARGIN))
    varied.paste(sprite, (MARGIN, MARGIN))
    for step, probability in STEPS:
        if rng.random() < probability:
            varied = step(rng, varied)
    box = varied.getchannel("A").getbbox()
    return varied.crop(box) if box else sprite


def bent(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """Change proportions: move the nodes of a 3 × 3 mesh by up to a tenth of the side."""
    wide, high = sprite.size
    cells = 3
    moved = rng.uniform(-0.1, 0.1, (cells + 1, cells + 1, 2)) * (wide, high)
    xs, ys = np.linspace(0, wide, cells + 1), np.linspace(0, high, cells + 1)
    nodes = np.stack(np.meshgrid(xs, ys), axis=-1) + moved
    mesh = []
    for row in range(cells):
        for column in range(cells):
            box = (round(xs[column]), round(ys[row]), round(xs[column + 1]), round(ys[row + 1]))
            if box[0] == box[2] or box[1] == box[3]:  # a sprite of one or two pixels
                continue
            corners = (nodes[row, column], nodes[row + 1, column], nodes[row + 1, column + 1], nodes[row, column + 1])
            mesh.append((box, tuple(float(value) for corner in corners for value in corner)))
    return sprite.transform(sprite.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def repainted(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """Change the palette: quantise to a few colours, shift all together and each by a little more."""
    colours = sprite.convert("RGB").quantize(int(rng.integers(5, 24)), Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = np.asarray(colours.getpalette(), dtype=np.float32).reshape(-1, 3) / np.float32(255)
    own = rng.normal(0, 1, (len(palette), 3)).astype(np.float32)
    turn = rng.uniform(-np.pi, np.pi) if rng.random() < 0.25 else rng.normal(0, 0.25)
    turned = _turned(palette, turn + 0.15 * own[:, :1])
    grey = turned.mean(1, keepdims=True)
    vivid = grey + (turned - grey) * rng.uniform(0.3, 1.5)
    painted = 0.5 + (vivid - 0.5) * rng.uniform(0.6, 1.2) + 0.07 * own + rng.normal(0, 0.06)
    colours.putpalette((painted.clip(0, 1) * 255).astype(np.uint8).ravel().tolist())
    return _with_colours(sprite, colours.convert("RGB"))


def outlined(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """Draw a dark, or at times light, line around the thing, and along inner edges."""
    shade = float(rng.uniform(0, 70) if rng.random() < 0.8 else rng.uniform(190, 255))
    ink = tuple(int(value) for value in np.clip(shade + rng.normal(0, 12, 3), 0, 255))
    if rng.random() < 0.6:
        edges = sprite.convert("L").filter(ImageFilter.FIND_EDGES).point(lambda value: min(255, 4 * value))
        if rng.random() < 0.5:
            edges = edges.filter(ImageFilter.MaxFilter(3))
        drawn = sprite.convert("RGB")
        drawn.paste(ink, mask=edges.point(lambda value: int(0.8 * value)))
        sprite = _with_colours(sprite, drawn)
    alpha = sprite.getchannel("A")
    line = Image.new("RGBA", sprite.size, (*ink, 255))
    line.putalpha(alpha.filter(ImageFilter.MaxFilter(int(rng.choice((3, 5, 7))))))
    line.alpha_composite(sprite)
    return line


def shaded(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """Multiply by a linear or radial gradient of brightness and tint."""
    wide, high = sprite.size
    y, x = np.mgrid[0:high, 0:wide].astype(np.float32)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        along = (np.cos(angle) * (x / wide - 0.5) + np.sin(angle) * (y / high - 0.5)) * 2
    else:
        along = 1 - np.hypot(x / wide - rng.uniform(0.2, 0.8), y / high - rng.uniform(0.2, 0.8)) * 2
    gain = 1 + np.float32(rng.uniform(-0.45, 0.45)) * along
    tint = rng.normal(0, 0.12, 3).astype(np.float32)
    return _multiplied(sprite, gain[..., None] * (1 + tint * along[..., None]))


def textured(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """Multiply by the brightness of a random stuff texture."""
    piece = textures.tile(int(rng.integers(len(textures.TEXTURES))), int(rng.integers(textures.VARIANTS)))
    top, left = rng.integers(0, textures.SIZE - max(sprite.size), 2)
    grain = piece[top : top + sprite.height, left : left + sprite.width].mean(-1) / 255
    return _multiplied(sprite, (1 + rng.uniform(0.2, 0.7) * (grain - grain.mean()))[..., None])


def blurred(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """Blur the colours inside the outline."""
    drawn = sprite.convert("RGB")
    if rng.random() < 0.5:
        return _with_colours(sprite, drawn.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.0)))))
    return _with_colours(sprite, drawn.filter(ImageFilter.MedianFilter(int(rng.choice((3, 5))))))


def drawn_in_lines(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """Draw edges on a light ground with faded colours."""
    edges = sprite.convert("L").filter(ImageFilter.FIND_EDGES).point(lambda value: min(255, 5 * value))
    ground = Image.blend(sprite.convert("RGB"), Image.new("RGB", sprite.size, (245, 245, 240)), float(rng.uniform(0.5, 0.95)))
    return outlined(rng, _with_colours(sprite, ImageChops.subtract(ground, edges.convert("RGB"))))


STEPS: tuple[tuple[Restyle, float], ...] = (
    (bent, 0.6),
    (repainted, 0.5),
    (textured, 0.15),
    (shaded, 0.35),
    (blurred, 0.15),
    (drawn_in_lines, 0.06),
    (outlined, 0.25),
)


def _with_colours(sprite: Image.Image, colours: Image.Image) -> Image.Image:
    """Return ``colours`` with the alpha channel of ``sprite``."""
    drawn = colours.convert("RGBA")
    drawn.putalpha(sprite.getchannel("A"))
    return drawn


def _multiplied(sprite: Image.Image, gain: NDArray[np.floating[Any]]) -> Image.Image:
    """Multiply the colours by ``gain`` [H, W, 1 or 3]."""
    values = np.asarray(sprite.convert("RGB"), np.float32) * gain
    return _with_colours(sprite, Image.fromarray(values.clip(0, 255).astype(np.uint8)))


def _turned(colours: NDArray[np.floating[Any]], angle: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Rotate colours [N, 3] about the grey axis by one angle, or by an angle each [N, 1], in radians."""
    cos, sin = np.cos(angle), np.sin(angle) / 3**0.5
    third = (1 - cos) / 3
    red, green, blue = colours[:, :1], colours[:, 1:2], colours[:, 2:]
    turned = [
        (cos + third) * a + (third - sin) * b + (third + sin) * c
        for a, b, c in ((red, green, blue), (green, blue, red), (blue, red, green))
    ]
    return np.concatenate(turned, axis=1)
