"""Exceptions of lexiseg.

    LexisegError                 base class
    ├── UsageError               the call is wrong: unknown name, bad option, empty vocabulary     (exit 2; a ValueError)
    └── RunError                 the call is right, but could not be carried out                   (exit 1)
        ├── ImageError           a picture that cannot be read or segmented
        ├── DataError            a data set or predictions with missing files or invalid entries
        ├── ServiceError         a `lexiseg serve` that cannot be reached, or refuses to serve
        ├── WeightsError         weights missing, damaged, or of another model
        └── OutputError          a result that cannot be written

Messages name the bad thing and the next step. `explained` turns any other exception into one line, so that a failed picture is
reported and the next is processed.
"""

from __future__ import annotations

from pathlib import Path

_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")  # in torch's RuntimeError


class LexisegError(Exception):
    """Base class; ``exit_code`` is the exit status of the command line."""

    exit_code = 1


class UsageError(LexisegError, ValueError):
    """Invalid arguments: something that does not exist or makes no sense."""

    exit_code = 2


class RunError(LexisegError):
    """A valid request that could not be carried out."""


class ImageError(RunError):
    """A picture that cannot be read or segmented."""


class DataError(RunError):
    """A data set or a file of predictions with missing files or invalid entries."""


class ServiceError(RunError):
    """A service that cannot be reached, or refuses to serve: no other picture would fare better."""


class WeightsError(RunError):
    """Weights that are missing, damaged, or of another model."""


class OutputError(RunError):
    """A result that cannot be written."""


def is_no_memory(error: BaseException) -> bool:
    """Return whether the error means out of memory, in Python, torch or Pillow."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
    )


def explained(error: BaseException) -> str:
    """Describe an error in one line: our own messages as they are, others with their type and the line in lexiseg."""
    if isinstance(error, LexisegError):
        return str(error)
    if is_no_memory(error):
        need = f" ({error})" if type(error) is MemoryError and str(error) else ""  # from `require_memory`
        return f"there is not enough memory for it{need}; scale the picture down, name fewer classes, or take a smaller model"
    message = (str(error).strip().splitlines() or [""])[0][:200]
    text = f"{type(error).__name__}{f': {message}' if message else ''}"
    return f"unexpected {text} ({location(error)}); --debug shows the traceback"


def location(error: BaseException) -> str:
    """Return the innermost line of lexiseg in an error's traceback, as ``data/images.py:74``."""
    package, frame, location = Path(__file__).parent, error.__traceback__, "outside of lexiseg"
    while frame is not None:
        file = Path(frame.tb_frame.f_code.co_filename)
        if file.is_relative_to(package):
            location = f"{file.relative_to(package).as_posix()}:{frame.tb_lineno}"
        frame = frame.tb_next
    return location
