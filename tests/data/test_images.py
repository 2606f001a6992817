"""Every kind of picture is read as what a person sees, or refused in one clear line."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from lexiseg.data.images import as_pixels, decode_image, find_images, read_image
from lexiseg.errors import ImageError, UsageError
from lexiseg.ops.pictures import MAX_PIXELS, MAX_SIDE


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def photo() -> Image.Image:
    """A picture whose four quarters are red, green, blue and grey: turned or mirrored it is another."""
    array = np.zeros((40, 60, 3), np.uint8)
    array[:20, :30], array[:20, 30:], array[20:, :30], array[20:, 30:] = (250, 0, 0), (0, 250, 0), (0, 0, 250), (128, 128, 128)
    return Image.fromarray(array)


def test_plain_rgb_is_read_exactly(photo):
    assert (decode_image(encoded(photo)) == np.asarray(photo)).all()


def test_exif_orientation_is_applied(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown turned 90 degrees clockwise
    read = decode_image(encoded(photo, "PNG", exif=exif))
    assert (read == np.rot90(np.asarray(photo), -1)).all()


def test_cmyk_is_converted(photo):
    read = decode_image(encoded(photo.convert("CMYK"), "JPEG", quality=95))
    assert read.shape == (40, 60, 3)
    assert np.abs(read.astype(int) - np.asarray(photo)).mean() < 12


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    read = decode_image(encoded(Image.fromarray(values)))
    assert np.abs(read[..., 0].astype(float) - values / 257).max() <= 0.5
    assert (read[..., 0] == read[..., 2]).all()


def test_palette_and_bilevel_are_read(photo):
    assert np.abs(decode_image(encoded(photo.quantize(16))).astype(int) - np.asarray(photo)).max() <= 4
    assert set(np.unique(decode_image(encoded(photo.convert("1"))))) <= {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(photo, mode):
    image = photo.convert("RGBA")
    image.putalpha(0)
    assert (decode_image(encoded(image.convert(mode), "PNG" if mode != "PA" else "TIFF")) == 255).all()


def test_a_transparent_palette_colour_is_white(photo):
    palette = photo.quantize(4)
    clear = palette.getpixel((0, 0))
    read = decode_image(encoded(palette, transparency=clear))
    assert (read[0, 0] == 255).all()
    assert (read[0, -1] != 255).any()


def test_the_first_frame_of_an_animation_counts(photo):
    frames = [photo, Image.new("RGB", photo.size, "black")]
    read = decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.abs(read.astype(int) - np.asarray(photo)).max() <= 8


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000)])
def test_tiny_and_thin_pictures_are_read(size):
    assert decode_image(encoded(Image.new("RGB", size, "red"))).shape == (size[1], size[0], 3)


def claimed(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + chunk + end


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"this is no picture at all", "not a picture"),
        (claimed(20_000, 20_000), f"{MAX_PIXELS:,}"),
        (claimed(11_000, 10_000), f"{MAX_PIXELS:,}"),
        (claimed(1, 99_999_999), f"{MAX_SIDE:,}"),
        (claimed(MAX_SIDE + 1, 1), f"{MAX_SIDE:,}"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(data, word):
    with pytest.raises(ImageError, match=word) as caught:
        decode_image(data, "holiday.png")
    assert str(caught.value).startswith("holiday.png: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(ImageError, match="damaged or cut off"):
        decode_image(data[: len(data) // 2], "half.jpg")


def test_a_picture_for_which_no_memory_is_left_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("lexiseg.ops.memory.memory_left", lambda: 10**9)
    assert decode_image(encoded(Image.new("L", (500, 400)))).shape == (400, 500, 3)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(
        ImageError, match=r"^big\.png: needs more memory than there is \(.* about 2\.4 GB, and 1\.0 GB are left\)"
    ):
        decode_image(claimed(10_000, 8_000), "big.png")


def test_the_longest_side_there_may_be_is_read():
    assert decode_image(encoded(Image.new("L", (MAX_SIDE, 1)))).shape == (1, MAX_SIDE, 3)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Failed to decode frame 0"), "damaged or cut off (RuntimeError: Failed to decode frame 0)"),
        (
            NotImplementedError("Unimplemented pixel format 0"),
            "is of a kind that is not decoded here (Unimplemented pixel format 0)",
        ),
        (struct.error("unpack requires a buffer of 4 bytes"), "damaged or cut off (error: unpack requires"),
        (IndexError("index out of range"), "damaged or cut off (IndexError: index out of range)"),
        (ZeroDivisionError("division by zero"), "damaged or cut off (ZeroDivisionError"),
        (SystemError("tile cannot extend outside image"), "damaged or cut off (SystemError"),
        (OSError("image file is truncated"), "damaged or cut off (image file is truncated)"),
        (MemoryError(), "needs more memory than there is"),
    ],
)
@pytest.mark.parametrize("step", ["open", "_getexif", "load", "convert"])
def test_whatever_a_decoder_raises_is_the_pictures_fault(photo, monkeypatch, tmp_path, error, said, step):
    def fails(*_: object, **__: object) -> None:
        raise error

    path = tmp_path / "photo.png"
    photo.convert("L").save(path)
    place = {"open": (Image, "open"), "_getexif": (Image.Image, "getexif")}
    monkeypatch.setattr(*place.get(step, (Image.Image, step)), fails)
    with pytest.raises(ImageError, match=re.escape(said)) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_pil_image_whose_file_is_damaged_is_refused():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(ImageError, match="the picture: is damaged or cut off"):
        as_pixels(Image.open(io.BytesIO(encoded(noise)[:4000])))


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "DDS", "GIF", "BMP", "PPM", "ICO", "TGA", "JPEG2000", "PCX"]
)
def test_damaged_files_of_all_kinds_are_read_or_refused(photo, kind):
    if kind.upper() not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    rng, whole = np.random.default_rng(1), np.frombuffer(encoded(photo, kind), np.uint8)
    for _ in range(60):
        data = whole.copy()
        places = rng.integers(0, min(len(data), 200), rng.integers(1, 6))  # most of a header
        data[places] = rng.integers(0, 256, len(places))
        with suppress(ImageError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, on what is odd but readable
            assert decode_image(data.tobytes()).ndim == 3


def test_a_kind_of_dds_that_is_not_decoded_is_refused(photo):
    data = bytearray(encoded(photo.convert("RGBA"), "DDS"))
    data[80:84], data[84:88] = struct.pack("<I", 4), b"ABCD"  # flags and code of the pixels' format
    with pytest.raises(ImageError, match="of a kind that is not decoded here"):
        decode_image(bytes(data))


def test_standard_input_that_is_closed_is_named(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ImageError, match="standard input: is closed"):
        read_image("-")


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(ImageError, match="give a valid file name"):
        read_image("a\0b.png")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.jpg: no such file"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    "array",
    [
        np.full((4, 5, 3), 0.5),
        np.full((4, 5), 0.5, np.float32),
        np.full((4, 5, 3), 32768, np.uint16),
        np.full((4, 5, 1), 128, np.uint8),
    ],
)
def test_arrays_of_all_kinds_become_the_same_grey(array):
    assert as_pixels(array).shape == (4, 5, 3)
    assert (as_pixels(array) == 128).all()
    assert as_pixels(array).flags.writeable, "PyTorch warns of arrays it may not write to"


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.full((4, 5, 3), np.nan), "not finite"),
        (np.full((4, 5, 3), 200.0), r"0\.\.1"),
        (np.zeros((6, 5, 2)), "shape"),
        (np.zeros((0, 5, 3)), "shape"),
        (np.zeros((4, 5, 3), np.int64), "ambiguous"),
    ],
)
def test_bad_arrays_are_refused(array, word):
    with pytest.raises(ImageError, match=word):
        as_pixels(array)


def test_find_images_expands_globs_and_keeps_what_is_missing(tmp_path):
    for name in ("b.jpg", "a.jpg", "c.txt"):
        (tmp_path / name).touch()
    found = find_images([f"{tmp_path}/*.jpg", f"{tmp_path}/a.jpg", "missing.png", "-"])
    assert found == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg", "missing.png", "-"]
    with pytest.raises(UsageError, match="no file matches"):
        find_images([f"{tmp_path}/*.webp"])


def test_a_picture_is_found_once_however_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.TIF", "c.txt", "._a.jpg", "a.jpg-0123456789ab.overlay.png", "stdin.panoptic.png"):
        (tmp_path / "photos" / name).touch()
    monkeypatch.chdir(tmp_path)
    everything = ["photos/a.jpg", "photos", "./photos/a.jpg", str(tmp_path / "photos/a.jpg"), "photos/*.jpg", "-", "-"]
    assert find_images(everything) == ["photos/a.jpg", "photos/b.TIF", "-"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no picture in the folder 'empty'"):
        find_images(["empty"])
    (tmp_path / "empty/b").mkdir()
    (tmp_path / "empty/b/clip.MP4").touch()
    with pytest.raises(UsageError, match=re.escape("'empty'; name the videos in it, for example 'empty/b/*.MP4'")):
        find_images(["empty"])


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    odd = tmp_path / "photo[1].jpg"
    odd.touch()
    assert find_images([str(odd)]) == [str(odd)]


def test_bytes_and_open_files_are_pictures(photo, tmp_path):
    data, path = encoded(photo), tmp_path / "photo.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        read = [as_pixels(source) for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), file)]
    assert all((pixels == np.asarray(photo)).all() for pixels in read)
    with path.open(encoding="latin-1") as text, pytest.raises(ImageError, match=r"photo\.png: is open as text; .* mode 'rb'"):
        as_pixels(text)
    with pytest.raises(ImageError, match=r"photo\.png: cannot be read"):
        as_pixels(file)
    with pytest.raises(ImageError, match="the picture: is empty"):
        as_pixels(b"")


def test_tensors_are_pictures_with_channels_first_or_last(photo):
    array = np.array(photo)
    for image in (torch.from_numpy(array), torch.from_numpy(array).permute(2, 0, 1), array.transpose(2, 0, 1)):
        assert (as_pixels(image) == array).all()
    unit = torch.from_numpy(array).permute(2, 0, 1).double().div(255).requires_grad_()
    assert (as_pixels(unit) == array).all()
    assert np.abs(as_pixels(unit.bfloat16()).astype(int) - array).max() <= 1
    assert as_pixels(np.zeros((3, 7, 3), np.uint8)).shape == (3, 7, 3), "arrays have channels last"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(3, 7, 3), r"the tensor of shape .* may be \[C, H, W\] or \[H, W, C\]"),
        (torch.zeros(2, 3, 8, 8), r"tensors of shape .* are a batch; give a list of pictures, list\(tensor\)"),
        (np.zeros((2, 3, 8, 8)), r"arrays of shape .* are a batch"),
        (torch.zeros(5, 8, 8), r"the tensor of shape .* is no picture; expected"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "the tensor: values of type int64 are ambiguous"),
        (torch.zeros(3, 0, 8), "is no picture"),
        (torch.full((3, 8, 8), 2.0), r"the tensor: floating-point values must lie in 0\.\.1"),
    ],
)
def test_other_tensors_are_refused_with_the_reason(image, said):
    with pytest.raises(ImageError, match=said):
        as_pixels(image)


def test_heic_without_its_plugin_is_named(monkeypatch):
    monkeypatch.setattr("lexiseg.data.images._reads_heic", lambda: False)
    with pytest.raises(ImageError, match="is HEIC, which Pillow reads with a plugin: 'pip install pillow-heif'"):
        decode_image(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic")
