"""Overlay: the picture with its regions tinted, outlined and named, and a legend of the classes below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lexiseg.ops.packed import Masks, painted
from lexiseg.structures import Segment
from lexiseg.visualise.lettering import Lettering, warn_of_boxes
from lexiseg.visualise.palette import Colour, class_colour

TINT = 0.45  # opacity of the colour in a region
ROWS = 64  # rows of pixels tinted at once
LEAST_SIDE = 480  # pixels; smaller pictures are upsampled to keep names readable
LEAST_LETTERS, LETTERS = 13, 56  # least font size in pixels, and the ratio of the picture's side (√area) to the font size
LONGEST = 16  # longest name, in font sizes


def letters_of(height: int, width: int) -> int:
    """Return the font size in pixels for a picture."""
    return max(LEAST_LETTERS, round((height * width) ** 0.5 / LETTERS))


def overlay(image: NDArray[np.uint8], segments: Sequence[Segment], masks: Masks) -> Image.Image:
    """Draw segments on ``image`` [H, W, 3] uint8; ``masks`` [N, H, W] bool, the first segment on top.

    Fonts and lines scale with the picture. Letters that no font has are boxes, with one `UserWarning`.
    """
    warn_of_boxes(segment.name for segment in segments)
    height, width = image.shape[:2]
    ids = painted(image.shape[:2], masks, range(1, len(segments) + 1))
    zoom = max(1, -(-LEAST_SIDE // max(height, width)))
    if zoom > 1:
        ids = ids.repeat(zoom, 0).repeat(zoom, 1)
        image = np.asarray(Image.fromarray(image).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC))
    colours = colours_of(segments)
    lettering = Lettering(letters_of(*ids.shape))
    drawn = _named(image, ids, [segment.name for segment in segments], colours, lettering)
    legend = _legend(segments, colours, drawn.width, lettering)
    whole = Image.new("RGB", (drawn.width, drawn.height + legend.height), "white")
    whole.paste(drawn, (0, 0))
    whole.paste(legend, (0, drawn.height))
    return whole


def tinted(image: NDArray[np.uint8], segments: Sequence[Segment], masks: Masks) -> Image.Image:
    """Draw segments on ``image`` [H, W, 3] uint8 as `overlay` does, at its size, without names and legend."""
    return _drawn(
        image, painted(image.shape[:2], masks, range(1, len(segments) + 1)), colours_of(segments), letters_of(*image.shape[:2])
    )


def named(image: NDArray[np.uint8], names: Sequence[str], colours: Sequence[Colour], masks: Masks) -> Image.Image:
    """Draw regions on ``image`` [H, W, 3] uint8 as `overlay` does, at its size, without legend.

    Args:
        image: the picture.
        names, colours: of the N regions.
        masks: [N, H, W] bool, the first on top.
    """
    warn_of_boxes(names)
    ids = painted(image.shape[:2], masks, range(1, len(names) + 1))
    return _named(image, ids, names, colours, Lettering(letters_of(*ids.shape)))


def _named(
    image: NDArray[np.uint8],
    ids: NDArray[np.int32],
    names: Sequence[str],
    colours: Sequence[Colour],
    lettering: Lettering,
) -> Image.Image:
    """Tint, outline and name the regions of a map of their numbers, from 1."""
    drawn = _drawn(image, ids, colours, lettering.size)
    for number, (name, colour) in enumerate(zip(names, colours, strict=True), start=1):
        _write_name(drawn, ids == number, name, colour, lettering)
    return drawn


def _drawn(image: NDArray[np.uint8], ids: NDArray[np.int32], colours: Sequence[Colour], letters: int) -> Image.Image:
    """Tint and outline regions; the lines are as thick as fits letters of a size."""
    canvas = _tinted(image, ids, np.array([(0, 0, 0), *colours], np.float32))
    canvas[_outline(ids, max(1, letters // LEAST_LETTERS))] = 255
    return Image.fromarray(canvas)


def _tinted(image: NDArray[np.uint8], ids: NDArray[np.int32], table: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blend the colours of ``table`` over the regions of a copy of the picture, some rows at a time to save memory."""
    canvas = np.empty_like(image)
    for top in range(0, len(image), ROWS):
        rows = slice(top, top + ROWS)
        part, numbers = image[rows].astype(np.float32), ids[rows]
        part += (table[numbers] - part) * np.where(numbers > 0, np.float32(TINT), np.float32(0))[..., None]
        canvas[rows] = np.clip(part, 0, 255)
    return canvas


