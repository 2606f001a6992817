"""MobileSAM: the official list of keys goes in without a rest, and its encoder computes what the official one defines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.mask_generator import MaskGeneratorOptions
from lexiseg.backbones.sam_loading import from_official_state, load_sam, mobile_sam, sam_name, sam_vit
from lexiseg.backbones.sam_mobile import MobileSamBackbone
from lexiseg.backbones.sam_weights import DROPPED, from_official, to_official
from lexiseg.cli import main
from lexiseg.errors import WeightsError
from lexiseg.methods.cmpf.config import CmpfConfig
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.sam_clip.config import SamClipConfig
from lexiseg.methods.sam_clip.model import SamClip
from tests.laws.builders import SIZES, some_images, some_text, tiny_clip

WIDTHS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
Shapes = dict[str, tuple[int, ...]]


def convolution(name: str, to: int, of: int, kernel: int) -> Shapes:
    """A convolution without bias, batch norm after it; ``of`` is 1 where each channel is seen alone."""
    norm = {f"{name}.bn.{part}": (to,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.c.weight": (to, of, kernel, kernel), **norm, f"{name}.bn.num_batches_tracked": ()}


def linear(name: str, to: int, of: int) -> Shapes:
    return {f"{name}.weight": (to, of), f"{name}.bias": (to,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def encoder_shapes() -> Shapes:
    """All keys of the official encoder, and their shapes."""
    shapes = {**convolution("patch_embed.seq.0", 32, 3, 3), **convolution("patch_embed.seq.2", 64, 32, 3)}
    for stage, (width, depth, heads, window) in enumerate(zip(WIDTHS, DEPTHS, HEADS, WINDOWS, strict=True)):
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}"
            if stage == 0:
                shapes |= convolution(f"{block}.conv1", 4 * width, width, 1)
                shapes |= convolution(f"{block}.conv2", 4 * width, 1, 3)
                shapes |= convolution(f"{block}.conv3", width, 4 * width, 1)
                continue
            shapes |= {f"{block}.attn.attention_biases": (heads, window**2)} | norm(f"{block}.attn.norm", width)
            shapes |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
            shapes |= norm(f"{block}.mlp.norm", width) | linear(f"{block}.mlp.fc1", 4 * width, width)
            shapes |= linear(f"{block}.mlp.fc2", width, 4 * width) | convolution(f"{block}.local_conv", width, 1, 3)
        if stage < 3:
            down, to = f"layers.{stage}.downsample", WIDTHS[stage + 1]
            shapes |= convolution(f"{down}.conv1", to, width, 1) | convolution(f"{down}.conv2", to, 1, 3)
            shapes |= convolution(f"{down}.conv3", to, to, 1)
    shapes |= norm("norm_head", 320) | linear("head", 1000, 320)
    shapes |= {"neck.0.weight": (256, 320, 1, 1), "neck.2.weight": (256, 256, 3, 3)} | norm("neck.1", 256) | norm("neck.3", 256)
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()}


def random_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(3)
    if name.endswith("running_var"):
        return torch.rand(shape) + 0.5
    if name.endswith("attention_biases"):
        return torch.randn(shape)
    if len(shape) > 1:
        return torch.randn(shape) / torch.tensor(shape[1:]).prod() ** 0.5
    return 0.2 * torch.randn(shape) + (1 if name.endswith("weight") else 0)


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """A state dictionary with all names of ``mobile_sam.pt``."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(6)
    state = {name: random_tensor(name, shape) for name, shape in encoder_shapes().items()}
    with torch.device("meta"):
        others = to_official(sam_vit("b").model.state_dict())
    state |= {
        name: random_tensor(name, tuple(value.shape)) for name, value in others.items() if not name.startswith("image_encoder.")
    }
    torch.set_rng_state(generator_state)
    return state


@pytest.fixture(scope="module")
def small(official: dict[str, Tensor]) -> MobileSamBackbone:
    """With inputs of 96 pixels, which makes windows that are filled up, and with these weights."""
    backbone = mobile_sam(96)
    backbone.model.load_state_dict(from_official(official))
    return backbone


