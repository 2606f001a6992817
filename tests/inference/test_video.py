"""Results of videos: ids and colours that stay, files that hold all frames, and never more than a frame in memory."""

from __future__ import annotations

import io
import json
import weakref
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import pytest
from scipy import ndimage

import lexiseg
from lexiseg.data.video import DamagedVideoError, Excerpt, Video
from lexiseg.errors import OutputError, UsageError
from lexiseg.exports import video as exported
from lexiseg.inference.pipeline import Pipeline
from lexiseg.inference.tracks import Tracking
from lexiseg.inference.video import SegmentedFrame, VideoSegmentation
from lexiseg.ops.rle import decode_counts, decompress
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Segment
from lexiseg.visualise.palette import class_colour
from tests.data.clips import moving, write_clip
from tests.inference.test_evaluation import Colours

NAMES, THINGS = ("red", "green", "blue"), (True, True, False)


def components(pixels: np.ndarray, task: str = "panoptic") -> Segmentation:
    """A segment for each connected region of red, of green, and one for all blue."""
    masks, labels, best = [], [], pixels.argmax(2)
    for label, thing in enumerate(THINGS):
        regions, count = ndimage.label(best == label) if thing else (best == label, 1)
        masks += [regions == number for number in range(1, count + 1)]
        labels += [label] * count
    segments = [
        Segment(number, label, NAMES[label], THINGS[label], 0.5, int(mask.sum()), (0, 0, 1, 1))
        for number, (label, mask) in enumerate(zip(labels, masks, strict=True), start=1)
    ]
    return Segmentation(task, pixels, NAMES, THINGS, tuple(segments), np.stack(masks))


