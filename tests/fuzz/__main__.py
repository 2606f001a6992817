"""``python -m tests.fuzz AREA … --count 1500 --seed 0``: exit status 1 if an input ends in a traceback; such are kept."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.run import AREAS, HEADER, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the inputs, print a line an area, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; all if none is named")
    parser.add_argument("--count", type=int, default=1500, help="inputs an area (default: 1500)")
    parser.add_argument("--seed", type=int, default=0, help="which inputs (default: 0)")
    parser.add_argument("--only", type=int, help="this input alone, by its number")
    parser.add_argument("--keep", type=Path, help="where inputs that end in a traceback are kept")
    options = parser.parse_args(arguments)
    if unknown := set(options.areas) - set(AREAS):
        parser.error(f"no area {', '.join(sorted(unknown))}; there are {', '.join(AREAS)}")
    keep = options.keep or Path(tempfile.mkdtemp(prefix="lexiseg-fuzz-"))
    numbers = range(options.count) if options.only is None else [options.only]
    print(HEADER)
    faults = 0
    for area in options.areas or AREAS:
        tally = run(area, numbers, options.seed, keep)
        print(tally.line(), flush=True)
        for fault, where in tally.faults.items():
            print(f"  {len(where):4} × {fault}\n         {where[0]}")
        faults += tally.tracebacks
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
