"""Packed recordings: what torch draws is drawn again without it, bits come back, and the folder stays small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.packed import drawn, normals, pack, stream, unpack

MOST = 5_700_000  # bytes of all recordings
DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("count", [16, 100, 4096])
def test_the_stream_is_that_of_torch(count: int) -> None:
    generator = torch.Generator().manual_seed(7)
    uniform = torch.empty(50).uniform_(-0.25, 0.25, generator=generator)
    normal = torch.randn(count, generator=generator)
    length = 50 + count + 16
    torch.testing.assert_close(
        torch.from_numpy(drawn({"uniform": [7, 0, 0.25], "length": length}, 50)), uniform, rtol=0, atol=1e-7
    )
    torch.testing.assert_close(torch.from_numpy(normals(stream(7, length)[50:], count)), normal, rtol=0, atol=1e-6)


def test_bits_come_back() -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.empty(4, 25).uniform_(-0.5, 0.5, generator=generator)
    noise = torch.randn(4, 25, generator=generator) * 0.1
    recipe = {"uniform": [3, 0, 0.5], "normal": [3, 100, 0.1], "length": 216}
    tensors = {
        "single": start + noise,
        "half": (start + noise).half(),
        "other": torch.rand(4, 25, generator=generator),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "whole": torch.arange(-3, 3),
        "mask": torch.tensor([[True, False]]),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(1, 0, 3),
    }
    data = pack(tensors, {"single": recipe, "half": recipe, "odd": {"constant": 1, "length": 0}})
    back = unpack(data)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape), name
        assert back[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    assert len(pack({"single": tensors["single"]}, {"single": recipe})) < 0.8 * len(pack({"other": tensors["other"]}, {}))


def test_recipes_describe_the_recorded_numbers() -> None:
    """Were a stream drawn differently here, its differences would be no correction of last bits, and weights would be wrong."""
    tensors = unpack((DATA / "catseg_clip_dense.packed").read_bytes())
    standard = normals(stream(123, 24_576), 24_576)
    np.testing.assert_allclose(tensors["native.image"].numpy().reshape(-1), standard, rtol=0, atol=1e-6)
    weight = tensors["sd.visual.conv1.weight"].double()
    assert float(weight.std()) == pytest.approx(768**-0.5, rel=0.01)


def test_the_folder_stays_small() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < MOST