def segmented(path: Path, **excerpt: float) -> VideoSegmentation:
    return VideoSegmentation(Video(path, Excerpt(**excerpt)), components, Tracking())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red and a green square, which pass each other; another red one comes at the end."""
    frames = moving()
    for pixels in frames[8:]:
        pixels[22:26, 50:60] = (255, 0, 0)
    return write_clip(tmp_path_factory.mktemp("clips") / "moving.mkv", frames)


def test_ids_are_kept_and_results_are_those_of_the_frames(clip):
    frames = list(segmented(clip))
    assert [frame.number for frame in frames] == list(range(12))
    for frame, pixels in zip(frames, moving(), strict=True):
        ids = {(segment.name, segment.id) for segment in frame.result.segments}
        assert ids == {("red", 1), ("green", 2), ("blue", 3), *([("red", 4)] if frame.number >= 8 else [])}
        assert frame.result.source == str(clip)
        for segment, mask in zip(frame.result.segments, frame.result.masks, strict=True):
            assert (frame.result.panoptic[mask] == segment.id).all()
            if segment.id < 3:
                assert (mask == (pixels.argmax(2) == segment.label)).all()
        assert frame.document() == {
            "frame": frame.number,
            "time": frame.number / 25,
            **frame.result.document(),
        }


def test_colours_are_kept():
    """Of a class the hue, of a thing the colour, whatever else is in the frame."""
    image, mask = np.zeros((40, 60, 3), np.uint8), np.zeros((2, 40, 60), bool)
    mask[0, 5:35, 5:25] = mask[1, 5:35, 30:50] = True
    first, second, grass = (
        Segment(n, label, "", thing, 1.0, 600, (5, 5, 20, 30))
        for n, label, thing in ((7, 0, True), (9, 0, True), (3, 1, False))
    )

    def colour(task: str, *shown: tuple[Segment, int]) -> list[tuple[int, ...]]:
        masks = mask[[number for _, number in shown]]
        result = Segmentation(task, image, ("a", "b"), (True, False), tuple(segment for segment, _ in shown), masks)
        drawn = np.asarray(SegmentedFrame(0, Fraction(0), result).overlay())
        assert drawn.shape == image.shape
        return [tuple(drawn[8, (8, 33)[number]].tolist()) for _, number in shown]

    both = colour("panoptic", (first, 0), (second, 1))
    assert both[0] != both[1]
    assert colour("panoptic", (second, 1), (first, 0)) == both[::-1]
    assert colour("panoptic", (second, 1)) == both[1:]
    assert colour("panoptic", (grass, 0), (second, 1))[1] == both[1]
    tint = [round(0.45 * value) for value in class_colour(1)]
    assert np.abs(np.array(colour("panoptic", (grass, 0))[0]) - tint).max() <= 1
    assert colour("semantic", (first, 0)) == colour("semantic", (second, 0)), "of a class, not of a thing"


def decoded(path: Path) -> tuple[list[np.ndarray], list[Fraction], av.VideoStream]:
    with av.open(str(path)) as container:
        (stream,) = container.streams
        frames = list(container.decode(stream))
        times = [frame.pts * Fraction(frame.time_base) for frame in frames]
        return [frame.to_ndarray(format="rgb24") for frame in frames], times, stream


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_files_have_all_frames_at_their_times(tmp_path, monkeypatch, codec):
    if codec == "mpeg4":
        monkeypatch.setattr(exported, "H264", "an encoder that is not there")
    times = [Fraction(t, 1000) for t in (0, 40, 80, 400, 440, 480, 520, 560)]
    clip = write_clip(tmp_path / "odd.mkv", moving(8, (47, 63)), times=times)
    written = segmented(clip).save(tmp_path / "out", "odd")
    assert [path.name for path in written] == ["odd.jsonl", "odd.overlay.mp4"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["odd.jsonl", "odd.overlay.mp4"]
    lines = [json.loads(line) for line in written[0].read_text().splitlines()]
    frames, shown_at, stream = decoded(written[1])
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == (codec, "yuv420p")
    assert shown_at == times
    assert [line["time"] for line in lines] == [float(time) for time in times]
    for frame, drawn, line in zip(segmented(clip), frames, lines, strict=True):
        expected = np.asarray(frame.overlay())
        assert drawn.shape == (48, 64, 3)
        assert np.median(np.abs(drawn[:47, :63].astype(int) - expected)) <= 3
        for segment, mask, row in zip(frame.result.segments, frame.result.masks, line["segments"], strict=True):
            assert (row["id"], row["name"], row["thing"]) == (segment.id, segment.name, segment.thing)
            assert (decode_counts(decompress(row["segmentation"]["counts"]), (47, 63)).numpy() == mask).all()
        assert not {"classes", "things"} & line.keys()


def test_mpeg_4_has_the_times_of_a_clock_of_90_khz(tmp_path, monkeypatch):
    """Whose clock has at most 65,535 ticks a second."""
    monkeypatch.setattr(exported, "H264", "an encoder that is not there")
    path = write_clip(tmp_path / "a.ts", moving(6), codec="mpeg4", rate=Fraction(30_000, 1001), aspect=Fraction(4, 3))
    written = segmented(path).save(tmp_path)
    _, times, stream = decoded(written[1])
    assert times == [number * Fraction(1001, 30_000) for number in range(6)]
    assert stream.sample_aspect_ratio == Fraction(4, 3)


def test_an_excerpt_begins_at_zero_and_keeps_its_times(clip, tmp_path):
    lines, overlay = segmented(clip, every=3, start=0.1).save(tmp_path)
    assert [json.loads(line)["time"] for line in lines.read_text().splitlines()] == [0.12, 0.24, 0.36]
    _, times, stream = decoded(overlay)
    assert times == [0, Fraction(3, 25), Fraction(6, 25)]
    assert stream.duration * stream.time_base == Fraction(9, 25)


class Live:
    """Counts frames and results that are in memory when another is segmented."""

    def __init__(self) -> None:
        self.references: list[weakref.ref] = []
        self.most = 0

    def __call__(self, pixels: np.ndarray) -> Segmentation:
        result = components(pixels)
        self.references += [weakref.ref(pixels), weakref.ref(result.masks)]
        self.most = max(self.most, sum(reference() is not None for reference in self.references))
        return result


@pytest.mark.parametrize("save", [False, True])
def test_no_more_than_two_frames_are_in_memory(clip, tmp_path, save):
    """The next one and, until it is there, the one before."""
    live = Live()
    video = VideoSegmentation(Video(clip), live, Tracking())
    if save:
        video.save(tmp_path)
    else:
        for _ in video:
            pass
    assert len(live.references) == 24
    assert live.most <= 4


def test_frames_are_segmented_when_they_are_wanted(clip):
    live = Live()
    frames = iter(VideoSegmentation(Video(clip), live, Tracking()))
    assert live.references == []
    next(frames)
    assert len(live.references) == 2
    frames.close()


@pytest.mark.parametrize("wrong", [RuntimeError("torch fell over"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 5])
def test_what_is_interrupted_leaves_nothing(clip, tmp_path, wrong, after):
    count = iter(range(100))

    def failing(pixels: np.ndarray) -> Segmentation:
        if next(count) == after:
            raise wrong
        return components(pixels)

    with pytest.raises(type(wrong)):
        VideoSegmentation(Video(clip), failing, Tracking()).save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_of_a_damaged_video_the_rest_is_written(tmp_path):
    path = write_clip(tmp_path / "a.mkv", moving(12))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(DamagedVideoError):
        segmented(path).save(tmp_path / "out", "a")
    lines = (tmp_path / "out/a.jsonl").read_text().splitlines()
    assert 4 < len(lines) < 12
    assert len(decoded(tmp_path / "out/a.overlay.mp4")[0]) == len(lines)


@pytest.mark.parametrize("limit", [2, 30])
@pytest.mark.parametrize("ending", [exported.LINES, exported.OVERLAY])
def test_a_full_disk_is_one_error_and_leaves_nothing(clip, tmp_path, monkeypatch, ending, limit):
    """The names in messages are those of the files that do not fit."""
    opened = Path.open

    class Full(io.BytesIO):
        def write(self, data: bytes) -> int:
            if self.tell() + len(data) > 100 * limit:
                raise OSError(28, "No space left on device")
            return super().write(data)

    order = iter([exported.LINES, exported.OVERLAY])

    def opening(path: Path, mode: str = "r", **options: str) -> IO[Any]:
        return Full() if mode == "wb" and next(order) == ending else opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", opening)
    with pytest.raises(OutputError, match=rf"cannot write .*a{ending}: No space left"):
        segmented(clip).save(tmp_path / "out", "a")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_video_itself_is_never_overwritten(clip, tmp_path):
    path = tmp_path / "a.overlay.mp4"
    path.write_bytes(clip.read_bytes())
    with pytest.raises(OutputError, match="is the video itself"):
        segmented(path).save(tmp_path, "a")
    with pytest.raises(UsageError, match="format coco is of pictures; results of videos have json and overlay"):
        segmented(path).save(tmp_path, formats=["coco"])
    assert path.read_bytes() == clip.read_bytes()


def test_a_pipeline_has_videos(clip):
    pipeline = Pipeline(Colours())
    whole = pipeline.video(clip, ["red", "green", "blue | stuff"])
    assert isinstance(whole, lexiseg.VideoSegmentation)
    for frame, pixels in zip(whole, moving(), strict=False):
        (red,) = (mask for segment, mask in zip(frame.result.segments, frame.result.masks, strict=True) if segment.id == 1)
        assert (red[:20] == (pixels.argmax(2) == 0)[:20]).all()
    tiled = pipeline.video(clip, ["red", "green", "blue"], task="semantic", tile=64, overlap=8, every=5)
    assert [len(frame.result.segments) for frame in tiled] == [3, 3, 3]
    for options in ({"task": "depth"}, {"every": 0}, {"track_iou": 0}, {"overlap": 5}, {"threshold": 2}):
        with pytest.raises(UsageError):
            pipeline.video(clip, ["red"], **options)
