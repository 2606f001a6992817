"""``python -m tests.kills --count 100 --seed 0``: exit status 1 if a kill shows a fault; such outputs are kept."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.kills.commands import COMMANDS
from tests.kills.run import HEADER, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill the commands, print a line a command, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--command", action="append", choices=COMMANDS, help="may be repeated (default: all)")
    parser.add_argument("--count", type=int, default=100, help="kills, shared out over the commands (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="which moments (default: 0)")
    parser.add_argument("--keep", type=Path, help="where the outputs that show a fault are kept")
    options = parser.parse_args(arguments)
    commands = options.command or list(COMMANDS)
    keep = options.keep or Path(tempfile.mkdtemp(prefix="lexiseg-kills-"))
    print(HEADER)
    faults = 0
    for position, command in enumerate(commands):
        tally = run(command, range(len(range(position, options.count, len(commands)))), options.seed, keep)
        print(tally.line(), flush=True)
        for fault in tally.faults:
            print(f"  {fault}")
        faults += len(tally.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
