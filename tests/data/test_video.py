"""Videos: their frames as they were written, at their times, upright, one at a time, and what is damaged said."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from lexiseg.data import images
from lexiseg.data.video import DamagedVideoError, Excerpt, Video
from lexiseg.errors import ImageError, UsageError
from lexiseg.ops import videos
from lexiseg.ops.videos import is_video
from tests.data.clips import RATE, moving, write_clip

NOISE = list(np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, without loss."""
    return write_clip(tmp_path_factory.mktemp("clips") / "noise.mkv", NOISE)


def read(path: Path) -> list[np.ndarray]:
    return [frame.pixels for frame in Video(path)]


def test_frames_are_those_written_at_their_times(clip):
    video = Video(clip)
    assert (video.format.size, video.format.rate, video.count) == ((48, 64), RATE, len(NOISE))
    for _ in range(2):  # it can be read again
        frames = list(video)
        assert [frame.number for frame in frames] == list(range(len(NOISE)))
        assert [float(frame.time) for frame in frames] == [number / 25 for number in range(len(NOISE))]
        assert all((frame.pixels == pixels).all() for frame, pixels in zip(frames, NOISE, strict=True))


def test_a_variable_rate_is_kept(tmp_path):
    times = [Fraction(t, 1000) for t in (500, 540, 580, 900, 1000, 1033)]
    frames = list(Video(write_clip(tmp_path / "a.mkv", NOISE[:6], times=times)))
    assert [frame.time for frame in frames] == [time - times[0] for time in times]


@pytest.mark.parametrize(
    ("excerpt", "numbers"),
    [
        (Excerpt(every=3), range(0, 20, 3)),
        (Excerpt(start=0.2), range(5, 20)),
        (Excerpt(start=0.19, end=0.4), range(5, 10)),
        (Excerpt(every=4, start=0.04, end=0.6), range(1, 15, 4)),
        (Excerpt(end=100.0), range(20)),
    ],
)
def test_an_excerpt_is_a_part_of_all(clip, excerpt, numbers):
    video = Video(clip, excerpt)
    frames = list(video)
    assert [frame.number for frame in frames] == list(numbers)
    assert [frame.time for frame in frames] == [Fraction(number, 25) for number in numbers]
    assert abs(video.count - len(frames)) <= 1
    assert all((frame.pixels == NOISE[frame.number]).all() for frame in frames)


def test_an_excerpt_that_is_none_says_so(clip):
    for options in ({"every": 0}, {"start": -1.0}, {"start": float("nan")}, {"start": 2.0, "end": 2.0}):
        with pytest.raises(UsageError, match=r"video"):
            Excerpt(**options)
    with pytest.raises(ImageError, match=r"noise\.mkv: has no frame from 9\.0 seconds on, it ends at 0\.8"):
        list(Video(clip, Excerpt(start=9.0)))


MATRICES = {0: (1, 0, 0, 1), 1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}  # quarters of a turn, counter-clockwise


