"""Shared code for training the tiny encoders: schedule, checkpoints, log, and batches of scenes."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lexiseg.training.batches import start_worker
from lexiseg.training.checkpoint import CHECKPOINT, write_checkpoint
from lexiseg.world import Scene, render, restyled, split_named, world_classes

CHECKPOINT_EVERY = 200  # steps
SEGMENTS = 12  # upper bound per scene, which has up to three stuff regions and seven things


@dataclass(frozen=True)
class Budget:
    """Length of a training: a number of steps, or of minutes if that is sooner.

    Progress is the larger of both fractions, so the learning rate also decays fully when time runs out first.
    """

    steps: int
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Fraction of the training completed before ``step``, 0 to 1."""
        spent = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(step / max(1, self.steps), spent))


def learning_rate(progress: float, step: int, peak: float, *, warmup: int = 150, cooldown: float = 0.3) -> float:
    """Learning rate with linear warm-up, a plateau, and a linear decay to zero.

    Unlike a cosine, a plateau lets a run be resumed with another number of steps.

    Args:
        progress: fraction of the training completed, see `Budget`.
        step: current step, for the warm-up.
        peak: peak learning rate.
        warmup: steps of the warm-up.
        cooldown: fraction of the training in which the learning rate decays.
    """
    fall = min(1.0, (1.0 - progress) / cooldown) if cooldown else 1.0
    return peak * min(1.0, (step + 1) / warmup, fall)


