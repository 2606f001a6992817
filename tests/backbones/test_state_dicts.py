"""One reader of weights: what training programs wrap around them, what is refused, and that nothing runs."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lexiseg.backbones.array_pickles import read_arrays
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import WeightsError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}
WRAPPED = {f"module.{name}": tensor for name, tensor in STATE.items()}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize(
    "document",
    [
        STATE,
        WRAPPED,
        {f"_orig_mod.{name}": tensor for name, tensor in WRAPPED.items()},
        {"model": WRAPPED, "epoch": 3, "optimizer": {"state": {}}},
        {"state_dict": STATE, "best": np.float64(1)},
        {"model_state_dict": STATE, "accuracy": np.float16(0.3), "note": np.str_("x"), "count": np.uint8(3)},
        {"ema": STATE},
        {"model": {"state_dict": STATE}},
        STATE | {"epoch": 3, "note": "x", "best": np.float32(1), "none": None},
    ],
    ids=["plain", "module", "compiled", "model", "state_dict", "model_state_dict", "ema", "twice", "beside"],
)
def test_the_weights_are_found_in_what_training_programs_save(tmp_path: Path, document: dict[str, Any]) -> None:
    torch.save(document, tmp_path / "weights.pt")
    assert same(read_state(tmp_path / "weights.pt"))


def test_the_model_goes_before_its_average(tmp_path: Path) -> None:
    torch.save({"ema": {"a.weight": torch.zeros(1)}, "model": STATE}, tmp_path / "weights.pt")
    assert same(read_state(tmp_path / "weights.pt"))


def test_a_prefix_that_not_all_keys_have_stays(tmp_path: Path) -> None:
    state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    save_file(state, tmp_path / "weights.safetensors")
    assert read_state(tmp_path / "weights.safetensors").keys() == state.keys()


def test_what_blocks_is_named(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    for document, message in (
        ({"model": STATE, "args": argparse.Namespace(lr=1)}, r"Python objects \(argparse\.Namespace\)"),
        ({"model": STATE, "log": np.zeros(3)}, r"Python objects \(numpy\._core\.multiarray\._reconstruct\)"),
        ({"weights": STATE}, "no dictionary of tensors: under 'weights' is a dict"),
        (endless, "no dictionary of tensors: under 'model' is a dict"),
        ({3: torch.zeros(1)}, "no dictionary of tensors: under 3 is a Tensor"),
        ({"epoch": 3}, "no dictionary of tensors: it has none"),
        ([STATE], "no dictionary of tensors but a list"),
        ({"a": torch.zeros(1).expand(2**50)}, "a is .* but holds fewer numbers"),
        ({"a": torch.zeros(3, device="meta")}, "a is sparse, quantised, complex or without numbers"),
    ):
        torch.save(document, tmp_path / "weights.pt")
        with pytest.raises(WeightsError, match=rf"weights\.pt.*{message}"):
            read_state(tmp_path / "weights.pt")


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_numbers_that_are_none_are_refused_by_name(tmp_path: Path, bad: str, kind: torch.dtype) -> None:
    values = torch.ones(1000)
    values[500] = float(bad)
    state = {"good": torch.ones(3), "layer.weight": values.to(kind)}
    save_file(state, tmp_path / "weights.safetensors")
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    for name in ("weights.safetensors", "weights.pt"):
        with pytest.raises(WeightsError, match=rf"{name}: layer\.weight has numbers that are infinite or not a number"):
            read_state(tmp_path / name)


def test_large_numbers_and_masks_are_no_mistake(tmp_path: Path) -> None:
    state = {
        "half": torch.full((9,), 6e4).half(),
        "full": torch.full((9,), 3e38),
        "double": torch.full((9,), 1e300, dtype=torch.float64),
    }
    state["block.attn_mask"] = torch.full((2, 2), float("-inf"))
    save_file(state, tmp_path / "weights.safetensors")
    assert read_state(tmp_path / "weights.safetensors").keys() == state.keys()


def test_pickled_arrays_end_in_the_same_reader(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"state_dict": {name: tensor.numpy() for name, tensor in WRAPPED.items()}}))
    assert same(read_arrays(path))
    path.write_bytes(pickle.dumps({"model": {"a": np.array([1, np.nan])}}))
    with pytest.raises(WeightsError, match=r"weights\.pkl: a has numbers that are infinite or not a number"):
        read_arrays(path)
