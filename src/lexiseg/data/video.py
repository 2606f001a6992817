"""Videos as upright 8-bit RGB, a frame at a time.

* **Containers.** Those of `CONTAINERS`; not playlists and the like, which name other files. The file is opened here and handed
  to FFmpeg, which opens no other and no address.
* **Rotation.** Frames are turned as the video says, by the multiple of 90 degrees that is nearest.
* **Size.** That of the first frame; frames of another size are scaled to it.
* **Damage.** What cannot be decoded is left out, and when all other frames have been read, `DamagedVideoError` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Any

from lexiseg.data.images import PIXEL_BYTES, Pixels, check_size, opening, turned
from lexiseg.errors import ImageError, UsageError
from lexiseg.ops.memory import require_memory
from lexiseg.ops.pictures import MAX_PIXELS
from lexiseg.ops.videos import VideoFormat, require_av

CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "asf", "flv", "ogg")  # FFmpeg's names of demuxers
OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
ORIENTATIONS = {0: 1, 1: 8, 2: 3, 3: 6}  # quarters of a turn, counter-clockwise, to EXIF's number
DEFAULT_RATE = Fraction(25)  # [decided] of a video that does not say it
MISSING = Fraction(1, 10)  # of the duration, at the end: what a sound video may lack, since its sound may be longer


class DamagedVideoError(ImageError):
    """A video that is damaged or cut off: raised after the frames that could be read."""


@dataclass(frozen=True)
class Frame:
    """Frame of a video.

    Attributes:
        number: among all frames of the file that can be read, from 0.
        time: seconds since the first one.
        pixels: [H, W, 3] uint8 RGB, upright.
    """

    number: int
    time: Fraction
    pixels: Pixels


@dataclass(frozen=True)
class Excerpt:
    """The frames of a video that are read.

    Attributes:
        every: N, to read every Nth frame; at least 1.
        start: seconds from the first frame of the video to that of the excerpt.
        end: seconds to the end of the excerpt, which is not in it; None: that of the video.
    """

    every: int = 1
    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"every {self.every}: give 1 for all frames of a video, 2 for every second one, …")
        if not (isfinite(self.start) and self.start >= 0):
            raise UsageError(f"start {self.start}: a part of a video starts at 0 seconds or later")
        if self.end is not None and not self.end > self.start:
            raise UsageError(f"end {self.end}: a part of a video ends after its start, {self.start} seconds")


class Video:
    """File of a video; iterating over it reads its frames, one at a time, each time from the beginning.

    Args:
        path: the file.
        excerpt: the frames that are read.

    Attributes:
        format: size and rate, without the excerpt.
        count: number of frames of the excerpt, estimated by the duration; 0 if that is unknown.

    Raises:
        UsageError: PyAV is not installed.
        ImageError: the file is missing, not a video, without a frame that can be read, or too large.
    """

    def __init__(self, path: str | Path, excerpt: Excerpt = Excerpt()) -> None:
        require_av(f"{path}: reading a video")
        self.path, self.excerpt = Path(path), excerpt
        with self._opened() as (container, stream):
            decoding = _Decoding(container, stream)
            first = next(iter(decoding), None)
            if first is None:
                raise ImageError(f"{path}: has no frame that can be read{decoding.reason}; fetch or export it again")
            self._stored, self._orientation = (first.height, first.width), _orientation(first)
            self.format = _format(stream, self._stored, self._orientation)
            check_size((first.width, first.height), str(path))
            with opening(str(path)):
                require_memory(first.width * first.height * PIXEL_BYTES, "a frame and its copies")
            self._duration = _duration(container, stream)
        until = min(self._duration, Fraction(self._duration if excerpt.end is None else excerpt.end))
        self.count = max(0, -(-round((until - Fraction(excerpt.start)) * self.format.rate) // excerpt.every))

    def __iter__(self) -> Iterator[Frame]:
        """Read the frames.

        Raises:
            DamagedVideoError: some could not be read.
            ImageError: the file cannot be read any more.
        """
        excerpt, step = self.excerpt, 1 / self.format.rate
        number, wanted, time, origin, began = -1, 0, -step, Fraction(0), Fraction(0)
        with self._opened() as (container, stream):
            decoding = _Decoding(container, stream)
            for number, decoded in enumerate(decoding):
                stamp = origin + time + step if decoded.pts is None else decoded.pts * Fraction(decoded.time_base)
                if number == 0:
                    origin = began = stamp
                elif stamp - origin <= time:  # files that have been joined
                    origin = stamp - (time + step)
                time = stamp - origin
                if excerpt.end is not None and float(time) >= excerpt.end:
                    return
                if float(time) >= excerpt.start:
                    if wanted % excerpt.every == 0:
                        yield Frame(number, time, self._upright(decoded))
                    wanted += 1
            if wanted == 0:
                raise ImageError(
                    f"{self.path}: has no frame from {excerpt.start} seconds on, it ends at {float(time + step):.1f}"
                )
            # Some containers count their duration from the first frame, others from 0.
            cut_off = time + step + max(Fraction(0), began) < self._duration * (1 - MISSING)
            if decoding.reason or cut_off:
                read = f"{number + 1} frames, {float(time + step):.1f} of {float(self._duration):.1f} seconds, could be read"
                raise DamagedVideoError(f"{self.path}: is damaged or cut off; {read}{decoding.reason}")

    def _upright(self, decoded: Any) -> Pixels:
        height, width = self._stored
        return turned(decoded.to_ndarray(format="rgb24", width=width, height=height), self._orientation)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """Open the file; yields PyAV's container and stream."""
        import av

        # From version 19 on it takes metadata that are not UTF-8 without being told so.
        tolerant = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        with opening(str(self.path)):
            file = self.path.open("rb")
        with file:
            if not file.read(1):
                raise ImageError(f"{self.path}: is empty (0 bytes); fetch or export it again")
            file.seek(0)
            try:
                with av.open(file, options=OPTIONS, **tolerant) as container:
                    stream = container.streams.best("video")
                    if stream is None:
                        raise ImageError(f"{self.path}: has no pictures, perhaps only sound; give a video")
                    if stream.codec_context is None:
                        raise ImageError(f"{self.path}: is in a codec that is unknown here; convert it to H.264 in MP4")
                    check_size((stream.codec_context.width, stream.codec_context.height), str(self.path))
                    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                    yield container, stream
            except (av.FFmpegError, OSError) as error:
                raise ImageError(
                    f"{self.path}: is damaged, or not a video in a format known here ({error.strerror or error}); "
                    "fetch or export it again, as MP4"
                ) from None


