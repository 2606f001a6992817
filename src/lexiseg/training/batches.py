"""Batches by number: which pictures a step looks at, and how they are varied, is a function of seed and step alone.

So a training that was killed goes on as if nothing had happened, whatever the number of worker processes; and several
processes that share a batch see what one would.
"""

from __future__ import annotations

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

ORDER, VARIATION, POINTS, CLASSES = 1, 2, 3, 4  # what chance is used for; each use has numbers of its own


@dataclass(frozen=True)
class Batch:
    """What a process looks at in one go.

    Attributes:
        images: all of one size.
        targets: one an image.
        positions: of each image in the training: the first it ever looks at is 0.
    """

    images: ImageBatch
    targets: tuple[MaskTarget, ...]
    positions: tuple[int, ...]

    def to(self, device: torch.device) -> Batch:
        return Batch(self.images.to(device), tuple(target.to(device) for target in self.targets), self.positions)

    def parts(self, count: int) -> list[Batch]:
        """The batch in ``count`` parts of one size."""
        share = len(self.positions) // count
        cuts = [slice(start, start + share) for start in range(0, len(self.positions), share)]
        return [
            Batch(ImageBatch(self.images.pixels[cut], self.images.sizes[cut]), self.targets[cut], self.positions[cut])
            for cut in cuts
        ]


def example_at(position: int, count: int, seed: int) -> int:
    """The number of the example looked at in a position: each once an epoch, in an order of its own each time."""
    epoch, place = divmod(position, count)
    return int(_order(count, seed, epoch)[place])


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
    """The batches of the steps ``first`` … ``steps - 1``, as one of several processes sees them.

    Args:
        examples: what is looked at.
        jitter: how it is varied.
        seed: of order and variation.
        batch_size: images a step, over all processes.
        first, steps: see above.
        rank, world_size: each process takes a consecutive part of every batch.
        workers: processes that prepare batches ahead; 0: none.
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
        worker_init_fn=_single_thread,
    )
    return iter(loader)


def points_of(positions: Sequence[int], seed: int, device: torch.device) -> PointSource:
    """Points for the loss of a batch, drawn for each image by itself: the same however the images are grouped."""
    generators = [torch.Generator().manual_seed(seed_of(seed, POINTS, position)) for position in positions]

    def draw(image: int, rows: int, count: int) -> torch.Tensor:
        return torch.rand(rows, count, 2, generator=generators[image]).to(device)

    return draw


def seed_of(*numbers: int) -> int:
    """One seed out of several numbers; other numbers, another seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _collate(rows: Sequence[tuple[int, torch.Tensor, MaskTarget]]) -> Batch:
    pixels = torch.stack([image for _, image, _ in rows])
    size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    return Batch(
        ImageBatch(pixels, (size,) * len(rows)), tuple(target for *_, target in rows), tuple(position for position, *_ in rows)
    )


def _single_thread(_: int) -> None:
    torch.set_num_threads(1)


class _Varied(Dataset[tuple[int, torch.Tensor, MaskTarget]]):
    """Position in the training -> position, picture, target."""

    def __init__(self, examples: Examples, jitter: Jitter, seed: int) -> None:
        self.examples, self.jitter, self.seed = examples, jitter, seed

    def __getitem__(self, position: int) -> tuple[int, torch.Tensor, MaskTarget]:
        pixels, truth = self.examples.read(example_at(position, self.examples.count, self.seed))
        rng = np.random.default_rng((self.seed, VARIATION, position))
        return position, *jittered(pixels, truth, self.jitter, rng)
