"""Videos of several containers, as `lexiseg segment` takes them: all frames read."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from lexiseg.data.video import Video
from tests.data.clips import moving, write_clip
from tests.fuzz.mutations import mutated_bytes
from tests.fuzz.pictures import mutated_picture

SUFFIX = ".mp4"
KINDS = ((".mp4", "libx264"), (".mp4", "mpeg4"), (".mkv", "ffv1"), (".avi", "mpeg4"), (".ts", "libx264"))


def prepare(folder: Path) -> None:
    """Nothing is needed beside a video."""


def inputs(random: np.random.Generator) -> bytes:
    """A mutated video of one of the kinds."""
    sound = _sound()
    data = sound[int(random.integers(len(sound)))]
    return mutated_picture(data, random) if random.random() < 0.5 else mutated_bytes(data, random)


def attempt(path: Path) -> None:
    """What `lexiseg segment` does with a video, but for the model."""
    video = Video(path)
    for frame in video:
        assert frame.pixels.shape == (*video.format.size, 3)
        assert frame.pixels.dtype == np.uint8


@cache
def _sound() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        return tuple(write_clip(Path(folder) / f"a{suffix}", moving(4), codec=codec).read_bytes() for suffix, codec in KINDS)
