"""Distributed training: the process group of torchrun, or a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed as torch_distributed

from lexiseg.inference.pipeline import resolve_device


@dataclass(frozen=True)
class DistContext:
    """Rank, world size and device of this process.

    Attributes:
        rank: rank of this process.
        world_size: number of processes.
        device: device of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes files and prints."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over all processes, in place."""
        if self.world_size > 1:
            torch_distributed.all_reduce(values)
            values /= self.world_size
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            torch_distributed.barrier()


@contextmanager
def distributed(device: str | torch.device) -> Iterator[DistContext]:
    """Set up the process group from torchrun's environment variables; without them, a single process.

    Args:
        device: "auto", "cpu", "cuda", …; with "cuda", each process takes the GPU of its local rank.
    """
    world_size, rank, local_rank = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    resolved = resolve_device(device)
    if resolved.type == "cuda" and resolved.index is None:
        resolved = torch.device("cuda", local_rank)
        torch.cuda.set_device(resolved)
    if world_size == 1:
        yield DistContext(0, 1, resolved)
        return
    torch_distributed.init_process_group("nccl" if resolved.type == "cuda" else "gloo")
    try:
        yield DistContext(rank, world_size, resolved)
    finally:
        torch_distributed.destroy_process_group()


_VARIABLES = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
