"""Deterministic batches: the images of a step and their augmentation depend on the seed and the step only.

An interrupted training therefore resumes exactly, with any number of workers, and the processes of a distributed training
together see the same batches as a single process.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lexiseg.losses.matching import PointSource
from lexiseg.methods.recipe import Jitter
from lexiseg.structures import ImageBatch, MaskTarget
from lexiseg.training.augment import jittered
from lexiseg.training.examples import Examples

ORDER, VARIATION, POINTS, CLASSES = 1, 2, 3, 4  # independent random streams


@dataclass(frozen=True)
class Batch:
    """The examples of one process in one step.

    Attributes:
        images: B images of one size.
        targets: masks and labels of each image.
        positions: index of each image in the sequence of all images of the training, from 0.
    """

    images: ImageBatch
    targets: tuple[MaskTarget, ...]
    positions: tuple[int, ...]

    def to(self, device: torch.device) -> Batch:
        return Batch(self.images.to(device), tuple(target.to(device) for target in self.targets), self.positions)

    def parts(self, count: int) -> list[Batch]:
        """Split the batch into ``count`` micro-batches of equal size."""
        size = len(self.positions) // count
        slices = [slice(start, start + size) for start in range(0, len(self.positions), size)]
        return [
            Batch(ImageBatch(self.images.pixels[part], self.images.sizes[part]), self.targets[part], self.positions[part])
            for part in slices
        ]


def example_at(position: int, count: int, seed: int) -> int:
    """Index of the example at a position of the training: each of ``count`` once per epoch, reshuffled every epoch."""
    epoch, offset = divmod(position, count)
    return int(_order(count, seed, epoch)[offset])


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, ORDER, epoch)).permutation(count)


def batches(
    examples: Examples,
    jitter: Jitter,
    *,
    seed: int,
    batch_size: int,
    first: int,
    steps: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Iterate over the batches of steps ``first`` … ``steps - 1`` for one process.

    Args:
        examples: training examples.
        jitter: augmentation.
        seed: seed of order and augmentation.
        batch_size: images per step, over all processes.
        first, steps: range of steps.
        rank, world_size: each process takes a consecutive part of every batch.
        workers: processes that load batches ahead; 0: load in this process.
    """
    local_batch_size = batch_size // world_size
    starts = [step * batch_size + rank * local_batch_size for step in range(first, steps)]
    positions = [list(range(start, start + local_batch_size)) for start in starts]
    loader: DataLoader[Any] = DataLoader(
        _Varied(examples, jitter, seed),
        batch_sampler=positions,
        collate_fn=_collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=start_worker,
    )
    return iter(loader)


def points_of(positions: Sequence[int], seed: int, device: torch.device) -> PointSource:
    """Random points for the mask loss, drawn per image so that they do not depend on how images are grouped."""
    generators = [torch.Generator().manual_seed(seed_of(seed, POINTS, position)) for position in positions]

    def draw(image: int, rows: int, count: int) -> torch.Tensor:
        return torch.rand(rows, count, 2, generator=generators[image]).to(device)

    return draw


def seed_of(*numbers: int) -> int:
    """Hash several numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _collate(rows: Sequence[tuple[int, torch.Tensor, MaskTarget]]) -> Batch:
    pixels = torch.stack([image for _, image, _ in rows])
    size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    return Batch(
        ImageBatch(pixels, (size,) * len(rows)), tuple(target for *_, target in rows), tuple(position for position, *_ in rows)
    )


def start_worker(_: int) -> None:
    """Use one thread, and leave Ctrl-C and SIGTERM, which go to all processes of a job, to the training process."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Varied(Dataset[tuple[int, torch.Tensor, MaskTarget]]):
    """Maps a position in the training to (position, image, target)."""

    def __init__(self, examples: Examples, jitter: Jitter, seed: int) -> None:
        self.examples, self.jitter, self.seed = examples, jitter, seed

    def __getitem__(self, position: int) -> tuple[int, torch.Tensor, MaskTarget]:
        pixels, truth = self.examples.read(example_at(position, self.examples.count, self.seed))
        rng = np.random.default_rng((self.seed, VARIATION, position))
        return position, *jittered(pixels, truth, self.jitter, rng)
