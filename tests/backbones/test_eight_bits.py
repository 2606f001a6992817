"""Weights in eight bits: near what they were, exact where they can be, and read as float32 by everyone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lexiseg.backbones.eight_bits import LEAST, MOST, STEP, from_eight_bits, in_eight_bits
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import WeightsError


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(64, 64), (1, LEAST), (LEAST, 1), (16, 4, 8, 8), (5, 33, 27)]),
    exponents=st.tuples(st.integers(-20, 20), st.integers(-20, 20)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_what_is_read_is_within_half_a_step(
    seed: int, shape: tuple[int, ...], exponents: tuple[int, int], dtype: torch.dtype
) -> None:
    """Of each row by itself, however large the others are."""
    random = np.random.default_rng(seed)
    scale = 2.0 ** random.uniform(min(exponents), max(exponents), (shape[0], *[1] * (len(shape) - 1)))
    tensor = torch.from_numpy(random.standard_normal(shape) * scale).to(dtype)
    found = from_eight_bits(in_eight_bits({"a": tensor}), "here")["a"]
    assert found.dtype == torch.float32
    assert found.shape == tensor.shape
    most = tensor.float().flatten(1).abs().amax(1)
    error = (found - tensor.float()).flatten(1).abs().amax(1)
    assert (error <= most / 254 * (1 + 1e-4)).all()
    assert (found.flatten(1).abs().amax(1) - most).abs().div(most).max() < 1e-6, "the largest of each row stays"


def test_multiples_of_a_step_are_exact() -> None:
    """So a model that was read from eight bits is written as it was."""
    whole = torch.randint(-MOST, MOST + 1, (64, 96))
    whole[:, 3] = MOST
    tensor = whole * 2.0 ** torch.randint(-9, 3, (64, 1))
    assert torch.equal(from_eight_bits(in_eight_bits({"a": tensor}), "here")["a"], tensor)
    once = in_eight_bits({"a": torch.randn(64, 96)})
    again = in_eight_bits(from_eight_bits(once, "here"))
    assert torch.equal(again["a"], once["a"])


def test_rows_of_zeros_stay() -> None:
    tensor = torch.randn(80, 64)
    tensor[7] = 0
    kept = in_eight_bits({"a": tensor, "nothing": torch.zeros(64, 64)})
    found = from_eight_bits(kept, "here")
    assert (found["a"][7] == 0).all()
    assert (found["a"][8] != 0).any()
    assert (found["nothing"] == 0).all()


OTHERS: dict[str, Tensor] = {
    "small": torch.randn(63, 65),  # one number less than is worth while
    "vector": torch.randn(LEAST),
    "number": torch.tensor(3.0),
    "whole": torch.arange(LEAST).view(64, 64),
    "truths": torch.ones(64, 64, dtype=torch.bool),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_what_is_not_worth_while_is_handed_on(name: str) -> None:
    assert OTHERS["small"].numel() == LEAST - 1
    kept = in_eight_bits({name: OTHERS[name]})
    assert kept.keys() == {name}
    assert kept[name] is OTHERS[name]
    assert from_eight_bits(kept, "here")[name] is OTHERS[name]


def test_a_matrix_takes_a_quarter() -> None:
    kept = in_eight_bits({"a": torch.randn(128, 256)})
    assert kept["a"].dtype == torch.int8
    assert kept["a"].shape == (128, 256)
    assert kept["a" + STEP].shape == (128,)
    assert sum(value.nbytes for value in kept.values()) == 128 * 256 + 4 * 128


def test_a_file_is_read_as_float32(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(64, 64), "kernel": torch.randn(64, 16, 3, 3).half(), "bias": torch.randn(5)}
    save_file(in_eight_bits(tensors), tmp_path / "model.safetensors")
    found = read_state(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert {value.dtype for value in found.values()} == {torch.float32}
    for name, value in tensors.items():
        most = float(value.abs().max())
        torch.testing.assert_close(found[name], value.float(), atol=most / 253, rtol=0)


WRONG: dict[str, dict[str, Tensor]] = {
    "no matrix": {"a" + STEP: torch.ones(4)},
    "a matrix of another kind": {"a": torch.ones(4, 4), "a" + STEP: torch.ones(4)},
    "too few steps": {"a": torch.ones(4, 4, dtype=torch.int8), "a" + STEP: torch.ones(3)},
    "one step for all": {"a": torch.ones(4, 4, dtype=torch.int8), "a" + STEP: torch.tensor(1.0)},
    "steps of a vector": {"a": torch.ones(4, dtype=torch.int8), "a" + STEP: torch.ones(4)},
    "steps of steps": {"a" + STEP + STEP: torch.ones(4), "a" + STEP: torch.ones(4, 4, dtype=torch.int8)},
}


@pytest.mark.parametrize("wrong", list(WRONG))
def test_steps_that_fit_nothing_are_refused(tmp_path: Path, wrong: str) -> None:
    save_file(WRONG[wrong], tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"model\.safetensors: a{STEP}.* has no matrix of eight bits"):
        read_state(tmp_path / "model.safetensors")


def test_steps_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    kept = in_eight_bits({"a": torch.randn(64, 64)})
    kept["a" + STEP][5] = torch.nan
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=re.escape("a has numbers that are infinite or not a number")):
        read_state(tmp_path / "model.safetensors")
