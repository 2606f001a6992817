"""TIFF files of any size, bands and depth as 8-bit RGB, read by windows: what `Pipeline` segments in tiles.

* **Bands.** Those that the file declares as red, green and blue; otherwise the first three; of fewer than three the first, as
  grey. A palette is applied.
* **Depth.** 8 bits are taken as they are. Of other types each band is stretched linearly from its 2nd to its 98th percentile
  to 0..255, as QGIS does by default ("cumulative count cut"), the same in all windows. The percentiles are those of a sample of
  the raster, reduced to `SAMPLE` pixels a side, without pixels that have no data.
* **No data.** Pixels without data, and transparent ones, are white, as in other pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.data.images import Picture, Pixels, as_pixels, flattened
from lexiseg.errors import ImageError
from lexiseg.ops.pictures import MAX_PIXELS, MAX_TILED_PIXELS, check_side
from lexiseg.ops.rasters import is_tiff, opened_raster

SAMPLE = 1024  # pixels a side of the reduced raster that percentiles are computed of
PERCENTILES = (2, 98)


class Raster:
    """TIFF file as a picture [H, W, 3] uint8 RGB: ``raster[rows, columns]`` reads a window, NumPy reads it as a whole.

    Args:
        path: the file.

    Raises:
        ImageError: it cannot be read, is too large, has complex values, or rasterio is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with opened_raster(path, ImageError) as dataset:
            size = dataset.width, dataset.height
            if size[0] * size[1] > MAX_TILED_PIXELS:
                raise ImageError(f"{path}: {size[0]} × {size[1]} pixels are more than {MAX_TILED_PIXELS:,}; cut it in parts")
            check_side(size, str(path), ImageError)
            self.shape = (dataset.height, dataset.width, 3)
            self._bands = _bands(dataset)
            self._palette = _palette(dataset)
            self._stretch = None if set(dataset.dtypes) == {"uint8"} else self._percentiles(dataset)

    def _percentiles(self, dataset: Any) -> NDArray[np.float64]:
        """Values that become 0 and 255, [2, bands]."""
        kind = np.result_type(*dataset.dtypes)
        if kind.kind not in "buif":
            raise ImageError(f"{self.path}: its values are of type {kind}; a picture has integers or floating point values")
        sample = tuple(min(side, SAMPLE) for side in dataset.shape)
        values = dataset.read(self._bands, out_shape=(len(self._bands), *sample), masked=True).astype(float)
        bands = [band.compressed()[np.isfinite(band.compressed())] for band in values]
        return np.array([np.percentile(band, PERCENTILES) if len(band) else (0, 1) for band in bands]).T

    def __getitem__(self, window: tuple[slice, slice]) -> Pixels:
        with opened_raster(self.path, ImageError) as dataset:
            lines = tuple((side.start, side.stop) for side in window)
            values = np.moveaxis(dataset.read(self._bands, window=lines), 0, 2)
            valid = dataset.dataset_mask(window=lines)
        if self._palette is not None:
            values = self._palette[values[..., 0]]
        elif self._stretch is not None:
            low, high = self._stretch
            unit = (values - low) / np.where(high > low, high - low, 1)
            values = np.rint(255 * np.nan_to_num(unit).clip(0, 1)).astype(np.uint8)
        colours = np.broadcast_to(values, (*values.shape[:2], 3))
        if (valid == 255).all():
            return np.ascontiguousarray(colours)
        return flattened(Image.fromarray(np.dstack([colours, valid])))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        high, wide, _ = self.shape
        if high * wide > MAX_PIXELS:
            raise ImageError(
                f"{self.path}: {wide} × {high} pixels are more than {MAX_PIXELS:,}, too many to read it as a whole; "
                "choose formats that do not draw it, such as --format map,geotiff"
            )
        pixels = self[slice(0, high), slice(0, wide)]
        return pixels if dtype is None else pixels.astype(dtype)


def _bands(dataset: Any) -> list[int]:
    """Numbers of the bands that are read, from 1."""
    names = [colour.name for colour in dataset.colorinterp]
    if {"red", "green", "blue"} <= set(names):
        return [names.index(colour) + 1 for colour in ("red", "green", "blue")]
    return [1, 2, 3] if dataset.count >= 3 else [1]


def _palette(dataset: Any) -> NDArray[np.uint8] | None:
    """Colours of the values of a raster with a palette, [values, 3]."""
    if dataset.colorinterp[0].name != "palette":
        return None
    table = dataset.colormap(1)
    return np.array([table.get(value, (0, 0, 0))[:3] for value in range(max(table) + 1)], np.uint8)


def as_windows(picture: Picture) -> Pixels | Raster:
    """Read a picture as `as_pixels` does, but a TIFF file by windows.

    Raises:
        ImageError: as `as_pixels` and `Raster`.
    """
    return Raster(picture) if isinstance(picture, str | Path) and is_tiff(picture) else as_pixels(picture)
