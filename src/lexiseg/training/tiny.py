"""What the trainings of the tiny encoders share: a schedule, an atomic checkpoint, a log, a stream of scenes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from lexiseg.methods.recipe import Stage
from lexiseg.training.checkpoint import CHECKPOINT, write_checkpoint
from lexiseg.world import Scene, render, split_named

CHECKPOINT_EVERY = 200  # steps; what a crash can cost


def learning_rate(step: int, steps: int, peak: float, *, warmup: int = 150, cooldown: float = 0.3) -> float:
    """Linear warm-up, a plateau, then a linear fall to zero over the last ``cooldown`` of the steps.

    A plateau, unlike a cosine, lets a run be resumed with more or fewer steps than it was started with.
    """
    return Stage(steps, rate=peak, warmup=warmup, cooldown=cooldown).rate_at(step)


def parameter_groups(modules: list[tuple[torch.nn.Module, float]], weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups of (module, learning-rate multiplier) pairs; a parameter belongs to the first that holds it.

    Weight decay is for matrices and kernels only; norms, biases, scales and embedding tables go without.
    """
    groups: list[dict[str, Any]] = []
    taken: set[int] = set()
    for module, rate in modules:
        own = [(n, p) for n, p in module.named_parameters() if p.requires_grad and id(p) not in taken]
        taken.update(id(p) for _, p in own)
        decayed = [p for n, p in own if p.ndim > 1 and "embedding" not in n]
        others = [p for n, p in own if not (p.ndim > 1 and "embedding" not in n)]
        groups += [
            {"params": decayed, "weight_decay": weight_decay, "rate": rate},
            {"params": others, "weight_decay": 0.0, "rate": rate},
        ]
    return groups


class SceneStream(IterableDataset[Scene]):
    """Endless scenes of the ``val`` split's styles and all names: the encoders, as in the papers, may see every class.

    Args:
        seed: of the stream.
        size: pixels a side.
        near: every second scene shows a few large objects, as a larger picture of the scene would.
    """

    def __init__(self, seed: int, size: int, *, near: bool) -> None:
        self.seed, self.size, self.near = seed, size, near

    def __iter__(self) -> Iterator[Scene]:
        split, index = split_named("val"), 0
        while True:
            close: dict[str, Any] = {"objects": 4, "scale": (0.3, 0.75)} if self.near and index % 2 else {}
            yield render((self.seed, crc32(b"encoders"), index), split, size=self.size, **close)
            index += 1


class Replay:
    """A pool of recent scenes: each step adds a few fresh ones and draws a batch, so rendering never is the bottleneck."""

    def __init__(self, seed: int, size: int, *, near: bool = False, capacity: int = 3000) -> None:
        stream = SceneStream(seed, size, near=near)
        loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=64, worker_init_fn=_quiet)
        self.fresh, self.capacity, self.random = iter(loader), capacity, random.Random(seed)
        self.pool: list[Scene] = []

    def draw(self, count: int, *, fresh: int) -> list[Scene]:
        """``count`` scenes, after ``fresh`` new ones have entered the pool."""
        for _ in range(fresh if len(self.pool) >= 4 * count else 4 * count - len(self.pool)):
            scene = next(self.fresh)
            if len(self.pool) < self.capacity:
                self.pool.append(scene)
            else:
                self.pool[self.random.randrange(self.capacity)] = scene
        return self.random.sample(self.pool, count)


def _quiet(_: int) -> None:
    torch.set_num_threads(1)


class Run:
    """A folder with the log and the newest checkpoint of one training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.begun, self.spent = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Training time so far, over all resumptions."""
        return self.spent + time.monotonic() - self.begun

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint so that a crash leaves either the old one or the new one."""
        write_checkpoint(self.folder / CHECKPOINT, {**state, "seconds": self.seconds})

    def load(self) -> dict[str, Any] | None:
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.spent, self.begun = state["seconds"], time.monotonic()
        return state

    def log(self, **row: float | int) -> None:
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        line = json.dumps({**rounded, "seconds": round(self.seconds)})
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)


def colour_augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random hue turns (20 %), greyscale (6 %) and contrast: against naming things by their colour alone.

    ``images`` [B, 3, H, W] in 0..1; the study of the world found colour to be the shortcut these models take.
    """
    batch = len(images)
    draw = torch.rand(batch, 4, generator=generator)
    angle = torch.where(draw[:, 0] < 0.20, (draw[:, 1] * 2 - 1) * torch.pi, (draw[:, 1] * 2 - 1) * 0.15)
    cos, sin = angle.cos(), angle.sin()
    third, root = (1 - cos) / 3, sin / 3**0.5
    turn = torch.stack([cos + third, third - root, third + root], -1)  # a rotation about the grey axis
    matrix = torch.stack([turn, turn.roll(1, -1), turn.roll(2, -1)], 1)
    grey = torch.full((3, 3), 1 / 3)
    matrix = torch.where((draw[:, 2] < 0.06)[:, None, None], grey, matrix)
    contrast = (0.75 + 0.5 * draw[:, 3])[:, None, None]
    mixed = torch.einsum("bij,bjhw->bihw", matrix * contrast, images - 0.5) + 0.5
    return mixed.clamp(0, 1)


def as_images(scenes: list[Scene]) -> torch.Tensor:
    """The pictures of ``scenes`` as one [B, 3, H, W] tensor in 0..1."""
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255
