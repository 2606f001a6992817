"""Mask2Former: names of published checkpoints, reading them safely, and the laws of its masks, on tiny random models."""

from __future__ import annotations

import json
import lzma
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.resnet import Bottleneck, ResNet

from lexiseg.backbones.array_pickles import read_arrays
from lexiseg.backbones.mask2former import (
    MEAN,
    STD,
    Mask2Former,
    build_mask2former,
    from_official_state,
    load_mask2former,
    mask2former,
)
from lexiseg.backbones.mask2former_weights import (
    dropped,
    from_official,
    mask2former_config,
    names_from_official,
    official_config,
    to_official,
)
from lexiseg.backbones.sam_weights import check_keys
from lexiseg.errors import UsageError, WeightsError

PUBLISHED = json.loads(lzma.decompress(Path(__file__).with_name("mask2former_keys.json.xz").read_bytes()))

HEAD: dict[str, Any] = {
    "queries": 6, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 4,
    "encoder_layers": 1, "encoder_feedforward_dim": 48, "decoder_layers": 4, "dim_feedforward": 40,
}  # fmt: skip
BACKBONES: dict[str, dict[str, Any]] = {
    "swin": {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 3},
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1]},
}


def tiny(backbone: str = "swin", classes: int = 5) -> Mask2Former:
    """A tiny model whose every weight is random, so that no path is silent."""
    torch.manual_seed(1)
    model = build_mask2former(mask2former_config(BACKBONES[backbone], classes=classes, **HEAD))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model


def official(model: Mask2Former) -> dict[str, Tensor]:
    """Its weights as published, with the keys that carry nothing."""
    state = {**to_official(model.model.state_dict()), "criterion.empty_weight": torch.ones(model.classes + 1)}
    tables = [key for key in state if key.endswith("relative_position_bias_table")]
    return state | {key.replace("_bias_table", "_index"): torch.zeros(9, 9, dtype=torch.int64) for key in tables}


def same(one: Mask2Former, other: Mask2Former) -> bool:
    """Whether two models have the same names and weights, and answer the same."""
    ours, theirs, image = one.model.state_dict(), other.model.state_dict(), torch.rand(1, 3, 64, 64)
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(ours[key], theirs[key]) for key in ours)
        and torch.equal(one(image).masks, other(image).masks)
    )


@pytest.fixture(params=list(BACKBONES))
def model(request: pytest.FixtureRequest) -> Mask2Former:
    return tiny(request.param)


@pytest.mark.parametrize("architecture", list(PUBLISHED))
def test_every_published_key_is_one_parameter(architecture: Any) -> None:
    with torch.device("meta"):
        built = mask2former(architecture)
        state = {key: torch.empty(shape) for key, shape in PUBLISHED[architecture].items()}
    assert (built.queries, built.classes, built.stride, built.multiple) == (100, 133, 4, 32)
    names = names_from_official(state)
    assert {key for key in state if key not in names} == {key for key in state if dropped(key)}
    assert len(set(names.values())) == len(names)
    ours = from_official(state)
    check_keys(ours, built.model.state_dict(), architecture)
    back = to_official(ours)
    assert {key: list(tensor.shape) for key, tensor in back.items()} == {key: PUBLISHED[architecture][key] for key in names}
    read, expected = official_config(state, architecture).to_dict(), built.model.config.to_dict()
    assert read.pop("backbone_config").items() >= expected.pop("backbone_config").items()
    assert read == expected


@torch.no_grad()
def test_masks_cover_the_padded_image(model: Mask2Former) -> None:
    found = model(torch.rand(1, 3, 40, 70))
    assert found.padded_size == (64, 96)
    assert found.masks.shape == (1, 6, 16, 24)
    assert found.classes is not None
    assert found.classes.shape == (1, 6, 6)
    assert float(found.masks.std()) > 0.01


def test_images_are_normalised_and_then_padded_with_zeros() -> None:
    model, image = tiny(), torch.rand(1, 3, 33, 64)
    inputs = model.preprocess(image)
    assert inputs.shape == (1, 3, 64, 64)
    assert torch.equal(inputs[:, :, 33:], torch.zeros(1, 3, 31, 64))
    mean, std = (torch.tensor(rgb)[:, None, None] for rgb in (MEAN, STD))
    torch.testing.assert_close(inputs[0, :, :33] * std + mean, image[0] * 255)
    assert torch.equal(model.preprocess(torch.zeros(1, 3, 32, 64))[0, :, 0, 0], -mean[:, 0, 0] / std[:, 0, 0])