class _Decoding:
    """Frames of a stream as PyAV decodes them; ``reason`` is why some could not be, in brackets, or empty."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._packets, self._stream, self.reason = container.demux(stream), stream, ""

    def __iter__(self) -> Iterator[Any]:
        import av

        is_cut = False
        while True:
            try:
                packet = next(self._packets, None)
            except (av.FFmpegError, OSError) as error:
                packet, self.reason = None, _bracketed(error)
            try:
                frames = self._stream.decode(packet)
            except av.error.EOFError:
                frames = []
            except av.FFmpegError as error:
                frames, self.reason = [], _bracketed(error)
            yield from frames
            if packet is None:  # which has flushed the decoder
                break
            if packet.size:  # the last packet of all is empty
                is_cut = packet.is_corrupt
        if is_cut:
            self.reason = self.reason or " (its last packet is incomplete)"


def _bracketed(error: OSError) -> str:
    return f" ({error.strerror or error})"


def _orientation(decoded: Any) -> int:
    """EXIF's number of the rotation of a frame."""
    return ORIENTATIONS[round(decoded.rotation / 90) % 4]


def _format(stream: Any, stored: tuple[int, int], orientation: int) -> VideoFormat:
    """Format of a video whose frames are turned.

    Args:
        stream: of PyAV.
        stored: (height, width) of the frames as stored.
        orientation: see `_orientation`.
    """
    rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if orientation >= 5:
        stored, aspect = (stored[1], stored[0]), 1 / aspect
    return VideoFormat(stored, rate, Fraction(stream.time_base), aspect)


def _duration(container: Any, stream: Any) -> Fraction:
    """Seconds of a stream; 0 if they are unknown, or only known together with those of other streams, which may be longer."""
    known = [] if stream.duration is None else [stream.duration * Fraction(stream.time_base)]
    if container.duration is not None and (known or len(container.streams) == 1):
        known.append(Fraction(container.duration, 1_000_000))  # of an edited file it is the shorter one
    return max(Fraction(0), min(known, default=Fraction(0)))
