"""Every error lexiseg raises on purpose.

    LexisegError                 catch this for all
    ├── UsageError               the call is wrong: unknown name, bad option, empty vocabulary     (exit 2; a ValueError)
    └── RunError                 the call is right, the world is not                               (exit 1)
        ├── ImageError           a picture that cannot be read or is not fit to segment
        ├── DataError            a data set that lacks a file or holds what it must not
        ├── WeightsError         weights missing, damaged, or not those of the model
        └── OutputError          a result that cannot be written

Messages name the bad thing and the next step. What else goes wrong, in a library or by a mistake of ours, `explained` puts in a
line, so that one picture's failure is reported like any other and the next picture is done.
"""

from __future__ import annotations

from pathlib import Path

_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")  # what torch says in a RuntimeError


class LexisegError(Exception):
    """Base of all; ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class UsageError(LexisegError, ValueError):
    """The caller asked for something that does not exist or makes no sense."""

    exit_code = 2


class RunError(LexisegError):
    """The request was fine; carrying it out failed."""


class ImageError(RunError):
    """A picture that cannot be read or is not fit to segment."""


class DataError(RunError):
    """A data set, or a file of predictions, that lacks something or holds what it must not."""


class WeightsError(RunError):
    """Weights that are missing, damaged, or belong to another model."""


class OutputError(RunError):
    """A result that cannot be written."""


def is_no_memory(error: BaseException) -> bool:
    """Whether there was too little memory, which torch and Pillow say in ways of their own."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)
    )


def explained(error: BaseException) -> str:
    """What went wrong, in a line: our own messages as they are; of all else what it is, and where in lexiseg it happened."""
    if isinstance(error, LexisegError):
        return str(error)
    if is_no_memory(error):
        need = f" ({error})" if type(error) is MemoryError and str(error) else ""  # of `require_memory`
        return f"there is not enough memory for it{need}; scale the picture down, name fewer classes, or take a smaller model"
    said = (str(error).strip().splitlines() or [""])[0][:200]
    return f"unexpected {type(error).__name__}{f': {said}' if said else ''} ({_place(error)}); --debug shows how it came to it"


def _place(error: BaseException) -> str:
    """The innermost line of lexiseg that an error came through, as ``data/images.py:74``."""
    package, frame, place = Path(__file__).parent, error.__traceback__, "outside of lexiseg"
    while frame is not None:
        file = Path(frame.tb_frame.f_code.co_filename)
        if file.is_relative_to(package):
            place = f"{file.relative_to(package).as_posix()}:{frame.tb_lineno}"
        frame = frame.tb_next
    return place
