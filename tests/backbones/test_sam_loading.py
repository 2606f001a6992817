"""Folders of SAM and of Mask2Former: their configs give sizes; no name in them is followed."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lexiseg.backbones.mask2former import load_mask2former
from lexiseg.backbones.sam import Sam2Backbone
from lexiseg.backbones.sam_loading import load_sam
from lexiseg.errors import WeightsError
from tests.backbones import test_mask2former, test_sam

MODELS: dict[str, tuple[Callable[[], Any], Callable[[Path], Any]]] = {
    **{name: (lambda name=name: test_sam.tiny(name), load_sam) for name in ("sam", "sam_hq", "sam2", "edgetam")},
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
    if trunk is not None and trunk.get("model_type") != "timm_wrapper":
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


def test_the_weights_of_a_folder_may_be_given_by_their_file(saved: tuple[Any, Callable[[Path], Any], Path]) -> None:
    """Under any name; its config must lie beside it."""
    model, load, config = saved
    state, file = model.model.state_dict(), config.with_name("mine.safetensors")
    config.with_name("model.safetensors").rename(file)
    assert all(torch.equal(value, state[name]) for name, value in load(file).model.state_dict().items())
    config.unlink()
    with pytest.raises(WeightsError, match=rf"{re.escape(str(config.parent))} has no config\.json; .*needs config\.json"):
        load(file)


@pytest.fixture
def edgetam(tmp_path: Path) -> tuple[Any, Path]:
    """A small EdgeTAM and its folder as transformers writes it."""
    model = test_sam.tiny("edgetam").model
    model.save_pretrained(tmp_path)
    return model, tmp_path


@torch.no_grad()
def test_edgetam_is_loaded_from_its_folder(edgetam: tuple[Any, Path]) -> None:
    """Its trunk is timm's, of the sizes in the config; masks are those of transformers' own forward."""
    model, folder = edgetam
    sam, images, points = load_sam(folder), torch.randn(1, 3, 64, 64), torch.tensor([[[20.0, 30.0]], [[50.0, 9.0]]])
    assert isinstance(sam, Sam2Backbone)
    assert not sam.training
    embedding, skips = sam.encode_with_skips(images)
    logits, quality = sam.decode(embedding, points=points, skips=skips)
    expected = model.eval()(pixel_values=images, input_points=points[None], multimask_output=True)
    torch.testing.assert_close(logits, expected.pred_masks[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(quality, expected.iou_scores[0], atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.05


@pytest.mark.parametrize(
    "name",
    ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/tmp/x", "/tmp/x", "../x", "", "no_such_net", None, 3, {}],
)
def test_edgetams_trunk_is_one_that_timm_knows(edgetam: tuple[Any, Path], name: object) -> None:
    document = json.loads((edgetam[1] / "config.json").read_text())
    document["vision_config"]["backbone_config"]["architecture"] = name
    (edgetam[1] / "config.json").write_text(json.dumps(document))
    with pytest.raises(
        WeightsError, match=r"config\.json: vision_config\.backbone_config\.architecture must be a model of timm"
    ):
        load_sam(edgetam[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pretrained_cfg": {"hf_hub_id": "someone/model"}}, "model_args.pretrained_cfg is not allowed"),
        ({"pretrained": True}, "model_args.pretrained is not allowed"),
        ({"checkpoint_path": "x.pt"}, "model_args.checkpoint_path is not allowed"),
        ({"block": "someone.Block"}, "model_args.block is not allowed"),
        ({"layers": "many"}, "model_args.layers must not be 'many'"),
        ({"layers": [2] * 9}, "model_args.layers must not be"),
        ({"out_indices": [1, 2, 2, 4]}, "model_args.out_indices must not be"),
        ({"channels": [-8, 16, 24, 32]}, "model_args.channels must not be"),
        ({"stem_width": 2**30}, "model_args.stem_width must not be"),
        ({"stem_type": "hf-hub:x"}, "model_args.stem_type must not be"),
        ({"features_only": 1}, "model_args.features_only must not be 1"),
        (["resnet"], "model_args must be an object"),
    ],
)
def test_what_edgetams_config_has_for_timm_are_sizes(edgetam: tuple[Any, Path], arguments: Any, said: str) -> None:
    document = json.loads((edgetam[1] / "config.json").read_text())
    trunk = document["vision_config"]["backbone_config"]
    trunk["model_args"] = trunk["model_args"] | arguments if isinstance(arguments, dict) else arguments
    (edgetam[1] / "config.json").write_text(json.dumps(document))
    with pytest.raises(WeightsError, match=rf"config\.json: .*{re.escape(said)}"):
        load_sam(edgetam[1])


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


@pytest.mark.parametrize(
    ("name", "part", "key", "value"),
    [
        ("sam", "prompt_encoder_config", "image_size", 128),
        ("sam", "prompt_encoder_config", "patch_size", 8),
        ("sam", "mask_decoder_config", "hidden_size", 64),
        ("sam_hq", "mask_decoder_config", "vit_dim", 64),
        ("sam2", "prompt_encoder_config", "hidden_size", 16),
        ("sam2", "vision_config", "fpn_stride", 2),
        ("edgetam", "vision_config", "fpn_kernel_size", 3),
    ],
)
def test_sizes_of_parts_that_must_agree(tmp_path: Path, name: str, part: str, key: str, value: int) -> None:
    """Each part has its own in the config; a model of parts that do not fit was built, and failed at the first picture."""
    document = test_sam.CONFIGS[name]().to_dict()
    document[part][key] = value
    (tmp_path / "config.json").write_text(json.dumps(document))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"config\.json, {part}: {key} must be \d+, not {value}"):
        load_sam(tmp_path)


def test_a_config_of_more_than_the_weights_takes_no_memory(saved: tuple[Any, Callable[[Path], Any], Path]) -> None:
    """Sizes within bounds that need hundreds of gigabytes together are compared with the weights first."""
    _, load, config = saved
    document = json.loads(config.read_text())
    for part in parts(document):
        large = {"mlp_dim": 32_000, "dim_feedforward": 32_000, "encoder_feedforward_dim": 32_000, "iou_head_hidden_dim": 32_000}
        part |= {key: value for key, value in large.items() if key in part}
        part |= dict.fromkeys(part.keys() & {"num_hidden_layers", "encoder_layers", "decoder_layers"}, 100)
    config.write_text(json.dumps(document))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match="does not fit the model"):
        load(config.parent)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("window_size_per_stage", [4, 4, 1, 4]),  # the next stage pools two cells by two
        ("window_size_per_stage", [4, 4, 0, 4]),
        ("num_attention_heads_per_stage", [1, 1, 5, 2]),
    ],
)
def test_windows_and_heads_that_do_not_fit_the_trunk_of_sam2_are_refused(key: str, values: list[int], tmp_path: Path) -> None:
    document = test_sam.CONFIGS["sam2"]().to_dict()
    document["vision_config"]["backbone_config"][key] = values
    (tmp_path / "config.json").write_text(json.dumps(document))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"backbone_config: .*(windows|num_attention_heads_per_stage)"):
        load_sam(tmp_path)
