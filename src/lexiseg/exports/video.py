"""Results of videos: frames as MP4, and segments as JSON lines.

The MP4 is H.264, where PyAV's FFmpeg has an encoder of it, else MPEG-4 part 2. It has the size, rate and times of the video,
from 0 on, and no sound. Sides are made even by repeating the last row or column, as 4:2:0 chroma needs. Both files are written
as frames come, and appear when all have been written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import OutputError
from lexiseg.exports.records import ResultRecord, document
from lexiseg.ops.files import replacing
from lexiseg.ops.videos import VideoFormat, require_av

OVERLAY, LINES = ".overlay.mp4", ".jsonl"
H264 = "libx264"
H264_OPTIONS = {"preset": "veryfast", "crf": "18"}  # a lookahead of 10 frames; 18 looks lossless
MPEG4_OPTIONS = {"flags": "+qscale", "global_quality": str(3 * 118)}  # quantiser 3, in FFmpeg's units
MPEG4_LARGEST, MPEG4_TIME_BASE = 2**16 - 1, Fraction(1, 60_000)  # of denominators of time bases; of videos with larger ones
BT709 = 1  # FFmpeg's number of these colours, which players assume
MICROSECONDS = 6  # digits of times

AddFrame = Callable[[NDArray[np.uint8], Fraction], None]


@contextmanager
def written_frames(path: Path, video: VideoFormat) -> Iterator[AddFrame]:
    """Write an MP4; yields a function that adds a frame, its pixels [H, W, 3] uint8 and its time in seconds.

    Raises:
        UsageError: PyAV is not installed.
        OutputError: the file cannot be written.
    """
    require_av("writing a video")
    import av

    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            with av.open(file, "w", format="mp4") as container:
                encoder = _Encoder(container, video)
                yield encoder.add
                encoder.finish()
        except av.FFmpegError as error:
            if isinstance(error.__context__, OSError):  # of the file, as on a full disk
                raise error.__context__ from None
            raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None


class _Encoder:
    """Encodes frames into a container of PyAV."""

    def __init__(self, container: Any, video: VideoFormat) -> None:
        import av
        from av.video.reformatter import Colorspace

        self._av, self._container, self._colours = av, container, Colorspace.ITU709
        h264 = H264 in av.codecs_available
        self._stream = container.add_stream(
            H264 if h264 else "mpeg4", rate=video.rate, options=H264_OPTIONS if h264 else MPEG4_OPTIONS
        )
        self._time_base = video.time_base
        if not h264 and video.time_base.denominator > MPEG4_LARGEST:
            self._time_base = MPEG4_TIME_BASE
        context = self._stream.codec_context
        height, width = video.size
        context.width, context.height, context.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context.time_base, context.sample_aspect_ratio = self._time_base, video.pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = BT709
        self._last = -1

    def add(self, pixels: NDArray[np.uint8], time: Fraction) -> None:
        height, width = pixels.shape[:2]
        even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = self._av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=self._colours
        )
        self._last = max(self._last + 1, round(time / self._time_base))  # rounded, they need not ascend
        picture.pts, picture.time_base = self._last, self._time_base
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))


@contextmanager
def written_lines(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write JSON lines in UTF-8; yields a function that adds a document.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:

        def add(content: dict[str, Any]) -> None:
            line = json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
            try:
                file.write(line)
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror or error}; free some space") from error

        yield add


def timed(number: int, time: Fraction, content: dict[str, Any]) -> dict[str, Any]:
    """A document of a frame, beginning with its number and its time in seconds."""
    return {"frame": number, "time": round(float(time), MICROSECONDS), **content}


def frame_document(record: ResultRecord, void: float) -> dict[str, Any]:
    """The `document` of a frame, without the list of classes, which would be the same in each."""
    return {key: value for key, value in document(record, void).items() if key not in ("classes", "things")}