def test_the_official_keys_go_in_without_a_rest_and_come_out_again(official: dict[str, Tensor]) -> None:
    assert len(encoder_shapes()) == 302
    backbone = from_official_state(official, "mobile_sam.pt")
    assert isinstance(backbone, MobileSamBackbone)
    assert sam_name(backbone) == "mobile_sam"
    assert (backbone.image_size, backbone.grid, backbone.channels) == (1024, 64, 256)
    back = to_official(backbone.model.state_dict())
    classifier = {name for name in official if name in DROPPED}
    assert {name.removeprefix("image_encoder.").split(".")[0] for name in classifier} == {"norm_head", "head"}
    assert back.keys() == official.keys() - classifier
    assert all(torch.equal(back[name], official[name]) for name in back)
    counts = sum(parameter.numel() for parameter in backbone.model.vision_encoder.parameters())
    assert counts == 5_743_892


def conv(state: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.c.weight"]
    groups = 1 if weight.shape[1] == x.shape[1] else x.shape[1]
    x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
    scale, shift, mean, variance = (state[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
    return (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]


def dense(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def normed(state: dict[str, Tensor], name: str, x: Tensor, epsilon: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]
    )


def attention(state: dict[str, Tensor], name: str, cells: Tensor, heads: int, window: int) -> Tensor:
    """Of one window [w, w, C]; a bias for every pair of distances down and right."""
    width = cells.shape[-1] // heads
    rows = dense(state, f"{name}.qkv", normed(state, f"{name}.norm", cells.reshape(window**2, -1)))
    result = torch.zeros(window**2, heads * width)
    place = torch.arange(window**2)
    down, right = ((index[:, None] - index).abs() for index in (place // window, place % window))
    for head in range(heads):
        query, key, value = rows[:, head * 3 * width :][:, : 3 * width].split(width, dim=1)
        bias = state[f"{name}.attention_biases"][head][down * window + right]
        result[:, head * width :][:, :width] = (query @ key.T / width**0.5 + bias).softmax(-1) @ value
    return dense(state, f"{name}.proj", result).reshape(window, window, -1)


def encoded(state: dict[str, Tensor], image: Tensor) -> Tensor:
    """An image [1, 3, S, S] -> [1, 256, S / 16, S / 16], written down from the definition."""
    x = conv(state, "patch_embed.seq.2", functional.gelu(conv(state, "patch_embed.seq.0", image, 2)), 2)
    for stage, (depth, heads, window) in enumerate(zip(DEPTHS, HEADS, WINDOWS, strict=True)):
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}"
            if stage == 0:
                inner = functional.gelu(conv(state, f"{block}.conv1", x))
                inner = functional.gelu(conv(state, f"{block}.conv2", inner))
                x = functional.gelu(x + conv(state, f"{block}.conv3", inner))
                continue
            side = x.shape[-1]
            windows = -(-side // window)
            cells = torch.zeros(windows * window, windows * window, x.shape[1])
            cells[:side, :side] = x[0].permute(1, 2, 0)
            for top in range(0, windows * window, window):
                for left in range(0, windows * window, window):
                    inside = (slice(top, top + window), slice(left, left + window))
                    cells[inside] = attention(state, f"{block}.attn", cells[inside].clone(), heads, window)
            x = conv(state, f"{block}.local_conv", x + cells[:side, :side].permute(2, 0, 1))
            rows = x[0].permute(1, 2, 0)
            hidden = functional.gelu(dense(state, f"{block}.mlp.fc1", normed(state, f"{block}.mlp.norm", rows)))
            x = x + dense(state, f"{block}.mlp.fc2", hidden).permute(2, 0, 1)
        if stage < 3:
            down = f"layers.{stage}.downsample"
            x = functional.gelu(conv(state, f"{down}.conv1", x))
            x = functional.gelu(conv(state, f"{down}.conv2", x, 1 if stage == 2 else 2))
            x = conv(state, f"{down}.conv3", x)
    for index in (0, 2):
        x = functional.conv2d(x, state[f"neck.{index}.weight"], padding=index // 2)
        x = normed(state, f"neck.{index + 1}", x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)
    return x


@torch.no_grad()
def test_the_encoder_computes_its_definition(small: MobileSamBackbone, official: dict[str, Tensor]) -> None:
    images = torch.randn(2, 3, 96, 96)
    state = {name.removeprefix("image_encoder."): value for name, value in official.items()}
    found = small.encode(images)
    assert found.shape == (2, 256, 6, 6)
    assert found.std() > 0.5
    for image, embedding in zip(images, found, strict=True):
        torch.testing.assert_close(embedding[None], encoded(state, image[None]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_new_weights_are_used_at_once(official: dict[str, Tensor]) -> None:
    images, backbone = torch.randn(1, 3, 64, 64), mobile_sam(64)
    before = backbone.encode(images)
    backbone.model.load_state_dict(from_official(official))
    after = backbone.encode(images)
    fresh = mobile_sam(64)
    fresh.model.load_state_dict(backbone.model.state_dict())
    assert torch.equal(after, fresh.encode(images))
    assert not torch.allclose(after, before, atol=0.1)


def test_a_file_as_published_and_what_it_is_converted_into(official: dict[str, Tensor], tmp_path: Path, capsys) -> None:
    torch.save(official, tmp_path / "mobile_sam.pt")
    one = load_sam(tmp_path / "mobile_sam.pt").model.state_dict()
    arguments = [str(tmp_path / "mobile_sam.pt"), "--output", str(tmp_path / "ours"), "--json"]
    assert main(["convert", *arguments, "--model", "sam-vit-b"]) == 1
    assert "it holds mobile_sam, not sam-vit-b" in capsys.readouterr().err
    assert main(["convert", *arguments, "--model", "mobile_sam"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["mapped"], len(document["dropped"])) == (len(official) - 4, 4)
    assert json.loads((tmp_path / "ours/config.json").read_text()) == {"model_type": "mobile_sam", "image_size": 1024}
    two = load_sam(tmp_path / "ours").model.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    back = tmp_path / "back.pt"
    assert main(["convert", str(tmp_path / "ours"), "--model", "mobile_sam", "--to", "official", "--output", str(back)]) == 0
    found = torch.load(back, weights_only=True)
    assert found.keys() == official.keys() - DROPPED.keys()
    assert all(torch.equal(value, official[name]) for name, value in found.items())


def test_something_wrong_is_said_by_name(official: dict[str, Tensor]) -> None:
    name = "image_encoder.layers.2.blocks.5.attn.attention_biases"
    for wrong, message in (
        (
            {key: value for key, value in official.items() if key != name},
            "1 missing: vision_encoder.trunk.stages.2.blocks.5.attn",
        ),
        ({**official, name: torch.zeros(5, 49)}, r"attention_biases \(5, 49\) instead of \(5, 196\)"),
        ({**official, "image_encoder.layers.4.blocks.0.conv1.c.weight": torch.zeros(1)}, "1 keys are none of official"),
    ):
        with pytest.raises(WeightsError, match=message):
            from_official_state(wrong, "mobile_sam.pt")


@torch.no_grad()
def test_cmpf_and_sam_clip_take_it(small: MobileSamBackbone) -> None:
    images, text = some_images((60, 80)), some_text()
    segmenter = Cmpf(
        tiny_clip("convnext"),  # type: ignore[arg-type]
        small,
        config=CmpfConfig(**SIZES, query_layers=(1, 2), feature_layers=(1, 2), sam_layers=1),
    ).train()
    assert not any(module.training for module in segmenter.sam.modules())
    assert segmenter.eval()(images, text).masks.isfinite().all()
    options = MaskGeneratorOptions(pred_iou_threshold=-10.0, stability_threshold=0.0, box_nms_threshold=0.9)
    config = SamClipConfig(shortest_edge=64, points_per_side=2, generator=options)
    prediction = SamClip(tiny_clip("vit"), small, config).eval()(images, text)
    assert prediction.masks.shape[1] > 0
