"""Panels of the papers' figures and the sheets they stand on: pictures and maps in, one picture out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.cluster.vq import kmeans2

from lexiseg.visualise.lettering import Lettering, warn_of_boxes
from lexiseg.visualise.palette import class_colour

WIDE = 240  # pixels of a panel
GAP, HEAD = 6, 22
LETTERS, BASE_LINE = 13, 15  # pixels: the size of titles and captions, and how far below their top they stand
COLD, WARM = (20, 20, 60), (255, 230, 60)  # a heat of 0 and of 1


def heat(image: NDArray[np.uint8], values: NDArray[np.floating]) -> Image.Image:
    """A map [H, W] of values in 0..1 over its grey picture [H, W, 3] uint8: dark where it is 0, yellow where it is 1."""
    share = np.clip(np.nan_to_num(values), 0, 1)[..., None]
    ramp = np.asarray(COLD) * (1 - share) + np.asarray(WARM) * share
    grey = image.mean(-1, keepdims=True)
    return Image.fromarray((0.35 * grey + 0.65 * ramp).astype(np.uint8))


def clusters(features: NDArray[np.floating], count: int, *, seed: int = 0) -> NDArray[np.int64]:
    """The k-means cluster of each cell, [h, w], of features [C, h, w] by their directions from the mean.

    Clusters are numbered by their size, the largest first; there are fewer than ``count`` where fewer cells differ.
    """
    channels, high, wide = features.shape
    rows = features.reshape(channels, -1).T.astype(np.float64)
    rows = rows - rows.mean(0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    different = min(count, len(np.unique(rows.round(9), axis=0)))
    _, found = kmeans2(rows, different, minit="++", rng=seed)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[found].reshape(high, wide)


def painted(labels: NDArray[np.integer]) -> Image.Image:
    """A map of numbers [H, W], each in a colour of its own."""
    table = np.array([class_colour(number) for number in range(int(labels.max()) + 1)], np.uint8)
    return Image.fromarray(table[labels])


def stacked(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Masks [N, h, w] as one map [h, w], small ones over large ones: the number of the topmost one from 1, else 0."""
    labels = np.zeros(masks.shape[1:], np.int64)
    for number in np.argsort(-masks.sum((1, 2)), kind="stable"):
        labels[masks[number]] = number + 1
    return labels


def boxed(image: NDArray[np.uint8], boxes: Sequence[tuple[float, float, float, float]]) -> Image.Image:
    """The picture with boxes (left, top, right, bottom) drawn in."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for number, box in enumerate(boxes):
        draw.rectangle(box, outline=class_colour(number), width=max(1, image.shape[1] // 160))
    return canvas


def dotted(image: NDArray[np.uint8], points: Sequence[tuple[float, float]]) -> Image.Image:
    """The picture with points (x, y) drawn in, each in a colour of its own."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    radius = max(2, image.shape[1] // 50)
    for number, point in enumerate(points):
        draw.circle(point, radius, fill=class_colour(number + 1), outline="white", width=max(1, radius // 3))
    return canvas


def sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Panels in a grid, a title above each column and a caption at the left of each row; all panels become `WIDE` wide."""
    lettering = Lettering(LETTERS)
    warn_of_boxes([*columns, *(caption for caption, _ in rows)])
    panels = [(caption, [_fitted(panel) for panel in row]) for caption, row in rows]
    margin = max((int(lettering.length(caption)) for caption, _ in panels if caption), default=-GAP) + 2 * GAP
    heights = [max(panel.height for panel in row) for _, row in panels]
    size = margin + len(columns) * (WIDE + GAP), HEAD + sum(heights) + GAP * len(heights)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, title in enumerate(columns):
        lettering.write(draw, margin + number * (WIDE + GAP), BASE_LINE, title, "black")
    top = HEAD
    for (caption, row), high in zip(panels, heights, strict=True):
        lettering.write(draw, GAP, top + BASE_LINE, caption, "black")
        for number, panel in enumerate(row):
            canvas.paste(panel, (margin + number * (WIDE + GAP), top))
        top += high + GAP
    return canvas


def _fitted(panel: Image.Image) -> Image.Image:
    return panel.resize((WIDE, max(1, round(panel.height * WIDE / panel.width))), Image.Resampling.BICUBIC)
