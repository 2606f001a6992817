"""Results as GeoJSON (RFC 7946): a feature per region, as polygons along the borders of pixels, with their holes.

Of a picture with a georeference (`lexiseg.ops.rasters`) coordinates are longitude and latitude in degrees, WGS 84, and
exteriors run counter-clockwise, as the standard says; regions that cross the antimeridian are not cut. [decided] Of other
pictures they are pixels, x to the right and y downwards, from the top left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lexiseg.exports.records import ResultRecord
from lexiseg.ops.files import write_json
from lexiseg.ops.outlines import Ring, polygons_of_mask, signed_area
from lexiseg.ops.rasters import Georeference, georeference


def write_geojson(path: Path, record: ResultRecord) -> None:
    """Write a result as GeoJSON.

    Raises:
        OutputError: if the file cannot be written.
        UsageError: the picture has a georeference, and rasterio is not installed.
    """
    location = georeference(record.source, record.size)
    features = []
    for segment, mask in zip(record.segments, record.masks(), strict=True):
        polygons = [_polygon(rings, location) for rings in polygons_of_mask(mask)]
        features.append(
            {
                "type": "Feature",
                "id": segment.id,
                "geometry": {"type": "MultiPolygon", "coordinates": polygons},
                "properties": {key: value for key, value in asdict(segment).items() if key not in ("id", "box")},
            }
        )
    write_json(path, {"type": "FeatureCollection", "features": features})


def _polygon(rings: Sequence[Ring], location: Georeference | None) -> list[list[list[float]]]:
    """Coordinates of a polygon's exterior and its holes, each ring closed."""
    corners: list[NDArray[Any]] = list(rings)
    if location is not None:
        corners = [location.degrees(ring) for ring in rings]
        if signed_area(corners[0]) < 0:  # the holes run the other way
            corners = [ring[::-1] for ring in corners]
    return [[*ring.tolist(), ring[0].tolist()] for ring in corners]
