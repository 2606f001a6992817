"""Pictures are opened within limits, in formats that run no other program, and quietly."""

from __future__ import annotations

import re
import struct
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


def png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG that claims a size, with any packed rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_an_icon_is_refused_whose_picture_is_larger_than_its_list_says() -> None:
    inner = png(MAX_SIDE + 1, 2, bytes(2 * (MAX_SIDE + 2)))
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    with pytest.raises(ImageError, match=f"a side of more than {MAX_SIDE:,}"):
        decode_image(icon, "bomb.ico")


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