def parameter_groups(modules: list[tuple[torch.nn.Module, float]], weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups of (module, learning-rate multiplier) pairs; a parameter belongs to the first module that has it.

    Only matrices and kernels get weight decay; norms, biases, scales and embedding tables do not.
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


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of one size as tensors on one device.

    Attributes:
        images: [B, 3, H, W] uint8.
        ids: [B, H, W] uint8, segment id of each pixel, from 1.
        labels: [B, `SEGMENTS`] int64, class of the segment with id column + 1; -1: no segment.
    """

    images: Tensor
    ids: Tensor
    labels: Tensor

    @staticmethod
    def of(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> SceneBatch:
        labels = torch.full((len(scenes), SEGMENTS), -1)
        for row, scene in enumerate(scenes):
            for segment in scene.segments:
                labels[row, segment.id - 1] = segment.label
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).contiguous()
        ids = torch.from_numpy(np.stack([scene.panoptic for scene in scenes]).astype(np.uint8))
        return SceneBatch(images.to(device), ids.to(device), labels.to(device))

    def __len__(self) -> int:
        return len(self.images)

    def masks(self) -> Tensor:
        """Masks of the segments, [B, `SEGMENTS`, H, W] bool."""
        numbers = torch.arange(1, SEGMENTS + 1, device=self.ids.device, dtype=torch.uint8)
        return self.ids[:, None] == numbers[:, None, None]

    def things(self) -> Tensor:
        """[B, `SEGMENTS`] bool: which segments are things."""
        return (self.labels >= 0) & (self.labels < sum(row.thing for row in world_classes()))

    def boxes(self) -> Tensor:
        """[B, `SEGMENTS`, 2, 2] float, (left, top) and (right, bottom) in pixels; undefined for empty segments."""
        masks, sides = self.masks(), []
        for flags in (masks.any(2), masks.any(3)):  # columns, rows
            low = flags.int().argmax(-1)
            high = flags.shape[-1] - flags.flip(-1).int().argmax(-1)
            sides.append(torch.stack([low, high], dim=-1))
        return torch.stack(sides, dim=-1).float()

    def floats(self) -> Tensor:
        """Images as float in 0..1."""
        return self.images.float() / 255


class SceneStream(IterableDataset[SceneBatch]):
    """Endless batches of scenes in the styles of the ``val`` split with all classes, which encoders see as in the papers.

    Args:
        seed: seed of the stream.
        size: side of the scenes in pixels.
        count: scenes per batch.
        near: show a few large objects in every second scene, like a crop of a larger image.
        restyle: vary the drawings.
    """

    def __init__(self, seed: int, size: int, *, count: int, near: bool, restyle: bool) -> None:
        self.seed, self.size, self.count, self.near, self.restyle = seed, size, count, near, restyle

    def __iter__(self) -> Iterator[SceneBatch]:
        worker = get_worker_info()
        index, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        split = split_named("val")
        while True:
            scenes = []
            for _ in range(self.count):
                options: dict[str, Any] = {"objects": 4, "scale": (0.3, 0.75)} if self.near and index // stride % 2 else {}
                if self.restyle:
                    options["restyle"] = restyled
                scenes.append(render((self.seed, crc32(b"encoders"), index), split, size=self.size, **options))
                index += stride
            yield SceneBatch.of(scenes)


class ScenePool:
    """Pool of recently rendered scenes on the training device, from which batches are drawn at random.

    Workers add scenes as they are rendered, so the device never waits for the CPU. Which scenes a batch contains therefore
    depends on timing, and a training is not repeatable bit by bit.

    Args:
        stream: source of scenes.
        device: device of the pool.
        workers: rendering processes.
        capacity: number of scenes in the pool.
        fresh: maximum number of batches of the stream added before each draw.
        seed: seed of the draws.
    """

    def __init__(
        self, stream: SceneStream, device: torch.device, *, workers: int, capacity: int, fresh: int, seed: int = 0
    ) -> None:
        self.capacity, self.fresh, self.filled, self.arrived = capacity, fresh, 0, 0
        self.generator = torch.Generator().manual_seed(seed)
        shape = (capacity, 3, stream.size, stream.size)
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        self.ids = torch.empty((capacity, *shape[2:]), dtype=torch.uint8, device=device)
        self.labels = torch.full((capacity, SEGMENTS), -1, device=device)
        self._arrivals: queue.Queue[SceneBatch | Exception] = queue.Queue(maxsize=8)
        loader = DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=2, worker_init_fn=start_worker)
        threading.Thread(target=self._receive, args=(iter(loader),), daemon=True).start()

    def draw(self, count: int) -> SceneBatch:
        """Add the scenes that have arrived, then draw ``count`` scenes."""
        entered = 0
        while self.filled < min(2 * count, self.capacity) or (entered < self.fresh and not self._arrivals.empty()):
            arrival = self._arrivals.get(timeout=600)
            if isinstance(arrival, Exception):
                raise arrival
            self._enter(arrival)
            entered += 1
        chosen = torch.randint(self.filled, (count,), generator=self.generator).to(self.images.device)
        return SceneBatch(self.images[chosen], self.ids[chosen], self.labels[chosen])

    def _enter(self, batch: SceneBatch) -> None:
        """Replace the oldest scenes."""
        slots = torch.arange(self.arrived, self.arrived + len(batch)) % self.capacity
        for pool, values in ((self.images, batch.images), (self.ids, batch.ids), (self.labels, batch.labels)):
            pool[slots.to(pool.device)] = values.to(pool.device)
        self.arrived += len(batch)
        self.filled = min(self.arrived, self.capacity)

    def _receive(self, batches: Iterator[SceneBatch]) -> None:
        try:
            for batch in batches:
                self._arrivals.put(batch)
        except Exception as error:  # raised by draw()
            self._arrivals.put(error)


@contextmanager
def fast(device: torch.device, *, half: bool = True) -> Iterator[None]:
    """Enable bfloat16 autocast if ``half``; on a CPU, disable flash attention, which is slower on few tokens."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=half))
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


class Run:
    """Folder with the log and the latest checkpoint of a training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.begun, self.spent = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Training time in seconds, over all resumptions."""
        return self.spent + time.monotonic() - self.begun

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint atomically."""
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


def colour_augmented(images: Tensor, *, turned: float = 0.2, grey: float = 0.06) -> Tensor:
    """Randomly rotate hues, convert to greyscale and change contrast, so that colour alone does not identify a class.

    Args:
        images: [B, 3, H, W] in 0..1.
        turned: probability of a hue rotation by any angle, instead of a small one.
        grey: probability of greyscale.
    """
    draw = torch.rand(5, len(images), device=images.device)
    angle = torch.where(draw[0] < turned, (draw[1] * 2 - 1) * torch.pi, (draw[1] * 2 - 1) * 0.15)
    cos, sin = angle.cos(), angle.sin()
    third, root = (1 - cos) / 3, sin / 3**0.5
    turn = torch.stack([cos + third, third - root, third + root], -1)  # a rotation about the grey axis
    matrix = torch.stack([turn, turn.roll(1, -1), turn.roll(2, -1)], 1)
    matrix = torch.where((draw[2] < grey)[:, None, None], torch.full_like(matrix, 1 / 3), matrix)
    contrast = (0.75 + 0.5 * draw[3])[:, None, None]
    mixed = torch.einsum("bij,bjhw->bihw", matrix * contrast, images - 0.5) + 0.5
    return mixed.clamp(0, 1)
