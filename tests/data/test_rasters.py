"""TIFF files by windows: the pixels Pillow reads, and of those it does not read, what the page says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp

from lexiseg.data import rasters
from lexiseg.data.images import read_image
from lexiseg.data.rasters import Raster, as_windows
from lexiseg.errors import ImageError
from tests.exports.test_geotiff import PLACED

RNG = np.random.default_rng(0)


def raster(path: Path, values: np.ndarray, colours: tuple[ColorInterp, ...] = (), **options) -> Path:
    """Write bands [B, H, W]."""
    profile = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **PLACED, **profile, **options) as dataset:
        dataset.write(values)
        if colours:
            dataset.colorinterp = colours
    return path


def colours(*names: str) -> tuple[ColorInterp, ...]:
    return tuple(ColorInterp[name] for name in names)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_eight_bits_are_what_pillow_reads(mode, tmp_path):
    image = Image.fromarray(RNG.integers(0, 256, (31, 47, 4)).astype(np.uint8)).convert(mode)
    image.save(tmp_path / "a.tif")
    whole, windows = read_image(tmp_path / "a.tif"), as_windows(tmp_path / "a.tif")
    assert isinstance(windows, Raster)
    assert windows.shape == whole.shape
    assert (np.asarray(windows) == whole).all()
    assert (windows[slice(3, 20), slice(10, 47)] == whole[3:20, 10:]).all()


def test_other_depths_are_stretched_alike_in_all_windows(tmp_path):
    values = (RNG.random((4, 40, 60)) * np.array([300, 3000, 10000, 60000])[:, None, None]).astype(np.uint16)
    windows = Raster(raster(tmp_path / "a.tif", values))
    low, high = np.percentile(values[:3], (2, 98), axis=(1, 2))
    expected = 255 * ((np.moveaxis(values[:3], 0, 2) - low) / (high - low)).clip(0, 1)
    whole = np.asarray(windows)
    assert np.abs(whole - expected).max() <= 0.5 + 1e-6
    assert (windows[slice(7, 19), slice(0, 33)] == whole[7:19, :33]).all()
    assert (whole.min((0, 1)) == 0).all()
    assert (whole.max((0, 1)) == 255).all()


def test_bands_are_those_declared(tmp_path):
    values = RNG.integers(0, 256, (4, 9, 8)).astype(np.uint8)
    declared = raster(tmp_path / "a.tif", values, colours("blue", "green", "red", "undefined"), photometric="MINISBLACK")
    assert (np.asarray(Raster(declared)) == np.moveaxis(values[[2, 1, 0]], 0, 2)).all()
    grey = raster(tmp_path / "b.tif", values[:2], photometric="MINISBLACK")
    assert (np.asarray(Raster(grey)) == values[0][..., None]).all()


def test_pixels_without_data_are_white_and_do_not_stretch(tmp_path):
    values = RNG.random((1, 20, 20)).astype(np.float32)
    values[:, :5] = -9999
    pixels = np.asarray(Raster(raster(tmp_path / "a.tif", values, nodata=-9999)))
    assert (pixels[:5] == 255).all()
    assert 100 < pixels[5:].mean() < 155


def test_a_flat_raster_has_a_stretch(tmp_path):
    assert (np.asarray(Raster(raster(tmp_path / "a.tif", np.full((3, 5, 5), 700, np.uint16)))) == 0).all()


def test_limits_are_those_of_what_is_read(tmp_path, monkeypatch):
    path = raster(tmp_path / "a.tif", np.zeros((3, 30, 40), np.uint8))
    monkeypatch.setattr(rasters, "MAX_PIXELS", 1000)
    assert Raster(path)[slice(0, 30), slice(0, 20)].shape == (30, 20, 3)
    with pytest.raises(ImageError, match=r"40 × 30 pixels are more than 1,000.*--format map,geotiff"):
        np.asarray(Raster(path))
    monkeypatch.setattr(rasters, "MAX_TILED_PIXELS", 1000)
    with pytest.raises(ImageError, match="cut it in parts"):
        Raster(path)


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(b"II*\0 and nothing else")
    with pytest.raises(ImageError, match="is damaged or not a TIFF"):
        as_windows(tmp_path / "a.tif")
    Image.new("RGB", (3, 3)).save(tmp_path / "b.tif", "PNG")
    with pytest.raises(ImageError, match="is damaged or not a TIFF"):
        as_windows(tmp_path / "b.tif")
    with pytest.raises(ImageError, match="no such file"):
        as_windows(tmp_path / "c.tif")
    complex_values = raster(tmp_path / "d.tif", np.zeros((1, 4, 4), np.complex64))
    with pytest.raises(ImageError, match="of type complex64"):
        as_windows(complex_values)
    monkeypatch.setattr("lexiseg.ops.rasters.find_spec", lambda _: None)
    with pytest.raises(ImageError, match=r"pip install 'lexiseg\[geo\]'"):
        as_windows(complex_values)
