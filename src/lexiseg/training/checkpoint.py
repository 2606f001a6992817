"""The state of a training in one file, from which it goes on exactly.

Steps are functions of their number (`lexiseg.training.batches`), so weights, moving average, optimiser and the number say
all; random generators need not be kept. Frozen parts are not in the file: they are what they were.
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
HARMLESS = {"save_every", "log_every", "validate_every", "validate_limit", "validation"}  # may change on the way


def trained_state(segmenter: Segmenter) -> dict[str, Tensor]:
    """Parameters and buffers of all parts that are trained, by name; the first word of a name is the part."""
    trained = segmenter.trained_parts()
    return {name: value for name, value in segmenter.state_dict().items() if name.split(".", 1)[0] in trained}


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state so that a crash leaves the old file or the new one, whole and on the disk.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save(dict(state), stream)
        stream.flush()
        os.fsync(stream.fileno())


def read_checkpoint(path: Path, recipe: Recipe) -> dict[str, Any] | None:
    """The state of a training in ``path``; None if there is none.

    Raises:
        UsageError: it is of another recipe, or of one with other settings.
        RunError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        then = dict(state["recipe"])
    except Exception as error:  # torch.load raises nearly everything on damaged files
        raise unusable(path, error) from error
    now = recipe.to_dict()
    for key in sorted({*now, *then} - HARMLESS):
        if now.get(key) != then.get(key):
            raise UsageError(
                f"{path.parent} holds a training with {key}={then.get(key)}, now it is {now.get(key)}; choose another "
                "--output, or delete that folder"
            )
    return state


def unusable(path: Path, error: Exception) -> RunError:
    """The error that says that a training cannot go on from a file, and what to do."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return RunError(f"{path} is no checkpoint of this training ({said}); delete it to begin anew, or choose another --output")


def fill_trained(segmenter: Segmenter, state: Mapping[str, Tensor], source: str | Path = "") -> None:
    """Put a state of `trained_state` into a segmenter, on whatever device it is.

    Raises:
        WeightsError: tensors are missing, left over, or of another shape; ``source`` is where they were read.
    """
    check(state, trained_state(segmenter), source)
    with torch.no_grad():
        for name, value in trained_state(segmenter).items():
            value.copy_(state[name])
