"""A picture with its regions tinted, outlined and named, and a legend of the classes below."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lexiseg.structures import Segment
from lexiseg.visualise.palette import Colour, class_colour

TINT = 0.45  # share of the colour in a region
LEAST_SIDE = 480  # pixels; smaller pictures are enlarged so that the names can be read


def overlay(image: NDArray[np.uint8], segments: Sequence[Segment], masks: NDArray[np.bool_]) -> Image.Image:
    """Draw segments on ``image`` [H, W, 3] uint8; ``masks`` [N, H, W] bool, the best segment on top."""
    height, width = image.shape[:2]
    ids = np.zeros((height, width), np.int32)
    for number in range(len(segments), 0, -1):
        ids[masks[number - 1]] = number
    zoom = max(1, -(-LEAST_SIDE // max(height, width)))
    ids = ids.repeat(zoom, 0).repeat(zoom, 1)
    large = Image.fromarray(image).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
    canvas = np.asarray(large).astype(np.float32)
    colours = _colours(segments)
    table = np.array([(0, 0, 0), *colours], np.float32)
    amount = np.where(ids > 0, np.float32(TINT), np.float32(0))[..., None]
    canvas += (table[ids] - canvas) * amount
    canvas[_outline(ids)] = 255
    drawn = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    for number, segment in enumerate(segments, start=1):
        _write_name(drawn, ids == number, segment.name, colours[number - 1])
    legend = _legend(segments, colours, drawn.width)
    whole = Image.new("RGB", (drawn.width, drawn.height + legend.height), "white")
    whole.paste(drawn, (0, 0))
    whole.paste(legend, (0, drawn.height))
    return whole


def _colours(segments: Sequence[Segment]) -> list[Colour]:
    seen: dict[int, int] = {}
    colours = []
    for segment in segments:
        shade = seen.get(segment.label, 0)
        seen[segment.label] = shade + 1
        colours.append(class_colour(segment.label, shade))
    return colours


def _outline(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    edge = np.zeros(ids.shape, bool)
    edge[:-1] |= ids[:-1] != ids[1:]
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    return edge


def _write_name(canvas: Image.Image, region: NDArray[np.bool_], name: str, colour: Colour) -> None:
    """The name in a small plate at the middle of the region's widest place."""
    rows = region.sum(1)
    if rows.max(initial=0) < 12:
        return
    wide = np.flatnonzero(rows >= 0.8 * rows.max())
    row = int(wide[len(wide) // 2])
    columns = np.flatnonzero(region[row])
    draw, font = ImageDraw.Draw(canvas), typeface(13)
    name = name if len(name) <= 24 else name[:23] + "…"
    left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
    x = min(max(2, int(columns.mean()) - (right - left) // 2), max(2, canvas.width - (right - left) - 6))
    y = min(max(2, row - (bottom - top) // 2), max(2, canvas.height - (bottom - top) - 6))
    draw.rounded_rectangle((x - 3, y - 2, x + right - left + 3, y + bottom - top + 4), 3, fill=_dark(colour))
    draw.text((x - left, y - top), name, fill="white", font=font)


def _legend(segments: Sequence[Segment], colours: Sequence[Colour], width: int) -> Image.Image:
    """Rows of swatches: each class that occurs, how many segments it has, and the share of their area."""
    entries: dict[str, tuple[Colour, int, int]] = {}
    for segment, colour in zip(segments, colours, strict=True):
        first, count, area = entries.get(segment.name, (colour, 0, 0))
        entries[segment.name] = (first, count + 1, area + segment.area)
    font, line = typeface(13), 22
    columns = max(1, width // 190)
    canvas = Image.new("RGB", (width, 8 + line * max(1, -(-len(entries) // columns))), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (name, (colour, count, _)) in enumerate(sorted(entries.items(), key=lambda entry: -entry[1][2])):
        x, y = 6 + number % columns * (width // columns), 5 + number // columns * line
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=colour, outline="black")
        draw.text(
            (x + 20, y + 1),
            (name if len(name) <= 20 else name[:19] + "…") + (f" ({count})" if count > 1 else ""),
            fill="black",
            font=font,
        )
    if not entries:
        draw.text((6, 6), "nothing named", fill="black", font=font)
    return canvas


def _dark(colour: Colour) -> Colour:
    red, green, blue = (round(value * 0.45) for value in colour)
    return red, green, blue


@lru_cache(maxsize=4)
def typeface(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
