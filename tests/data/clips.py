"""Small videos, written by PyAV as a camera's program would."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

RATE = Fraction(25)


def write_clip(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    *,
    codec: str = "ffv1",
    rate: Fraction = RATE,
    times: Sequence[Fraction] | None = None,
    aspect: Fraction | None = None,
    **options: str,
) -> Path:
    """Write frames [H, W, 3]; ffv1, for .mkv, is without loss.

    Args:
        path: the file, whose suffix says the container.
        frames: at least one.
        codec: FFmpeg's name of an encoder.
        rate: frames per second.
        times: of each frame, in seconds; None: by ``rate``.
        aspect: width of a pixel divided by its height.
        options: of the container.
    """
    with (
        path.open("wb") as file,
        av.open(file, "w", format=av.ContainerFormat(_FORMATS[path.suffix], "w").name, options=options) as out,
    ):
        stream: Any = out.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30_000)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.time_base = Fraction(1, 30_000)
            frame.pts = round((number / rate if times is None else times[number]) / frame.time_base)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


_FORMATS = {".mkv": "matroska", ".mp4": "mp4", ".avi": "avi", ".ts": "mpegts"}


def moving(count: int = 12, size: tuple[int, int] = (48, 64), step: int = 2) -> list[NDArray[np.uint8]]:
    """A red and a green square on blue, which move to the right and to the left by ``step`` pixels a frame."""
    frames = []
    for number in range(count):
        pixels = np.full((*size, 3), (0, 0, 255), np.uint8)
        pixels[4:20, 2 + step * number :][:, :16] = (255, 0, 0)
        pixels[28:44, : size[1] - 2 - step * number][:, -16:] = (0, 255, 0)
        frames.append(pixels)
    return frames
