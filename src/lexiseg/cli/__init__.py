"""The command line: ``lexiseg segment | models | vocabulary | world``.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong call, 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from lexiseg.cli.parser import build_parser
from lexiseg.errors import LexisegError

# Objects made between two looks for garbage. torch and its companions make millions while they are imported, none of them
# garbage; with Python's 700 looking for it is a fifth of that time.
GARBAGE = 100_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parsed = build_parser().parse_args(arguments)
    parsed.typed = list(sys.argv[1:] if arguments is None else arguments)  # for reports that name their command
    try:
        gc.set_threshold(GARBAGE)
        code: int = import_module(f"lexiseg.cli.{parsed.command}").run(parsed)  # so that --help does not wait for torch
        sys.stdout.flush()
        return code
    except LexisegError as error:
        print(f"lexiseg: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lexiseg: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