@torch.no_grad()
def test_a_batch_of_two_is_two_of_one(model: Mask2Former) -> None:
    images = torch.rand(2, 3, 60, 40)
    together = model(images)
    for number in range(2):
        alone = model(images[number : number + 1])
        torch.testing.assert_close(together.masks[number], alone.masks[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.classes[number], alone.classes[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_by_hand_changes_nothing(model: Mask2Former) -> None:
    image = torch.rand(1, 3, 40, 64)
    grey = torch.tensor(MEAN)[None, :, None, None].expand(1, 3, 24, 64) / 255
    by_hand = model(torch.cat([image, grey], dim=2))
    assert by_hand.padded_size == model(image).padded_size == (64, 64)
    torch.testing.assert_close(by_hand.masks, model(image).masks, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_class_head() -> None:
    model, image = tiny(), torch.rand(1, 3, 64, 64)
    silent = from_official_state({key: value for key, value in official(model).items() if "class_embed" not in key}, "x.pth")
    assert silent.classes == 0
    assert silent(image).classes is None
    assert torch.equal(silent(image).masks, model(image).masks)
    with torch.device("meta"):
        assert mask2former("r50", classes=0).classes == 0


@torch.no_grad()
def test_it_stays_in_evaluation_mode() -> None:
    model = tiny("resnet")
    before = {key: tensor.clone() for key, tensor in model.model.state_dict().items()}
    torch.nn.Sequential(model).train()(torch.rand(1, 3, 64, 64))
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.model.state_dict().items())


@torch.no_grad()
def test_the_resnet_is_torchvisions() -> None:
    """detectron2's ResNet strides in its 3 × 3 convolutions, as torchvision's does."""
    theirs = ResNet(Bottleneck, [1, 2, 1, 1]).eval()
    for name, tensor in theirs.state_dict().items():
        tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else tensor + 0.1) if tensor.dim() == 1 else None
    state = {
        f"backbone.{detectron(name)}": tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")
    }
    sizes = {"embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [1, 2, 1, 1]}
    ours = build_mask2former(mask2former_config(sizes, classes=5, **HEAD))
    encoder = ours.model.model.pixel_level_module.encoder
    prefix = "model.pixel_level_module.encoder."
    encoder.load_state_dict({key.removeprefix(prefix): tensor for key, tensor in from_official(state).items()})
    image = torch.randn(1, 3, 64, 96)
    maps = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
    for number, found in enumerate(encoder(image).feature_maps, start=1):
        maps = getattr(theirs, f"layer{number}")(maps)
        torch.testing.assert_close(found, maps, rtol=1e-4, atol=1e-5)


def detectron(name: str) -> str:
    """detectron2's name of a parameter of torchvision's ResNet."""
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    for number in (1, 2, 3, 4):
        name = name.replace(f"bn{number}", f"conv{number}.norm").replace(f"layer{number}.", f"res{number + 1}.")
    return name if name.startswith("res") else f"stem.{name}"


def test_names_there_and_back(model: Mask2Former) -> None:
    state = official(model)
    assert same(from_official_state(state, "x.pth"), model)
    older = {key.replace("query_feat", "static_query"): value for key, value in state.items()}
    assert older.keys() != state.keys()
    assert same(from_official_state(older, "x.pkl"), model)
    with pytest.raises(WeightsError, match=r"1 keys are none of official Mask2Former's: backbone\.rope"):
        from_official({**state, "backbone.rope": torch.zeros(1)})
    with pytest.raises(WeightsError, match="strange"):
        to_official({"strange": torch.zeros(1)})


def test_packed_projections_are_split_in_order() -> None:
    key = "sem_seg_head.predictor.transformer_self_attention_layers.3.self_attn.in_proj_bias"
    ours = from_official({key: torch.arange(6)})
    prefix = "model.transformer_module.decoder.layers.3.self_attn"
    assert {name: tensor.tolist() for name, tensor in ours.items()} == {
        f"{prefix}.q_proj.bias": [0, 1], f"{prefix}.k_proj.bias": [2, 3], f"{prefix}.v_proj.bias": [4, 5],
    }  # fmt: skip
    assert torch.equal(to_official(ours)[key], torch.arange(6))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "single": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "big": np.arange(3, dtype=">i4"),
        "half": np.float16([0.5]),
        "counter": np.array(7),
        "number": np.float64(0.25),
    }
    document = {"model": OrderedDict(arrays), "__author__": "somebody", "rest": [1, (2.0, None)]}
    data = pickle.dumps(document, protocol)
    for name, content in (("now.pkl", data), ("before.pkl", data.replace(b"cnumpy._core.", b"cnumpy.core."))):
        (tmp_path / name).write_bytes(content)
        found = read_arrays(tmp_path / name)
        assert list(found) == list(arrays)
        for key, array in arrays.items():
            native = np.array(array, array.dtype.newbyteorder("="))
            torch.testing.assert_close(found[key], torch.from_numpy(native), rtol=0, atol=0)


def test_a_published_pickle(tmp_path: Path, model: Mask2Former) -> None:
    arrays = {key.replace("query_feat", "static_query"): tensor.numpy() for key, tensor in official(model).items()}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "MaskFormer"}))
    assert same(load_mask2former(tmp_path / "model_final.pkl"), model)


