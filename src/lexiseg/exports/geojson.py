"""Results as GeoJSON (RFC 7946): a feature per region, as polygons along the borders of pixels, with their holes.

Coordinates are pixels, x to the right and y downwards, from the picture's top left corner; those of the standard are degrees.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lexiseg.exports.records import ResultRecord
from lexiseg.ops.files import write_json
from lexiseg.ops.outlines import polygons_of_mask


def write_geojson(path: Path, record: ResultRecord) -> None:
    """Write a result as GeoJSON.

    Raises:
        OutputError: if the file cannot be written.
    """
    features = []
    for segment, mask in zip(record.segments, record.masks(), strict=True):
        polygons = [[[*ring.tolist(), ring[0].tolist()] for ring in rings] for rings in polygons_of_mask(mask)]
        features.append(
            {
                "type": "Feature",
                "id": segment.id,
                "geometry": {"type": "MultiPolygon", "coordinates": polygons},
                "properties": {key: value for key, value in asdict(segment).items() if key not in ("id", "box")},
            }
        )
    write_json(path, {"type": "FeatureCollection", "features": features})
