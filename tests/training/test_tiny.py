"""The recipes of the tiny encoders: their parts, and that what is shipped was really trained."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from lexiseg.inference.pipeline import load
from lexiseg.methods import recipe_named
from lexiseg.methods.base import ASSETS
from lexiseg.methods.weights import read_card
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.clip_tiny import region_embeddings, thing_boxes
from lexiseg.training.sam_tiny import encode, likeness, mask_loss, one_click, tiny_sam
from lexiseg.training.score import top1, whole
from lexiseg.training.tiny import Run, as_images, colour_augmented, learning_rate, parameter_groups
from lexiseg.world import scenes


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    rates = [learning_rate(step, 1000, 2.0, warmup=100, cooldown=0.3) for step in range(1001)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[100:700] == [2.0] * 600
    assert rates[1000] == 0
    assert all(later <= earlier for earlier, later in pairwise(rates[700:]))


def test_every_parameter_is_in_one_group_and_only_kernels_decay():
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Embedding(5, 3))
    groups = parameter_groups([(model[0], 1.0), (model, 0.5)], 0.1)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])
    assert {group["rate"] for group in groups if any(p is model[0].weight for p in group["params"])} == {1.0}


def test_a_run_goes_on_where_it_was(tmp_path):
    assert Run(tmp_path).load() is None
    Run(tmp_path).save({"step": 7, "weights": torch.arange(3.0)})
    state = Run(tmp_path).load()
    assert state is not None
    assert state["step"] == 7
    assert torch.equal(state["weights"], torch.arange(3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_colours_change_but_stay_colours():
    images = as_images(list(scenes("val", 16, seed=1, size=32)))
    changed = colour_augmented(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed - images).abs().mean() > 0.02
    grey = torch.full((4, 3, 2, 2), 0.5)
    torch.testing.assert_close(colour_augmented(grey, torch.Generator()), grey)


def test_the_mask_loss_is_least_at_the_truth():
    truth = torch.zeros(1, 8, 8)
    truth[:, 2:5, 2:5] = 1
    right, empty, full = 20 * (2 * truth - 1), torch.full((1, 8, 8), -20.0), torch.full((1, 8, 8), 20.0)
    assert mask_loss(right, truth) < 0.01
    assert mask_loss(empty, truth) > 1
    assert mask_loss(full, truth) > 1


def test_a_fresh_sam_lets_colours_through():
    torch.manual_seed(0)
    model = tiny_sam().eval()
    picture = torch.zeros(1, 3, 256, 256)
    picture[:, 0, :, 128:] = 1.0  # right half red
    with torch.no_grad():
        embeddings = model.vision_encoder(picture).last_hidden_state
        near = likeness(model, embeddings, torch.tensor([[[[200.0, 100.0]]]]))[0, 0]
    assert near[:, 34:].mean() > near[:, :30].mean() + 0.5


def test_boxes_contain_their_things():
    for scene in scenes("val", 5, seed=3):
        for (left, top, right, bottom), label in thing_boxes(scene, margin=1.0):
            rows, columns = np.nonzero(np.isin(scene.panoptic, [row.id for row in scene.segments if row.label == label]))
            assert ((rows >= top - 0.5) & (rows < bottom + 0.5) & (columns >= left - 0.5) & (columns < right + 0.5)).any()


@pytest.mark.parametrize("name", ["sam_clip-tiny", "sam_clip-tiny-vit", "sam_clip-tiny-convnext"])
def test_what_is_shipped_was_trained(name):
    """A loose floor, on few scenes; `make score` has the figures."""
    pipeline = load(name, device="cpu")
    text = pipeline.embed(Vocabulary.builtin("emoji"))
    clip, sam = pipeline.segmenter.parts()["clip"], pipeline.segmenter.parts()["sam"]
    right, clicks, rng = [], [], np.random.default_rng(0)
    for scene in scenes("val", 12, seed=31):
        vectors, labels = region_embeddings(clip, [scene], None)
        right.append(top1(vectors, text) == labels)
        segment = scene.segments[-1]
        clicks.append(one_click(sam.model, encode(sam.model, as_images([scene])), scene.panoptic == segment.id, rng))
    assert torch.cat(right).float().mean() > 0.5
    assert np.mean(clicks) > 0.4


@pytest.mark.parametrize("name", ["clip-tiny-convnext", "clip-tiny-resnet", "clip-tiny-vit", "sam-tiny"])
def test_weights_have_a_card_that_says_how_they_came_to_be(name):
    card = json.loads((ASSETS / name / "card.json").read_text())
    assert set(card) == {"data", "steps", "minutes", "seed", "licence", "curve"}
    assert 0 < card["curve"][-1]["step"] <= card["steps"]


@pytest.mark.parametrize(
    ("name", "pixels", "things"),
    [  # the last three do not tell things of a class apart
        ("fcclip-tiny", 0.25, 0.2),
        ("cmpf-tiny", 0.25, 0.2),
        ("fovseg-tiny", 0.25, 0.2),
        ("catseg-tiny", 0.2, 0.05),
        ("sam_mi-tiny", 0.2, 0.05),
        ("escnet-tiny", 0.25, 0.05),
    ],
)
def test_what_was_taught_to_segment(name, pixels, things):
    """A loose floor, on few scenes; `make score` has the figures."""
    found = dict(whole(load(name, device="cpu"), list(scenes("val", 8, seed=31)), "floor"))
    assert found["mIoU"] > pixels
    assert found["PQ"] > things
    card = read_card(ASSETS / name)
    assert card is not None
    recipe = json.loads(json.dumps(recipe_named(name).document()))
    assert card["recipe"].keys() <= recipe.keys()
    changed = {key for key, value in card["recipe"].items() if recipe[key] != value}
    assert changed == set(card.get("older", ())), "it is what its recipe makes, but for what the card says is older"
    assert card["step"] == recipe_named(name).steps == card["curve"][-1]["step"]
