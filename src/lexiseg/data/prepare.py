"""Common parts of data set preparations: finding raw files, and writing converted ones so that a run can be resumed.

A preparation is a list of `Work`, one item per raw picture. `carry_out` does the items that are not done, with a progress bar;
until it ends, a file `UNFINISHED` is in the folder of the truths, and `refuse_unfinished` keeps the incomplete set from being
measured. Files are written atomically, a picture's truth as the last of its files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lexiseg.errors import DataError
from lexiseg.ops.files import write_atomically
from lexiseg.ops.names import relative_name

UNFINISHED = ".lexiseg-unfinished"
TILE = 1024  # pixels; side of the square tiles of MESS's earth monitoring sets

_FORMATS = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}


@dataclass(frozen=True)
class Work:
    """One item of a preparation.

    Attributes:
        done: the file written last; if it exists the item is done.
        make: reads, converts and writes.
    """

    done: Path
    make: Callable[[], None]


def carry_out(name: str, truths: Path, work: Sequence[Work]) -> None:
    """Do the items that are not done, with a progress bar on a terminal.

    Args:
        name: the row's name, for the bar.
        truths: the folder of the prepared truths; holds the mark `UNFINISHED` until the last item is done.
        work: the items, in any order.

    Raises:
        DataError: a raw file is missing or damaged; finished items are kept, and the next call resumes.
        OutputError: a file cannot be written.
    """
    rest = [item for item in work if not item.done.exists()]
    mark = truths / UNFINISHED
    if rest:
        write_atomically(mark, b"lexiseg is not done with this folder\n")
    bar = tqdm(rest, desc=f"preparing {name}", unit="picture", initial=len(work) - len(rest), total=len(work), disable=None)
    for item in bar:
        item.make()
    mark.unlink(missing_ok=True)


def refuse_unfinished(name: str, truths: Path) -> None:
    """Raise DataError if the preparation of ``truths`` was interrupted; ``name`` is the row's, for the next command."""
    if (truths / UNFINISHED).exists():
        raise DataError(f"{truths}: its preparation was interrupted; go on with `lexiseg data prepare {name}`")


def raw_files(root: Path, pattern: str) -> list[Path]:
    """Return the files below ``root`` that match a glob, sorted, without hidden ones (macOS adds some).

    Raises:
        DataError: if there is none.
    """
    paths = sorted(path for path in root.glob(pattern) if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise DataError(f"{root / pattern}: no such file; `lexiseg data check` says how to get it")
    return paths


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file, stripped, without blank ones.

    Raises:
        DataError: if the file is missing, not text, or empty.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `lexiseg data check` says how to get it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it again") from None
    if not any(lines):
        raise DataError(f"{path}: is empty; fetch it again")
    return [line for line in lines if line]


def read_names(path: Path) -> list[str]:
    """Read the file names that a text file lists, one per line.

    Raises:
        DataError: as `read_lines` and `lexiseg.ops.names.relative_name`.
    """
    return [relative_name(line, f"{path}, entry {number}") for number, line in enumerate(read_lines(path), start=1)]


def write_picture(path: Path, values: NDArray[Any]) -> None:
    """Write [H, W] or [H, W, 3] in the format of the path's suffix: .png or .tif lossless, .jpg with quality 75.

    Quality 75 is Pillow's default, as in the official preparations, on which the published scores are based.

    Raises:
        OutputError: see `lexiseg.ops.files.write_atomically`.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(buffer, _FORMATS[path.suffix])
    write_atomically(path, buffer.getvalue())


def tiles(values: NDArray[Any], fill: int, side: int = TILE) -> Iterator[NDArray[Any]]:
    """Yield square tiles of a picture [H, W, ...], row by row without overlap, padded with ``fill`` at the edge."""
    high, wide = values.shape[:2]
    for top in range(0, high, side):
        for left in range(0, wide, side):
            part = values[top : top + side, left : left + side]
            tile = np.full((side, side, *values.shape[2:]), fill, values.dtype)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def labels_of_colours(colours: NDArray[np.uint8], table: dict[tuple[int, int, int], int], source: Path) -> NDArray[np.uint8]:
    """Map colours [H, W, 3] to labels [H, W].

    Raises:
        DataError: if a colour is not in the table; names ``source``.
    """
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    codes = red << 16 | green << 8 | blue
    labels, known = np.zeros(codes.shape, np.uint8), np.zeros(codes.shape, bool)
    for (red_of, green_of, blue_of), label in table.items():
        mask = codes == (red_of << 16 | green_of << 8 | blue_of)
        labels[mask] = label
        known |= mask
    if not known.all():
        colour = tuple(int(channel) for channel in colours[~known][0])
        raise DataError(f"{source}: {int((~known).sum())} pixels of unknown colours, such as {colour}; fetch it again")
    return labels


def labels_of_values(values: NDArray[Any], table: dict[int, int], source: Path) -> NDArray[np.uint8]:
    """Map raw values [H, W] to labels [H, W].

    Raises:
        DataError: if a value is not in the table; names ``source``.
    """
    strange = ~np.isin(values, list(table))
    if strange.any():
        number = int(values[strange][0])
        raise DataError(f"{source}: {int(strange.sum())} pixels of unknown numbers, such as {number}; fetch it again")
    lookup = np.zeros(max(table) + 1, np.uint8)
    lookup[list(table)] = list(table.values())
    return np.asarray(lookup[values])


def same_size(picture: NDArray[Any], truth: NDArray[Any], source: Path) -> None:
    """Raise DataError, naming the truth's file, if a truth differs in size from its picture."""
    if picture.shape[:2] != truth.shape[:2]:
        raise DataError(f"{source}: has {truth.shape[:2]} pixels, its picture {picture.shape[:2]}; fetch both again")
