"""Recipes: the papers' numbers, and settings that are changed by name."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lexiseg.cli import main
from lexiseg.errors import UsageError
from lexiseg.methods import RECIPES, model_named, recipe_named
from lexiseg.methods.recipe import Stage, with_overrides
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.examples import open_examples
from lexiseg.training.optimiser import optimiser_of, set_lr
from lexiseg.world import world_classes
from tests.laws.builders import tiny_cmpf, tiny_fcclip
from tests.training.recipes import recipe


def test_the_papers_numbers():
    """CMPF's and FC-CLIP's settings, as `facts` of the official code have them."""
    for name in ("fcclip-convnext-l", "cmpf-rn50x64"):
        settings = recipe_named(name).to_dict()
        named = ("data", "batch_size", "precision", "jitter.side", "jitter.min_scale", "jitter.max_scale")
        assert {key: settings[key] for key in named} == {
            "data": "coco-panoptic-train", "batch_size": 16, "precision": "float16", "jitter.side": 1024,
            "jitter.min_scale": 0.1, "jitter.max_scale": 2.0,
        }  # fmt: skip
        stage = {key.removeprefix("stages.0."): value for key, value in settings.items() if key.startswith("stages.0.")}
        assert (stage["steps"], stage["lr"], stage["weight_decay"], stage["max_grad_norm"]) == (368_750, 1e-4, 0.05, 0.01)
        loss = {key: value for key, value in settings.items() if key.startswith("loss.")}
        assert (loss["loss.points"], loss["loss.classes"], loss["loss.mask"], loss["loss.dice"]) == (12_544, 2.0, 5.0, 5.0)
        assert (loss["loss.void"], loss["loss.oversample"], loss["loss.importance"]) == (0.1, 3.0, 0.75)


def test_the_official_numbers_of_catseg():
    settings = recipe_named("catseg-vit-b16").to_dict()
    stage = {key.removeprefix("stages.0."): value for key, value in settings.items() if key.startswith("stages.0.")}
    assert (stage["steps"], stage["lr"], stage["weight_decay"], stage["max_grad_norm"]) == (80_000, 2e-4, 1e-4, 0.01)
    assert (stage["cosine"], stage["lr_multipliers.clip"], settings["batch_size"]) == (True, 0.01, 4)
    assert (settings["data"], settings["model.behaviour"], settings["precision"]) == ("coco-stuff-train", "official", "float32")
    jitter = {key.removeprefix("jitter."): value for key, value in settings.items() if key.startswith("jitter.")}
    assert jitter == {
        "side": 384, "min_scale": 1.0, "max_scale": 1.0, "mirror": 0.5, "fill": 128, "fit": "shorter", "colours": True,
    }  # fmt: skip
    assert recipe_named("catseg-vit-l14").to_dict()["model.image_size"] == 336


def test_cosine():
    stage = Stage(100, lr=2.0, cosine=True)
    assert [stage.lr_at(step) for step in (0, 25, 50, 75)] == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])
    assert stage.lr_at(99) < 1e-3
    assert Stage(100, lr=2.0, cosine=True, warmup=10).lr_at(0) == pytest.approx(0.2)


def test_the_papers_schedule():
    stage = recipe_named("cmpf-convnext-l").stages[0]
    rates = [stage.lr_at(step) for step in (0, 327_777, 327_778, 355_091, 355_092, 368_749)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6])


def test_warmup_and_cooldown():
    stage = Stage(100, lr=1.0, warmup=10, cooldown=0.5)
    assert [stage.lr_at(step) for step in (0, 4, 9, 50, 75, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.02])


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("batch_size=8", "batch_size", 8),
        ("lr=3", "stages.0.lr", 3.0),
        ("stages.0.milestones=4,6", "stages.0.milestones", (4, 6)),
        ("milestones=(4,)", "stages.0.milestones", (4,)),
        ("precision=bfloat16", "precision", "bfloat16"),
        ("loss.points=32", "loss.points", 32),
        ("loss.costs.dice=1", "loss.costs.dice", 1.0),
        ("jitter.min_scale=0.5", "jitter.min_scale", 0.5),
        ("model.num_queries=5", "model.num_queries", 5),
        ("model.shortest_edge=None", "model.shortest_edge", None),
        ("lr_multipliers.clip=0.5", "stages.0.lr_multipliers.clip", 0.5),
        ("validation=world:val", "validation", ("world:val",)),
    ],
)
def test_settings_are_changed_by_name(setting, name, value):
    before, after = recipe().to_dict(), with_overrides(recipe(), [setting]).to_dict()
    assert after.pop(name) == value
    assert after.items() <= before.items() or name.endswith("lr_multipliers.clip")


def test_layers_of_an_ablation():
    assert recipe("model.num_queries=3").model.num_queries == 3
    cmpf = recipe_named("cmpf-tiny")
    assert with_overrides(cmpf, ["model.query_layers=[]", "model.feature_layers=[]"]).model.query_layers == ()
    assert with_overrides(cmpf, ["model.query_layers=2"]).model.query_layers == (2,)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("batch_siz=1", "no option 'batch_siz': did you mean batch_size"),
        ("batch_size", "'batch_size' is not a setting: write NAME=VALUE"),
        ("batch_size=many", "batch_size must be int ≥ 1, not 'many'"),
        ("batch_size=2.5", "batch_size must be int ≥ 1, not 2.5"),
        ("lr=fast", "stages.0.lr must be float ≥ 0, not 'fast'"),
        ("batch_size=0", "batch_size must be int ≥ 1, not 0"),
        ("precision=int8", "precision must be 'float32' or 'bfloat16' or 'float16', not 'int8'"),
        ("steps=0", "stages.0.steps must be int ≥ 1, not 0"),
        ("seed=-1", "seed must be int ≥ 0"),
        ("jitter.side=0", "jitter.side must be int ≥ 32"),
        ("jitter.mirror=7", "jitter.mirror must be float"),
        ("jitter.fit=other", "jitter.fit must be 'longer' or 'shorter'"),
        ("jitter.min_scale=3", "min_scale = 3.0 is greater than max_scale"),
        ("warmup=-3", "stages.0.warmup must be int ≥ 0"),
        ("max_grad_norm=-1", "stages.0.max_grad_norm must be float ≥ 0"),
        ("ema_decay=2", "ema_decay must be float"),
        ("max_classes_per_batch=-1", "max_classes_per_batch must be int ≥ 0"),
        ("model.num_heads=7", "num_heads = 7 does not divide the 64 channels"),
        ("model.num_queries=0", "model.num_queries must be int ≥ 1"),
        ("lr=nan", "stages.0.lr must be float"),
        ("model.query_layers=a,b", "no option 'model.query_layers'"),
    ],
)
def test_settings_that_are_wrong(setting, words):
    with pytest.raises(UsageError, match=words):
        with_overrides(recipe(), [setting])


def test_names_that_are_wrong():
    with pytest.raises(UsageError, match="unknown recipe 'cmpf-tinny': did you mean cmpf-tiny"):
        recipe_named("cmpf-tinny")


def test_norms_and_embeddings_do_not_decay():
    segmenter = tiny_cmpf("convnext")
    optimiser = optimiser_of(segmenter, Stage(1, lr=1.0, weight_decay=0.05, lr_multipliers={"pixel_decoder": 0.1}))
    undecayed = {id(p) for group in optimiser.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    everything = [id(p) for group in optimiser.param_groups for p in group["params"]]
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.Embedding)
    expected = {
        id(parameter)
        for name, part in segmenter.parts().items()
        if name not in {"clip", "sam"}
        for module in part.modules()
        if isinstance(module, kinds)
        for parameter in module.parameters(recurse=False)
    }
    assert undecayed == expected
    assert len(everything) == len(set(everything))
    assert set(everything) == {id(p) for p in segmenter.parameters() if p.requires_grad}
    assert not any(p.requires_grad for part in (segmenter.clip, segmenter.sam) for p in part.parameters())
    set_lr(optimiser, 0.5)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in segmenter.pixel_decoder.parameters()} == {0.05}
    assert {rates[id(p)] for p in segmenter.mask_decoder.parameters()} == {0.5}


def test_a_part_that_is_not_there():
    with pytest.raises(UsageError, match="no part 'sam' to train; it has clip, pixel_decoder, mask_decoder"):
        optimiser_of(tiny_fcclip("convnext"), Stage(1, parts=("sam",)))


def test_a_stage_that_trains_nothing():
    with pytest.raises(UsageError, match=r"parts=\(\) trains no parameter"):
        optimiser_of(tiny_fcclip("convnext"), Stage(1, parts=()))


def test_the_tiny_models_are_trained_on_seen_names_only():
    seen = Vocabulary.builtin("emoji-seen")
    assert seen.names == tuple(row.name for row in world_classes() if row.seen)
    trained = set(open_examples("world:train", None, seed=0).vocabulary.class_names)
    assert trained == set(seen.class_names)


def test_the_recipes_are_listed(capsys):
    assert main(["train", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == RECIPES.keys()
    assert told["cmpf-tiny"]["settings"]["model.query_layers"] == [1, 2]


def test_a_dry_run_counts(capsys, monkeypatch, tmp_path):
    """Settings may stand before and after options."""
    monkeypatch.setenv("LEXISEG_CACHE", str(tmp_path))
    assert main(["train", "fcclip-tiny", "batch_size=2", "--dry-run", "--json", "grad_accum_steps=2"]) == 0
    assert not list(tmp_path.rglob("*.safetensors")), "names as a model without weights embeds them are not kept"
    told = json.loads(capsys.readouterr().out)
    assert told["batch"]["images"] == [2, 3, 384, 384]
    assert told["images_at_once"] == 1
    parameters, memory = told["parameters"], told["memory_GiB"]
    assert parameters["total"] == parameters["trainable"] + parameters["frozen"]
    assert parameters["trainable"] == 908_289
    assert memory["all"] == pytest.approx(memory["weights"] + memory["optimiser"] + memory["of each image"])
    assert told["missing"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fcclip-tiny"], "give --output DIR"),
        (["fcclip-tinny", "--output", "x"], "did you mean fcclip-tiny"),
        (["fcclip-tiny", "--output", "x", "lr=fast"], "lr must be float"),
        (["fcclip-tiny", "--output", "x", "--data", "nowhere"], "no data set named 'nowhere'"),
        (["fcclip-tiny", "--output", "x", "--data", "world:nowhere"], "unknown split 'nowhere'"),
    ],
)
def test_wrong_calls(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_of_memory_is_near(monkeypatch):
    """The estimate from two small pictures against what one of the real size keeps."""
    from lexiseg.training import plan

    whole = recipe("jitter.side=256", "loss.points=64")
    segmenter = model_named(whole.name).empty()
    optimiser_of(segmenter, whole.stages[0])
    text = Vocabulary.builtin("coco")
    estimate = plan.kept_of_an_image(whole, segmenter, text, torch.device("cpu"))
    monkeypatch.setattr(plan, "PROBES", (2, 1))
    assert estimate == pytest.approx(plan.kept_of_an_image(whole, segmenter, text, torch.device("cpu")), rel=0.1)
