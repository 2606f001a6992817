"""What one photograph costs, from the file to the results, stage by stage, with full-size models of random weights.

``python benchmarks/end_to_end.py [--model sam_clip-vit-b16 …] [--picture FILE] [--device cpu] [--promising 0.6] [--json]``
segments a picture as ``lexiseg segment`` does. A stage has CPU seconds, the system's part of them (mapping of memory),
wall-clock seconds, and the most memory that the process held during it, in MB of 10^6 bytes, the model and the libraries
included. "start" builds the model, "names" embeds the names: the command line caches those.

Random weights predict no IoU above SAM's threshold, so that nothing would be upsampled. Their predictions are therefore spread
evenly, such that a part of the prompts, ``--promising``, passes the threshold; the filter of stability, which random masks do
not pass, is off. Without ``--picture`` the picture is noise of 1200 × 1800 pixels: no time depends on its content but that of
masks. Peaks are known on Linux only. Each model runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lexiseg.inference.pipeline import Pipeline, resolve_device
from lexiseg.methods import model_named
from lexiseg.methods.sam_clip.model import SamClip
from lexiseg.ops.allocator import keep_freed_memory
from lexiseg.ops.options import with_value
from lexiseg.ops.progress import Progress

MODELS = ("sam_clip-vit-b16", "sam_clip-mobile")
CLASSES = "person; dog, puppy; cat; car; truck; house; tree; grass; sky; road; water; table; chair; food; bottle; bag"


@dataclass
class Stages:
    """Costs by stage, in the order of the stages; a callback for progress.

    Attributes:
        rows: stage -> CPU seconds, system seconds, wall-clock seconds, peak in MB.
    """

    rows: dict[str, list[float]] = field(default_factory=dict)
    stage: str = "start"
    before: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __call__(self, progress: Progress) -> None:
        """End a stage when another begins."""
        if progress.stage != self.stage:
            self.end(progress.stage)

    def end(self, following: str) -> None:
        """End the stage, and begin the next."""
        row = self.rows.setdefault(self.stage, [0.0, 0.0, 0.0, 0.0])
        user, system, wall = (after - before for after, before in zip(_clocks(), self.before, strict=True))
        for index, seconds in enumerate((user + system, system, wall)):  # a difference of sums may round below system
            row[index] += seconds
        row[3] = max(row[3], _peak())
        self.stage, self.before = following, _clocks()


def _clocks() -> tuple[float, float, float]:
    """User's, system's and wall-clock seconds."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime, time.perf_counter()


def _peak() -> float:
    """Peak memory in MB since the last call; 0 if it is unknown."""
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        Path("/proc/self/clear_refs").write_text("5")
        return int(status["VmHWM"].split()[0]) * 1024 / 1e6
    except (OSError, KeyError):
        return 0.0


class _Spread(nn.Module):
    """A head of predicted IoUs that spreads what another predicts evenly over 0..1, and then shifts it.

    Args:
        head: SAM's.
        threshold: of the generator.
        promising: fraction of the prompts that have one of three masks above it.
    """

    def __init__(self, head: nn.Module, threshold: float, promising: float) -> None:
        super().__init__()
        self.head, self.shift = head, threshold - (1 - promising) ** (1 / 3)

    def forward(self, tokens: Tensor) -> Tensor:
        values: Tensor = self.head(tokens)
        return (values * 1e4) % 1 + self.shift


def measured(name: str, picture: Path, device: str, promising: float) -> dict[str, list[float]]:
    """Costs of one model on a picture, in this process."""
    keep_freed_memory()
    torch.manual_seed(0)
    stages = Stages(before=_clocks())
    model, resolved = model_named(name), resolve_device(device)
    segmenter = model.empty(with_value(model.config, "generator.stability_threshold", 0.0, owner=name)).eval().to(resolved)
    if isinstance(segmenter, SamClip):
        decoder = segmenter.sam.model.mask_decoder
        decoder.iou_prediction_head = _Spread(
            decoder.iou_prediction_head, segmenter.config.generator.pred_iou_threshold, promising
        )
    pipeline = Pipeline(segmenter, device=resolved)
    result = pipeline(str(picture), CLASSES, progress=stages)
    stages.end("save")
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder)
    stages.end("")
    return stages.rows


def noise(path: Path) -> Path:
    """Write the picture that stands for a photograph."""
    cells = np.random.default_rng(0).integers(0, 256, (12, 18, 3), np.uint8)
    Image.fromarray(cells).resize((1800, 1200), Image.Resampling.BICUBIC).save(path)
    return path


def table(name: str, rows: dict[str, list[float]]) -> str:
    """The costs of a model as text."""
    total = [sum(row[index] for row in rows.values()) for index in range(3)] + [max(row[3] for row in rows.values())]
    lines = [f"{name:<20} {'CPU s':>8} {'system':>7} {'wall s':>8} {'peak MB':>8}"]
    for stage, (cpu, system, wall, peak) in {**rows, "all": total}.items():
        lines.append(f"{stage:<20} {cpu:>8.1f} {system / max(cpu, 1e-9):>7.1%} {wall:>8.1f} {peak:>8,.0f}")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    """Print the costs of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", metavar="NAME", help=f"may be repeated (default: {', '.join(MODELS)})")
    parser.add_argument("--picture", metavar="FILE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--promising", type=float, default=0.6, metavar="P", help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(given)
    names = arguments.model or list(MODELS)
    if len(names) == 1:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(arguments.picture) if arguments.picture else noise(Path(folder) / "noise.png")
            rows = measured(names[0], picture, arguments.device, arguments.promising)
        document: dict[str, Any] = {
            "model": names[0],
            "device": arguments.device,
            "threads": torch.get_num_threads(),
            "rows": rows,
        }
        print(json.dumps(document) if arguments.json else table(names[0], rows))
        return 0
    for name in names:
        options = ["--model", name, "--device", arguments.device, "--promising", str(arguments.promising)]
        options += ["--picture", arguments.picture] if arguments.picture else []
        command = [sys.executable, __file__, *options, *(["--json"] if arguments.json else [])]
        if code := subprocess.run(command, check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
