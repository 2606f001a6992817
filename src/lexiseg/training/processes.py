"""The processes of a training: one alone, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from lexiseg.inference.pipeline import resolve_device


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        number, count: of this one, of all.
        device: its own.
    """

    number: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this one writes files and talks."""
        return self.number == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over all processes."""
        if self.count > 1:
            distributed.all_reduce(values)
            values /= self.count
        return values

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined(device: str | torch.device) -> Iterator[Processes]:
    """The process group that torchrun's variables describe; alone without them.

    Args:
        device: "auto", "cpu", "cuda", …; each process of a machine takes a GPU of its own.
    """
    count, number, local = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    place = resolve_device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    if count == 1:
        yield Processes(0, 1, place)
        return
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(number, count, place)
    finally:
        distributed.destroy_process_group()


_VARIABLES = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
