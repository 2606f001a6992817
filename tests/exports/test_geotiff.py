"""GeoTIFF and GeoJSON of pictures with a georeference: the same pixels at the same coordinates."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.features import rasterize
from rasterio.warp import transform
from shapely.geometry import shape

import lexiseg
from benchmarks.tiles import Colours
from lexiseg import formats
from lexiseg.errors import DataError, UsageError
from lexiseg.inference.pipeline import Pipeline
from lexiseg.segmentation import Segmentation
from tests.test_formats import NAMES, result

# Metres of UTM zone 33 north; the raster is turned by some 37 degrees.
PLACED = {"crs": "EPSG:32633", "transform": Affine(0.4, 0.3, 500_000, 0.3, -0.4, 5_800_000)}


def on_earth(path: Path, task: str = "panoptic") -> Segmentation:
    """A result whose picture is a GeoTIFF."""
    made = result(path, task)
    profile = {"count": 3, "height": made.size[0], "width": made.size[1], "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", **PLACED, **profile) as dataset:
        dataset.write(np.moveaxis(np.asarray(made.image), 2, 0))
    return made


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_a_geotiff_has_the_values_and_the_georeference(task, tmp_path):
    made = on_earth(tmp_path / "a.tif", task)
    (path,) = made.save(tmp_path / "out", "a", formats=["geotiff"])
    assert path.name == ("a.labels.tif" if task == "semantic" else "a.panoptic.tif")
    with rasterio.open(path) as dataset:
        assert dataset.crs == rasterio.CRS.from_string(PLACED["crs"])
        assert dataset.transform.almost_equals(PLACED["transform"])
        values, names = dataset.read(1), json.loads(dataset.tags()["classes"])
        if task == "semantic":
            assert dataset.nodata == 255
            assert (np.where(values == 255, -1, values.astype(int)) == made.semantic).all()
            assert names == {str(label): name for label, name in enumerate(NAMES)}
            assert len({dataset.colormap(1)[label] for label in range(3)}) == 3
        else:
            assert dataset.nodata == 0
            assert (values == made.panoptic).all()
            assert names == {str(segment.id): segment.name for segment in made.segments}
    assert [file.name for file in (tmp_path / "out").iterdir()] == [path.name]


def test_geojson_is_in_degrees_and_covers_the_same_pixels(tmp_path):
    made = on_earth(tmp_path / "a.tif")
    (path,) = made.save(tmp_path / "out", "a", formats=["geojson"])
    features = json.loads(path.read_text())["features"]
    for feature, mask in zip(features, made.masks, strict=True):
        polygons = shape(feature["geometry"])
        assert polygons.is_valid
        assert all(polygon.exterior.is_ccw and not any(hole.is_ccw for hole in polygon.interiors) for polygon in polygons.geoms)
        longitude, latitude = polygons.centroid.coords[0]
        assert abs(longitude - 15) < 0.01  # UTM zone 33's central meridian has x = 500 km
        assert 52 < latitude < 53
        back = shapely.transform(polygons, lambda points: np.stack(transform("EPSG:4326", PLACED["crs"], *points.T), 1))
        assert (rasterize([back], made.size, transform=PLACED["transform"]).astype(bool) == mask).all()


def test_without_a_georeference_coordinates_are_pixels_and_there_is_no_geotiff(tmp_path):
    made = result(tmp_path / "a.png")
    (path,) = made.save(tmp_path / "out", "a", formats=["geojson"])
    assert shape(json.loads(path.read_text())["features"][0]["geometry"]).bounds == (3, 3, 20, 20)
    with pytest.raises(DataError, match="has no georeference"):
        made.save(tmp_path / "out", "a", formats=["geotiff"])
    with pytest.raises(UsageError, match="cannot hold results of --task instance"):
        result(tmp_path / "a.png", "instance").save(tmp_path / "out", "a", formats=["geotiff"])


def test_a_raster_that_changed_is_said(tmp_path):
    made = on_earth(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **PLACED, count=1, height=3, width=4, dtype="uint8") as dataset:
        dataset.write(np.zeros((1, 3, 4), np.uint8))
    with pytest.raises(DataError, match="4 × 3 pixels, its result 42 × 31"):
        made.save(tmp_path / "out", "a", formats=["geotiff"])


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    made, plain = on_earth(tmp_path / "a.tif"), result(tmp_path / "b.png")
    monkeypatch.setattr("lexiseg.ops.rasters.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"--format geotiff needs rasterio: pip install 'lexiseg\[geo\]'"):
        formats.parse_formats(["geotiff"])
    with pytest.raises(UsageError, match=r"a.tif: its georeference needs rasterio"):
        made.save(tmp_path / "out", "a", formats=["geojson"])
    plain.save(tmp_path / "out", "b", formats=["geojson"])


def test_a_tiled_raster_is_read_by_windows_and_keeps_its_georeference(tmp_path, monkeypatch):
    made = on_earth(tmp_path / "a.tif")
    large = np.asarray(made.image).repeat(5, 0).repeat(5, 1)
    with rasterio.open(
        tmp_path / "b.tif", "w", driver="GTiff", **PLACED, count=3, height=large.shape[0], width=large.shape[1], dtype="uint8"
    ) as dataset:
        dataset.write(np.moveaxis(large, 2, 0))
    colours, counts = np.unique(large.reshape(-1, 3), axis=0, return_counts=True)
    method = Pipeline(Colours(colours[counts.argsort()[-4:]], np.arange(4), 4))
    whole = method(large, ["a", "b", "c", "d"], task="semantic", threshold=0.5)
    tiled = method(tmp_path / "b.tif", ["a", "b", "c", "d"], task="semantic", threshold=0.5, tile=64)
    assert (tiled.semantic == whole.semantic).all()
    assert not isinstance(tiled.image, np.ndarray)
    read = type(tiled.image).__getitem__
    sizes: list[int] = []
    monkeypatch.setattr(
        type(tiled.image), "__getitem__", lambda self, window: sizes.append(read(self, window).size) or read(self, window)
    )
    method(tmp_path / "b.tif", ["a", "b", "c", "d"], task="semantic", threshold=0.5, tile=64).save(
        tmp_path / "out", "b", formats=["map", "geotiff"]
    )
    assert max(sizes) == 64 * 64 * 3
    with rasterio.open(tmp_path / "out/b.labels.tif") as dataset:
        assert (np.where(dataset.read(1) == 255, -1, dataset.read(1).astype(int)) == whole.semantic).all()


def test_rasterio_is_imported_inside_functions():
    """So that it is not needed before a raster is opened."""
    source = Path(lexiseg.__file__).parent
    statements = [
        (path, node) for path in source.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    imports = [(path.name, node.col_offset) for path, node in statements if "rasterio" in imported(node)]
    assert {name for name, _ in imports} == {"rasters.py", "geotiff.py"}
    assert all(column > 0 for _, column in imports)


def imported(node: ast.AST) -> set[str]:
    """Packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
