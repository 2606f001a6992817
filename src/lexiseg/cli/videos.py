"""Videos of ``lexiseg segment``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from lexiseg.cli.progress_line import ProgressLine
from lexiseg.cli.streams import ReaderLeftError, complain, one_line, tell
from lexiseg.data.images import Pixels
from lexiseg.data.video import DamagedVideoError, Excerpt, Video
from lexiseg.errors import ServiceError, UsageError
from lexiseg.exports.manifest import Manifest
from lexiseg.inference.tracks import GAP, IOU, Tracking, is_tracked
from lexiseg.inference.video import SegmentedFrame, VideoSegmentation
from lexiseg.ops.names import is_url
from lexiseg.ops.progress import reporting
from lexiseg.ops.videos import is_video, require_av
from lexiseg.segmentation import Segmentation

VIDEO_OPTIONS = ("every", "start", "end", "track_iou", "track_gap")


def are_videos(files: Sequence[str]) -> bool:
    """Whether the files are videos.

    Raises:
        UsageError: some are and some are not.
    """
    videos = [file for file in files if is_video(file)]
    if videos and len(videos) < len(files):
        picture = next(file for file in files if file not in videos)
        raise UsageError(f"{videos[0]} is a video and {picture} a picture: segment them in two calls")
    return bool(videos)


def check_videos(arguments: argparse.Namespace, files: Sequence[str]) -> None:
    """Check that the options are those of videos, before anything is loaded.

    Args:
        arguments: of the command.
        files: the videos, or pictures.

    Raises:
        UsageError: an option is not of videos, or not of pictures, or PyAV is not installed.
    """
    given = [f"--{name.replace('_', '-')}" for name in VIDEO_OPTIONS if getattr(arguments, name) is not None]
    if not are_videos(files):
        if given:
            raise UsageError(f"{given[0]} is of videos, and {files[0]} is not the name of one")
        return
    if addresses := [file for file in files if is_url(file)]:
        raise UsageError(f"{addresses[0]}: videos are not fetched; download it and give the file")
    if arguments.point or arguments.box:
        raise UsageError("--point and --box are of one picture, not of a video: leave them out")
    if arguments.batch > 1:
        raise UsageError("--batch is of pictures; a video is segmented a frame at a time: leave it out")
    require_av(f"{files[0]}: reading a video")
    _excerpt(arguments)
    _tracking(arguments)


def _excerpt(arguments: argparse.Namespace) -> Excerpt:
    return Excerpt(arguments.every or 1, arguments.start or 0.0, arguments.end)


def _tracking(arguments: argparse.Namespace) -> Tracking:
    iou, gap = arguments.track_iou, arguments.track_gap
    return Tracking(IOU if iou is None else iou, GAP if gap is None else gap)


def segment_videos(
    arguments: argparse.Namespace,
    outputs: Mapping[str, dict[str, Path]],
    model: str,
    segment: Callable[[Pixels], Segmentation],
    manifest: Manifest | None,
) -> int:
    """Segment every video; failures are reported and do not stop the others.

    Args:
        arguments: of the command.
        outputs: the files of each video's result by format; may be none.
        model: name of the model.
        segment: segments the pixels of a frame.
        manifest: of the folder of results, if there is one.

    Returns:
        The exit code.
    """
    failed = 0
    for number, (file, written) in enumerate(outputs.items(), start=1):
        title = f"{number}/{len(outputs)} {Path(file).name}" if len(outputs) > 1 else Path(file).name
        try:
            video = VideoSegmentation(Video(file, _excerpt(arguments)), segment, _tracking(arguments))
            _segment_video(video, written, title, model if arguments.json else None)
            if manifest is not None:
                manifest.add(file, list(written.values()))
        except (UsageError, ServiceError, ReaderLeftError):
            raise  # it would be raised for all videos
        except Exception as error:
            tell(error, about=file, debug=arguments.debug)
            failed += 1
    if failed:
        complain(f"{failed} of {len(outputs)} videos failed")
    return 1 if failed else 0


def _segment_video(video: VideoSegmentation, written: dict[str, Path], title: str, model: str | None) -> None:
    """Segment a video, write its files, and print a table; with the name of the model JSON instead, a line for each frame."""
    summary, damage = _Summary(), None
    is_shown = model is not None and sys.stdout.isatty()  # where lines would run into that of the progress
    try:
        with nullcontext() if is_shown else ProgressLine(title) as line, reporting(line):
            for frame in video.saved(written):
                summary.add(frame)
                if model is not None:
                    print(json.dumps({"model": model, **frame.document()}), flush=True)
    except DamagedVideoError as error:  # the other frames are written
        damage = error
    files, source = list(written.values()), str(video.video.path)
    if model is not None:
        print(json.dumps({"model": model, "source": source, "frames": summary.frames, "files": [str(path) for path in files]}))
    else:
        print(summary.table(source, files))
    if damage is not None:
        raise damage


@dataclass
class _ClassSummary:
    """Class in a video: in how many frames it is, and the ids of its things."""

    name: str
    frames: int = 0
    ids: set[int] = field(default_factory=set)


class _Summary:
    """What is in the frames of a video, in little memory."""

    def __init__(self) -> None:
        self.frames, self._head = 0, ""
        self._classes: dict[int, _ClassSummary] = {}

    def add(self, frame: SegmentedFrame) -> None:
        """Add a frame."""
        self.frames += 1
        result = frame.result
        self._head = f"{result.size[1]} × {result.size[0]}  {result.task}"
        rows = {
            segment.label: self._classes.setdefault(segment.label, _ClassSummary(segment.name)) for segment in result.segments
        }
        for row in rows.values():
            row.frames += 1
        for segment in result.segments:
            if is_tracked(result.task, segment):
                rows[segment.label].ids.add(segment.id)

    def table(self, source: str, files: Sequence[Path]) -> str:
        """Format the classes as a table, those in most frames first, with the paths of the files."""
        lines = [f"{one_line(source)}  {self._head}  {self.frames} frame{'s' * (self.frames != 1)}"]
        rows = sorted(self._classes.values(), key=lambda row: -row.frames)
        if rows:
            names = [one_line(row.name) for row in rows]
            longest = max(map(len, names))
            lines.append(f"  {'name':<{longest}}  things  frames")
            for name, row in zip(names, rows, strict=True):
                lines.append(f"  {name:<{longest}}  {len(row.ids) or '-':>6}  {row.frames:>6}")
        else:
            lines.append("  nothing found: lower --threshold, or name more of what is in the video")
        return "\n".join([*lines, *(f"  → {one_line(str(path))}" for path in files)])
