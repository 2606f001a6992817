"""Folders of SAM and of Mask2Former: their configs give sizes; no name in them is followed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lexiseg.backbones.mask2former import load_mask2former
from lexiseg.backbones.sam_loading import load_sam
from lexiseg.errors import WeightsError
from tests.backbones import test_mask2former, test_sam

MODELS: dict[str, tuple[Callable[[], Any], Callable[[Path], Any]]] = {
    **{name: (lambda name=name: test_sam.tiny(name), load_sam) for name in ("sam", "sam_hq", "sam2")},
    **{name: (lambda name=name: test_mask2former.tiny(name), load_mask2former) for name in test_mask2former.BACKBONES},
}
HUB = {  # keys of which transformers makes requests for code or weights of others
    "attn_implementation": "someone/kernel",
    "_attn_implementation": "someone/kernel",
    "auto_map": {"AutoModel": "someone/code--code.Model", "AutoConfig": "code.Config"},
    "configuration_files": ["config.9.9.json"],
    "quantization_config": {"quant_method": "someone"},
    "backbone": "someone/backbone",
    "use_timm_backbone": True,
}


def parts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """A config and all configs in it."""
    return [document, *(inner for value in document.values() if isinstance(value, dict) for inner in parts(value))]


@pytest.fixture(params=list(MODELS))
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Callable[[Path], Any], Path]:
    """A model, how it is loaded, and its folder as transformers writes it."""
    build, load = MODELS[request.param]
    model = build()
    model.model.config.save_pretrained(tmp_path)
    save_file(
        {name: value.contiguous().clone() for name, value in model.model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    return model, load, tmp_path / "config.json"


def test_what_a_config_names_is_not_followed(saved: tuple[Any, Callable[[Path], Any], Path]) -> None:
    model, load, config = saved
    document = json.loads(config.read_text())
    for part in parts(document):
        if "model_type" in part:
            part.update(HUB)
    trunk = document.get("vision_config", {}).get("backbone_config")
    if trunk is not None:
        trunk.update({"model_type": "timm_wrapper", "architecture": "hf-hub:someone/model"})
    config.write_text(json.dumps(document))
    loaded = load(config.parent).model
    state = model.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert "someone" not in json.dumps(loaded.config.to_dict())
    assert not any(
        "someone" in str(getattr(module.config, "_attn_implementation", ""))
        for module in loaded.modules()
        if hasattr(module, "config")
    )


def test_configs_of_other_kinds_are_refused_by_file(saved: tuple[Any, Callable[[Path], Any], Path]) -> None:
    _, load, config = saved
    document = json.loads(config.read_text())
    part = "vision_config" if "vision_config" in document else "backbone_config"
    for broken in (
        "[",
        "[]",
        json.dumps(document | {part: 3}),
        json.dumps(document | {part: document[part] | {"hidden_act": {}}}),
    ):
        config.write_text(broken)
        with pytest.raises(WeightsError, match=r"config\.json"):
            load(config.parent)
    for value in ("many", -1, 0):
        changed = json.loads(json.dumps(document))
        for inner in parts(changed):
            inner |= dict.fromkeys(inner.keys() & {"num_channels", "hidden_size", "embed_dim", "hidden_sizes"}, value)
        config.write_text(json.dumps(changed))
        with pytest.raises(WeightsError):
            load(config.parent)


def test_numbers_that_are_none_are_refused(saved: tuple[Any, Callable[[Path], Any], Path]) -> None:
    _, load, config = saved
    state = load_file(config.parent / "model.safetensors")
    name = next(name for name, value in state.items() if value.dim() > 1)
    state[name].view(-1)[0] = float("nan")
    save_file(state, config.parent / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"model\.safetensors: {name} has numbers that are infinite or not a number"):
        load(config.parent)


@pytest.mark.parametrize("size", [None, "1024", 0, -16, 100, 2**20, True])
def test_mobile_sam_s_size_is_a_multiple_of_its_stride(tmp_path: Path, size: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mobile_sam", "image_size": size}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"config\.json: image_size must be a multiple of 16"):
        load_sam(tmp_path)
