"""Pictures are opened within limits, in formats that run no other program, and quietly."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.images import decode_image, read_image
from lexiseg.errors import DataError, ImageError
from lexiseg.ops.pictures import FORMATS, MAX_SIDE, decoding, opened_picture, read_values


def test_no_format_is_opened_for_which_pillow_runs_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "drawing.png"
    Image.new("RGB", (4, 4)).save(path, "EPS")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was run"))
    with pytest.raises(ImageError, match="not a picture in a format known here"):
        read_image(path)
    with pytest.raises(DataError, match="not a picture in a format known here"):
        read_values(path)
    assert not {"EPS", "WMF", "PS"} & set(FORMATS)


def test_formats_that_this_pillow_does_not_know_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    assert read_values(tmp_path / "a.png").shape == (4, 4)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, *chunks: bytes) -> bytes:
    """A grey PNG that claims a size, with any packed rows, and with chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_icon_is_refused_whose_picture_is_larger_than_its_list_says() -> None:
    inner = png(MAX_SIDE + 1, 2, zlib.compress(bytes(2 * (MAX_SIDE + 2))))
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    with pytest.raises(ImageError, match=f"a side of more than {MAX_SIDE:,}"):
        decode_image(icon, "bomb.ico")


def packed(megabytes: int) -> bytes:
    """A thousandth of so much, which unpacks to zeros."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def tiff(width: int, height: int, data: bytes) -> bytes:
    """A grey TIFF that claims a size, with any packed rows."""
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 273: 110, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


def webp(side: int) -> bytes:
    """A WebP that claims a canvas of more than is in it."""
    buffer = io.BytesIO()
    Image.new("RGB", (10, 10)).save(buffer, "WEBP", lossless=True)
    body = b"WEBP" + struct.pack("<4sIB3x", b"VP8X", 10, 0) + 2 * (side - 1).to_bytes(3, "little") + buffer.getvalue()[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


ROWS = zlib.compress(bytes(11 * 10))
BOMBS = {
    "rows beyond the last": png(10, 10, packed(400)),
    "a profile": png(10, 10, ROWS, chunk(b"iCCP", b"x\0\0" + packed(400))),
    "a text": png(10, 10, ROWS, chunk(b"zTXt", b"x\0\0" + packed(400))),
    "many texts": png(10, 10, ROWS, *[chunk(b"iTXt", b"x\0\1\0\0\0" + packed(60))] * 30),
    "a strip of a TIFF": tiff(10, 10, packed(400)),
    "a TIFF that claims much": tiff(9999, 9999, packed(1)),
    "a PNG that claims much": png(9999, 9999, packed(1)),
    "a WebP that claims much": webp(9999),
    "a WebP that claims more": webp(16384),
}


# In a process of their own, as what this one has freed before would count; with the command line's allocator.
MEASURED = """
import contextlib, re, sys
from pathlib import Path
from lexiseg.data.images import decode_image
from lexiseg.errors import ImageError
from lexiseg.ops.allocator import keep_freed_memory

def held(what):
    return int(re.search(rf"^{what}:\\s+(\\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[1])

bombs = [Path(name).read_bytes() for name in sys.argv[1:]]
decode_image(bombs[0])  # what is loaded once
for bomb in bombs:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = held("VmRSS")
    with contextlib.suppress(ImageError):
        assert decode_image(bomb).shape == (10, 10, 3)
    print(held("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say how much memory a call took at its most")
def test_what_a_file_packs_or_claims_beyond_its_picture_takes_no_memory(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(len(BOMBS))]
    for file, content in zip(files, BOMBS.values(), strict=True):
        file.write_bytes(content)
    command = [sys.executable, "-c", MEASURED, *map(str, files)]
    kilobytes = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    large = {name: size for name, size in zip(BOMBS, kilobytes, strict=True) if size >= 160_000}
    assert large == {}, "100 megapixels of grey are 100,000 kB, before it is seen that rows are missing"


@pytest.mark.parametrize("size", [(1, 99_999_999), (MAX_SIDE + 1, 1), (30_000, 30_000)])
def test_a_label_map_is_refused_by_what_its_header_claims(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(*size, b""))
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: ") as caught:
        read_values(path)
    assert re.search("a side of more than|far more than", str(caught.value))


@pytest.mark.parametrize(
    ("mode", "what"), [("LA", "has an alpha channel (LA)"), ("RGB", "is in colour (RGB)"), ("F", "holds fractions (F)")]
)
def test_a_label_map_of_another_kind_is_refused_by_what_it_has(tmp_path: Path, mode: str, what: str) -> None:
    path = tmp_path / "a.tif"
    Image.new("L", (3, 2)).convert(mode).save(path)
    with pytest.raises(DataError, match=re.escape(f"{path}: {what}; a label map has one channel")):
        read_values(path)


@pytest.mark.parametrize(
    "values", [np.array([[0, 1], [1, 0]], bool), np.array([[0, 255]], np.uint8), np.array([[7, 65535]], np.uint16)]
)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_label_map_of_1_8_or_16_bits_is_read_exactly(tmp_path: Path, values: np.ndarray, ending: str) -> None:
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    assert read_values(tmp_path / f"a.{ending}").tolist() == values.astype(int).tolist()


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"), opened_picture(tmp_path):
        pass


def test_warnings_are_silent_within_and_as_before_after_however_threads_interleave() -> None:
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with decoding("a", DataError):
            entered.set()
            assert leave.wait(10)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        thread = threading.Thread(target=first)
        thread.start()
        assert entered.wait(10)
        with decoding("b", DataError):
            leave.set()  # the first leaves while the second is still within
            thread.join()
            warnings.warn("Corrupt EXIF data", stacklevel=1)
        assert warnings.filters == before
        with pytest.raises(UserWarning):
            warnings.warn("heard again", stacklevel=1)
