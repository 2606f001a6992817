"""AdamW over the trained parts of a segmenter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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


def optimiser_of(segmenter: Segmenter, stage: Stage, auxiliary: nn.Module | None = None) -> torch.optim.AdamW:
    """Create AdamW for a stage, and freeze all parameters that the stage does not train.

    No weight decay on norms and embeddings; all else, biases included, decays.

    Args:
        segmenter: method.
        stage: stage of a recipe.
        auxiliary: module of the loss that is trained as well; its groups have the key "auxiliary".

    Raises:
        UsageError: the stage trains nothing, or names a part that the segmenter does not have.
    """
    parts, wanted = segmenter.parts(), trained_parts(segmenter, stage)
    segmenter.requires_grad_(False)
    trainable = {id(entry.parameter): entry for entry in segmenter.trainable()}
    groups: list[dict[str, Any]] = []
    for name in wanted:
        owned = [(owner, parameter) for owner, parameter in _owned(parts[name]) if id(parameter) in trainable]
        groups += _groups(owned, stage, {"multiplier": stage.lr_multipliers.get(name, 1.0), "auxiliary": False})
    if not groups:
        raise UsageError(f"a stage with parts={stage.parts} trains no parameter; the model has {', '.join(parts)}")
    if auxiliary is not None:
        groups += _groups(list(_owned(auxiliary)), stage, {"multiplier": 1.0, "auxiliary": True})
    optimiser = torch.optim.AdamW(groups, lr=stage.lr)
    for entry in trainable.values():
        for rows in entry.frozen_rows if entry.parameter.requires_grad else ():
            _freeze_rows(entry.parameter, rows, optimiser)
    return optimiser


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate, times the multiplier of each group."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["multiplier"]


def clip_gradients(optimiser: torch.optim.Optimizer, max_norm: float) -> float:
    """Clip the gradients of the model and of an auxiliary module, each to ``max_norm``; infinite: none.

    [decided] A predictor that begins from nothing has large gradients, which would scale down those of the model.

    Returns:
        The norm of the gradient of the model before clipping; not finite if that of the auxiliary module is not.
    """
    norms = []
    for auxiliary in (False, True):
        groups = [group["params"] for group in optimiser.param_groups if group["auxiliary"] == auxiliary]
        members = [parameter for group in groups for parameter in group]
        norms.append(float(nn.utils.clip_grad_norm_(members, max_norm)) if members else 0.0)
    return norms[0] if math.isfinite(norms[1]) else norms[1]


def _groups(owned: Sequence[tuple[nn.Module, nn.Parameter]], stage: Stage, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay, with the keys of ``about``; the parameters require gradients."""
    decayed = [parameter.requires_grad_() for owner, parameter in owned if not isinstance(owner, UNDECAYED)]
    others = [parameter.requires_grad_() for owner, parameter in owned if isinstance(owner, UNDECAYED)]
    return [
        {"params": members, "weight_decay": decay, **about}
        for members, decay in ((decayed, stage.weight_decay), (others, 0.0))
        if members
    ]


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
