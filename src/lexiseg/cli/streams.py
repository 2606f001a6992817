"""Standard streams that never raise: unprintable characters are escaped, and write errors are reported at the end."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from lexiseg.errors import LexisegError, explained

# Characters that move the cursor, change colours or the writing direction. Newlines and tabs are kept; see `one_line`.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Escape control characters as ``\u001b``, which is valid in JSON, too."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """Escape control characters, newlines and tabs."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def complain(message: str) -> None:
    """Print an error message on standard error."""
    print(f"lexiseg: {printable(message)}", file=sys.stderr)


def tell(error: BaseException, *, about: str = "", debug: bool = False) -> None:
    """Print an error as one line, with its traceback if ``debug``.

    Args:
        error: any exception.
        about: image or data set concerned, prefixed unless the error is a `LexisegError`, which names it itself.
        debug: print the traceback.
    """
    known = isinstance(error, LexisegError)
    complain(explained(error) if known or not about else f"{about}: {explained(error)}")
    if debug:
        print(printable("".join(traceback.format_exception(error)).rstrip()), file=sys.stderr)


class ReaderLeftError(BrokenPipeError):
    """Reading of standard output has ended, as that of `head` does: no more output is needed."""


class Guarded:
    """A standard stream that records write errors instead of raising them, and writes nothing after the first.

    Args:
        stream: stream to guard; None if the process was started with it closed.
        for_results: raise `ReaderLeftError` if the reader has exited.

    Attributes:
        failure: the first write error, or None.
        escapes: whether control characters are escaped.
    """

    def __init__(self, stream: TextIO | None, *, for_results: bool) -> None:
        self.stream, self.for_results, self.escapes = stream or io.StringIO(), for_results, False
        self.failure: OSError | ValueError | None = None
        self._closed_from_start = stream is None
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # for characters that the encoding lacks

    def write(self, text: str) -> int:
        """Write ``text``, or record the error."""
        self._try(self._put, printable(text) if self.escapes else text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or record the error."""
        self._try(self.stream.flush)

    def give_up(self) -> None:
        """Redirect buffered output to the null device, so that flushing at exit does not fail again."""
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def _put(self, text: str) -> None:
        if self._closed_from_start and text:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            self.stream.write(text.encode("ascii", "backslashreplace").decode())

    def _try(self, action: Callable[..., object], *arguments: str) -> None:
        if self.failure is not None:
            return
        try:
            action(*arguments)
        except BrokenPipeError as error:
            self.failure = error
            if self.for_results:
                raise ReaderLeftError(*error.args) from None
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.failure = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def guarded() -> Iterator[Guarded]:
    """Replace standard output and standard error by `Guarded` streams; yields that of standard output."""
    before = sys.stdout, sys.stderr
    output, errors = Guarded(before[0], for_results=True), Guarded(before[1], for_results=False)
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
    try:
        yield output
    finally:
        for stream in (output, errors):
            with suppress(BrokenPipeError):
                stream.flush()
            if stream.failure is not None:
                stream.give_up()
        sys.stdout, sys.stderr = before


def occupy_closed() -> None:
    """Open closed standard streams on the null device, so that no file gets their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
