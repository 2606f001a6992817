"""Videos through PyAV, an extra that is imported when a video is first opened."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

from lexiseg.errors import UsageError
from lexiseg.ops.files import is_folder
from lexiseg.ops.names import is_url
from lexiseg.structures import Size

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".ogv"),
)
INSTALL = "pip install 'lexiseg[video]'"


@dataclass(frozen=True)
class VideoFormat:
    """How the frames of a video are shown.

    Attributes:
        size: (height, width) of the upright frames, in pixels.
        rate: frames per second; of a video with a variable rate the average.
        time_base: seconds; the times of frames are its multiples.
        pixel_aspect: width of a pixel divided by its height.
    """

    size: Size
    rate: Fraction
    time_base: Fraction
    pixel_aspect: Fraction = Fraction(1)


def is_video(source: str) -> bool:
    """Whether the name of a file, or an address, is that of a video."""
    return source.lower().endswith(SUFFIXES) and (is_url(source) or not is_folder(Path(source)))


def require_av(what: str) -> None:
    """Check that PyAV is installed; ``what`` needs it.

    Raises:
        UsageError: it is not.
    """
    if find_spec("av") is None:
        raise UsageError(f"{what} needs PyAV: {INSTALL}")
