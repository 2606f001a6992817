"""``python -m tests.parity FOLDER``: compare this installation with every recorded case in a folder.

Exit status: 0 all within tolerance, 1 something beyond it or a case raised, 2 no case found.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from tests.parity.cases import CASES
from tests.parity.report import Row

SUFFIXES = {".json", ".packed", ".safetensors"}


def find_cases(folder: Path) -> tuple[list[tuple[Path, Callable[[Path], list[Row]]]], list[str]]:
    """Cases of ``folder`` and of the folders in it as (folder/stem, function), and the files that no case knows."""
    files = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix in SUFFIXES]
    stems = sorted({path.with_suffix("") for path in files})
    known = [(stem, run) for stem in stems for pattern, run in CASES.items() if fnmatchcase(stem.name, pattern)]
    found = {stem for stem, _ in known}
    unknown = [path.relative_to(folder).as_posix() for path in sorted(files) if path.with_suffix("") not in found]
    return known, unknown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print the table, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of X.safetensors or X.packed + X.json")
    folder: Path = parser.parse_args(arguments).folder
    cases, unknown = find_cases(folder)
    failures = 0
    if cases:
        print(f"{'case':<34} {'quantity':<44} {'max abs diff':>12} {'tolerance':>10}  ok")
    for stem, run in cases:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows = run(stem)
        except Exception as error:  # a case that cannot run is a result of the table, not the end of it
            failures += 1
            print(f"{stem.name:<34} {type(error).__name__}: {error}  FAIL")
            continue
        for row in rows:
            failures += not row.passed
            verdict = "ok" if row.passed else "FAIL"
            print(f"{row.case:<34} {row.quantity:<44} {row.difference:>12.3g} {row.tolerance:>10.3g}  {verdict}")
    if unknown:
        print(f"no case for: {', '.join(unknown)}")
    if not cases:
        print(f"no parity case found in {folder}", file=sys.stderr)
        return 2
    print(f"{len(cases)} cases, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
