"""Panels of the papers' figures, and grids of them: pictures and maps in, one picture out."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.cluster.vq import kmeans2

from lexiseg.visualise.lettering import Lettering, warn_of_boxes
from lexiseg.visualise.palette import class_colour

WIDE = 240  # pixels of a panel
GAP, HEAD = 6, 22
LETTERS, BASE_LINE = 13, 15  # pixels: font size of titles and captions, and their base line below the top
COLD, WARM = (20, 20, 60), (255, 230, 60)  # colours of 0 and of 1


def heat(image: NDArray[np.uint8], values: NDArray[np.floating]) -> Image.Image:
    """Draw a heat map [H, W] in 0..1 (0 dark, 1 yellow) over the greyed image [H, W, 3] uint8."""
    amount = np.clip(np.nan_to_num(values), 0, 1)[..., None]
    ramp = np.asarray(COLD) * (1 - amount) + np.asarray(WARM) * amount
    grey = image.mean(-1, keepdims=True)
    return Image.fromarray((0.35 * grey + 0.65 * ramp).astype(np.uint8))


def clusters(features: NDArray[np.floating], count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Cluster features [C, h, w] by k-means on their directions from the mean; return cluster indices [h, w].

    Index 0 is the largest cluster; there are fewer than ``count`` if fewer cells differ.
    """
    channels, high, wide = features.shape
    rows = features.reshape(channels, -1).T.astype(np.float64)
    rows = rows - rows.mean(0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    different = min(count, len(np.unique(rows.round(9), axis=0)))
    _, assigned = kmeans2(rows, different, minit="++", rng=seed)
    order = np.argsort(-np.bincount(assigned, minlength=count), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[assigned].reshape(high, wide)


def painted(labels: NDArray[np.integer]) -> Image.Image:
    """Draw an index map [H, W], each index in its own colour."""
    table = np.array([class_colour(number) for number in range(int(labels.max()) + 1)], np.uint8)
    return Image.fromarray(table[labels])


def stacked(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Merge masks [N, h, w] into a map [h, w] of 1-based mask indices, small masks over large ones; 0 is background."""
    labels = np.zeros(masks.shape[1:], np.int64)
    for number in np.argsort(-masks.sum((1, 2)), kind="stable"):
        labels[masks[number]] = number + 1
    return labels


def boxed(image: NDArray[np.uint8], boxes: Sequence[tuple[float, float, float, float]]) -> Image.Image:
    """Draw boxes (left, top, right, bottom) on an image."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for number, box in enumerate(boxes):
        draw.rectangle(box, outline=class_colour(number), width=max(1, image.shape[1] // 160))
    return canvas


def dotted(image: NDArray[np.uint8], points: Sequence[tuple[float, float]]) -> Image.Image:
    """Draw points (x, y) on an image, each in its own colour."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    radius = max(2, image.shape[1] // 50)
    for number, point in enumerate(points):
        draw.circle(point, radius, fill=class_colour(number + 1), outline="white", width=max(1, radius // 3))
    return canvas


def sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]], width: int = WIDE) -> Image.Image:
    """Arrange panels, resized to ``width`` pixels, in a grid with a title above each column and a caption left of each row."""
    lettering = Lettering(LETTERS)
    warn_of_boxes([*columns, *(caption for caption, _ in rows)])
    panels = [(caption, [_fitted(panel, width) for panel in row]) for caption, row in rows]
    margin = max((int(lettering.length(caption)) for caption, _ in panels if caption), default=-GAP) + 2 * GAP
    heights = [max(panel.height for panel in row) for _, row in panels]
    size = margin + len(columns) * (width + GAP), HEAD + sum(heights) + GAP * len(heights)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, title in enumerate(columns):
        lettering.write(draw, margin + number * (width + GAP), BASE_LINE, title, "black")
    top = HEAD
    for (caption, row), high in zip(panels, heights, strict=True):
        lettering.write(draw, GAP, top + BASE_LINE, caption, "black")
        for number, panel in enumerate(row):
            canvas.paste(panel, (margin + number * (width + GAP), top))
        top += high + GAP
    return canvas


def _fitted(panel: Image.Image, width: int) -> Image.Image:
    return panel.resize((width, max(1, round(panel.height * width / panel.width))), Image.Resampling.BICUBIC)


def as_webp(figure: Image.Image) -> bytes:
    """Encode as WebP, at a tenth of the size of a PNG with sharp letters."""
    buffer = BytesIO()
    figure.convert("RGB").save(buffer, "WEBP", quality=90, method=6)
    return buffer.getvalue()
