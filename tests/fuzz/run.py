"""Inputs of an area tried one by one, in this process."""

from __future__ import annotations

import importlib
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from lexiseg.errors import LexisegError

AREAS = ("coco", "pictures", "labels", "classes", "weights", "configs", "cards", "recipes", "videos")  # modules of this package
HEADER = (
    f"{'area':<12} {'inputs':>7} {'results':>8} {'refused':>8} {'tracebacks':>11} {'seconds':>8} {'longest':>8} {'peak MB':>8}"
)


@dataclass
class Tally:
    """How the inputs of an area ended.

    Attributes:
        faults: of each kind of traceback (the error and the last line of ours) the files that are kept.
        seconds, longest: of all inputs, and of the one that took longest.
        peak: the most memory that the process held until then, in MB.
    """

    area: str
    results: int = 0
    refused: int = 0
    faults: dict[str, list[Path]] = field(default_factory=dict)
    seconds: float = 0.0
    longest: float = 0.0
    peak: float = 0.0

    @property
    def tracebacks(self) -> int:
        return sum(map(len, self.faults.values()))

    def line(self) -> str:
        """A row below `HEADER`."""
        inputs = self.results + self.refused + self.tracebacks
        return (
            f"{self.area:<12} {inputs:>7} {self.results:>8} {self.refused:>8} {self.tracebacks:>11} {self.seconds:>8.1f}"
            f" {self.longest:>8.1f} {self.peak:>8.0f}"
        )


def run(area: str | ModuleType, numbers: Iterable[int], seed: int, keep: Path) -> Tally:
    """Try inputs of an area.

    Args:
        area: its name or its module.
        numbers: which inputs; a number and the seed make the input, whatever was tried before.
        seed: of all inputs.
        keep: the folder for the inputs that end in a traceback, named by area, seed and number.
    """
    module = importlib.import_module(f"tests.fuzz.{area}") if isinstance(area, str) else area
    tally = Tally(module.__name__.rpartition(".")[2])
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lexiseg-fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        module.prepare(Path(folder))
        path = Path(folder) / f"input{module.SUFFIX}"
        for number in numbers:
            data = module.inputs(np.random.default_rng([seed, number]))
            path.write_bytes(data)
            began = time.perf_counter()
            try:
                module.attempt(path)
            except LexisegError:
                tally.refused += 1
            except Exception as error:
                kept = keep / f"{tally.area}-{seed}-{number}{module.SUFFIX}"
                keep.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(data)
                tally.faults.setdefault(_kind(error), []).append(kept)
            else:
                tally.results += 1
            tally.longest = max(tally.longest, time.perf_counter() - began)
    tally.seconds = time.perf_counter() - started
    tally.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return tally


def _kind(error: Exception) -> str:
    """The error, and the last line of lexiseg that it went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "lexiseg" in Path(frame.filename).parts]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside of lexiseg"
    return f"{type(error).__name__} at {where}: {error!s:.100}"
