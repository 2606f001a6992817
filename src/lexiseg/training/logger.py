"""Logs of a training: ``metrics.jsonl``, TensorBoard and a progress bar."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from lexiseg.errors import OutputError
from lexiseg.ops.files import write_atomically

LOG = "metrics.jsonl"


@dataclass
class MetricWindow:
    """Sums over the steps since the last log line; saved in checkpoints, so that the log is the same after a resumption."""

    losses: dict[str, float] = field(default_factory=dict)
    norm: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    last: float = math.nan  # the loss of the last step

    def add(self, losses: Mapping[str, Tensor], norm: float, seconds: float) -> None:
        """Add a step. Losses of decoder layers ("mask_3") are summed by kind ("mask")."""
        values = {name: float(loss) for name, loss in losses.items()}
        for name, value in values.items():
            kind = name.split("_", 1)[0]
            self.losses[kind] = self.losses.get(kind, 0.0) + value
        self.norm += norm
        self.seconds += seconds
        self.steps += 1
        self.last = sum(values.values())

    def means(self, batch: int) -> dict[str, float]:
        """Means per step, and images per second; ``batch`` is the batch size."""
        means = {name: value / self.steps for name, value in self.losses.items()}
        speed = batch * self.steps / self.seconds
        return {"loss": sum(means.values()), **means, "gradient": self.norm / self.steps, "images_per_second": speed}


class MetricLogger:
    """Writes the log of a training. Methods raise OutputError if it cannot be written.

    Args:
        folder: folder of the training.
        step: step at which the training starts or resumes. Lines of later steps are removed.
        steps: steps of the whole training.
        writes: write and show the log; True on rank 0 only.
    """

    def __init__(self, folder: Path, step: int, steps: int, *, writes: bool = True) -> None:
        self.path, self.steps, self.writes = folder / LOG, steps, writes
        self.board: Any = None
        if writes:
            _cut(self.path, step)
            if find_spec("tensorboard") is not None:
                from torch.utils.tensorboard import SummaryWriter  # slow to import, and of the extra [train]

                with _output_errors(self.path):
                    self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, disable=None if writes else True)

    def advance(self, shown: Mapping[str, float]) -> None:
        """Advance the bar by a step, showing the numbers ``shown``."""
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
        self.bar.update()

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Log the numbers ``row`` after ``step`` steps."""
        if not self.writes:
            return
        with _output_errors(self.path):
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **row}) + "\n")
            if self.board is not None:
                for name, value in row.items():
                    if isinstance(value, int | float):
                        self.board.add_scalar(name, value, step)
        if self.bar.disable:
            summary = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, int | float))
            print(f"step {step}/{self.steps}  {summary}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()
        if self.board is not None:
            with _output_errors(self.path):
                self.board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of a training's log."""
    path = folder / LOG
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _cut(path: Path, step: int) -> None:
    """Remove the lines after ``step`` from the log, and an incomplete last line."""
    if path.exists():
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, LookupError, TypeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line)
        write_atomically(path, "".join(f"{line}\n" for line in kept).encode())


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Raise an OSError as OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; free some space and start the same command again"
        ) from error
