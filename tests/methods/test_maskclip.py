"""What must hold for MaskCLIP beyond the laws of all methods (against the official program: tests/parity/cases/maskclip.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lexiseg.backbones.clip_vit import attended, visible
from lexiseg.backbones.proposals import MaskProposer, Proposals
from lexiseg.errors import UsageError
from lexiseg.methods import MODELS, recipe_named
from lexiseg.methods.maskclip.model import SURE, touched
from lexiseg.methods.maskclip.weights import relative_from_official
from lexiseg.methods.recipe import Stage, with_overrides
from lexiseg.postprocess import semantic_scores
from lexiseg.structures import Geometry, ImageBatch, MaskTarget, Trace
from lexiseg.training.batches import points_of
from lexiseg.training.loop import train
from lexiseg.training.optimiser import optimiser_of
from tests.laws.builders import some_images, some_text, tiny_clip, tiny_maskclip


def features_of(segmenter: Any) -> Any:
    return segmenter.encode_images(some_images((64, 64)).pixels)


def test_a_patch_is_touched_by_a_single_pixel() -> None:
    masks = torch.full((1, 2, 16, 16), -1.0)
    masks[0, 0, 5, 9] = 0.0
    found = touched(masks, (4, 4), 4)
    assert found[0, 0].nonzero().tolist() == [[1, 2]]
    assert not found[0, 1].any()


@pytest.mark.parametrize("cells", [(16, 16), (50, 68), (7, 9)])
def test_patches_are_touched_by_pixels_and_not_by_mask_cells(cells: tuple[int, int]) -> None:
    """As in the official code: masks are resized to the pixels of the patches, and any positive pixel counts (Eq. 11)."""
    torch.manual_seed(0)
    masks = torch.nn.functional.interpolate(torch.randn(1, 40, 4, 5) - 1, cells, mode="bicubic")
    pixels = torch.nn.functional.interpolate(masks, (6 * 14, 8 * 14), mode="bilinear", align_corners=False).sigmoid() >= 0.5
    expected = torch.stack(
        [pixels[0, :, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14].flatten(1).any(1) for y in range(6) for x in range(8)], 1
    )
    assert torch.equal(touched(masks, (6, 8), 14)[0].flatten(1), expected)


def test_attention_is_clips_own() -> None:
    """Torch's own attention with the same mask gives the same."""
    clip: Any = tiny_clip("vit")
    block = clip.clip_model.visual.transformer.resblocks[0]
    tokens, image, patches = torch.randn(2, 3, 32), torch.randn(2, 5, 32), torch.rand(2, 3, 2, 2) < 0.5
    blocked = (~visible(patches)).repeat_interleave(block.attn.num_heads, dim=0)
    expected, _ = block.attn(block.ln_1(tokens), image, image, attn_mask=blocked, need_weights=False)
    assert_close(attended(block, tokens, image, visible(patches)), expected, atol=1e-5, rtol=1e-5)


def test_a_mask_over_everything_is_the_class_token() -> None:
    """It sees what the class token sees, as copies of it; so its embedding is that of the picture."""
    segmenter = tiny_maskclip(relative_blocks=())
    image = some_images((64, 64)).pixels
    everything = torch.ones(1, 2, 8, 8)
    vectors, _ = segmenter.embed(segmenter.clip.features(image), everything, some_text())
    assert_close(vectors, segmenter.clip.encode_image(image).expand(1, 2, -1), atol=1e-4, rtol=1e-4)


