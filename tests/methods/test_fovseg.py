"""What must hold for FOV-Seg beyond the laws of all methods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from lexiseg.backbones.clip import build_clip
from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.proposals import MaskProposer, Proposals
from lexiseg.errors import UsageError
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods import MODELS, recipe_named
from lexiseg.methods.fovseg.model import FovSeg
from lexiseg.methods.fovseg.teva import DistributionAdapter, MaskTargetAttention
from lexiseg.methods.recipe import Stage
from lexiseg.methods.weights import fill_from, save_segmenter
from lexiseg.structures import ImageBatch, MaskTarget
from lexiseg.training.batches import points_of
from lexiseg.training.optimiser import optimiser_of
from tests.laws.builders import SomeProposals, some_images, some_text, tiny_fovseg, tiny_maskclip

FEW = SetLossOptions(mask=0.0, dice=0.0, void=0.0, points=64)


def fresh(**options: Any) -> Any:
    """As it is before its training."""
    segmenter = tiny_fovseg(**options)
    with torch.no_grad():
        for attention in segmenter.teva:
            assert isinstance(attention, MaskTargetAttention)
            attention.output.weight.zero_()
            attention.output.bias.zero_()
        if isinstance(segmenter.adapter, DistributionAdapter):
            segmenter.adapter.layers[-1].weight.zero_()  # type: ignore[operator]
            segmenter.adapter.layers[-1].bias.zero_()  # type: ignore[operator]
    return segmenter


@pytest.mark.parametrize("options", [{}, {"teva": False, "adapter_layers": 0}])
def test_before_its_training_it_is_maskclip(options: dict[str, Any]) -> None:
    """With the same plain attention."""
    ours, text = fresh(clip_image_size=64, **options), some_text()
    plain = tiny_maskclip(relative_blocks=(), clip_image_size=64, shortest_edge=64)
    plain.load_state_dict({name: ours.state_dict()[name] for name in plain.state_dict()})
    images = some_images((60, 80))
    features, masks = ours.encode_images(images.pixels), torch.randn(1, 7, 16, 24)
    assert_close(ours.embed(features, masks, text), plain.embed(features, masks, text), atol=1e-5, rtol=1e-5)
    found, expected = ours(images, text), plain(images, text)
    assert torch.equal(found.masks, expected.masks)
    assert_close(found.classes, expected.classes, atol=1e-3, rtol=1e-3)


def test_every_part_makes_a_difference() -> None:
    text, images = some_text(), some_images((60, 80))
    found = [
        tiny_fovseg(**options)(images, text).classes
        for options in (
            {}, {"teva": False}, {"teva_update": "add"}, {"teva_update": "replace"}, {"teva_shared": True},
            {"class_token": "empty"}, {"adapter_layers": 0}, {"adapter_layers": 1},
        )
    ]  # fmt: skip
    for number, one in enumerate(found):
        for other in found[:number]:
            assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("update", ["query", "replace", "add"])
@pytest.mark.parametrize("class_token", ["always", "empty"])
def test_a_block_is_equations_7_to_11(update: str, class_token: str) -> None:
    """The whole way of the mask tokens, as written down from the paper with one query, one head and one block at a time."""
    segmenter: Any = tiny_fovseg(clip_image_size=64, teva_update=update, class_token=class_token)
    text, features = some_text(), segmenter.encode_images(some_images((64, 64)).pixels)
    masks = torch.randn(1, 3, 16, 16) - 1.5
    masks[0, 2] = -1.0  # touches nothing
    pixels = functional.interpolate(masks, (64, 64), mode="bilinear")[0] >= 0
    inside = torch.stack(
        [pixels[:, 16 * y : 16 * y + 16, 16 * x : 16 * x + 16].any(2).any(1) for y in range(4) for x in range(4)], 1
    )
    assert 0 < inside[:2].float().mean() < 1
    allowed = torch.cat([torch.ones(3, 1, dtype=torch.bool) if class_token == "always" else ~inside.any(1)[:, None], inside], 1)
    bias = torch.cat([torch.zeros(3, 1), segmenter.adapter(masks, (4, 4))[0].flatten(1)], 1)
    names, tower = text.mean(), segmenter.clip.clip_model.visual
    tokens = features.last[0, 0, :1].expand(3, -1)
    for number, block in enumerate(tower.transformer.resblocks):
        image, own, attention = block.ln_1(features.last[0, number]), segmenter.teva[number], block.attn
        q, k, v = own.query(own.norm(tokens)), own.key(names), own.value(names)  # Eq. (10)
        heads = [
            (q[:, part] @ k[:, part].T / len(q[0, part]) ** 0.5).softmax(-1) @ v[:, part]
            for part in torch.arange(q.shape[1]).chunk(own.heads)
        ]
        asked = own.output(torch.cat(heads, 1))  # Eq. (9)
        query = block.ln_1(asked if update == "replace" else tokens + asked)
        (f_q, f_k, f_v), (b_q, b_k, b_v) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        q, k, v = query @ f_q.T + b_q, image @ f_k.T + b_k, image @ f_v.T + b_v  # Eq. (8)
        taken = []
        for part in torch.arange(q.shape[1]).chunk(attention.num_heads):
            scores = q[:, part] @ k[:, part].T / len(part) ** 0.5 + bias
            taken.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v[:, part])  # Eq. (7), Eq. (11)
        taken = attention.out_proj(torch.cat(taken, 1))
        tokens = tokens + taken + (asked if update == "add" else 0)
        tokens = tokens + block.mlp(block.ln_2(tokens))
    vectors, _ = segmenter.embed(features, masks, text)
    assert_close(vectors[0], tower.ln_post(tokens) @ tower.proj, atol=1e-5, rtol=1e-4)


def test_names_enter_a_mask_token_through_its_query_only() -> None:
    """Of a picture of one colour every patch says the same, so whatever a token asks, it hears the same (Eq. 7)."""
    text, other = some_text(), some_text(3)
    for update, equal in (("query", True), ("replace", True), ("add", False)):
        segmenter: Any = tiny_fovseg(clip_image_size=64, teva_update=update, class_token="empty")
        features = segmenter.encode_images(torch.full((1, 3, 64, 64), 0.3))
        last = features.last[:, :, 1:2].expand(-1, -1, features.last.shape[2], -1)  # without positions
        same = type(features)(features.levels, last)
        masks = torch.ones(1, 2, 16, 16)
        first, second = (segmenter.embed(same, masks, names)[0] for names in (text, other))
        assert torch.allclose(first, second, atol=1e-5) == equal, update


def test_the_image_does_not_see_masks_or_names() -> None:
    segmenter = tiny_fovseg()
    images = some_images((64, 64)).pixels
    before = segmenter.encode_images(images)
    kept = before.last.clone()
    segmenter.names(before, torch.randn(1, 5, 16, 16), some_text())
    assert torch.equal(before.last, kept)
    assert torch.equal(segmenter.encode_images(images).last, kept)


def test_positions_are_resized_bilinearly() -> None:
    segmenter = tiny_fovseg(clip_image_size=96)
    tower, image = segmenter.clip.clip_model.visual, torch.rand(1, 3, 96, 96)
    table = tower.positional_embedding
    cells = torch.nn.functional.interpolate(table[1:].T.unflatten(-1, (4, 4))[None], (6, 6), mode="bilinear")[0]
    received = segmenter.encode_images(image).last[:, 0]
    tokens = torch.cat([tower.class_embedding[None], tower.conv1((image - 0.5) / 0.5)[0].flatten(1).T])
    expected = tower.ln_pre(tokens + torch.cat([table[:1], cells.flatten(1).T]))
    assert_close(received[0], expected, atol=1e-5, rtol=1e-5)


def test_what_it_trains() -> None:
    """Of CLIP the queries of the vision tower, and nothing else; a step moves nothing else."""
    segmenter, text, images = tiny_fovseg(void="vector"), some_text(), some_images((64, 64), (64, 64))
    before = {name: values.clone() for name, values in segmenter.state_dict().items()}
    optimiser = optimiser_of(segmenter.train(), Stage(1, lr=1e-2, weight_decay=0.5))
    targets = [MaskTarget(torch.ones(1, 64, 64, dtype=torch.bool), torch.tensor([label])) for label in (0, 2)]
    sum(segmenter.loss(images, text, targets, replace(FEW, void=0.1)).values()).backward()  # type: ignore[union-attr]
    optimiser.step()
    for name, values in segmenter.state_dict().items():
        moved = (values - before[name]).abs()
        if "visual" in name and "attn.in_proj" in name:
            width = len(values) // 3
            assert moved[:width].max() > 1e-4, name
            assert moved[width:].max() == 0, name
        elif name.startswith(("clip", "proposer")):
            assert moved.max() == 0, name
        elif not name.endswith("key.bias"):
            assert moved.max() > 0, name
    assert not segmenter.proposer.training


TUNED: dict[str, dict[str, Any]] = {
    "f_q": {"tuned": ("f_q",)}, "f_k": {"tuned": ("f_k",)}, "f_v": {"tuned": ("f_v",)},
    "f_q, f_v": {"tuned": ("f_q", "f_v")}, "f_q, f_k, f_v": {"tuned": ("f_q", "f_k", "f_v")},
    "MLP": {"tuned": ("mlp",)}, "all": {"tuned": ("all",)}, "LoRA": {"lora_rank": 2}, "nothing": {"tuned": ()},
}  # fmt: skip


@pytest.mark.parametrize("row", TUNED)
def test_rows_of_table_iv_c_and_g(row: str) -> None:
    """What a step moves in CLIP is what the row says, its parameters are counted, and saved weights give the same."""
    segmenter, text, images = tiny_fovseg(**TUNED[row]), some_text(), some_images((64, 64), (64, 64))
    before = {name: values.clone() for name, values in segmenter.clip.state_dict().items()}
    optimiser = optimiser_of(segmenter.train(), Stage(1, lr=1e-2, weight_decay=0.5))
    targets = [MaskTarget(torch.ones(1, 64, 64, dtype=torch.bool), torch.tensor([label])) for label in (0, 2)]
    segmenter.loss(images, text, targets, FEW)["class"].backward()
    optimiser.step()
    moved = {name: (values - before[name]).abs() for name, values in segmenter.clip.state_dict().items()}
    kinds = {
        "f_q": lambda values: values[: len(values) // 3].max() > 0,
        "f_k": lambda values: values[len(values) // 3 : -len(values) // 3].max() > 0,
        "f_v": lambda values: values[-len(values) // 3 :].max() > 0,
    }
    weights = [values for name, values in moved.items() if ".visual." in name and name.endswith("in_proj_weight")]
    for kind, changed in kinds.items():
        assert all(bool(changed(values)) == (kind in row or row == "all") for values in weights), kind
    names = {name for name, values in moved.items() if values.max() > 0}
    assert any(".mlp." in name for name in names) == (row in ("MLP", "all"))
    assert any("parametrizations" in name and name.endswith(".up") for name in names) == (row == "LoRA")
    assert all(name.startswith("clip_model.visual.") for name in names)
    assert bool(names) == (row != "nothing")
    width = 32
    expected = {"f_q": 2 * (width * width + width), "LoRA": 2 * 2 * 2 * width * 4, "nothing": 0}
    counted = sum(entry.num_parameters for entry in segmenter.trained_parameters() if entry.name.startswith("clip."))
    assert counted == expected.get(row, counted)


def halves() -> tuple[ImageBatch, list[MaskTarget]]:
    half = torch.zeros(2, 64, 64, dtype=torch.bool)
    half[0, :, :32], half[1, :, 32:] = True, True
    pixels = torch.where(half[0], 0.9, 0.1).expand(1, 3, 64, 64).contiguous()
    return ImageBatch(pixels, ((64, 64),)), [MaskTarget(half, torch.tensor([0, 2]))]


class Given(MaskProposer):
    """The left half, the right half, and five stripes over both, of any picture of 64 × 64 pixels."""

    queries = 7

    def forward(self, images: torch.Tensor) -> Proposals:
        masks = torch.full((len(images), 7, 16, 16), -9.0)
        masks[:, 0, :, :8] = masks[:, 1, :, 8:] = 9.0
        for number in range(5):
            masks[:, 2 + number, 3 * number : 3 * number + 4] = 9.0
        return Proposals(masks, (64, 64))


def learned(steps: int, rate: float, **options: Any) -> tuple[Any, list[float]]:
    """A model that may change mask tokens themselves: of halves of one colour, Eq. (7) hears the same whatever it asks."""
    segmenter, text, (images, targets) = (
        tiny_fovseg(clip_image_size=64, teva_update="add", **options).train(),
        some_text(),
        halves(),
    )
    segmenter.proposer = Given()
    optimiser = optimiser_of(segmenter, Stage(steps, lr=rate))
    draw, given = points_of((0,), 0, torch.device("cpu")), replace(FEW, void=0.1 if options.get("void") == "vector" else 0.0)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = segmenter.loss(images, text, targets, given, draw)["class"]
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return segmenter.eval()(images, text), losses


@pytest.mark.parametrize("void", ["none", "word"])
def test_it_learns_names(void: str) -> None:
    """Without "no object" at inference; the word "other" is a class in training only."""
    found, losses = learned(40, 6e-3, void=void)
    assert losses[-1] < 0.02 * losses[0]
    assert not found.void
    assert found.classes[0, :2].argmax(-1).tolist() == [0, 2]


def test_it_learns_names_and_what_is_no_object() -> None:
    found, losses = learned(240, 3e-3, void="vector")
    assert losses[-1] < 0.02 * losses[0]
    assert found.void
    assert found.classes[0].argmax(-1).tolist() == [0, 2, 5, 5, 5, 5, 5]


def test_the_word_other_is_a_class_in_training_only() -> None:
    segmenter: Any = tiny_fovseg(void="word").train()
    text, features = some_text(), segmenter.encode_images(some_images((64, 64)).pixels)
    masks = torch.randn(1, 3, 16, 16)
    classes, _ = segmenter.names(features, masks, text)
    vectors, _ = segmenter.embed(features, masks, text)
    other = segmenter.clip.encode_text(segmenter.clip.tokenize(["other"]))[0]
    unit = functional.normalize(vectors, dim=-1)
    logits = torch.cat([text.per_class(unit @ text.vectors.T), (unit @ other)[..., None]], -1)
    assert_close(classes, (100 * logits).log_softmax(-1), atol=1e-3, rtol=1e-3)
    assert segmenter.eval().names(features, masks, text)[0].shape[-1] == len(text)


def test_weights_come_back(tmp_path: Any) -> None:
    segmenter, images, text = tiny_fovseg(), some_images((60, 80)), some_text()
    card = save_segmenter(segmenter, tmp_path, {"model": "fovseg-test"})
    assert card["parts"] == ["adapter", "clip", "teva"]
    again = tiny_fovseg()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(0.1)
    again.parts()["proposer"].load_state_dict(segmenter.parts()["proposer"].state_dict())
    fill_from(again, tmp_path, model="fovseg-test")
    assert torch.equal(again(images, text).classes, segmenter(images, text).classes)


def test_the_numbers_are_those_of_the_paper() -> None:
    """Sec. V-C and Eq. (12)."""
    recipe = recipe_named("fovseg-vit-l14").to_dict()
    expected = {
        "stages.0.steps": 25_000, "stages.0.lr": 1e-4, "stages.0.weight_decay": 0.05, "stages.0.lr_multipliers.clip": 0.1,
        "batch_size": 16, "jitter.min_scale": 0.1, "jitter.max_scale": 2.0, "jitter.side": 1024, "model.clip_image_size": 896,
        "model.shortest_edge": 800, "model.longest_edge": 1333, "loss.classes": 2.0, "fiser.weight": 1.0,
        "model.tuned": ("f_q",), "model.adapter_layers": 2, "model.templates": "none", "loss.void": 0.0,
    }  # fmt: skip
    assert {name: recipe[name] for name in expected} == expected
    assert recipe_named("fovseg-tiny").stages[0].lr == 1e-4
    with pytest.raises(UsageError, match="adapter_layers must be int ≥ 0 and ≤ 3, not 4"):
        tiny_fovseg(adapter_layers=4)


@pytest.mark.parametrize(("shared", "millions"), [(False, 30.77), (True, 25.42)])
def test_trained_parameters_at_full_size(shared: bool, millions: float) -> None:
    """The paper's Table II says 25 M."""
    variant = MODELS["fovseg-vit-l14"]
    trainable = variant.num_parameters(replace(variant.config, teva_shared=shared))["trainable"]
    assert trainable / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("fovseg-")])
