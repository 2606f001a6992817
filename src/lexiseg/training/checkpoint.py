"""Checkpoints from which a training resumes exactly.

A checkpoint holds trained weights, moving average, optimiser state and step. Random states are not needed, because a step
depends on its number only (`lexiseg.training.batches`); frozen parts are not stored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexiseg.errors import RunError, UsageError
from lexiseg.methods.base import Segmenter
from lexiseg.methods.recipe import Recipe
from lexiseg.methods.weights import check
from lexiseg.ops.files import replacing

CHECKPOINT = "checkpoint.pt"
HARMLESS = {"save_every", "log_every", "validate_every", "validate_limit", "validation"}  # may change at resumption


def trained_state(segmenter: Segmenter) -> dict[str, Tensor]:
    """Parameters and buffers of the trained parts, by name; a name begins with that of its part."""
    trained = segmenter.trained_parts()
    return {name: value for name, value in segmenter.state_dict().items() if name.split(".", 1)[0] in trained}


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, synchronised to disk.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save(dict(state), stream)
        stream.flush()
        os.fsync(stream.fileno())


def read_checkpoint(path: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Read the checkpoint ``path``; None if it does not exist.

    Raises:
        UsageError: it was written by another recipe or with other settings.
        RunError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        saved = dict(state["recipe"])
    except Exception as error:  # torch.load raises nearly everything on damaged files
        raise unusable(path, error) from error
    current = recipe.to_dict()
    for key in sorted({*current, *saved} - HARMLESS):
        if current.get(key) != saved.get(key):
            raise UsageError(
                f"{path.parent} holds a training with {key}={saved.get(key)}, now it is {current.get(key)}; choose another "
                "--output, or delete that folder"
            )
    return state


def unusable(path: Path, error: Exception) -> RunError:
    """The error for a file from which a training cannot resume."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return RunError(f"{path} is no checkpoint of this training ({reason}); delete it to begin anew, or choose another --output")


def fill_trained(segmenter: Segmenter, state: Mapping[str, Tensor], source: str | Path = "") -> None:
    """Copy a `trained_state` into a segmenter, on any device.

    Args:
        segmenter: segmenter to fill.
        state: tensors by name.
        source: file the state was read from, for error messages.

    Raises:
        WeightsError: tensors are missing, unexpected, or of another shape.
    """
    check(state, trained_state(segmenter), source)
    with torch.no_grad():
        for name, value in trained_state(segmenter).items():
            value.copy_(state[name])
