"""What the preparations of data sets share: finding the raw files, and writing new ones so that an interruption costs nothing.

A preparation is a list of `Work`, one piece a raw picture. `carry_out` does what is not done yet, with a progress bar; as
long as it has not come to its end, a file `UNFINISHED` lies in the folder of the truths, and `refuse_unfinished` keeps the
half-made set from being measured. Files appear whole or not at all, a picture's truth as the last of its files.
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
TILE = 1024  # pixels; MESS cuts pictures of the earth into squares of this side

_FORMATS = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}


@dataclass(frozen=True)
class Work:
    """One piece of a preparation.

    Attributes:
        done: the file written last; if it exists the piece is done.
        make: reads, converts and writes.
    """

    done: Path
    make: Callable[[], None]


def carry_out(name: str, truths: Path, work: Sequence[Work]) -> None:
    """Do all that is not done yet, with a progress bar on a terminal.

    Args:
        name: the row's name, for the bar.
        truths: the folder of the prepared truths; its mark `UNFINISHED` lies there until the last piece is done.
        work: the pieces, in any order.

    Raises:
        DataError: a raw file is missing or damaged; what is done stays done, and the next call goes on there.
        OutputError: a file cannot be written.
    """
    rest = [piece for piece in work if not piece.done.exists()]
    mark = truths / UNFINISHED
    if rest:
        write_atomically(mark, b"lexiseg is not done with this folder\n")
    bar = tqdm(rest, desc=f"preparing {name}", unit="picture", initial=len(work) - len(rest), total=len(work), disable=None)
    for piece in bar:
        piece.make()
    mark.unlink(missing_ok=True)


def refuse_unfinished(name: str, truths: Path) -> None:
    """Raise DataError if the preparation of ``truths`` was interrupted; ``name`` is the row's, for the next command."""
    if (truths / UNFINISHED).exists():
        raise DataError(f"{truths}: its preparation was interrupted; go on with `lexiseg data prepare {name}`")


def raw_files(root: Path, pattern: str) -> list[Path]:
    """The files below ``root`` that a glob names, sorted; hidden ones, such as macOS puts beside others, are left out.

    Raises:
        DataError: if there is none.
    """
    found = sorted(path for path in root.glob(pattern) if path.is_file() and not path.name.startswith("."))
    if not found:
        raise DataError(f"{root / pattern}: no such file; `lexiseg data check` says how to get it")
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without the blank ones, stripped.

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
    """The names of files that a text file lists, one a line.

    Raises:
        DataError: as `read_lines` and `lexiseg.ops.names.relative_name`.
    """
    return [relative_name(line, f"{path}, entry {number}") for number, line in enumerate(read_lines(path), start=1)]


def write_picture(path: Path, values: NDArray[Any]) -> None:
    """Write [H, W] or [H, W, 3] in the format of the path's ending: .png or .tif without loss, .jpg with quality 75.

    That quality is Pillow's own, which the official preparations take; the published scores are of such pictures.

    Raises:
        OutputError: see `lexiseg.ops.files.write_atomically`.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(buffer, _FORMATS[path.suffix])
    write_atomically(path, buffer.getvalue())


def tiles(values: NDArray[Any], fill: int, side: int = TILE) -> Iterator[NDArray[Any]]:
    """Squares of a picture [H, W, ...], row by row without overlap; those at the edge are filled up with ``fill``."""
    high, wide = values.shape[:2]
    for top in range(0, high, side):
        for left in range(0, wide, side):
            part = values[top : top + side, left : left + side]
            tile = np.full((side, side, *values.shape[2:]), fill, values.dtype)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def labels_of_colours(colours: NDArray[np.uint8], table: dict[tuple[int, int, int], int], source: Path) -> NDArray[np.uint8]:
    """Labels [H, W] of a picture [H, W, 3] that means one by each colour.

    Raises:
        DataError: if it has a colour outside the table; ``source`` is named.
    """
    red, green, blue = (colours[..., channel].astype(np.int32) for channel in range(3))
    codes = red << 16 | green << 8 | blue
    labels, known = np.zeros(codes.shape, np.uint8), np.zeros(codes.shape, bool)
    for (red_of, green_of, blue_of), label in table.items():
        found = codes == (red_of << 16 | green_of << 8 | blue_of)
        labels[found] = label
        known |= found
    if not known.all():
        colour = tuple(int(channel) for channel in colours[~known][0])
        raise DataError(f"{source}: {int((~known).sum())} pixels of unknown colours, such as {colour}; fetch it again")
    return labels


def labels_of_values(values: NDArray[Any], table: dict[int, int], source: Path) -> NDArray[np.uint8]:
    """Labels [H, W] of a map [H, W] of other numbers.

    Raises:
        DataError: if it has a number outside the table; ``source`` is named.
    """
    strange = ~np.isin(values, list(table))
    if strange.any():
        number = int(values[strange][0])
        raise DataError(f"{source}: {int(strange.sum())} pixels of unknown numbers, such as {number}; fetch it again")
    lookup = np.zeros(max(table) + 1, np.uint8)
    lookup[list(table)] = list(table.values())
    return np.asarray(lookup[values])


def same_size(picture: NDArray[Any], truth: NDArray[Any], source: Path) -> None:
    """Raise DataError, naming the truth's file, if a truth has not the height and width of its picture."""
    if picture.shape[:2] != truth.shape[:2]:
        raise DataError(f"{source}: has {truth.shape[:2]} pixels, its picture {picture.shape[:2]}; fetch both again")
