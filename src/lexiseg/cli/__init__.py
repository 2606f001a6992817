"""The command line: ``lexiseg segment | evaluate | train | …``; ``lexiseg --help`` has all commands.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong call, 130 interrupted.
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
from lexiseg.cli.streams import Guarded, complain, guarded, occupy_closed, tell
from lexiseg.errors import LexisegError

# Objects made between two looks for garbage. torch and its companions make half a million while they are imported, none of them
# garbage; with Python's 700 looking for it is a fifth of that time, and with this still a tenth: see `undisturbed`.
GARBAGE = 100_000


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nobody looks for garbage, during an import or while a model is built; what was made counts as old afterwards."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # the only way to make all objects old without looking at each
        gc.unfreeze()
        gc.enable()


def program() -> int:
    """`main` as a process of its own: it ends without taking the objects of torch apart one by one, which needs a second.

    Threads are waited for, and what others want done at the end is done, as ever; `leave` was registered first, so it is last.
    """
    codes: list[int] = []

    def leave() -> None:
        if codes:  # not where argparse or an error of our own ended the program
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):  # full, closed, not there
                    stream.flush()
            os._exit(codes[0])

    occupy_closed()
    atexit.register(leave)
    codes.append(main())
    return codes[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with guarded() as output:
        try:
            code = _carried_out(arguments, output)
        except SystemExit:  # argparse
            if _lost(output):
                raise SystemExit(1) from None
            raise
        return 1 if _lost(output) and code == 0 else code


def _carried_out(arguments: Sequence[str] | None, output: Guarded) -> int:
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if parsed.command == "train" and not any(word.startswith("-") for word in rest):
        parsed.settings += rest  # argparse loses positional arguments that stand after an option
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parsed.typed = list(sys.argv[1:] if arguments is None else arguments)  # for reports that name their command
    output.escapes = True
    try:
        gc.set_threshold(GARBAGE)
        with undisturbed():
            command = import_module(f"lexiseg.cli.{parsed.command}")  # here, so that --help does not wait for torch
        code: int = command.run(parsed)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        complain("interrupted; what was finished is kept")
        return 130
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # libraries in Rust raise what is no Exception
        if isinstance(error, BrokenPipeError) and output.failure is error:  # the reader, `head` say, has seen enough
            return 0
        tell(error, debug=parsed.debug)
        return error.exit_code if isinstance(error, LexisegError) else 1


def _lost(output: Guarded) -> bool:
    """Whether results could not be printed; it is told."""
    with suppress(BrokenPipeError):
        output.flush()
    if output.failure is None or isinstance(output.failure, BrokenPipeError):
        return False
    reason = getattr(output.failure, "strerror", None) or output.failure
    complain(
        f"standard output cannot be written ({reason}); what was to be printed is lost, what was written to files is whole"
    )
    return True
