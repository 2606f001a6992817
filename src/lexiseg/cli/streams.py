"""Standard streams that never end the program: what they cannot show is escaped, what they cannot take is told at the end."""

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

# What moves the cursor, changes colours, or turns the direction of reading. Newlines and tabs are ours; see `one_line`.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Text for a terminal, control characters escaped as ``\u001b``, which is right within JSON, too."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """A name for a terminal, its newlines and tabs escaped, too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def complain(message: str) -> None:
    """Tell the user what went wrong, on standard error."""
    print(f"lexiseg: {printable(message)}", file=sys.stderr)


def tell(error: BaseException, *, about: str = "", debug: bool = False) -> None:
    """Tell the user of an error in a line, with the traceback if that is asked for.

    Args:
        error: any.
        about: the picture or data set it is about, where that is not in our own messages anyway.
        debug: whether ``--debug`` was given.
    """
    known = isinstance(error, LexisegError)
    complain(explained(error) if known or not about else f"{about}: {explained(error)}")
    if debug:
        print(printable("".join(traceback.format_exception(error)).rstrip()), file=sys.stderr)


class Guarded:
    """A standard stream whose failures are kept, not raised; nothing more is written after one.

    Args:
        stream: what is guarded; None where the process was started with that stream closed.
        for_results: a reader who has gone (`head` say) is then a BrokenPipeError, for nobody wants the rest.

    Attributes:
        failure: why something could not be written.
        escapes: whether control characters are escaped.
    """

    def __init__(self, stream: TextIO | None, *, for_results: bool) -> None:
        self.stream, self.for_results, self.escapes = stream or io.StringIO(), for_results, False
        self.failure: OSError | ValueError | None = None
        self._closed_from_start = stream is None
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # a sign that cannot be shown is no reason to stop

    def write(self, text: str) -> int:
        """Write, or keep the reason why not."""
        self._try(self._put, printable(text) if self.escapes else text)
        return len(text)

    def flush(self) -> None:
        """As `write`."""
        self._try(self.stream.flush)

    def give_up(self) -> None:
        """Let what is left in buffers go nowhere, so that it does not fail again at the end of the process."""
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
                raise
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            self.failure = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def guarded() -> Iterator[Guarded]:
    """Guards in the places of standard output, which is returned, and standard error."""
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
    """Open what the process was started without, for the first file it opens would else be standard output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
