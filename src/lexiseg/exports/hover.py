"""Regions of a picture as HTML: outlines that show their names under the pointer, without scripts.

Of a notebook that is not trusted, JupyterLab removes style sheets and SVG, but keeps the text in it: ``hidden="hidden"``, which
`STYLE` overrides, hides that; it removes ``hidden`` without a value, too.

STYLE                            the style sheet that the rest needs, once a page
with_regions(image, masks, …)    a picture with its regions on it
result_view(…)                   the same with a legend, complete in itself: the display of a result in a notebook
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from lexiseg.ops.markup import LEFT
from lexiseg.ops.outlines import polygons_of_mask
from lexiseg.ops.packed import Masks
from lexiseg.structures import Segment, Size

GRID = 256  # cells of the longer side to which masks are downsampled
MAX_EDGES = 40_000  # of all outlines; finer ones are drawn on a coarser grid
ROWS = 50  # of a legend

STYLE = """
.lexiseg-picture { position: relative; display: block; line-height: 0 }
.lexiseg-picture img { width: 100%; height: auto; margin: 0 }
.lexiseg-picture [hidden] { display: block }
.lexiseg-picture svg { position: absolute; left: 0; top: 0; width: 100% }
.lexiseg-picture path { fill: transparent; fill-rule: evenodd; vector-effect: non-scaling-stroke }
.lexiseg-picture path:hover { fill: rgba(255, 255, 255, 0.4); stroke: white; stroke-width: 2 }
.lexiseg-legend { border-collapse: collapse; margin-top: 0.5em }
.lexiseg-legend caption { text-align: left }
.lexiseg-legend td, .lexiseg-legend th { padding: 0.1em 0.6em; text-align: left; overflow-wrap: anywhere }
.lexiseg-legend i { display: inline-block; width: 1em; height: 1em; border: 1px solid #888; vertical-align: middle }
"""


def with_regions(source: str, alt: str, size: Size, masks: Iterable[NDArray[np.bool_]], segments: Sequence[Segment]) -> str:
    """Return a picture with regions that show their names and scores under the pointer.

    Args:
        source: address of the image; it may continue below the picture.
        alt: description of the image.
        size: (height, width) of the picture in pixels.
        masks: N masks [H, W], the first on top.
        segments: the N segments.
    """
    image = f'<img src="{escape(source)}" alt="{escape(alt)}" loading="lazy">'
    grid = _on_one_grid(masks)
    if not grid:
        return f'<div class="lexiseg-picture">{image}</div>'
    paths = (_path(mask, segment) for mask, segment in reversed(list(zip(grid, segments, strict=True))))
    box, ratio = f"0 0 {grid[0].shape[1]} {grid[0].shape[0]}", f"aspect-ratio: {size[1]} / {size[0]}"
    drawing = f'<svg viewBox="{box}" preserveAspectRatio="none" style="{ratio}">{"".join(paths)}</svg>'
    return f'<div class="lexiseg-picture">{image}<span hidden="hidden">{drawing}</span></div>'


def result_view(
    picture: bytes,
    shown: Size,
    masks: Masks,
    segments: Sequence[Segment],
    colours: Sequence[tuple[int, int, int]],
    caption: str,
) -> str:
    """Return a picture with its regions and their legend, which refers to nothing outside.

    Args:
        picture: the image as WebP.
        shown: its (height, width) in pixels.
        masks: [N, H, W] bool, the first on top.
        segments: the N segments.
        colours: of the segments, RGB.
        caption: line above the legend.
    """
    size = (int(masks.shape[1]), int(masks.shape[2]))
    source = f"data:image/webp;base64,{b64encode(picture).decode()}"
    view = with_regions(source, caption, size, masks, segments)
    rows = "".join(_row(segment, colour, size) for segment, colour in list(zip(segments, colours, strict=True))[:ROWS])
    further = f"<p>… and {len(segments) - ROWS:,} more</p>" if len(segments) > ROWS else ""
    head = f"<tr><th></th><th {LEFT}>name</th><th>score</th><th>area</th></tr>"
    legend = f'<table class="lexiseg-legend"><caption>{escape(caption)}</caption>{head}{rows}</table>{further}'
    return f'<div><style>{STYLE}</style><div style="max-width: {shown[1]}px">{view}</div>{legend}</div>'


def _row(segment: Segment, colour: tuple[int, int, int], size: Size) -> str:
    swatch = f'<i style="background: #{bytes(colour).hex()}">&emsp;</i>'
    area = segment.area / (size[0] * size[1])
    return f"<tr><td>{swatch}</td><td {LEFT}>{escape(segment.name)}</td><td>{segment.score:.2f}</td><td>{area:.1%}</td></tr>"


def _on_one_grid(masks: Iterable[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """Downsample masks of one size to at most `GRID` cells a side, and so far that their outlines have `MAX_EDGES`."""
    side = GRID
    grid = [_on_grid(mask, side) for mask in masks]
    while side > 1 and sum(map(_edges, grid)) > MAX_EDGES:
        side //= 2
        grid = [_on_grid(mask, side) for mask in grid]
    return grid


def _on_grid(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Downsample a mask to at most ``side`` cells, by the pixels at their centres."""
    cell = max(1.0, max(mask.shape) / side)
    return mask[np.ix_(*(_centres(pixels, max(1, round(pixels / cell))) for pixels in mask.shape))]


def _centres(pixels: int, cells: int) -> NDArray[np.int64]:
    """Pixels at the centres of cells along a side."""
    return ((np.arange(cells) + 0.5) * pixels / cells).astype(np.int64)


def _edges(mask: NDArray[np.bool_]) -> int:
    """Number of sides between cells that are in a mask and cells that are not."""
    return int((mask[1:] ^ mask[:-1]).sum() + (mask[:, 1:] ^ mask[:, :-1]).sum())


def _path(mask: NDArray[np.bool_], segment: Segment) -> str:
    rings = (ring for rings in polygons_of_mask(mask) for ring in rings)
    data = "".join(f"M{'L'.join(f'{x} {y}' for x, y in ring.tolist())}Z" for ring in rings)
    return f'<path d="{data}"><title>{escape(segment.name)} {segment.score:.2f}</title></path>'