def test_named_models_are_built(name: str) -> None:
    """Classifiers and generators of Table IV d and e."""
    with torch.device("meta"):
        segmenter: Any = MODELS[name].empty()
    tuned = [entry for entry in segmenter.trained_parameters() if entry.name.startswith("clip.")]
    width, depth = segmenter.clip.channels[0], segmenter.clip.depth
    assert sum(entry.num_parameters for entry in tuned) == depth * (width * width + width)
    assert segmenter.proposer.queries in (24, 100)


def test_more_names_cost_next_to_nothing() -> None:
    """At full size, of CLIP and all that names 100 masks: 847 names against 150, in floating point operations."""
    with torch.device("meta"), torch.no_grad():
        clip = build_clip("ViT-L-14-336-quickgelu")
        assert isinstance(clip, ClipViT)
        segmenter = FovSeg(clip, SomeProposals()).eval()
        costs = []
        for count in (150, 847):
            text = some_text(count, segmenter.clip.width).to("meta")
            with FlopCounterMode(display=False) as counter:
                segmenter.names(segmenter.encode_images(torch.zeros(1, 3, 800, 1088)), torch.zeros(1, 100, 200, 272), text)
            costs.append(counter.get_total_flops())
    assert 1 < costs[1] / costs[0] < 1.01