@pytest.mark.parametrize("quarters", MATRICES)
def test_frames_are_upright(tmp_path, quarters):
    """The rotation is in the track's header of an MP4, ISO/IEC 14496-12, Sec. 8.3.2."""
    path = write_clip(tmp_path / "a.mp4", moving(3), codec="libx264", aspect=Fraction(4, 3))
    stored = read(path)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 8 + 8
    a, b, c, d = MATRICES[quarters]
    one = 1 << 16
    assert struct.unpack_from(">9i", data, matrix)[::4] == (one, one, 1 << 30)
    struct.pack_into(">9i", data, matrix, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    video = Video(path)
    assert all((frame.pixels == np.rot90(pixels, quarters)).all() for frame, pixels in zip(video, stored, strict=True))
    assert video.format.size == np.rot90(stored[0], quarters).shape[:2]
    assert video.format.pixel_aspect == (Fraction(3, 4) if quarters % 2 else Fraction(4, 3))


def test_names_in_a_file_need_not_be_unicode(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving(2), codec="libx264")
    path.write_bytes(path.read_bytes().replace(b"VideoHandler", b"Vid\xe9oHandler"))
    assert len(read(path)) == 2


def test_joined_files_are_one_video_of_the_size_of_the_first(tmp_path):
    """Parts of a transport stream may be joined as files."""
    parts = [
        write_clip(tmp_path / f"{n}.ts", frames, codec="mpeg4").read_bytes()
        for n, frames in enumerate((moving(4), moving(4, (96, 128))))
    ]
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    frames = list(Video(tmp_path / "a.ts"))
    assert {frame.pixels.shape for frame in frames} == {(48, 64, 3)}
    assert [frame.time for frame in frames] == [Fraction(number, 25) for number in range(8)]


def damaged(path: Path) -> tuple[list[np.ndarray], str]:
    """The frames that can be read, and the message."""
    frames = []
    with pytest.raises(DamagedVideoError) as caught:
        frames.extend(frame.pixels for frame in Video(path))
    return frames, str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "options"), [(".mkv", {}), (".mp4", {"movflags": "frag_keyframe+empty_moov"}), (".avi", {})]
)
def test_of_what_is_cut_off_the_rest_is_read(tmp_path, suffix, options):
    path = write_clip(tmp_path / f"a{suffix}", NOISE, codec="ffv1" if suffix == ".mkv" else "mpeg4", **options)
    whole, data = read(path), path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    frames, message = damaged(path)
    count = len(frames)
    assert (np.stack(frames[:-1]) == np.stack(whole[: count - 1])).all(), "of the last one a part may be read"
    assert 8 <= count <= 13
    assert f"a{suffix}: is damaged or cut off; {count} frames, 0." in message
    assert "\n" not in message


def test_a_damaged_frame_is_left_out(tmp_path):
    path = write_clip(tmp_path / "a.mp4", NOISE, codec="libx264")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    frames, message = damaged(path)
    assert len(NOISE) // 2 < len(frames) < len(NOISE)
    assert "Invalid data" in message


def _sound(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _unknown(path: Path) -> None:
    """The name of the codec is in the sample description of an MP4."""
    path.write_bytes(write_clip(path, moving(2), codec="libx264").read_bytes().replace(b"avc1\0\0\0", b"what\0\0\0"))


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", r"is empty \(0 bytes\)"),
        ("no video\n" * 100, "is damaged, or not a video in a format known here"),
        (PLAYLIST, "is damaged, or not a video"),
        ("ffconcat version 1.0\nfile '{clip}'\n", "is damaged, or not a video"),
        (_sound, "has no pictures"),
        (_unknown, "is in a codec that is unknown here; convert it to H.264"),
    ],
)
def test_what_is_no_video_is_a_clear_error(tmp_path, clip, content, message):
    path = tmp_path / "a.mp4"
    if callable(content):
        content(path)
    elif content is not None:
        path.write_text(content.format(clip=clip))
    with pytest.raises(ImageError, match=rf"a\.mp4: {message}") as caught:
        Video(path)
    assert "\n" not in str(caught.value)


def test_sizes_have_limits(clip, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 48 * 64 - 1)
    with pytest.raises(ImageError, match=r"64 × 48 pixels are more than 3,071"):
        Video(clip)
    monkeypatch.undo()
    monkeypatch.setattr("lexiseg.ops.memory.memory_left", lambda: 1000)
    with pytest.raises(ImageError, match=r"noise\.mkv: is too large for the available memory"):
        Video(clip)


def test_without_pyav_one_line_says_what_to_install(clip, monkeypatch):
    monkeypatch.setattr(videos, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"noise\.mkv: reading a video needs PyAV: pip install 'lexiseg\[video\]'$"):
        Video(clip)


def test_videos_are_known_by_their_names(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    assert [is_video(name) for name in ("a.mp4", "A.MOV", "b/c.webm", "https://example.org/a.mkv")] == [True] * 4
    assert [is_video(name) for name in ("a.png", "-", "mp4", "a.gif", str(tmp_path / "folder.mp4"))] == [False] * 5
