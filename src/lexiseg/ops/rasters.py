"""Rasters through rasterio, an extra that is imported when a raster is first opened: TIFF files, and where their pixels lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from lexiseg.errors import DataError, RunError, UsageError
from lexiseg.ops.files import is_file
from lexiseg.ops.pictures import opened_picture
from lexiseg.structures import Size

SUFFIXES = (".tif", ".tiff")
INSTALL = "pip install 'lexiseg[geo]'"
GEO_KEYS = 34735  # TIFF's tag of the coordinate reference system (OGC 19-008r4, GeoTIFF 1.1, Sec. 7.1)
DEGREES = "OGC:CRS84"  # longitude and latitude, the coordinates of GeoJSON (RFC 7946, Sec. 4)
DECIMALS = 9  # of degrees: 0.1 mm


def is_tiff(source: object) -> bool:
    """Whether ``source`` is the path of a TIFF file."""
    return isinstance(source, str | Path) and str(source).lower().endswith(SUFFIXES) and is_file(Path(source))


def require_rasterio(what: str, error: type[Exception] = UsageError) -> None:
    """Raise an ``error`` if rasterio is not installed; ``what`` needs it."""
    if find_spec("rasterio") is None:
        raise error(f"{what} needs rasterio: {INSTALL}")


@contextmanager
def opened_raster(path: str | Path, error: type[RunError] = DataError) -> Iterator[Any]:
    """Open a TIFF as a dataset of rasterio; other formats and addresses are refused.

    Raises:
        RunError: the file cannot be read, or rasterio is not installed; of the class ``error``.
    """
    require_rasterio(f"{path}: reading a TIFF by windows", error)
    import rasterio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(Path(path).resolve(), driver="GTiff") as dataset:
                yield dataset
    except rasterio.errors.RasterioError as reason:
        raise error(f"{path}: is damaged or not a TIFF ({' '.join(str(reason).split())}); fetch or export it again") from None


@dataclass(frozen=True)
class Georeference:
    """Where the pixels of a raster lie.

    Attributes:
        crs: coordinate reference system, of rasterio.
        transform: from (column, row), the top left corner of the raster being (0, 0), to coordinates of ``crs``.
    """

    crs: Any
    transform: Any

    def degrees(self, corners: NDArray[np.number[Any]]) -> NDArray[np.float64]:
        """Longitudes and latitudes [N, 2] in degrees (WGS 84) of corners of pixels [N, 2], x and y."""
        from rasterio.warp import transform

        (column, row), (a, b, c, d, e, f) = corners.T.astype(float), self.transform[:6]
        x, y = a * column + b * row + c, d * column + e * row + f
        return np.stack(transform(self.crs, DEGREES, x, y)[:2], axis=1).round(DECIMALS)


def georeference(source: str | None, size: Size) -> Georeference | None:
    """Georeference of the file of a picture; None if it has none.

    Args:
        source: the file.
        size: (height, width) of the picture that was read from it.

    Raises:
        UsageError: it has one, and rasterio is not installed.
        DataError: the file cannot be read, or is of another size.
    """
    if source is None or not is_tiff(source):
        return None
    if find_spec("rasterio") is None:
        if _has_geo_keys(Path(source)):
            require_rasterio(f"{source}: its georeference")
        return None
    with opened_raster(source) as dataset:
        if dataset.shape != size:
            raise DataError(f"{source}: is {dataset.width} × {dataset.height} pixels, its result {size[1]} × {size[0]}")
        return None if dataset.crs is None else Georeference(dataset.crs, dataset.transform)


def _has_geo_keys(path: Path) -> bool:
    """Whether a TIFF has a georeference, which it says itself."""
    with opened_picture(path) as picture:
        return isinstance(picture, TiffImageFile) and GEO_KEYS in picture.tag_v2
