"""Results as GeoTIFF: label maps and maps of segment ids with the georeference of the picture they are of.

A label map has the values of the PNG (`lexiseg.exports.labels`), with the void value as "no data", and a palette if it has 8
bits. A map of ids has 0 as "no data". The names are in the dataset's tag ``classes``: a JSON from label, or id, to name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import DataError
from lexiseg.ops.files import replacing
from lexiseg.ops.rasters import georeference, require_rasterio

BLOCK = 256  # side of the blocks that GIS programs read, in pixels


def write_geotiff(
    path: Path,
    values: NDArray[np.unsignedinteger[Any]],
    nodata: int,
    classes: Mapping[int, str],
    source: str | None,
    colours: NDArray[np.uint8] | None = None,
) -> None:
    """Write a map as GeoTIFF, compressed without loss.

    Args:
        path: the file.
        values: the map [H, W].
        nodata: the value of void.
        classes: name of each value.
        source: the file of the picture, whose georeference is copied.
        colours: [K, 3], of values of 8 bits.

    Raises:
        UsageError: rasterio is not installed.
        DataError: the picture has no georeference.
        OutputError: the file cannot be written.
    """
    require_rasterio("--format geotiff")
    location = georeference(source, (values.shape[0], values.shape[1]))
    if location is None:
        raise DataError(f"{source or 'the picture'}: has no georeference to copy to a GeoTIFF; choose --format map instead")
    import rasterio

    profile = {"driver": "GTiff", "count": 1, "height": values.shape[0], "width": values.shape[1], "dtype": values.dtype.name}
    blocks = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "bigtiff": "if_safer"}
    with (
        replacing(path, apart=True) as temporary,
        rasterio.open(
            temporary, "w", **profile, **blocks, nodata=nodata, crs=location.crs, transform=location.transform
        ) as dataset,
    ):
        dataset.update_tags(classes=json.dumps({str(value): name for value, name in classes.items()}, ensure_ascii=False))
        dataset.write(values, 1)
        if colours is not None and values.dtype == np.uint8:
            dataset.write_colormap(1, {label: tuple(colour) for label, colour in enumerate(colours.tolist())})