def test_nobody_sees_a_mask_token() -> None:
    """What a mask is called does not depend on the other masks, nor the image on any."""
    segmenter, text = tiny_maskclip(), some_text()
    features, masks = features_of(segmenter), torch.randn(1, 5, 16, 16)
    together, _ = segmenter.embed(features, masks, text)
    alone, _ = segmenter.embed(features, masks[:, 3:4], text)
    assert_close(together[:, 3:4], alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(features.last, features_of(segmenter).last)


def test_masks_are_drawn_again_where_they_are_relative() -> None:
    plain, relative, text = tiny_maskclip(relative_blocks=()), tiny_maskclip(), some_text()
    masks = torch.randn(1, 2, 16, 16)
    assert torch.equal(plain.embed(features_of(plain), masks, text)[1], masks)
    drawn = relative.embed(features_of(relative), masks, text)[1]
    assert drawn.shape == (1, 2, 64, 64)
    enlarged = torch.nn.functional.interpolate(masks, (64, 64), mode="bilinear")
    assert (drawn - enlarged).abs().max() > 1e-3
    with torch.no_grad():
        relative.relative["1"].refinement.weight.zero_()  # type: ignore[union-attr,operator]
        relative.relative["1"].refinement.bias.zero_()  # type: ignore[union-attr,operator]
    assert_close(relative.embed(features_of(relative), masks, text)[1], enlarged)


def test_the_official_program_leaves_the_last_class_out_of_semantic_results() -> None:
    images, text = some_images((60, 80), (70, 50)), some_text()
    paper, official = tiny_maskclip()(images, text), tiny_maskclip(behaviour="official")(images, text)
    assert torch.equal(official.classes, paper.classes)
    for ours, theirs in zip(semantic_scores(paper, divide=False), semantic_scores(official, divide=False), strict=True):
        assert_close(theirs[:-1], ours[:-1])
        assert (theirs[-1] == 0).all()
        assert ours[-1].max() > 0


def test_masks_lie_where_the_generator_put_them() -> None:
    """The picture is resized and padded for the generator, and CLIP sees the same area."""
    segmenter, trace = tiny_maskclip(relative_blocks=(), shortest_edge=64), Trace()
    found = segmenter(some_images((50, 90)), some_text(), trace=trace)
    assert found.geometries == (Geometry((64, 128), (64, 115), (50, 90)),)
    assert found.masks.shape == (1, 7, 16, 32)
    assert torch.equal(found.masks[0], trace["masks"])
    assert trace.geometry == found.geometries[0]
    relative = tiny_maskclip(shortest_edge=64)(ImageBatch.of([torch.rand(3, 50, 90), torch.rand(3, 90, 50)]), some_text())
    assert relative.masks.shape == (2, 7, 64, 64)
    assert [geometry.padded_size for geometry in relative.geometries] == [(64, 128), (128, 64)]


class Halves(MaskProposer):
    """The left and the right half of any picture, and nothing."""

    queries = 3

    def forward(self, images: torch.Tensor) -> Proposals:
        masks = torch.full((len(images), 3, *images.shape[-2:]), -SURE)
        middle = images.shape[-1] // 2
        masks[:, 0, :, :middle] = masks[:, 1, :, middle:] = SURE
        return Proposals(masks, (images.shape[-2], images.shape[-1]))


@pytest.mark.parametrize("options", [{}, {"relative_blocks": ()}, {"behaviour": "official"}])
def test_given_masks_are_named_as_if_they_were_proposed(options: dict[str, Any]) -> None:
    segmenter, text, images = tiny_maskclip(shortest_edge=None, **options), some_text(), some_images((64, 96))
    segmenter.proposer = Halves()
    regions = Halves()(images.pixels).masks[0] > 0
    found = segmenter.name_regions(images.image(0), regions, text)
    assert_close(found.classes, segmenter(images, text).classes, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.masks[0] > 0, regions)
    assert segmenter.name_regions(images.image(0), regions[:0], text).classes.shape == (1, 0, 5)


def test_only_what_is_relative_learns() -> None:
    segmenter = tiny_maskclip()
    assert {one.name.split(".")[0] for one in segmenter.trained_parameters()} == {"relative"}
    assert tiny_maskclip(relative_blocks=()).trained_parts() == frozenset()
    with pytest.raises(UsageError, match="block 23, but this CLIP has blocks 0 to 1"):
        tiny_maskclip(relative_blocks=(1, 23))


def test_relative_attention_learns_classes_and_is_reached_by_the_masks() -> None:
    segmenter, text, images = tiny_maskclip(clip_image_size=64).train(), some_text(), some_images((64, 64))
    half = torch.zeros(2, 64, 64, dtype=torch.bool)
    half[0, :, :40], half[1, :, 40:] = True, True
    targets = [MaskTarget(half, torch.tensor([0, 2]))]
    segmenter.proposer = Halves()
    optimiser = optimiser_of(segmenter, Stage(60, lr=3e-3))
    draw, options = points_of((0,), 0, torch.device("cpu")), replace(segmenter.loss_options, points=256)
    parts = segmenter.loss(images, text, targets, options, draw)
    assert parts.keys() == {"class", "mask", "dice"}
    (gradient,) = torch.autograd.grad(parts["mask"] + parts["dice"], [segmenter.relative["1"].refinement.weight])
    assert gradient.abs().max() > 0
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        parts = segmenter.loss(images, text, targets, options, draw)
        sum(parts.values()).backward()
        optimiser.step()
        losses.append(float(parts["class"].detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_recipe_is_the_official_configuration() -> None:
    recipe = recipe_named("maskclip-vit-l14").to_dict()
    expected = {
        "stages.0.steps": 10_000, "stages.0.lr": 1e-4, "stages.0.warmup": 10, "stages.0.weight_decay": 0.05,
        "stages.0.max_grad_norm": 0.01, "batch_size": 8, "precision": "float16", "jitter.side": 1024, "loss.classes": 2.0,
        "loss.mask": 5.0, "loss.dice": 5.0, "loss.void": 0.0, "loss.points": 12_544, "model.void": "word",
        "model.templates": "none",
    }  # fmt: skip
    assert {name: recipe[name] for name in expected} == expected
    assert MODELS["maskclip-vit-l14"].num_parameters()["trainable"] == 5_817_104


def test_the_tiny_recipe_trains_and_its_weights_load(tmp_path: Path) -> None:
    settings = ["steps=2", "batch_size=1", "validation=()", "model.clip_image_size=64", "loss.points=64", "fiser.weight=1.0"]
    folder = train(with_overrides(recipe_named("maskclip-tiny"), settings), tmp_path, device="cpu", workers=0)
    loaded: Any = MODELS["maskclip-tiny"].load({"maskclip": str(folder)})
    assert sorted(loaded.relative) == ["2", "5"]
    assert loaded.config.clip_image_size == 64
    plain: Any = MODELS["maskclip-tiny"].load()
    assert len(plain.relative) == 0


def test_official_names_are_ours() -> None:
    state = {"visual.proj": torch.zeros(1)}
    for order, block in enumerate((5, 11)):
        for name in ("q_prime_norm", "k_prime_proj_weight"):
            state[f"visual.transformer.resblocks.{block}.attn.{name}_added_params.weight"] = torch.tensor(float(block))
        for number in (1, 3):
            state[f"visual.transformer.conv{number}_added_params.{order}.bias"] = torch.tensor(float(order))
    relative, rest = relative_from_official(state)
    assert set(rest) == {"visual.proj"}
    assert {name: float(tensor) for name, tensor in relative.items()} == {
        "5.query_norm.weight": 5, "5.key.weight": 5, "11.query_norm.weight": 11, "11.key.weight": 11,
        "5.mask_embedding.bias": 0, "11.mask_embedding.bias": 1, "5.refinement.bias": 0, "11.refinement.bias": 1,
    }  # fmt: skip
