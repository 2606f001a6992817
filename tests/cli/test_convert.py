"""``lexiseg convert``: official checkpoints into our form and back, on a model small enough to be written in a blink."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SamConfig, SamHQConfig

import lexiseg
from lexiseg import methods
from lexiseg.backbones import mask2former_weights, sam2_weights, sam_weights
from lexiseg.backbones.clip import CONFIG_FILE, WEIGHTS_FILE, ClipResNet, build_clip, load_clip
from lexiseg.backbones.configs import ASSETS
from lexiseg.backbones.digests import digest_of
from lexiseg.backbones.mask2former import load_mask2former
from lexiseg.backbones.sam_loading import DECODER_NORM_EPS, build_sam, load_sam, mobile_sam, sam_config, sam_hq_config
from lexiseg.checkpoints.convert import converter_of
from lexiseg.cli import main
from lexiseg.methods.cmpf.config import CmpfConfig
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.fcclip.config import FcClipConfig
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.fcclip.weights import Checkpoint, to_official
from lexiseg.methods.variant import Part
from lexiseg.methods.weights import SavedWeights, save_segmenter
from tests.backbones.test_mask2former import tiny as tiny_mask2former
from tests.backbones.test_sam import tiny as tiny_backbone

NAME = "fcclip-mini"
SIZES: dict[str, Any] = {
    "num_queries": 9, "hidden_dim": 64, "num_layers": 3, "pixel_decoder_layers": 2, "pixel_decoder_ffn_dim": 48, "ffn_dim": 48
}  # fmt: skip


CLIP: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 2048, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with attention pool in a folder as open_clip saves it."""
    folder = tmp_path_factory.mktemp("small") / "clip-small-resnet"
    folder.mkdir()
    shutil.copy(ASSETS / "clip-tiny-bpe.txt.gz", folder / "bpe.txt.gz")
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": CLIP, "lexiseg": {"bpe": "bpe.txt.gz"}}), encoding="utf-8")
    torch.manual_seed(4)
    save_file(build_clip(folder).clip_model.state_dict(), folder / WEIGHTS_FILE)
    return folder


@pytest.fixture(autouse=True)
def _miniature(monkeypatch: pytest.MonkeyPatch, small_clip: Path) -> None:
    """FC-CLIP with few layers on a small CLIP, as if it had been published."""
    like = methods.MODELS["fcclip-convnext-l"]
    clip = Part("clip", partial(build_clip, small_clip), partial(load_clip, small_clip))
    monkeypatch.setitem(methods.MODELS, NAME, replace(like, name=NAME, config=FcClipConfig(**SIZES), parts=(clip,)))


def official_state(segmenter: FcClip) -> dict[str, Tensor]:
    state = segmenter.state_dict()
    head = {name: value for name, value in state.items() if not name.startswith("clip.")}
    return to_official(Checkpoint(head, dict(segmenter.clip.clip_model.state_dict()), {}))


@pytest.fixture
def segmenter() -> FcClip:
    torch.manual_seed(5)
    skeleton = methods.MODELS[NAME].empty()
    assert isinstance(skeleton, FcClip)
    return skeleton


