"""Every error lexiseg raises on purpose.

    LexisegError                 catch this for all
    ├── UsageError               the call is wrong: unknown name, bad option, empty vocabulary     (exit 2; a ValueError)
    └── RunError                 the call is right, the world is not                               (exit 1)
        ├── ImageError           a picture that cannot be read or is not fit to segment
        ├── DataError            a data set that lacks a file or holds what it must not
        ├── WeightsError         weights missing, damaged, or not those of the model
        └── OutputError          a result that cannot be written

Messages name the bad thing and the next step.
"""


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
