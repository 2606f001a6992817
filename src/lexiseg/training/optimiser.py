"""AdamW over the trained parts of a segmenter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lexiseg.errors import UsageError
from lexiseg.methods.base import Segmenter
from lexiseg.methods.recipe import Stage

UNDECAYED = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.Embedding)  # as in Mask2Former


def trained_parts(segmenter: Segmenter, stage: Stage) -> tuple[str, ...]:
    """Names of the parts that a stage trains, in the segmenter's order.

    Raises:
        UsageError: the stage names a part that the segmenter does not have.
    """
    known = segmenter.parts()
    wanted = segmenter.trained_parts() if stage.parts is None else frozenset(stage.parts)
    if unknown := sorted((wanted | set(stage.lr_multipliers)) - set(known)):
        raise UsageError(f"the model has no part '{unknown[0]}' to train; it has {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def optimiser_of(segmenter: Segmenter, stage: Stage) -> torch.optim.AdamW:
    """Create AdamW for a stage, and freeze all parameters that the stage does not train.

    No weight decay on norms and embeddings; all else, biases included, decays.

    Raises:
        UsageError: the stage trains nothing, or names a part that the segmenter does not have.
    """
    parts, wanted = segmenter.parts(), trained_parts(segmenter, stage)
    segmenter.requires_grad_(False)
    trainable = {id(entry.parameter): entry for entry in segmenter.trainable()}
    groups: list[dict[str, Any]] = []
    for name in wanted:
        owned = [(owner, parameter) for owner, parameter in _owned(parts[name]) if id(parameter) in trainable]
        decayed = [parameter.requires_grad_() for owner, parameter in owned if not isinstance(owner, UNDECAYED)]
        others = [parameter.requires_grad_() for owner, parameter in owned if isinstance(owner, UNDECAYED)]
        multiplier = stage.lr_multipliers.get(name, 1.0)
        groups += [
            {"params": members, "weight_decay": decay, "multiplier": multiplier}
            for members, decay in ((decayed, stage.weight_decay), (others, 0.0))
            if members
        ]
    if not groups:
        raise UsageError(f"a stage with parts={stage.parts} trains no parameter; the model has {', '.join(parts)}")
    optimiser = torch.optim.AdamW(groups, lr=stage.lr)
    for entry in trainable.values():
        if entry.frozen_rows is not None and entry.parameter.requires_grad:
            _freeze_rows(entry.parameter, entry.frozen_rows, optimiser)
    return optimiser


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate, times the multiplier of each group."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["multiplier"]


def _freeze_rows(parameter: nn.Parameter, rows: slice, optimiser: torch.optim.Optimizer) -> None:
    """Freeze some rows of a parameter: no gradient, no update, no weight decay."""
    initial = parameter.detach()[rows].clone()

    def zero_rows(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[rows] = 0
        return gradient

    def restore(*_: object) -> None:
        parameter.data[rows] = initial

    parameter.register_hook(zero_rows)
    optimiser.register_step_post_hook(restore)


def _owned(part: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """Yield (module, parameter) for each parameter once, with the module that owns it."""
    seen: set[int] = set()
    for module in part.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, parameter