def colours_of(segments: Sequence[Segment]) -> list[Colour]:
    """Colours of segments: that of the class, in another shade for each of its segments."""
    seen: dict[int, int] = {}
    colours = []
    for segment in segments:
        shade = seen.get(segment.label, 0)
        seen[segment.label] = shade + 1
        colours.append(class_colour(segment.label, shade))
    return colours


def _outline(ids: NDArray[np.int32], thick: int) -> NDArray[np.bool_]:
    """Return the mask of lines, ``thick`` pixels wide, between regions."""
    edge = np.zeros(ids.shape, bool)
    for step in range(1, thick + 1):
        edge[:-step] |= ids[:-step] != ids[step:]
        edge[:, :-step] |= ids[:, :-step] != ids[:, step:]
    return edge


def _write_name(canvas: Image.Image, region: NDArray[np.bool_], name: str, colour: Colour, lettering: Lettering) -> None:
    """Draw the name on a plate in the middle of the region's widest rows."""
    rows, size = region.sum(1), lettering.size
    if rows.max(initial=0) < size:
        return
    wide = np.flatnonzero(rows >= 0.8 * rows.max())
    row = int(wide[len(wide) // 2])
    columns = np.flatnonzero(region[row])
    name = lettering.fitted(name, LONGEST * size)
    left, top, right, bottom = lettering.box(name)
    wide_ink, high_ink, margin = right - left, bottom - top, round(0.25 * size)
    x = _within(columns.mean() - wide_ink / 2, margin, canvas.width - wide_ink - margin)
    y = _within(row - high_ink / 2, margin, canvas.height - high_ink - margin)
    draw = ImageDraw.Draw(canvas)
    plate = (x - margin, y - margin, x + wide_ink + margin, y + high_ink + margin)
    draw.rounded_rectangle(plate, margin, fill=_dark(colour))
    lettering.write(draw, x - left, y - top, name, "white")


def _within(value: float, least: float, most: float) -> int:
    return round(max(least, min(value, most)))


def _legend(segments: Sequence[Segment], colours: Sequence[Colour], width: int, lettering: Lettering) -> Image.Image:
    """Draw a legend: a swatch per class that occurs, largest first, with its number of segments if above one."""
    entries: dict[str, tuple[Colour, int, int]] = {}
    for segment, colour in zip(segments, colours, strict=True):
        first, count, area = entries.get(segment.name, (colour, 0, 0))
        entries[segment.name] = (first, count + 1, area + segment.area)
    size, gap, line = lettering.size, round(0.5 * lettering.size), round(1.7 * lettering.size)
    room = max(size, min(LONGEST * size, width - size - 3 * gap))
    rows = []
    for name, (colour, count, _) in sorted(entries.items(), key=lambda entry: -entry[1][2]):
        several = f" ({count})" if count > 1 else ""
        rows.append((lettering.fitted(name, room - lettering.length(several)) + several, colour))
    widest = max((lettering.length(text) for text, _ in rows), default=0.0)
    columns = max(1, int(width // (size + 3 * gap + widest)))
    canvas = Image.new("RGB", (width, gap + line * max(1, -(-len(rows) // columns))), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (text, colour) in enumerate(rows):
        x, y = gap + number % columns * (width // columns), gap + number // columns * line
        draw.rectangle((x, y, x + size, y + size), fill=colour, outline="black")
        lettering.write(draw, x + size + gap, y + round(0.9 * size), text, "black")
    if not rows:
        lettering.write(draw, gap, gap + round(0.9 * size), "nothing named", "black")
    return canvas


def _dark(colour: Colour) -> Colour:
    red, green, blue = (round(value * 0.45) for value in colour)
    return red, green, blue
