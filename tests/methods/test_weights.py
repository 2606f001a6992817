"""Our form of weights: what is saved comes back, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lexiseg.backbones.digests import digest_of
from lexiseg.errors import OutputError, UsageError, WeightsError
from lexiseg.methods import MODELS
from lexiseg.methods.base import Segmenter
from lexiseg.methods.weights import (
    CARD_KEY,
    LEAN,
    fill_from,
    halved,
    read_card,
    read_weights,
    save_segmenter,
    write_safetensors,
    write_weights,
)
from tests.laws.builders import BUILDERS, tiny_catseg, tiny_cmpf, tiny_fcclip, tiny_sam_clip


def other(segmenter: Segmenter) -> dict[str, Tensor]:
    """Change every number of a segmenter; what it then has."""
    with torch.no_grad():
        for value in segmenter.state_dict().values():
            value.add_(1)
    return {name: value.clone() for name, value in segmenter.state_dict().items()}


@pytest.mark.parametrize("all_parts", [False, True])
@pytest.mark.parametrize("method", ["fcclip (resnet)", "cmpf (convnext)"])
def test_what_was_saved_comes_back_and_the_rest_stays(method: str, all_parts: bool, tmp_path: Path) -> None:
    one, two = BUILDERS[method](), BUILDERS[method]()
    before = other(two)
    written = save_segmenter(one, tmp_path / "a/b", {"model": "x"}, all_parts=all_parts)
    assert {path.name for path in (tmp_path / "a/b").iterdir()} == {"model.safetensors", "card.json"}
    card = fill_from(two, tmp_path / "a/b", model="x")
    for name, value in two.state_dict().items():
        saved = all_parts or name.split(".")[0] in one.trained_parts()
        assert torch.equal(value, one.state_dict()[name] if saved else before[name]), name
    assert json.loads((tmp_path / "a/b/card.json").read_text()) == written
    assert written.pop("sha256") == {"model.safetensors": digest_of(tmp_path / "a/b/model.safetensors")}
    assert card == written
    assert ("clip" in card["parts"]) == all_parts
    assert card["tensors"] == len(load_file(tmp_path / "a/b/model.safetensors"))


def test_a_lean_file_goes_on_the_encoder_it_came_from(tmp_path: Path) -> None:
    """Of a CLIP that was tuned in part only that part is in the file; a file that is not lean must have everything."""
    one, two = tiny_catseg(), tiny_catseg()
    before = other(two)
    untouched = one.untouched_parameters()
    assert "clip.clip_model.visual.conv1.weight" in untouched
    assert not any(name.endswith("in_proj_weight") or not name.startswith("clip.") for name in untouched)
    kept = {name: value for name, value in one.state_dict().items() if name not in untouched}
    write_weights(kept, tmp_path / "lean", {"model": "x", LEAN: True})
    fill_from(two, tmp_path / "lean")
    for name, value in two.state_dict().items():
        assert torch.equal(value, before[name] if name in untouched else kept[name]), name
    write_weights(kept, tmp_path / "short", {"model": "x"})
    with pytest.raises(WeightsError, match="clip"):
        fill_from(two, tmp_path / "short")
    assert not tiny_fcclip("convnext").untouched_parameters()


def test_the_file_alone_is_enough(tmp_path: Path) -> None:
    one, two = tiny_fcclip("convnext"), tiny_fcclip("convnext")
    save_segmenter(one, tmp_path, {"model": "x", "step": 7})
    (tmp_path / "card.json").unlink()
    other(two)
    assert fill_from(two, tmp_path / "model.safetensors")["step"] == 7
    assert torch.equal(two.mask_decoder.void.weight, one.mask_decoder.void.weight)


def test_half_keeps_vectors_and_what_is_too_large() -> None:
    tensors = {
        "matrix": torch.tensor([[1.0001, -2.0]]),
        "vector": torch.tensor([1.0001]),
        "large": torch.tensor([[1e5]]),
        "whole": torch.tensor([[3]]),
        "unbounded": torch.tensor([[float("-inf")]]),
    }
    dtypes = {name: value.dtype for name, value in halved(tensors).items()}
    assert dtypes == {
        "matrix": torch.float16,
        "vector": torch.float32,
        "large": torch.float32,
        "whole": torch.int64,
        "unbounded": torch.float16,
    }


def test_half_the_size_and_nearly_the_numbers(tmp_path: Path) -> None:
    one, two = tiny_cmpf("resnet"), tiny_cmpf("resnet")
    other(two)
    save_segmenter(one, tmp_path / "full", {"model": "x"}, all_parts=True)
    card = save_segmenter(one, tmp_path / "half", {"model": "x"}, all_parts=True, half=True)
    assert card["dtypes"] == ["float16", "float32", "int64"]
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    fill_from(two, tmp_path / "half")
    for name, value in two.state_dict().items():
        torch.testing.assert_close(value, one.state_dict()[name], rtol=1e-3, atol=1e-6)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    segmenter = tiny_fcclip("convnext")
    save_segmenter(segmenter, tmp_path, {"model": "x"})
    with pytest.raises(WeightsError, match="holds weights of x, not of y"):
        fill_from(segmenter, tmp_path, model="y")
    with pytest.raises(WeightsError, match=r"another model's: feature_injector\.\S+ is missing.*more\)"):
        fill_from(tiny_cmpf("convnext"), tmp_path)
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    tensors = read_weights(tmp_path).tensors
    void = "mask_decoder.void.weight"
    for wrong, message in (
        ({name: value for name, value in tensors.items() if name != void}, f"{void} is missing"),
        ({**tensors, "mask_decoder.more": torch.zeros(1)}, "mask_decoder.more is unknown"),
        ({**tensors, "clip.more": torch.zeros(1)}, r"clip\.\S+ is missing"),
        ({**tensors, void: torch.zeros(1)}, rf"{void} is \(1,\), not \(1, 24\)"),
    ):
        write_weights(wrong, tmp_path / "wrong", {"model": "x"})
        with pytest.raises(WeightsError, match=message):
            fill_from(segmenter, tmp_path / "wrong")
    assert all(torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())


def test_what_is_no_such_form_is_refused(tmp_path: Path) -> None:
    segmenter = tiny_fcclip("convnext")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("foreign.safetensors", "has no card"),
        ("broken.safetensors", "cannot read weights"),
        ("empty", r"has no model\.safetensors"),
        ("gone", "do not exist"),
    ):
        with pytest.raises(WeightsError, match=message):
            fill_from(segmenter, tmp_path / name)
    assert read_card(tmp_path / "foreign.safetensors") is None


@pytest.mark.parametrize("card", ["{", "[" * 100_000, "[]", "3"])
def test_a_card_that_is_none_is_refused_by_file(tmp_path: Path, card: str) -> None:
    write_safetensors({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {CARD_KEY: card})
    for read in (read_card, read_weights):
        with pytest.raises(WeightsError, match=r"the card in .*model\.safetensors"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"the card in .*model\.safetensors has no config"),
        (["shortest_edge"], r"the card in .*model\.safetensors is damaged: config"),
        (
            {"shortest_edge": "wide"},
            r"the config in the card of .*model\.safetensors does not match fcclip-tiny: shortest_edge must",
        ),
        ({"shortest_edges": 64}, r"match fcclip-tiny: there is no option 'shortest_edges'; did you mean shortest_edge"),
    ],
)
def test_a_card_whose_config_is_none_is_refused_by_file(tmp_path: Path, config: object, message: str) -> None:
    card = {"model": "fcclip-tiny", **({} if config is None else {"config": config})}
    write_safetensors({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {CARD_KEY: json.dumps(card)})
    with pytest.raises(WeightsError, match=message):
        MODELS["fcclip-tiny"].load({"fcclip": str(tmp_path)})


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """A training that diverged saves them, and a model with them finds nothing."""
    segmenter = tiny_fcclip("convnext")
    with torch.no_grad():
        segmenter.mask_decoder.void.weight.fill_(float("nan"))
    save_segmenter(segmenter, tmp_path, {"model": "x"})
    with pytest.raises(WeightsError, match=r"model\.safetensors: mask_decoder\.void\.weight has numbers that are infinite"):
        fill_from(segmenter, tmp_path)


def test_nothing_trained_is_nothing_to_save_but_for_all_parts(tmp_path: Path) -> None:
    one, two = tiny_sam_clip("vit"), tiny_sam_clip("vit")
    with pytest.raises(UsageError, match="this model has no trained parts"):
        save_segmenter(one, tmp_path, {})
    save_segmenter(one, tmp_path, {}, all_parts=True)
    other(two)
    fill_from(two, tmp_path)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_views_and_shared_memory_are_written_out(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "again": whole, "turned": whole.T, "row": whole[1]}
    write_safetensors(tensors, tmp_path / "x.safetensors")
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(tmp_path / "x.safetensors").items())


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_safetensors({"a": torch.zeros(1)}, tmp_path / "file/x.safetensors")
    write_safetensors({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "file").unlink()
    before = (tmp_path / "x.safetensors").read_bytes()
    with pytest.raises(TypeError):
        write_safetensors({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"a": 1})  # type: ignore[dict-item]
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert (tmp_path / "x.safetensors").read_bytes() == before
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1, "others may read it as any other file"
