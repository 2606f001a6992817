"""Progress inside long operations: the stage and how much of it is done, reported to a callback.

    with reporting(print):
        pipeline(picture, classes)          # Progress(stage='points', done=320, total=1024), …

A callback belongs to a thread (a context variable), so pipelines stay thread-safe, and no signature carries it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress of an operation.

    Attributes:
        stage: what is being done: "read", "names", "predict", "encode", "points", "name", "tiles", "finish", "frames";
            "transfer", a download, which has a bar of its own.
        done: how much of the stage is done.
        total: how much there is; 0 if the stage is not divided.
    """

    stage: str
    done: int = 0
    total: int = 0


Callback = Callable[[Progress], object]
_CALLBACK: ContextVar[Callback | None] = ContextVar("lexiseg_progress", default=None)


@contextmanager
def reporting(callback: Callback | None) -> Iterator[None]:
    """Report progress within the block to ``callback``, in this thread; None: as before the block."""
    if callback is None:
        yield
        return
    token = _CALLBACK.set(callback)
    try:
        yield
    finally:
        _CALLBACK.reset(token)


def report(stage: str, done: int = 0, total: int = 0) -> None:
    """Report progress; does nothing without a callback. See `Progress`."""
    callback = _CALLBACK.get()
    if callback is not None:
        callback(Progress(stage, done, total))


@contextmanager
def part_of(stage: str, done: int, total: int) -> Iterator[None]:
    """Report that ``done`` of ``total`` parts of a stage are done; each report within the block, of the next, repeats it."""
    callback = _CALLBACK.get()
    if callback is None:
        yield
        return
    progress = Progress(stage, done, total)
    callback(progress)
    with reporting(lambda _: callback(progress)):
        yield
