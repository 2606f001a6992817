"""Weights in our own form: mutated cards in the header of ``model.safetensors``, loaded and used."""

from __future__ import annotations

import copy
import json
import struct
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lexiseg.backbones.configs import ASSETS
from lexiseg.inference.pipeline import Pipeline
from lexiseg.methods import MODELS
from lexiseg.methods.variant import Variant
from tests.fuzz.mutations import ODD, mutated_bytes, mutated_document

SUFFIX = ".safetensors"
NAME = "fcclip-tiny"
_SIZES = (0, 1, 2, 3, 7, -1, 24, 96, 1000, 4096, 10**4, 0.5, 1.5, -0.1, float("nan"), float("inf"), 2**31, 2**63, 10**30)
_PICTURE = np.zeros((24, 32, 3), np.uint8)


def prepare(folder: Path) -> None:
    """Nothing is needed beside the inputs."""


def inputs(random: np.random.Generator) -> bytes:
    """``model.safetensors`` of fcclip-tiny with a mutated card, mutated names or mutated bytes."""
    data = (ASSETS / NAME / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    card, change = json.loads(header["__metadata__"]["lexiseg"]), random.random()
    if change < 0.35:
        key = list(card["config"])[int(random.integers(len(card["config"])))]
        values = _SIZES if isinstance(card["config"][key], int | float) else ODD
        card["config"][key] = copy.deepcopy(values[int(random.integers(len(values)))])
    elif change < 0.85:
        card = mutated_document(card, random)
    text = json.dumps(card)
    if change > 0.9:
        text = mutated_bytes(text.encode(), random).decode("latin-1")
    header["__metadata__"]["lexiseg"] = text
    if 0.85 < change < 0.9:
        header = mutated_document(header, random)
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + numbers


def attempt(path: Path) -> None:
    """Load the model and segment a small picture."""
    segmenter = _variant().load({"fcclip": str(path)})
    Pipeline(segmenter.eval())(_PICTURE, "dog; cat")


@cache
def _variant() -> Variant:
    """The model on one CLIP, which is loaded once."""
    variant = MODELS[NAME]
    [part] = variant.parts
    backbone: Any = part.load(None)
    return replace(variant, parts=(replace(part, load=lambda _: backbone),))
