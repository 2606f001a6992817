"""Read pictures of any format as upright 8-bit RGB, with clear errors."""

from __future__ import annotations

import glob
import io
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from lexiseg.errors import ImageError, UsageError
from lexiseg.ops.files import find_files, is_file, is_folder
from lexiseg.ops.memory import require_memory
from lexiseg.ops.names import is_result, is_url, located
from lexiseg.ops.pictures import MAX_PIXELS, check_side, decoding, opened_picture
from lexiseg.ops.videos import SUFFIXES as VIDEO_SUFFIXES

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".heic", ".heif"}
)
PIXEL_BYTES = 30  # peak memory per pixel with a tiny model, measured by benchmarks/memory.py

CHANNELS = (1, 3, 4)  # of arrays: grey, RGB, RGBA
_HEIC = re.compile(rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx)", re.DOTALL)

Pixels = NDArray[np.uint8]
Picture = str | Path | bytes | IO[bytes] | Image.Image | NDArray[Any] | Tensor
Box = tuple[float, float, float, float]
ValueT = TypeVar("ValueT", bound=np.generic)


def find_images(patterns: Iterable[str], *, urls: bool = False) -> list[str]:
    """Expand ``patterns`` to files, in order, without duplicates.

    Args:
        patterns: paths, globs, folders, or ``-`` for a picture on standard input. Folders are searched recursively for
            pictures (`SUFFIXES`), except hidden files and results of lexiseg. A path that does not exist is kept: reading it
            raises the error, and the other files are still processed.
        urls: keep http(s) addresses, which the caller fetches (`lexiseg.data.urls`).

    Raises:
        UsageError: ``patterns`` is empty, a glob matches no file, a folder holds no picture, or an address is not allowed.
    """
    files: dict[Path, str] = {}
    for pattern in patterns:
        if is_url(pattern) and not urls:
            raise UsageError(f"'{pattern}' is an address: --allow-url fetches pictures, or download it and give the file")
        names = [pattern] if is_url(pattern) else _matches(pattern)
        if not names:
            raise UsageError(_nothing(pattern))
        for name in names:
            files.setdefault(located(name) if name != "-" and not is_url(name) else Path(name), name)
    if not files:
        raise UsageError("no picture given: name files, folders, a glob such as 'photos/*.jpg', or - for standard input")
    return list(files.values())


def _matches(pattern: str) -> list[str]:
    path = Path(pattern)
    if pattern != "-" and is_folder(path):
        return [str(file) for file in find_files(path, SUFFIXES) if not is_result(file.name)]
    if pattern == "-" or path.exists() or not glob.has_magic(pattern):
        return [pattern]
    return sorted(name for name in glob.glob(pattern, recursive=True) if is_file(Path(name)))  # noqa: PTH207 - absolute patterns


def _nothing(pattern: str) -> str:
    """Message on a folder without pictures, or a glob that matches no file."""
    if not is_folder(Path(pattern)):
        return f"no file matches '{pattern}'"
    video = next(iter(find_files(Path(pattern), VIDEO_SUFFIXES)), None)
    hint = "" if video is None else f"; name the videos in it, for example '{video.parent}/*{video.suffix}'"
    return f"no picture in the folder '{pattern}'{hint}"


def read_image(source: str | Path) -> Pixels:
    """Read a picture from a file (``-``: standard input) as [H, W, 3] uint8 RGB, upright by its EXIF orientation.

    Transparency is composited on white, 16-bit values are scaled to 8 bits, and of an animation the first frame is read.

    Raises:
        ImageError: the file is missing, empty, damaged, not a picture, larger than `MAX_PIXELS` or `MAX_SIDE`, or too large
            for the available memory.
    """
    return decode_image(*read_file(source))


def read_file(source: str | Path) -> tuple[bytes, str]:
    """Read a picture's file (``-``: standard input) without decoding it; returns its bytes, and its name in messages.

    Raises:
        ImageError: the file is missing, or cannot be read.
    """
    name = "standard input" if str(source) == "-" else str(source)
    with opening(name):
        return _standard_input() if str(source) == "-" else Path(source).read_bytes(), name


@contextmanager
def opening(name: str) -> Iterator[None]:
    """Convert errors of opening and reading a file in the block to an ImageError about ``name``."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: is a folder; name the pictures in it, for example '{name.rstrip('/')}/*.jpg'") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror or error}); check its permissions") from None
    except ValueError as error:  # an invalid file name
        raise ImageError(f"{name!a}: cannot be read ({error}); give a valid file name") from None
    except MemoryError:
        raise ImageError(f"{name}: is too large for the available memory; scale it down first") from None


def _standard_input() -> bytes:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise ImageError("standard input: is closed; name a file, or pipe the picture into lexiseg")
    data: bytes = stream.read()
    return data


def decode_image(data: bytes, name: str = "the picture") -> Pixels:
    """Decode the bytes of a file as `read_image` does; ``name`` is the picture's name in messages."""
    if not data:
        raise ImageError(f"{name}: is empty (0 bytes); fetch or export it again")
    if _HEIC.match(data) and not _reads_heic():
        raise ImageError(f"{name}: is HEIC, which Pillow reads with a plugin: 'pip install pillow-heif', or convert it to JPEG")
    with opened_picture(io.BytesIO(data), name, error=ImageError) as opened:
        check_size(opened.size, name)
        require_memory(opened.width * opened.height * PIXEL_BYTES, "the picture and its copies")
        ImageOps.exif_transpose(opened, in_place=True)
        check_size(opened.size, name)  # the picture in an icon may differ from the icon's list
        return _rgb(opened, name)