class _Caller:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    trap, path = tmp_path / "sprung", tmp_path / "model.pkl"
    for content in (
        {"model": {"a": _Caller(Path.touch, trap)}},
        {"model": {"a": _Caller(eval, f"open({str(trap)!r}, 'w')")}},
        {"model": {"a": torch.zeros(1)}},
        {"model": {"a": np.array([_Caller(Path.touch, trap)], dtype=object)}},
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(WeightsError, match=r"model\.pkl: it holds Python objects \(.+\), and no code"):
            load_mask2former(path)
    assert not trap.exists()


def test_damaged_pickles(tmp_path: Path) -> None:
    path, good = tmp_path / "model.pkl", pickle.dumps({"model": {"a": np.zeros(4, np.float32)}})
    objects, text = (pickle.dumps({"a": np.array([value])}) for value in (None, "text"))
    for data in (b"", b"nothing of the kind", good[:-9], good.replace(b"f4", b"f8"), objects, text):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"cannot read weights from .*model\.pkl: damaged or no pickle of arrays"):
            load_mask2former(path)
    for document in ([1], {"model": {}}, {"model": {"a": 1}}, "text"):
        path.write_bytes(pickle.dumps(document))
        with pytest.raises(WeightsError, match="no dictionary of arrays"):
            load_mask2former(path)
    with pytest.raises(WeightsError, match=r"gone\.pkl do not exist"):
        read_arrays(tmp_path / "gone.pkl")


def test_a_file_of_another_model(tmp_path: Path, model: Mask2Former) -> None:
    state = official(model)
    save_file({"image_encoder.pos_embed": torch.zeros(1)}, tmp_path / "sam.safetensors")
    with pytest.raises(WeightsError, match="1 keys are none of official Mask2Former's"):
        load_mask2former(tmp_path / "sam.safetensors")
    for key in ("sem_seg_head.predictor.query_feat.weight", "sem_seg_head.pixel_decoder.mask_features.weight"):
        torch.save({"model": {name: value for name, value in state.items() if name != key}}, tmp_path / "less.pth")
        with pytest.raises(WeightsError, match=rf"less\.pth is no checkpoint of Mask2Former: it has no {key}"):
            load_mask2former(tmp_path / "less.pth")
    lacking = {key: value for key, value in state.items() if not key.endswith("decoder_norm.bias")}
    with pytest.raises(WeightsError, match=r"x\.pth does not fit.*1 missing: .*layernorm\.bias"):
        from_official_state(lacking, "x.pth")


def earlier(name: str) -> str:
    """How transformers 4 called a parameter."""
    name = name.replace("encoder.swin.", "encoder.")
    for now, then in (
        ("attention.q_proj", "attention.self.query"), ("attention.k_proj", "attention.self.key"),
        ("attention.v_proj", "attention.self.value"), ("attention.o_proj", "attention.output.dense"),
        ("attention.relative_position_bias.", "attention.self."), ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):  # fmt: skip
        name = name.replace(now, then)
    return name


@pytest.mark.parametrize("names", ["now", "earlier"])
def test_a_folder_of_transformers(tmp_path: Path, model: Mask2Former, names: str) -> None:
    model.model.config.save_pretrained(tmp_path)
    state = {name if names == "now" else earlier(name): tensor for name, tensor in model.model.state_dict().items()}
    save_file({**state, "criterion.empty_weight": torch.ones(6)}, tmp_path / "model.safetensors")
    assert same(load_mask2former(tmp_path), model)


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no Mask2Former weights at nowhere/model\.pkl"):
        load_mask2former("nowhere/model.pkl")
    with pytest.raises(WeightsError, match=r"cannot fetch config\.json of facebook/mask2former-swin.*put config"):
        load_mask2former("facebook/mask2former-swin-tiny-coco-panoptic")
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load_mask2former(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(WeightsError, match="'bert' model"):
        load_mask2former(tmp_path)
    options = {"model_type": "mask2former", "backbone_config": {"model_type": "convnext"}}
    (tmp_path / "config.json").write_text(json.dumps(options), encoding="utf-8")
    with pytest.raises(WeightsError, match="a 'convnext'; only resnet and swin"):
        load_mask2former(tmp_path)


def test_unknown_architecture() -> None:
    with pytest.raises(UsageError, match="unknown Mask2Former 'x'; there are r50, swin-t, swin-b"):
        mask2former("x")  # type: ignore[arg-type]
