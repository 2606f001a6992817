"""Trade compute for memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def part_of(work: Callable[..., Tensor], *given: Tensor, alone: bool) -> Tensor:
    """Apply ``work`` to one chunk of a larger tensor.

    In training the activations of a chunk are recomputed in the backward pass (`torch.utils.checkpoint`), unless it is the
    only one (``alone``); so memory is bounded by one chunk.
    """
    if alone or not torch.is_grad_enabled():
        return work(*given)
    output: Tensor = checkpoint(work, *given, use_reentrant=False)
    return output