def check_size(size: tuple[int, int], name: str) -> None:
    """Raise ImageError if a picture of ``size``, (width, height), is too large."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} × {height} pixels are more than {MAX_PIXELS:,}; scale it down first")
    check_side(size, name, ImageError)


def orientation_of(opened: Image.Image) -> int:
    """Return the EXIF orientation of a picture, 1 to 8; 1 if it has none, or an invalid one.

    Call it before reading the pixels: Pillow then drops the orientation of a TIFF.
    """
    given = opened.getexif().get(ExifTags.Base.Orientation, 1)
    return int(given) if given in range(1, 9) else 1


def turned(values: NDArray[ValueT], orientation: int) -> NDArray[ValueT]:
    """Transpose values [H, W, …] of a picture as stored to the upright picture.

    Args:
        values: an array.
        orientation: the picture's, see `orientation_of`.
    """
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)  # PyTorch takes no negative strides


def turned_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Transpose a box (left, top, width, height) as `turned` does; ``size`` is (height, width) as stored."""
    (left, top, wide, high), (height, width) = box, size
    if orientation >= 5:
        left, top, wide, high, height, width = top, left, high, wide, width, height
    if orientation in (2, 3, 6, 7):
        left = width - left - wide
    if orientation in (3, 4, 7, 8):
        top = height - top - high
    return left, top, wide, high


def as_pixels(image: Picture) -> Pixels:
    """Convert a path, the bytes of a file, an open file, a PIL image, an array or a tensor to [H, W, 3] uint8 RGB.

    Arrays and tensors are [H, W], [H, W, C] or [C, H, W] with C = 1, 3 or 4: uint8, uint16, bool, or floating point in 0..1. If
    both ends of the shape may be channels, an array is [H, W, C], and a tensor is refused.

    Raises:
        ImageError: see `read_image`; an array of another shape, type or range, or with values that are not finite.
    """
    if isinstance(image, str | Path):
        if is_url(str(image)):
            raise ImageError(f"{image}: is an address; fetch it and give its bytes (lexiseg.data.urls.fetch_picture)")
        return read_image(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image))
    if isinstance(image, io.IOBase) or callable(getattr(image, "read", None)):
        return _of_file(image)
    if isinstance(image, Image.Image):
        with decoding("the picture", ImageError):  # Pillow reads lazily
            return _rgb(ImageOps.exif_transpose(image), "the picture")
    what = "tensor" if isinstance(image, Tensor) else "array"
    array = _of_tensor(image) if isinstance(image, Tensor) else np.asarray(image)
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and shape[0] in CHANNELS:
        if shape[2] not in CHANNELS:
            array = np.moveaxis(array, 0, 2)
        elif what == "tensor":
            raise ImageError(
                f"the tensor of shape {shape} may be [C, H, W] or [H, W, C]; give an array, which is [H, W, C]: tensor.numpy()"
            )
    if array.ndim == 4:
        raise ImageError(f"{what}s of shape {shape} are a batch; give a list of pictures, list({what})")
    if array.ndim != 3 or array.shape[2] not in CHANNELS or 0 in shape:
        raise ImageError(
            f"the {what} of shape {shape} is no picture; expected [H, W], [H, W, C] or [C, H, W] with C = 1, 3 or 4"
        )
    return _from_values(array, f"the {what}")


def _of_file(file: Any) -> Pixels:
    """Decode an open binary file from its position on."""
    name = f"the file {file.name}" if isinstance(getattr(file, "name", None), str) else "the file"
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise ImageError(f"{name}: cannot be read ({error})") from None
    if not isinstance(data, bytes):
        raise ImageError(f"{name}: is open as text; open it with mode 'rb'")
    return decode_image(data, name)


def _of_tensor(tensor: Tensor) -> NDArray[Any]:
    plain = tensor.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


@cache
def _reads_heic() -> bool:
    """Whether Pillow reads HEIC, after its plugin has been registered if it is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # an extra

        register_heif_opener()
    Image.init()
    return "HEIF" in Image.OPEN


def _rgb(image: Image.Image, name: str) -> Pixels:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel, which Pillow would clip rather than scale
        values = np.asarray(image)
        return _from_values(
            values.astype(np.uint16 if values.max(initial=0) <= 65535 and values.dtype.kind in "iu" else values.dtype)[
                ..., None
            ],
            name,
        )
    return flattened(image)


def flattened(image: Image.Image) -> Pixels:
    """Composite a picture of 8 bits on white, [H, W, 3] RGB."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _from_values(array: NDArray[Any], name: str) -> Pixels:
    """Convert values [H, W, 1 | 3 | 4] of any type, in 0..full scale, to 8-bit RGB."""
    unit: NDArray[np.floating[Any]]
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise ImageError(f"{name}: holds {count} values that are not finite (NaN or infinite); replace them first")
        if array.min() < 0 or array.max() > 1:
            span = f"{array.min():.3g}..{array.max():.3g}"
            raise ImageError(f"{name}: floating-point values must lie in 0..1, not {span}; divide by the largest")
        unit = array.astype(np.float32)
    elif array.dtype == np.bool_ or array.dtype in (np.uint8, np.uint16):
        unit = array.astype(np.float32) / (np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1)
    else:
        raise ImageError(f"{name}: values of type {array.dtype} are ambiguous; give uint8, uint16 or floating point in 0..1")
    if unit.shape[2] == 4:
        unit = unit[..., :3] * unit[..., 3:] + 1 - unit[..., 3:]
    return np.array(np.broadcast_to(np.rint(unit * 255).astype(np.uint8), (*unit.shape[:2], 3)))
