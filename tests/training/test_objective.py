"""The objective of a training: FiSeR beside the losses of every method that it attaches to, by an option of the recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lexiseg.data.catalogue import rows
from lexiseg.errors import UsageError
from lexiseg.losses.fiser import FiserOptions
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods import RECIPES, recipe_named
from lexiseg.methods.recipe import with_overrides
from lexiseg.methods.weights import read_weights, save_segmenter
from lexiseg.structures import ImageBatch, MaskTarget
from lexiseg.training.batches import Batch, points_of
from lexiseg.training.examples import WORLD, world_parts
from lexiseg.training.loop import train
from lexiseg.training.objective import Objective, fiser_of
from lexiseg.training.optimiser import clip_gradients, optimiser_of
from tests.laws.builders import (
    some_images,
    some_text,
    tiny_catseg,
    tiny_escnet,
    tiny_fcclip,
    tiny_fovseg,
    tiny_maskclip,
    tiny_sam_mi,
)
from tests.training.recipes import catseg_recipe

ON = FiserOptions(weight=0.5, layers=1)
FEW = SetLossOptions(void=0.0, points=64)
METHODS: dict[str, tuple[Callable[[], Any], str, Any]] = {
    "catseg": (tiny_catseg, "catseg-tiny", None),
    "sam_mi": (tiny_sam_mi, "sam_mi-tiny", None),
    "escnet": (tiny_escnet, "escnet-tiny", None),
    "maskclip": (tiny_maskclip, "maskclip-tiny", FEW),
    "maskclip, tuned": (partial(tiny_maskclip, tuned=("f_q",)), "maskclip-tiny", FEW),
    "fovseg": (tiny_fovseg, "fovseg-tiny", replace(FEW, mask=0.0, dice=0.0)),
}


class Texts:
    """In place of a `TextSampler`: some classes, and the targets as they are."""

    def sample(self, batch: Batch) -> Any:
        return some_text(), batch.targets


def batch() -> Batch:
    targets = [MaskTarget(torch.ones(1, 64, 64, dtype=torch.bool), torch.tensor([label])) for label in (0, 2)]
    return Batch(some_images((64, 64), (64, 64)), tuple(targets), (0, 1))


def objective_of(method: str, fiser: FiserOptions = ON) -> Objective:
    build, name, loss = METHODS[method]
    segmenter, recipe = build(), with_overrides(recipe_named(name), [])
    recipe = replace(recipe, loss=recipe.loss if loss is None else loss, fiser=fiser)
    torch.manual_seed(3)
    return Objective(segmenter.train(), Texts(), recipe, fiser_of(segmenter, fiser))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_fiser_attaches_by_an_option_of_the_recipe(method: str, tmp_path: Path) -> None:
    """It adds one loss and changes no other, trains what the method trains of CLIP or its mask tokens, and is not saved."""
    plain, objective = objective_of(method, FiserOptions()), objective_of(method)
    draws = [points_of((0, 1), 0, torch.device("cpu")) for _ in range(2)]
    torch.manual_seed(4)
    expected = plain(batch(), draws[0])
    torch.manual_seed(4)
    losses = objective(batch(), draws[1])
    assert losses.keys() == {*expected, "fiser"}
    for name, value in expected.items():
        assert_close(losses[name], value)
    segmenter, fiser = objective.segmenter, objective.fiser
    optimiser = optimiser_of(segmenter, objective.recipe.stages[-1], fiser)
    objective(batch(), points_of((0, 1), 0, torch.device("cpu")))["fiser"].backward()
    reached = {
        entry.name.split(".")[0]
        for entry in segmenter.trained_parameters()
        if entry.parameter.grad is not None and entry.parameter.grad.abs().max() > 0
    }
    assert reached >= ({"relative"} if method == "maskclip" else {"clip"})
    assert fiser is not None
    assert all(parameter.grad is not None for parameter in fiser.parameters())
    optimiser.step()
    save_segmenter(segmenter, tmp_path, {"model": "test"})
    names = read_weights(tmp_path).tensors
    assert names.keys() <= segmenter.state_dict().keys()
    assert not any("fiser" in name or "covered" in name for name in names)


def test_a_weight_scales_it_and_the_image_tokens_are_chosen() -> None:
    found = {}
    for key, options in {
        "both": ON, "twice": replace(ON, weight=1.0), "patches": replace(ON, visual="patches"),
        "masks": replace(ON, visual="masks"),
    }.items():  # fmt: skip
        losses = objective_of("fovseg", options)(batch(), points_of((0, 1), 0, torch.device("cpu")))
        found[key] = float(losses["fiser"].detach())
    assert found["twice"] == pytest.approx(2 * found["both"])
    assert len({round(value, 5) for value in found.values()}) == 4


def test_shared_out_batches_have_the_loss_of_all_images() -> None:
    objective = objective_of("fovseg")
    whole = objective(batch(), points_of((0, 1), 0, torch.device("cpu")))["fiser"]
    parts = []
    for number in range(2):
        own = batch()
        part = Batch(ImageBatch.of([own.images.image(number)]), own.targets[number : number + 1], (number,))
        parts.append(objective(part, points_of((number,), 0, torch.device("cpu")))["fiser"])
    assert_close(whole, torch.stack(parts).mean(), atol=1e-4, rtol=1e-4)


def test_it_is_refused_where_it_would_train_nothing() -> None:
    assert fiser_of(tiny_fcclip("convnext"), FiserOptions()) is None
    for segmenter, options, message in (
        (tiny_fcclip("convnext"), ON, "a CLIP with a vision transformer"),
        (tiny_catseg(), replace(ON, visual="masks"), "a method with mask tokens"),
        (tiny_maskclip(), replace(ON, visual="patches"), r"nothing to train.*model\.tuned=f_q"),
        (tiny_maskclip(relative_blocks=()), ON, "nothing to train"),
    ):
        with pytest.raises(UsageError, match=message):
            fiser_of(segmenter, options)


def test_the_predictors_gradient_is_clipped_apart() -> None:
    objective = objective_of("fovseg")
    optimiser = optimiser_of(objective.segmenter, objective.recipe.stages[0], objective.fiser)
    sum(objective(batch(), points_of((0, 1), 0, torch.device("cpu"))).values()).backward()  # type: ignore[union-attr]
    assert objective.fiser is not None
    own = list(objective.fiser.parameters())
    others = [entry.parameter for entry in objective.segmenter.trained_parameters() if entry.parameter.grad is not None]
    norms = [torch.stack([value.grad.norm() for value in values if value.grad is not None]).norm() for values in (others, own)]
    assert clip_gradients(optimiser, 0.01) == pytest.approx(float(norms[0]), rel=1e-4)
    for values in (others, own):
        after = torch.stack([value.grad.norm() for value in values if value.grad is not None]).norm()
        assert float(after) == pytest.approx(0.01, rel=1e-3)


def test_an_interrupted_training_with_it_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    settings = ("fiser.weight=1.0", "fiser.layers=1", "fiser.heads=8")
    train(catseg_recipe(*settings), tmp_path / "whole", device="cpu", workers=0)
    for until in (3, None):
        train(catseg_recipe(*settings), tmp_path / "parts", device="cpu", workers=0, until=until)
    whole, parts = (read_weights(tmp_path / name / "model").tensors for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_name_data_that_there_is(name: str) -> None:
    """Data sets of the catalogue, or splits of the emoji world."""
    recipe, known = recipe_named(name), {row.name for row in rows()}
    for data in (recipe.data, *recipe.validation):
        if data.startswith(WORLD):
            world_parts(data)
        else:
            assert data in known
