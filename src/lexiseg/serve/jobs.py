"""Jobs, and the queue between the event loop, which accepts them, and the worker thread, which carries them out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lexiseg.ops.progress import Progress
from lexiseg.segmentation import Segmentation
from lexiseg.serve.limits import Limits
from lexiseg.structures import Size, Task
from lexiseg.text.vocabulary import Vocabulary

Stage = Literal["queued", "model", "decode", "names", "masks", "result", "encode"]
STAGES: tuple[Stage, ...] = ("queued", "model", "decode", "names", "masks", "result", "encode")


class StoppedError(Exception):
    """The job's client has left, or its time is over."""


@dataclass(frozen=True)
class Call:
    """Checked request for the segmentation of a picture.

    Attributes:
        model: name of the model.
        options: values of its options, by name, sorted.
        vocabulary: the classes, without the background's.
        builtin: whether the vocabulary is a built-in list, whose embeddings may be stored on disk.
        task: task that the model supports.
        threshold: minimum score in 0..1.
        background: an additional class whose regions are removed.
        picture: the file, undecoded.
        size: (height, width) of the picture as stored, by its header.
        keep_scores: whether the result has to have `Segmentation.scores`.
    """

    model: str
    options: tuple[tuple[str, float], ...]
    vocabulary: Vocabulary = field(repr=False)
    builtin: bool
    task: Task
    threshold: float
    background: str | None
    picture: bytes = field(repr=False)
    size: Size
    keep_scores: bool = False

    @property
    def key(self) -> Hashable:
        """Calls with equal keys may be computed as one batch; task and threshold only matter afterwards."""
        return self.model, self.options, self.vocabulary, self.background


@dataclass(frozen=True)
class Done:
    """Result of a job.

    Attributes:
        segmentation: the result.
        seconds: seconds in each stage, those of a batch in full.
        batch: number of pictures computed together.
    """

    segmentation: Segmentation
    seconds: Mapping[Stage, float]
    batch: int

    @property
    def cost(self) -> dict[str, Any]:
        """Batch and seconds as fields of a line in the log."""
        return {"batch": self.batch, "stages": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()}}


Event = Stage | Progress | Done | BaseException


class Job:
    """A call on its way. Made on the event loop; `enter`, `finish` and `fail` are called by the worker.

    Args:
        call: what to do.
        deadline: time, by `time.monotonic`, at which it is given up.

    Attributes:
        ended: whether its result or error was handed over.
    """

    def __init__(self, call: Call, deadline: float) -> None:
        self.call, self.deadline = call, deadline
        self.seconds: dict[Stage, float] = {}
        self._stage: Stage = "queued"
        self._since = time.monotonic()
        self._stopped = False
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    @property
    def stopped(self) -> bool:
        """Whether the job was given up (`stop`) or its deadline has passed."""
        return self._stopped or time.monotonic() > self.deadline

    def stop(self) -> None:
        """Give the job up; the worker ends it before its next module of a network."""
        self._stopped = True

    async def event(self) -> Event:
        """Wait for the next stage, progress in it, the result, or the error that ended the job."""
        return await self._events.get()

    def enter(self, stage: Stage) -> None:
        """Begin a stage.

        Raises:
            StoppedError: the job was given up.
        """
        if self.stopped:
            raise StoppedError
        self._account()
        self._stage = stage
        self._send(stage)

    def report(self, progress: Progress) -> None:
        """Tell of progress within the stage."""
        self._send(progress)

    def finish(self, segmentation: Segmentation, batch: int) -> None:
        """Hand over the result."""
        self._account()
        self._end(Done(segmentation, dict(self.seconds), batch))

    def fail(self, error: BaseException) -> None:
        """Hand over an error, unless the job has ended already."""
        self._account()
        self._end(error)

    def _end(self, event: Done | BaseException) -> None:
        if not self.ended:
            self.ended = True
            self._send(event)

    def _account(self) -> None:
        now = time.monotonic()
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._since = now

    def _send(self, event: Event) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Queue:
    """Jobs that wait, oldest first. Thread-safe.

    Args:
        limits: of batches.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job) -> int:
        """Append a job; returns the number of jobs before it."""
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
            return len(self._jobs) - 1

    def drop(self, job: Job) -> None:
        """Remove a job if it still waits."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    def close(self) -> None:
        """Let `take` return an empty list once no job waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> list[Job]:
        """Wait for the oldest job, and return it with the jobs behind it that can be computed together with it.

        Nobody waits for a batch to fill up: it consists of what has arrived while the one before it was computed.
        """
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return []
                self._changed.wait()
            first = self._jobs[0]
            batch, (high, wide) = [first], first.call.size
            for job in list(self._jobs)[1:]:
                if len(batch) >= self._limits.batch:
                    break
                tall, broad = max(high, job.call.size[0]), max(wide, job.call.size[1])
                if job.call.key == first.call.key and (len(batch) + 1) * tall * broad <= self._limits.batch_pixels:
                    batch.append(job)
                    high, wide = tall, broad
            for job in batch:
                self._jobs.remove(job)
            return batch
