"""Ids of segments that are kept over the frames of a video.

A thing keeps its id while its mask overlaps itself from frame to frame: things of a class and the tracks of this class are
matched one to one, so that the sum of the IoUs of their masks is largest, among pairs whose IoU is at least `Tracking.iou`
[decided: none of the papers has videos; the assignment is the Hungarian algorithm's, as in SORT (Bewley et al., 2016), with
masks in place of boxes and without a model of motion]. A thing that is matched with no track begins one. A track that has no
thing in a frame keeps its last mask, and can be resumed for `Tracking.gap` frames. Stuff has one region per class, and so one
id per class in all of the video; the same holds for all classes in semantic results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lexiseg.errors import UsageError
from lexiseg.ops.packed import Masks, PackedMask
from lexiseg.structures import Segment, Task

IOU, GAP = 0.3, 2  # [decided]


@dataclass(frozen=True)
class Tracking:
    """Options of tracking.

    Attributes:
        iou: least IoU of the masks of a thing in two frames, above 0 and at most 1.
        gap: frames for which a thing may be missing and still be the same, at least 0.
    """

    iou: float = IOU
    gap: int = GAP

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1:
            raise UsageError(f"track IoU {self.iou}: is above 0 and at most 1")
        if self.gap < 0:
            raise UsageError(f"track gap {self.gap}: give 0 or more frames")


@dataclass
class Track:
    """Thing in a video.

    Attributes:
        id: its id.
        label: its class.
        mask: its latest mask; None: empty.
        frame: number of the latest frame in which it was.
    """

    id: int
    label: int
    mask: PackedMask | None
    frame: int


def is_tracked(task: Task, segment: Segment) -> bool:
    """Whether a segment of a result is a thing for itself, not the region of a class."""
    return segment.thing and task != "semantic"


class Tracker:
    """Gives the segments of one frame after another their ids; ids are numbers from 1, in order of appearance.

    Args:
        task: of the results.
        tracking: options.
    """

    def __init__(self, task: Task, tracking: Tracking = Tracking()) -> None:
        self._task, self._tracking = task, tracking
        self._regions: dict[int, int] = {}  # id of each class that is not tracked
        self._tracks: list[Track] = []
        self._frame, self._last_id = -1, 0

    def update(self, segments: Sequence[Segment], masks: Masks) -> list[int]:
        """Ids of the segments of the next frame, which are different.

        Args:
            segments: the N segments; untracked ones are of different classes.
            masks: [N, H, W] bool.
        """
        self._frame += 1
        self._tracks = [track for track in self._tracks if self._frame - track.frame <= 1 + self._tracking.gap]
        tracked = [number for number, segment in enumerate(segments) if is_tracked(self._task, segment)]
        packed = {number: PackedMask.of(masks[number]) for number in tracked}
        matched: dict[int, Track] = {}
        for label in dict.fromkeys(segments[number].label for number in tracked):
            tracks = [track for track in self._tracks if track.label == label]
            numbers = [number for number in tracked if segments[number].label == label]
            for row, column in assigned([t.mask for t in tracks], [packed[n] for n in numbers], self._tracking.iou):
                matched[numbers[column]] = tracks[row]
        return [self._id_of(number, segment, matched, packed) for number, segment in enumerate(segments)]

    def _id_of(self, number: int, segment: Segment, matched: dict[int, Track], packed: dict[int, PackedMask | None]) -> int:
        if number not in packed:
            if segment.label not in self._regions:
                self._regions[segment.label] = self._new_id()
            return self._regions[segment.label]
        track = matched.get(number)
        if track is None:
            track = Track(self._new_id(), segment.label, None, self._frame)
            self._tracks.append(track)
        track.mask, track.frame = packed[number], self._frame
        return track.id

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id


def assigned(before: Sequence[PackedMask | None], after: Sequence[PackedMask | None], least: float) -> list[tuple[int, int]]:
    """Pairs (position in ``before``, position in ``after``), each at most once, with the largest sum of IoUs.

    Args:
        before, after: masks; None: empty.
        least: least IoU of a pair.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    ious = np.array([[iou(first, second) for second in after] for first in before]).reshape(len(before), len(after))
    ious[ious < least] = 0  # so that such a pair is worth as much as none
    rows, columns = linear_sum_assignment(ious, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if ious[row, column] > 0]


def iou(first: PackedMask | None, second: PackedMask | None) -> float:
    """Intersection over union of two masks of a picture; 0 if one is empty."""
    if first is None or second is None:
        return 0.0
    common = first.overlap(second)
    return common / (first.area + second.area - common)
