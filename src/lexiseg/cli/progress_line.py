"""One line on the terminal that says what a command is doing: stage, how much of it is done, and an estimate."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from lexiseg.cli.streams import one_line
from lexiseg.ops.progress import Progress

INTERVAL, PATIENCE = 1.0, 3.0  # seconds between updates; seconds of a stage before an estimate
_CLEAR = "\r\x1b[K"


class ProgressLine:
    """A line on standard error, rewritten each second within the block; without a terminal nothing is written.

    Args:
        title: what is worked on, such as the name of a picture.
    """

    def __init__(self, title: str) -> None:
        self.title, self.active = one_line(title)[-60:], bool(sys.stderr and sys.stderr.isatty())
        self._progress, self._since, self._began = Progress(""), time.monotonic(), time.monotonic()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ProgressLine:
        if self.active:
            self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.pause()

    def __call__(self, progress: Progress) -> None:
        """Receive progress, see `lexiseg.ops.progress.reporting`."""
        with self._lock:
            if progress.stage != self._progress.stage:
                self._since = time.monotonic()
            self._progress = progress

    def pause(self) -> None:
        """Remove the line, for good."""
        if self.active and not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self._write(_CLEAR)

    def text(self, now: float) -> str:
        """The line at a time of the monotonic clock."""
        with self._lock:
            progress, since = self._progress, self._since
        parts = [self.title, progress.stage] if progress.stage else [self.title]
        if progress.total:
            parts.append(f"{progress.done}/{progress.total}")
        parts.append(f"{now - self._began:.0f} s")
        if 0 < progress.done < progress.total and now - since > PATIENCE:
            parts.append(f"about {(now - since) * (progress.total - progress.done) / progress.done:.0f} s left of this stage")
        return "  ".join(parts)

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._write(_CLEAR + self.text(time.monotonic()))

    @staticmethod
    def _write(text: str) -> None:
        # The stream itself: ours escapes control characters.
        stream = getattr(sys.stderr, "stream", sys.stderr)
        stream.write(text)
        stream.flush()
