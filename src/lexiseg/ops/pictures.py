"""Safe opening of pictures: limits on their size, a list of formats, and one kind of error.

Pillow's warnings concern files that can still be read, such as ones with invalid EXIF data; they are not shown.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lexiseg.errors import DataError, LexisegError, RunError, is_no_memory

MAX_PIXELS = 100_000_000  # of a picture to be segmented; checked before it is decoded
MAX_TILED_PIXELS = 2**30  # of a picture that is read by windows
MAX_SIDE = 65_535  # of any picture, JPEG's limit: decoders and models allocate memory per row
FORMATS = (  # allowed; not EPS, which Pillow passes to Ghostscript, nor obsolete formats
    *("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "AVIF", "HEIF", "JPEG2000"),
    *("ICO", "ICNS", "DDS", "TGA", "QOI", "PCX", "SGI", "PSD"),
)
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow: one channel of whole numbers


@contextmanager
def opened_picture(
    source: Path | IO[bytes], name: str | None = None, *, error: type[RunError] = DataError
) -> Iterator[Image.Image]:
    """Open a picture of one of `FORMATS`, to be decoded within the block.

    Args:
        source: the file.
        name: name of the file in messages; defaults to its path.
        error: class of the exception.

    Raises:
        RunError: the file is missing, not a picture, too large, or damaged; of the class ``error``.
    """
    name = str(source) if name is None else name
    with decoding(name, error):
        Image.init()
        with Image.open(source, formats=[known for known in FORMATS if known in Image.OPEN]) as picture:
            check_side(picture.size, name, error)
            yield picture


def check_side(size: tuple[int, int], name: str, error: type[RunError]) -> None:
    """Raise an ``error`` if a side of ``size``, (width, height), is more than `MAX_SIDE` pixels."""
    if max(size) > MAX_SIDE:
        raise error(f"{name}: {size[0]} × {size[1]} pixels are a side of more than {MAX_SIDE:,}; cut it in parts first")


@contextmanager
def decoding(name: str, error: type[RunError]) -> Iterator[None]:
    """Convert exceptions of Pillow and its decoders in the block to an ``error`` about the file ``name``."""
    try:
        with _SILENCE:
            yield
    except LexisegError:
        raise
    except FileNotFoundError:
        raise error(f"{name}: no such file; `lexiseg data check` says how to get those of known data sets") from None
    except UnidentifiedImageError:
        raise error(f"{name}: is not a picture in a format known here; convert it to PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise error(f"{name}: claims far more than {MAX_PIXELS:,} pixels; scale it down first") from None
    except NotImplementedError as reason:
        raise error(f"{name}: is of a kind that is not decoded here ({reason}); convert it to PNG or JPEG") from None
    except Exception as reason:
        if is_no_memory(reason):
            need = f" ({reason})" if type(reason) is MemoryError and str(reason) else ""
            raise error(f"{name}: needs more memory than there is{need}; scale it down first") from None
        if isinstance(reason, OSError) and reason.errno is not None:
            raise error(f"{name}: cannot be read ({reason.strerror}); check its permissions") from None
        plain = isinstance(reason, OSError | SyntaxError | ValueError | EOFError)
        detail = " ".join((str(reason) if plain else f"{type(reason).__name__}: {reason}").split())
        raise error(f"{name}: is damaged or cut off ({detail}); fetch or export it again") from None


def read_values(path: Path) -> NDArray[Any]:
    """Read the values [H, W] of a label map: grey of 8, 16 or 32 bits, palette indices, or 0 and 1.

    Raises:
        DataError: the file is missing, damaged, or has more than one channel or fractional values.
    """
    with opened_picture(path) as picture:
        if picture.mode not in LABEL_MODES:
            what = {"F": "holds fractions", "LA": "has an alpha channel", "PA": "has an alpha channel"}
            raise DataError(
                f"{path}: {what.get(picture.mode, 'is in colour')} ({picture.mode}); a label map has one channel of grey"
                " values or palette indices, a class id a pixel"
            )
        values = np.array(picture)
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


class _Silence:
    """Suppress warnings while any thread is in the block; `warnings.catch_warnings` alone is not thread-safe."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._before.__exit__(None, None, None)


_SILENCE = _Silence()
