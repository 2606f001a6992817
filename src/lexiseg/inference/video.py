"""Segment a video a frame at a time, with ids and colours that are kept over its frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lexiseg import formats as known
from lexiseg.data.images import Pixels
from lexiseg.data.video import DamagedVideoError, Video
from lexiseg.errors import OutputError
from lexiseg.exports.records import summary
from lexiseg.exports.video import frame_document, timed, written_frames, written_lines
from lexiseg.inference.tracks import Tracker, Tracking, is_tracked
from lexiseg.ops.names import is_file_of, result_name
from lexiseg.ops.progress import part_of
from lexiseg.segmentation import Segmentation
from lexiseg.visualise.lettering import preferring
from lexiseg.visualise.overlay import named
from lexiseg.visualise.palette import class_colour


@dataclass(frozen=True)
class SegmentedFrame:
    """Result of a frame of a video.

    Attributes:
        number: of the frame, from 0.
        time: seconds since the first frame.
        result: its segmentation. The ids of the segments are kept over the frames: of a thing one, of a class of stuff one.
    """

    number: int
    time: Fraction
    result: Segmentation

    def overlay(self) -> Image.Image:
        """Draw the frame at its size, with regions tinted, outlined and named, things also numbered by their ids.

        A class has the same hue in all frames, a thing the same colour.
        """
        result = self.result
        names, colours = [], []
        for segment in result.segments:
            shade = segment.id if is_tracked(result.task, segment) else 0
            names.append(f"{segment.name} {segment.id}" if shade else segment.name)
            colours.append(class_colour(segment.label, shade))
        return named(np.asarray(result.image), names, colours, result.masks)

    def document(self) -> dict[str, Any]:
        """Return the result as plain values, without masks."""
        result = self.result
        return timed(self.number, self.time, summary(result.source, result.task, result.size, result.void, result.segments))


@dataclass(frozen=True)
class VideoSegmentation:
    """Segmentation of a video: iterating over it segments frame after frame, and holds no more than one and its result.

        for frame in pipeline.video("clip.mp4", ["dog, puppy", "grass"]):
            print(frame.time, frame.result.segments)

    Attributes:
        video: the video.
        segment: segments the pixels of a frame.
        tracking: how ids are kept.
    """

    video: Video
    segment: Callable[[Pixels], Segmentation]
    tracking: Tracking

    def __iter__(self) -> Iterator[SegmentedFrame]:
        """Segment the frames; reports the stage "frames".

        Raises:
            ImageError: some frames could not be read; raised after the others.
        """
        tracker: Tracker | None = None
        for position, frame in enumerate(self.video):
            total = max(self.video.count, position + 1) if self.video.count else 0
            with part_of("frames", position, total):
                result = self.segment(frame.pixels)
            tracker = tracker or Tracker(result.task, self.tracking)
            ids = tracker.update(result.segments, result.masks)
            segments = tuple(replace(segment, id=number) for segment, number in zip(result.segments, ids, strict=True))
            yield SegmentedFrame(frame.number, frame.time, replace(result, segments=segments, source=str(self.video.path)))

    def save(
        self,
        folder: str | Path,
        stem: str | None = None,
        *,
        formats: Sequence[str] = known.VIDEO_FORMATS,
        font: str | Path | None = None,
    ) -> list[Path]:
        """Segment the video, and write ``STEM.overlay.mp4`` and ``STEM.jsonl``, a line for each frame.

        Args:
            folder: created if missing.
            stem: prefix of the file names; None: `result_name` of the video.
            formats: "overlay" and "json", or one of them.
            font: as for `Segmentation.overlay`.

        Returns:
            The files written.

        Raises:
            DataError: the stem is not the name of a file in the folder or below it.
            ImageError: some frames could not be read; the files have the others.
            OutputError: a file cannot be written, or would overwrite the video.
            UsageError: the font file is not a font, or a format is none of videos.
        """
        files = known.video_files(Path(folder), stem or result_name(self.video.path), formats)
        with preferring(font):
            deque(self.saved(files), maxlen=0)
        return list(files.values())

    def saved(self, files: dict[str, Path]) -> Iterator[SegmentedFrame]:
        """Segment the video as iterating over it does, and write each frame to files by format; they appear at the end.

        Raises:
            ImageError, OutputError: as `save`.
        """
        if taken := [path for path in files.values() if is_file_of(path, self.video.path)]:
            raise OutputError(f"{taken[0]}: is the video itself; choose another folder or another stem")
        damage: DamagedVideoError | None = None
        with ExitStack() as stack:
            add_line = stack.enter_context(written_lines(files["json"])) if "json" in files else None
            add_frame = None
            if "overlay" in files:
                rate = self.video.format.rate / self.video.excerpt.every
                add_frame = stack.enter_context(written_frames(files["overlay"], replace(self.video.format, rate=rate)))
            try:
                origin: Fraction | None = None
                for frame in self:
                    origin = frame.time if origin is None else origin
                    if add_frame is not None:
                        add_frame(np.asarray(frame.overlay()), frame.time - origin)
                    if add_line is not None:
                        record = frame.result.record("")
                        add_line(timed(frame.number, frame.time, frame_document(record, frame.result.void)))
                    yield frame
            except DamagedVideoError as error:
                damage = error
        if damage is not None:
            raise damage