@pytest.fixture
def checkpoint(segmenter: FcClip, tmp_path: Path) -> Path:
    """As the official training program writes it."""
    path = tmp_path / "fcclip_cocopan.pth"
    state = {**official_state(segmenter), "criterion.empty_weight": torch.ones(3)}
    torch.save({"model": state, "iteration": 7}, path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back_is_the_same(capsys, checkpoint, segmenter, tmp_path, suffix):
    code, out, _ = run(capsys, checkpoint, "--model", NAME, "--output", tmp_path / "ours", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["dropped"].keys() == {"criterion.empty_weight"}
    assert document["mapped"] == len(official_state(segmenter))
    assert [Path(file).name for file in document["files"]] == ["model.safetensors", "card.json"]
    card = json.loads((tmp_path / "ours/card.json").read_text())
    assert card == document["card"]
    assert (card["model"], card["config"]["behaviour"], card["licence"]) == (NAME, "official", "Apache-2.0")
    assert card["source"]["file"] == checkpoint.name
    assert card["source"]["sha256"] == digest_of(checkpoint)
    assert card["parts"] == ["clip", "mask_decoder", "pixel_decoder"]

    back = (tmp_path / "official").with_suffix(suffix)
    code, out, _ = run(capsys, tmp_path / "ours", "--model", NAME, "--to", "official", "--output", back)
    assert code == 0
    assert str(back) in out
    found = load_file(back) if suffix == ".safetensors" else torch.load(back, weights_only=True)
    assert same(found, official_state(segmenter))


def test_either_form_loads_as_the_same_model(capsys, checkpoint, segmenter, tmp_path):
    run(capsys, checkpoint, "--model", NAME, "--output", tmp_path / "ours")
    for weights in (checkpoint, tmp_path / "ours", str(tmp_path / "ours/model.safetensors"), {"fcclip": tmp_path / "ours"}):
        loaded = lexiseg.load(NAME, weights=weights, device="cpu").segmenter
        assert same(loaded.state_dict(), segmenter.state_dict())
        assert isinstance(loaded, FcClip)
        assert loaded.config.behaviour == "official"


def test_what_a_training_of_ours_saved_loads_with_its_behaviour(segmenter, tmp_path):
    segmenter.config = replace(segmenter.config, behaviour="paper")
    save_segmenter(segmenter, tmp_path, {"model": NAME}, all_parts=True)
    loaded = lexiseg.load(NAME, weights=tmp_path, device="cpu").segmenter
    assert same(loaded.state_dict(), segmenter.state_dict())
    assert isinstance(loaded, FcClip)
    assert loaded.config.behaviour == "paper"


def test_a_checkpoint_without_clip_needs_one_from_elsewhere(capsys, segmenter, small_clip, tmp_path):
    head = {name: value for name, value in official_state(segmenter).items() if not name.startswith("backbone.")}
    save_file(head, tmp_path / "head.safetensors")
    code, out, _ = run(capsys, tmp_path / "head.safetensors", "--model", NAME, "--output", tmp_path / "ours")
    assert code == 0
    assert "parts: mask_decoder, pixel_decoder;" in out
    clip = small_clip / WEIGHTS_FILE
    loaded = lexiseg.load(NAME, weights={"fcclip": tmp_path / "ours", "clip": clip}, device="cpu").segmenter
    assert torch.equal(loaded.state_dict()["mask_decoder.void.weight"], segmenter.mask_decoder.void.weight)


def test_half_is_half_the_file(capsys, checkpoint, segmenter, tmp_path):
    run(capsys, checkpoint, "--model", NAME, "--output", tmp_path / "ours", "--half")
    assert (tmp_path / "ours/model.safetensors").stat().st_size < 0.6 * checkpoint.stat().st_size
    loaded = lexiseg.load(NAME, weights=tmp_path / "ours", device="cpu").segmenter
    for name, value in segmenter.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-6)


def test_what_cannot_be_converted_is_refused_by_name(capsys, checkpoint, segmenter, tmp_path):
    state = official_state(segmenter)
    void = "void_embedding.weight"
    wrong = {
        "missing": {name: value for name, value in state.items() if name != void},
        "unknown": {**state, "sem_seg_head.more": torch.zeros(1)},
        "shape": {**state, void: torch.zeros(1, 7)},
        "clip": {name: value for name, value in state.items() if name != "backbone.clip_model.logit_scale"},
        "another": {"cls_token": torch.zeros(1)},
    }
    for name, tensors in wrong.items():
        torch.save({"model": tensors}, tmp_path / f"{name}.pth")
    (tmp_path / "text.pth").write_text("no checkpoint at all")
    (tmp_path / "bare.pkl").write_bytes(b"\x80\x04}.")
    run(capsys, checkpoint, "--model", NAME, "--output", tmp_path / "ours")
    for file, message in (
        ("missing.pth", "missing.pth is another model's: mask_decoder.void.weight is missing"),
        ("unknown.pth", "1 keys are none of official FC-CLIP's or FrozenSeg's: sem_seg_head.more"),
        ("shape.pth", "mask_decoder.void.weight is (1, 7), not"),
        ("clip.pth", "clip.clip_model.logit_scale is missing"),
        ("another.pth", "cls_token"),
        ("text.pth", "damaged or no weights file"),
        ("bare.pkl", "a bare pickle, and no code of a file is run here"),
        ("gone.pth", "gone.pth do not exist"),
        ("ours", f"is in lexiseg's form already, weights of {NAME}"),
    ):
        code, out, err = run(capsys, tmp_path / file, "--model", NAME, "--output", tmp_path / "new")
        assert (code, out) == (1, ""), file
        assert message in err, file
    assert not (tmp_path / "new").exists()
    back = ("--to", "official", "--output", tmp_path / "x.pth")
    for file, model, message in (
        (checkpoint, NAME, "has no card"),
        (tmp_path / "ours", "fcclip-convnext-l", f"holds weights of {NAME}, not of fcclip-convnext-l"),
    ):
        code, _, err = run(capsys, file, "--model", model, *back)
        assert code == 1
        assert message in err


def test_a_wrong_call_is_said_before_anything_is_read(capsys, tmp_path):
    for model, more, message in (
        ("fcclip-huge", (), "'fcclip-huge' is unknown; checkpoints can be converted of fcclip-convnext-l"),
        ("sam_clip-tiny", (), "'sam_clip-tiny' has no weights that its authors published"),
        (NAME, ("--to", "official"), "name the checkpoint to be written, ending in .safetensors"),
    ):
        code, _, err = run(capsys, tmp_path / "gone", "--model", model, "--output", tmp_path / "folder", *more)
        assert code == 2
        assert message in err


@pytest.mark.parametrize("name", ["sam-vit-b", "sam-vit-l", "sam-vit-h", "sam_hq-vit-b"])
def test_a_sam_by_itself_by_its_names_and_shapes(name):
    """Full size, so without numbers: the official keys, none of them left, and a config that builds the same model."""
    family, size = name.split("-vit-")
    with torch.device("meta"):
        sam = build_sam(sam_config(size) if family == "sam" else sam_hq_config(size))
    state = sam_weights.to_official(sam.model.state_dict())
    tensors, config = converter_of(name).ours(state, "x.pth")
    assert config is not None
    document = json.loads(json.dumps(config))
    again = {"sam": SamConfig, "sam_hq": SamHQConfig}[document["model_type"]].from_dict(document)
    with torch.device("meta"):
        same_shapes = build_sam(again).model.state_dict()
    assert {key: value.shape for key, value in tensors.items()} == {key: value.shape for key, value in same_shapes.items()}
    assert again.mask_decoder_config.layer_norm_eps == DECODER_NORM_EPS
    assert converter_of(name).official(SavedWeights(tensors, {}, Path("x"))).keys() == state.keys()
    with pytest.raises(lexiseg.WeightsError, match=f"it holds {name}, not sam_hq-vit-h"):
        converter_of("sam_hq-vit-h").ours(state, "x.pth")


def test_parts_need_names(tmp_path):
    with pytest.raises(
        lexiseg.UsageError, match=r"nothing of sam_clip-tiny is trained: give weights of its parts .* of clip, sam"
    ):
        lexiseg.load("sam_clip-tiny", weights=tmp_path)


def test_a_cmpf_checkpoint_keeps_its_sam(capsys, monkeypatch, small_clip, tmp_path):
    few = {
        **SIZES,
        "hidden_dim": 256,
        "pixel_decoder_layers": 1,
        "sam_layers": 1,
        "query_layers": (1, 2),
        "feature_layers": (1, 2),
    }
    config = CmpfConfig(**few, behaviour="official")
    own = (
        Part("clip", partial(build_clip, small_clip), partial(load_clip, small_clip)),
        Part("sam", mobile_sam, lambda _: mobile_sam()),
    )
    like = methods.MODELS["cmpf-convnext-l"]
    monkeypatch.setitem(methods.MODELS, "cmpf-mini", replace(like, name="cmpf-mini", config=config, parts=own))
    clip = build_clip(small_clip)
    assert isinstance(clip, ClipResNet)
    segmenter = Cmpf(clip, mobile_sam(), config=config)
    ours = segmenter.state_dict()
    head = {name: value for name, value in ours.items() if not name.startswith(("clip.", "sam."))}
    sam = sam_weights.to_official(segmenter.sam.model.state_dict())
    official = to_official(Checkpoint(head, dict(clip.clip_model.state_dict()), sam))
    torch.save({"model": {**official, "sam.pixel_mean": torch.zeros(3, 1, 1)}}, tmp_path / "frozenseg.pth")

    code, out, err = run(capsys, tmp_path / "frozenseg.pth", "--model", "cmpf-mini", "--output", tmp_path / "ours")
    assert code == 0, err
    assert "sam.pixel_mean: constant of the preprocessing" in out
    assert same(load_file(tmp_path / "ours/model.safetensors"), ours)
    assert same(lexiseg.load("cmpf-mini", weights=tmp_path / "ours", device="cpu").segmenter.state_dict(), ours)
    arguments = (tmp_path / "ours", "--model", "cmpf-mini", "--to", "official", "--output", tmp_path / "back.safetensors")
    assert run(capsys, *arguments)[0] == 0
    assert same(load_file(tmp_path / "back.safetensors"), official)

    segmenter.config = replace(config, behaviour="paper")
    save_segmenter(segmenter, tmp_path / "paper", {"model": "cmpf-mini"}, all_parts=True)
    code, _, err = run(capsys, tmp_path / "paper", *arguments[1:])
    assert code == 1
    assert "was trained with behaviour=paper, whose encoder of SAM's features" in err

    torch.save(official | {"sam.mask_decoder.iou_token.weight": torch.zeros(1, 7)}, tmp_path / "wrong.pth")
    code, _, err = run(capsys, tmp_path / "wrong.pth", "--model", "cmpf-mini", "--output", tmp_path / "new")
    assert code == 1
    assert "wrong.pth is another model's: sam.model.mask_decoder.iou_token.weight is (1, 7), not (1, 256)" in err
    fcclip = {name: value for name, value in official.items() if "sam_transformer" not in name and "_sam." not in name}
    torch.save({name: value for name, value in fcclip.items() if ".fpn3." not in name}, tmp_path / "half.pth")
    code, _, err = run(capsys, tmp_path / "half.pth", "--model", "cmpf-mini", "--output", tmp_path / "new")
    assert code == 1
    assert "feature_injector" in err
    assert "is missing" in err


def test_a_checkpoint_with_another_clip_is_refused(segmenter, tmp_path):
    state = official_state(segmenter) | {"backbone.clip_model.text_projection": torch.zeros(3, 4)}
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(lexiseg.WeightsError, match=r"other\.pth is another model's: clip\.\S+text_projection is \(3, 4\), not"):
        lexiseg.load(NAME, weights=tmp_path / "other.pth")


def test_sam2_goes_there_and_back(capsys, tmp_path, monkeypatch):
    """Without what only videos need; the folder is one of transformers, too."""
    small = tiny_backbone("sam2")
    monkeypatch.setattr(sam2_weights, "sam2_config", lambda *_: small.model.config)
    official = sam2_weights.to_official(small.model.state_dict())
    torch.save({"model": {**official, "memory_attention.x": torch.zeros(2)}}, tmp_path / "a.pt")
    code, out, _ = run(capsys, tmp_path / "a.pt", "--model", "sam2", "--output", tmp_path / "ours", "--json")
    assert code == 0
    assert json.loads(out)["dropped"].keys() == {"memory_attention.x"}
    assert same(sam2_weights.to_official(load_sam(tmp_path / "ours").model.state_dict()), official)
    run(capsys, tmp_path / "ours", "--model", "sam2", "--to", "official", "--output", tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), official)


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_mask2former_goes_there_and_back(capsys, tmp_path, backbone):
    small = tiny_mask2former(backbone)
    official = mask2former_weights.to_official(small.model.state_dict())
    torch.save({"model": {**official, "criterion.empty_weight": torch.ones(6)}}, tmp_path / "a.pth")
    code, out, _ = run(capsys, tmp_path / "a.pth", "--model", "mask2former", "--output", tmp_path / "ours", "--json")
    assert code == 0
    assert json.loads(out)["dropped"].keys() == {"criterion.empty_weight"}
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_mask2former(tmp_path / "ours").eval()(image).masks, small.eval()(image).masks)
    run(capsys, tmp_path / "ours", "--model", "mask2former", "--to", "official", "--output", tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), official)
