"""What must hold for FOV-Seg beyond the laws of all methods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from lexiseg.backbones.clip import build_clip
from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.proposals import MaskProposer, Proposals
from lexiseg.errors import UsageError
from lexiseg.losses.fiser import Fiser
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods import recipe_named
from lexiseg.methods.fovseg.model import FovSeg, FovSegLossOptions
from lexiseg.methods.fovseg.teva import DistributionAdapter, MaskTargetAttention
from lexiseg.methods.recipe import Stage
from lexiseg.methods.weights import fill_from, save_segmenter
from lexiseg.structures import ImageBatch, MaskTarget
from lexiseg.training.batches import points_of
from lexiseg.training.optimiser import optimiser_of
from tests.laws.builders import SomeProposals, some_images, some_text, tiny_fovseg, tiny_maskclip

FEW = FovSegLossOptions(classes=SetLossOptions(mask=0.0, dice=0.0, points=64))


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
    """With the same plain attention, and "no object" beside the names."""
    ours, text = fresh(clip_image_size=64, **options), some_text()
    plain = tiny_maskclip(relative_blocks=(), clip_image_size=64, shortest_edge=64)
    plain.load_state_dict({name: ours.state_dict()[name] for name in plain.state_dict()})
    images = some_images((60, 80))
    features, masks = ours.encode_images(images.pixels), torch.randn(1, 7, 16, 24)
    assert_close(ours.embed(features, masks, text), plain.embed(features, masks, text), atol=1e-5, rtol=1e-5)
    found, expected = ours(images, text), plain(images, text)
    assert torch.equal(found.masks, expected.masks)
    assert_close(found.per_class().log_softmax(-1), expected.per_class(), atol=1e-3, rtol=1e-3)


def test_every_part_makes_a_difference() -> None:
    text, images = some_text(), some_images((60, 80))
    found = [
        tiny_fovseg(**options)(images, text).classes
        for options in ({}, {"teva": False}, {"adapter_layers": 0}, {"adapter_layers": 1})
    ]
    for number, one in enumerate(found):
        for other in found[:number]:
            assert (one - other).abs().max() > 1e-4


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
    segmenter, text, images = tiny_fovseg(fiser_layers=1), some_text(), some_images((64, 64), (64, 64))
    before = {name: values.clone() for name, values in segmenter.state_dict().items()}
    optimiser = optimiser_of(segmenter.train(), Stage(1, lr=1e-2, weight_decay=0.5))
    targets = [MaskTarget(torch.ones(1, 64, 64, dtype=torch.bool), torch.tensor([label])) for label in (0, 2)]
    sum(segmenter.loss(images, text, targets, FEW).values()).backward()  # type: ignore[union-attr]
    optimiser.step()
    for name, values in segmenter.state_dict().items():
        moved = (values - before[name]).abs()
        if "visual" in name and "attn.in_proj" in name:
            width = len(values) // 3
            assert moved[:width].max() > 1e-4, name
            assert moved[width:].max() == 0, name
        elif name.startswith(("clip", "proposer")):
            assert moved.max() == 0, name
        elif not name.endswith(("key.bias", "in_proj_bias")):
            assert moved.max() > 0, name
    assert not segmenter.proposer.training


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


def test_it_learns_names_and_what_is_no_object() -> None:
    segmenter, text, (images, targets) = tiny_fovseg(clip_image_size=64).train(), some_text(), halves()
    segmenter.proposer = Given()
    optimiser = optimiser_of(segmenter, Stage(240, lr=3e-3))
    draw = points_of((0,), 0, torch.device("cpu"))
    losses = []
    for _ in range(240):
        optimiser.zero_grad()
        loss = segmenter.loss(images, text, targets, FEW, draw)["class"]
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]
    best = segmenter.eval()(images, text).classes[0].argmax(-1).tolist()
    assert best == [0, 2, 5, 5, 5, 5, 5]


def test_images_are_shared_out_in_any_way() -> None:
    segmenter, text = tiny_fovseg(fiser_layers=1), some_text()
    images = some_images((64, 64), (64, 64))
    targets = [MaskTarget(torch.ones(1, 64, 64, dtype=torch.bool), torch.tensor([label])) for label in (0, 2)]
    whole = segmenter.loss(images, text, targets, FEW, points_of((8, 9), 3, torch.device("cpu")))
    parts = [
        segmenter.loss(
            ImageBatch.of([images.image(number)]), text, [target], FEW, points_of((8 + number,), 3, torch.device("cpu"))
        )
        for number, target in enumerate(targets)
    ]
    assert_close(whole["fiser"], torch.stack([part["fiser"] for part in parts]).mean(), atol=1e-4, rtol=1e-4)


def test_the_predictor_is_not_among_the_weights(tmp_path: Any) -> None:
    segmenter, images, text = tiny_fovseg(fiser_layers=1), some_images((60, 80)), some_text()
    card = save_segmenter(segmenter, tmp_path, {"model": "fovseg-test"})
    assert card["parts"] == ["adapter", "clip", "teva", "void"]
    again = tiny_fovseg()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(0.1)
    for name, part in segmenter.parts().items():
        if name in ("proposer",):
            again.parts()[name].load_state_dict(part.state_dict())
    fill_from(again, tmp_path, model="fovseg-test")
    assert torch.equal(again(images, text).classes, segmenter(images, text).classes)


def test_the_papers_weights() -> None:
    options = FovSegLossOptions()
    assert (options.fiser, options.classes.classes) == (1.0, 2.0)
    assert recipe_named("fovseg-tiny").to_dict()["loss.fiser"] == 1.0
    with pytest.raises(UsageError, match="adapter_layers must be int ≥ 0 and ≤ 3, not 4"):
        tiny_fovseg(adapter_layers=4)


def test_more_names_cost_next_to_nothing() -> None:
    """At full size, of CLIP and all that names 100 masks: 847 names against 150, in floating point operations."""
    with torch.device("meta"), torch.no_grad():
        clip = build_clip("ViT-L-14-336-quickgelu")
        assert isinstance(clip, ClipViT)
        segmenter = FovSeg(clip, SomeProposals())
        costs = []
        for count in (150, 847):
            text = some_text(count, segmenter.clip.width).to("meta")
            with FlopCounterMode(display=False) as counter:
                segmenter.names(segmenter.encode_images(torch.zeros(1, 3, 800, 1088)), torch.zeros(1, 100, 200, 272), text)
            costs.append(counter.get_total_flops())
    assert 1 < costs[1] / costs[0] < 1.01


# --- FiSeR ------------------------------------------------------------------------------------------------------------


def fiser() -> tuple[Any, Fiser]:
    segmenter = tiny_fovseg(fiser_layers=2)
    assert isinstance(segmenter.fiser, Fiser)
    return segmenter, segmenter.fiser


def targets_of(*labels: list[int]) -> list[MaskTarget]:
    return [MaskTarget(torch.ones(len(each), 4, 4, dtype=torch.bool), torch.tensor(each, dtype=torch.long)) for each in labels]


def test_covered_words_do_not_tell_which_they_were() -> None:
    segmenter, loss = fiser()
    tokens = segmenter.clip.tokenize(["tree", "moss", "tree house"])
    covered = segmenter.clip.encode_text(tokens, covered=loss.covered)
    assert_close(covered[0], covered[1])
    assert (segmenter.clip.encode_text(tokens)[0] - covered[0]).abs().max() > 1e-3
    assert (covered[0] - covered[2]).abs().max() > 1e-4, "how many words there were stays"


def test_images_of_few_names_are_padded_without_a_trace() -> None:
    """The loss of a batch is the mean of those of its images alone; an image without names adds nothing."""
    segmenter, loss = fiser()
    patches, text, chance = torch.randn(3, 6, 24), some_text(), torch.tensor([0.1, 0.9, 0.5])
    targets = targets_of([0, 3, 3, 4], [2], [])
    whole = loss(segmenter.clip, patches, text, targets, chance)
    alone = [loss(segmenter.clip, patches[n : n + 1], text, targets[n : n + 1], chance[n : n + 1]) for n in range(3)]
    assert alone[2] == 0
    assert_close(whole, sum(alone) / 3, atol=1e-4, rtol=1e-4)
    nothing = loss(segmenter.clip, patches[:1].requires_grad_(), text, targets_of([]), chance[:1])
    nothing.backward()
    assert all(parameter.grad is not None for parameter in loss.parameters()), "as several processes need it"


def test_chance_covers_every_name() -> None:
    segmenter, loss = fiser()
    patches, text, targets = torch.randn(1, 6, 24), some_text(), targets_of([0, 2, 4])
    with torch.no_grad():
        found = [
            float(loss(segmenter.clip, patches, text, targets, torch.tensor([chance]))) for chance in (0.0, 0.3, 0.4, 0.99, 1.0)
        ]
    assert found[0] == found[1]
    assert found[3] == found[4]
    assert len(set(found)) == 3


def test_a_name_can_be_found_from_the_patches_and_the_other_names() -> None:
    segmenter, loss = fiser()
    text, pictures = some_text(), torch.randn(5, 1, 24).expand(-1, 6, -1)
    optimiser = torch.optim.Adam(loss.parameters(), 3e-3)
    targets, patches = targets_of(*([label] for label in range(5))), pictures.clone()
    for _ in range(60):
        optimiser.zero_grad()
        found = loss(segmenter.clip, patches, text, targets, torch.zeros(5))
        found.backward()
        optimiser.step()
    assert float(found.detach()) < 0.1
    swapped = loss(segmenter.clip, patches.flip(0), text, targets, torch.zeros(5))
    assert float(swapped.detach()) > 1


def test_gradients_reach_the_patches_and_not_the_text_tower() -> None:
    segmenter, loss = fiser()
    patches = torch.randn(1, 6, 24, requires_grad=True)
    text = some_text()
    loss(segmenter.clip, patches, replace(text), targets_of([0, 1]), torch.tensor([0.2])).backward()
    assert patches.grad is not None
    assert patches.grad.abs().max() > 0
    assert loss.covered.grad is not None
    assert loss.covered.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in segmenter.clip.parameters())
