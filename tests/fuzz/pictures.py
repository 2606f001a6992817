"""Pictures of all kinds, as `lexiseg segment` takes them: read, and a result about them written."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from lexiseg.data.images import read_image
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Segment
from tests.fuzz.mutations import mutated_bytes

SUFFIX = ".picture"
SAVED = 64 * 64  # pixels; of larger ones no result is written, for that is slow and the same again
ODD = (0, 1, 2, 3, 5, 8, 16, 255, 1000, 65_535, 99_999, 99_999_999, 2**31 - 1, 2**31, 2**32 - 1)  # for the fields of headers
PNG = b"\x89PNG\r\n\x1a\n"


def prepare(folder: Path) -> None:
    """Nothing is needed beside a picture."""


def inputs(random: np.random.Generator) -> bytes:
    """A mutated picture of one of the kinds that Pillow writes."""
    sound = _sound()
    return mutated_picture(sound[int(random.integers(len(sound)))], random)


def attempt(path: Path) -> None:
    """What `lexiseg segment` does with a picture, but for the model."""
    pixels = read_image(path)
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.dtype == np.uint8
    if pixels.shape[0] * pixels.shape[1] <= SAVED:
        bright = pixels.mean(2) > 128
        segment = Segment(1, 0, "light", True, 0.5, int(bright.sum()), (0, 0, bright.shape[1], bright.shape[0]))
        Segmentation("panoptic", pixels, ("light",), (True,), (segment,), bright[None], str(path)).save(path.parent / "output")


def mutated_picture(data: bytes, random: np.random.Generator) -> bytes:
    """A picture with other bytes, or other numbers in its header; of a PNG the check sums mostly fit nevertheless."""
    for _ in range(int(random.integers(1, 4))):
        kind = random.random()
        if kind < 0.3 and data:
            data = mutated_bytes(data, random)
        elif kind < 0.7 and data:
            data = _with_bytes(data, random.integers(0, 256, int(random.integers(1, 5))).astype(np.uint8).tobytes(), random)
        else:
            form = ("<H", ">H", "<I", ">I")[int(random.integers(4))]
            number = ODD[int(random.integers(len(ODD)))] % 2 ** (8 * struct.calcsize(form))
            data = _with_bytes(data, struct.pack(form, number), random)
    return with_check_sums(data) if data.startswith(PNG) and random.random() < 0.8 else data


def with_check_sums(data: bytes) -> bytes:
    """A PNG whose chunks' check sums are those of what is in them, as far as there are chunks."""
    repaired, start = [PNG], len(PNG)
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        body = data[start + 4 : start + 8 + length]
        repaired += [data[start : start + 4], body, struct.pack(">I", zlib.crc32(body))]
        start += 12 + length
    return b"".join(repaired)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    picture.copy().save(buffer, kind, **options)  # a picture remembers how it was saved, and is then saved otherwise
    return buffer.getvalue()


def _with_bytes(data: bytes, new: bytes, random: np.random.Generator) -> bytes:
    """The bytes with others in the place of some, half of the time among the first hundred, where headers are."""
    start = int(random.integers(max(1, len(data) if random.random() < 0.5 else min(len(data), 100))))
    return data[:start] + new + data[start + len(new) :]


@cache
def _sound() -> list[bytes]:
    """A file of each format and kind of pixels that is read."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 14, 4), dtype=np.uint8)
    alpha = Image.fromarray(noise)
    colour, grey, words = alpha.convert("RGB"), alpha.convert("L"), Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    palette, fractions = colour.quantize(16), Image.fromarray(noise[..., 0].astype(np.float32) / 255)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "packed " * 20, zip=True)
    notes.add_itxt("Title", "a picture", "en", "Title")
    film = {"save_all": True, "append_images": [grey.convert("RGB")]}
    jpeg = [encoded(colour, "JPEG", exif=exif, progressive=True, icc_profile=b"profile" * 9), encoded(colour, "MPO", **film)]
    jpeg += [encoded(kind, "JPEG") for kind in (grey, alpha.convert("CMYK"))]
    png = [encoded(colour, "PNG", exif=exif, pnginfo=notes, icc_profile=b"profile" * 9), encoded(colour, "PNG", **film)]
    png += [encoded(kind, "PNG") for kind in (alpha, grey, alpha.convert("LA"), grey.convert("1"), words)]
    png += [encoded(palette, "PNG", transparency=bytes(range(16)), bits=4)]
    webp = [encoded(colour, "WEBP", exif=exif), encoded(alpha, "WEBP", lossless=True), encoded(colour, "WEBP", **film)]
    gif = [encoded(palette, "GIF", transparency=3, interlace=1), encoded(colour, "GIF", **film)]
    tiff = [encoded(kind, "TIFF", exif=exif) for kind in (colour, alpha.convert("CMYK"), words, fractions, alpha)]
    packings = (("tiff_lzw", colour), ("tiff_adobe_deflate", alpha), ("packbits", grey), ("jpeg", colour), ("group4", None))
    tiff += [encoded(kind or grey.convert("1"), "TIFF", compression=name) for name, kind in packings]
    tiff += [
        encoded(palette, "TIFF"),
        encoded(grey, "TIFF", save_all=True, append_images=[grey.copy()]),
        encoded(colour.convert("LAB"), "TIFF", big_tiff=True),
    ]
    bmp = [encoded(kind, "BMP") for kind in (colour, alpha, palette, grey, grey.convert("1"))]
    ppm = [encoded(kind, "PPM") for kind in (colour, grey, grey.convert("1"), words, fractions)]
    avif = [encoded(kind, "AVIF", speed=10) for kind in (colour, alpha)] + [encoded(colour, "AVIF", exif=exif, speed=10)]
    dds = [encoded(alpha, "DDS", pixel_format=name) for name in (None, "DXT1", "DXT5", "BC2", "BC3")]
    dds += [encoded(colour, "DDS", pixel_format=name) for name in (None, "BC5")]
    icons = [encoded(alpha, "ICO", sizes=[(9, 9)], bitmap_format=name) for name in ("png", "bmp")]
    icons += [encoded(alpha.resize((16, 16)), "ICNS")]
    others = [encoded(alpha, name) for name in ("TGA", "QOI", "JPEG2000")]
    others += [encoded(colour, "TGA", compression="tga_rle"), encoded(colour, "PCX"), encoded(colour, "SGI")]
    return [*jpeg, *png, *webp, *gif, *tiff, *bmp, *ppm, *avif, *dds, *icons, *others]
