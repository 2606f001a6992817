"""The command line: ``lexiseg segment | evaluate | train | …``; ``lexiseg --help`` has all commands.

Results go to standard output, messages to standard error. Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module

from lexiseg.cli.parser import build_parser
from lexiseg.cli.progress_line import ProgressLine
from lexiseg.cli.streams import Guarded, ReaderLeftError, complain, guarded, occupy_closed, tell
from lexiseg.errors import LexisegError
from lexiseg.ops.allocator import keep_freed_memory

# Threshold of the garbage collector. Importing torch and other libraries creates half a million objects, none of them garbage;
# with Python's default of 700, collection takes a fifth of that time, and with this value still a tenth: see `undisturbed`.
GARBAGE = 100_000


@contextmanager
def undisturbed() -> Iterator[None]:
    """Disable the garbage collector during an import or the construction of a model; move new objects to the old generation."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # with unfreeze(), moves all objects to the oldest generation without a collection
        gc.unfreeze()
        gc.enable()


def program() -> int:
    """Run `main` as a process, and exit without destroying the objects of torch, which takes a second.

    Threads are joined and other exit handlers run as usual: `leave` is registered first and therefore called last.
    """
    codes: list[int] = []

    def leave() -> None:
        if codes:  # empty if argparse or an exception ended the program
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):  # disk full, stream closed or None
                    stream.flush()
            os._exit(codes[0])

    occupy_closed()
    keep_freed_memory()
    atexit.register(leave)
    codes.append(main())
    return codes[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with guarded() as output:
        try:
            code = _run(arguments, output)
        except SystemExit:  # argparse
            if _lost(output):
                raise SystemExit(1) from None
            raise
        return 1 if _lost(output) and code == 0 else code


def _run(arguments: Sequence[str] | None, output: Guarded) -> int:
    """Parse the arguments, run the command and report errors. Returns the exit code."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if parsed.command == "train" and not any(word.startswith("-") for word in rest):
        parsed.settings += rest  # argparse does not accept positional arguments after an option
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parsed.typed = list(sys.argv[1:] if arguments is None else arguments)  # recorded in reports
    output.escapes = True
    try:
        gc.set_threshold(GARBAGE)
        with undisturbed(), ProgressLine("loading libraries"):
            command = import_module(f"lexiseg.cli.{parsed.command}")  # here, so that --help does not import torch
        code: int = command.run(parsed)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        complain("interrupted; finished results are kept")
        return 130
    except ReaderLeftError:
        return 0
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # extensions in Rust raise BaseException
        tell(error, debug=parsed.debug)
        return error.exit_code if isinstance(error, LexisegError) else 1


def _lost(output: Guarded) -> bool:
    """Report whether results could not be printed."""
    with suppress(BrokenPipeError):
        output.flush()
    if output.failure is None or isinstance(output.failure, BrokenPipeError):
        return False
    reason = getattr(output.failure, "strerror", None) or output.failure
    complain(f"standard output cannot be written ({reason}); the printed results are incomplete, written files are complete")
    return True
