"""Opening pictures whose pixels are data: label maps, panoptic PNGs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lexiseg.errors import DataError, LexisegError


@contextmanager
def opened_picture(path: Path) -> Iterator[Image.Image]:
    """A picture, to be decoded within; whatever fails there is the file's fault.

    Raises:
        DataError: if the file is missing, no picture, or damaged.
    """
    try:
        with Image.open(path) as picture:
            yield picture
    except LexisegError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `lexiseg data check` says how to get those of known data sets") from None
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise DataError(f"{path}: is not a picture in a format known here; fetch or export it again") from None
    except Exception as error:  # Pillow's decoders raise whatever the damaged data makes them stumble over
        raise DataError(f"{path}: is damaged or cut off ({error}); fetch or export it again") from None
