"""Options of the models: all can be set, the weights keep them, and what cannot be is said in one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import lexiseg
from lexiseg.backbones.configs import ASSETS
from lexiseg.backbones.digests import digest_of
from lexiseg.backbones.sam import SamFamily
from lexiseg.backbones.sources import Source
from lexiseg.cli import main
from lexiseg.errors import UsageError, WeightsError
from lexiseg.methods import MODELS, RECIPES
from lexiseg.methods.base import MethodConfig, Segmenter
from lexiseg.methods.catseg.config import CatSegConfig
from lexiseg.methods.catseg.model import CatSeg
from lexiseg.methods.catseg.weights import CatSegCheckpoint
from lexiseg.methods.fcclip.config import FcClipConfig
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.maskclip.config import MaskClipConfig
from lexiseg.methods.maskclip.model import MaskClip
from lexiseg.methods.maskclip.weights import MaskClipCheckpoint
from lexiseg.methods.recipe import with_overrides
from lexiseg.methods.variant import Official, Part, Variant
from lexiseg.methods.weights import CARD_KEY, SavedWeights, read_card, read_weights, save_segmenter, write_safetensors
from lexiseg.ops.options import Option, describe, flat, with_settings
from lexiseg.structures import MaskPrediction, PixelPrediction
from tests.backbones.test_mask2former import tiny as tiny_mask2former
from tests.laws.builders import (
    COST_SIZES,
    SIZES,
    SomeProposals,
    loud_sam,
    some_images,
    some_text,
    tiny_catseg,
    tiny_clip,
    tiny_cmpf_with_masks,
    tiny_escnet,
    tiny_fovseg,
    tiny_maskclip,
    tiny_sam,
    tiny_sam_clip,
    tiny_sam_mi,
)

PUBLISHED = [name for name in MODELS if not name.endswith("-test")]  # not those of the tests of trainings
TRAINED = [name for name in PUBLISHED if name.endswith("-tiny") and MODELS[name].source is not None]

# --- every option can be set ------------------------------------------------------------------------------------------


def others(option: Option) -> Iterator[tuple[str, Any]]:
    """Settings that may be valid: as text, and the value that comes out."""
    value = option.value
    if words := re.findall(r"'([\w-]+)'", option.type):
        values: Sequence[Any] = [(word,) for word in words] if isinstance(value, tuple) else words
    elif isinstance(value, bool) or value is None:
        values = [not value, 64]
    elif isinstance(value, int):
        values = [2 * value, value + 1, 3, value - 1]
    elif isinstance(value, float):
        values = [value / 2, 0.25]
    elif isinstance(value, tuple):
        values = [value[:1], (1,), tuple(2 * number for number in value)]
    elif isinstance(value, str):
        values = ["vild14", "catseg"]
    else:
        raise AssertionError(f"no other value is known of {option}")
    return ((str(other), other) for other in values if other != value)


def with_another(option: Option, change: Callable[[Sequence[str]], Mapping[str, Any]]) -> tuple[Mapping[str, Any], Any]:
    """What `change` makes of the first valid setting of an option, and the value that was set."""
    refused: list[UsageError] = []
    for text, value in others(option):
        try:
            return change([f"{option.name}={text}"]), value
        except UsageError as error:
            refused.append(error)
    raise AssertionError(f"{option}: {refused}")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_option_can_be_set(name: str) -> None:
    """By the recipe where there is one; the setting changes this option, and nothing else."""
    variant = MODELS[name]
    recipe = variant.recipe and variant.recipe()
    config = variant.config if recipe is None else recipe.model
    before = flat(config)
    for option in describe(config):
        assert option.about, f"{option.name} is not documented"
        if option.type in {"'paper'", "'none'"}:
            continue  # SAM-MI has no other behaviour, Grounded-SAM no other templates
        if option.type.startswith("path"):
            option = replace(option, value="", type="text")

        def change(settings: Sequence[str]) -> Mapping[str, Any]:
            if recipe is None:
                return flat(with_settings(config, settings, owner=name))
            document = with_overrides(recipe, [f"model.{setting}" for setting in settings]).to_dict()
            return {key.removeprefix("model."): value for key, value in document.items() if key.startswith("model.")}

        after, value = with_another(option, change)
        expected = {**before, option.name: value}
        assert {key: str(found) for key, found in after.items()} == {key: str(found) for key, found in expected.items()}


ARCHITECTURES: dict[str, dict[str, Any]] = {  # what differs in each
    "fcclip-tiny": {"num_queries": 5, "hidden_dim": 64, "num_layers": 1, "pixel_decoder_layers": 1, "ffn_dim": 24},
    "cmpf-tiny": {"num_layers": 6, "query_layers": (6,), "feature_layers": (), "sam_layers": 1, "pixel_decoder_ffn_dim": 24},
    "catseg-tiny": {"hidden_dim": 16, "num_layers": 1, "guide_channels": (8, 4), "text_dim": 8, "class_attention": "full"},
    "sam_mi-tiny": {"prompter_dim": 16, "num_heads": 2, "window_size": 4, "decoder_channels": (16, 32)},
    "escnet-tiny": {"num_blocks": 3, "skip_channels": (4, 2), "hidden_dim": 16, "sam_blocks": "random"},
    "maskclip-tiny": {"relative_blocks": (0, 2)},
    "fovseg-tiny": {"teva_bottleneck": 8, "adapter_layers": 3, "teva_shared": True, "void": "vector"},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_of_other_sizes_is_built(name: str) -> None:
    variant = MODELS[name]
    assert not ARCHITECTURES[name].keys() & variant.config.RUNTIME
    with torch.device("meta"):
        usual, other = variant.empty(), variant.empty(replace(variant.config, **ARCHITECTURES[name]))
    assert usual.config == variant.config
    assert other.config == replace(variant.config, **ARCHITECTURES[name])
    assert shapes(other) != shapes(usual)
    assert variant.num_parameters(other.config)["total"] == sum(parameter.numel() for parameter in other.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_is_planned_with_every_option_changed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All options that decide the weights are changed at once; a tiny training is planned by the command, others are built."""
    variant, recipe, settings = MODELS[name], RECIPES[name](), list[str]()

    def change(setting: Sequence[str]) -> Mapping[str, Any]:
        return flat(with_overrides(recipe, [f"model.{setting[0]}"]).model)

    for option in describe(recipe.model):
        if option.type != "'paper'" and option.name not in variant.config.RUNTIME:
            settings.append(f"model.{option.name}={with_another(option, change)[1]}")
            recipe = with_overrides(recipe, settings[-1:])
    if name.endswith("-tiny"):
        assert main(["train", name, *settings, "--dry-run", "--json"]) == 0
        planned = json.loads(capsys.readouterr().out)["settings"]
        assert {setting.split("=")[0] for setting in settings} <= planned.keys()
    else:
        config = with_overrides(RECIPES[name](), settings).model
        with torch.device("meta"):
            assert variant.empty(config).config == config


def shapes(segmenter: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in segmenter.state_dict().items()}


@pytest.mark.parametrize("name", ["sam_clip-tiny", *TRAINED])
def test_only_what_decides_no_weight_may_be_changed_after_training(name: str) -> None:
    """Of the options that may be, no one changes names or shapes of the weights."""
    variant = MODELS[name]
    assert {option.split(".")[0] for option in flat(variant.config)} >= variant.config.RUNTIME
    changes: dict[str, Any] = {}
    for option in describe(variant.config):
        if option.name in variant.config.RUNTIME and not option.type.startswith("path"):
            _, changes[option.name] = with_another(
                option, lambda settings: flat(with_settings(variant.config, settings, owner=""))
            )
    with torch.device("meta"):
        assert shapes(variant.empty(replace(variant.config, **changes))) == shapes(variant.empty())


# --- the weights keep them --------------------------------------------------------------------------------------------


def clip_part(kind: str) -> Part:
    return Part("clip", partial(tiny_clip, kind), lambda _: tiny_clip(kind))


def sam_part(build: Callable[[], SamFamily], name: str = "sam", *, optional: bool = False) -> Part:
    return Part(name, build, lambda _: seeded(build), optional=optional)


def seeded(build: Callable[[], Any]) -> Any:
    """The same weights each time."""
    torch.manual_seed(7)
    return build()


PROPOSER = Part("proposer", SomeProposals, lambda _: seeded(SomeProposals))
CONVNEXT, VIT = clip_part("convnext"), clip_part("vit")
CASES: dict[str, tuple[tuple[Part, ...], Callable[[], Segmenter]]] = {  # with values that are not the defaults
    "sam_clip": ((CONVNEXT, sam_part(tiny_sam)), partial(tiny_sam_clip, "convnext")),
    "fcclip": (
        (CONVNEXT,),
        lambda: FcClip(
            tiny_clip("convnext"),  # type: ignore[arg-type]
            FcClipConfig(**SIZES, alpha=0.1, beta=1.0, longest_edge=70, behaviour="official", templates="a sketch of {}"),
        ).eval(),
    ),
    "cmpf": (
        (CONVNEXT, sam_part(tiny_sam), sam_part(loud_sam, "mask_sam", optional=True)),
        partial(tiny_cmpf_with_masks, "convnext", query_layers=(), feature_layers=(1, 3), epsilon=0.5, xi=0.1),
    ),
    "catseg": ((VIT,), partial(tiny_catseg, class_attention="full", num_layers=1, pad_classes=False, behaviour="official")),
    "sam_mi": ((VIT, sam_part(loud_sam)), partial(tiny_sam_mi, point_sampling="top", inject=("low",), matching_threshold=None)),
    "escnet": (
        (VIT, sam_part(partial(loud_sam, mask_channels=16))),
        partial(tiny_escnet, num_blocks=2, prompts=("points", "boxes"), probability="space", max_classes=3),
    ),
    "maskclip": ((VIT, PROPOSER), partial(tiny_maskclip, relative_blocks=(0,), behaviour="official", overlap_threshold=0.3)),
    "fovseg": (
        (VIT, PROPOSER),
        partial(tiny_fovseg, adapter_layers=1, lora_rank=2, void="vector", masks_at_once=None),
    ),
}
CLASSES = (("dog", "puppy"), ("sky",))


def numbers(prediction: MaskPrediction | PixelPrediction) -> tuple[Tensor, ...]:
    if isinstance(prediction, PixelPrediction):
        return (prediction.probabilities,)
    return prediction.masks, prediction.classes, *(part.masks for part in prediction.semantic_ensemble[1:])


@pytest.mark.parametrize("all_parts", [False, True])
@pytest.mark.parametrize("method", CASES)
def test_weights_rebuild_their_model(method: str, all_parts: bool, tmp_path: Path) -> None:
    """By their card alone: the options of the variant are others."""
    parts, build = CASES[method]
    segmenter = build()
    segmenter.training_classes = CLASSES
    if not segmenter.trained_parts() and not all_parts:
        return  # of SAM + CLIP nothing is trained
    for part in parts:
        if part.name in segmenter.parts():
            segmenter.parts()[part.name].load_state_dict(part.load(None).state_dict(), strict=False)
    shift(segmenter)
    default = type(segmenter.config)()
    assert segmenter.config != default
    variant = Variant(f"{method}-case", "of the tests", type(segmenter), default, parts, Source("", "", recipe="nowhere"))
    save_segmenter(segmenter, tmp_path, {"model": variant.name}, all_parts=all_parts)
    given = {"mask_sam": "own"} if method == "cmpf" and not all_parts else {}
    loaded = variant.load({segmenter.key: str(tmp_path), **given}).eval()
    assert loaded.config == segmenter.config
    assert loaded.training_classes == CLASSES
    images, text = some_images((60, 80)), some_text()
    with torch.no_grad():
        pairs = list(zip(numbers(loaded(images, text)), numbers(segmenter(images, text)), strict=True))
    assert all(torch.equal(*pair) for pair in pairs)


def shift(segmenter: Segmenter) -> None:
    """Make what is trained different from what any constructor makes."""
    with torch.no_grad():
        for entry in segmenter.trained_parameters():
            entry.parameter.add_(0.01)


# --- what cannot be ---------------------------------------------------------------------------------------------------

IMPOSSIBLE = [
    ("fcclip-tiny", "alpha=3", r"alpha must be float ≥ 0 and ≤ 1, not 3"),
    ("fcclip-tiny", "behaviour=offical", r"behaviour must be 'paper' or 'official', not 'offical'"),
    ("fcclip-tiny", "shortest_edges=400", r"no option '(model\.)?shortest_edges': did you mean (model\.)?shortest_edge"),
    ("fcclip-tiny", "templates=cat-seg", r"cat-seg"),
    ("cmpf-tiny", "num_heads=7", r"num_heads( = 7 does not divide the 96 channels| is fixed)"),
    ("cmpf-tiny", "query_layers=[1, 4]", r"query_layers( names layer 4, but the mask decoder has 3| is fixed)"),
    ("cmpf-tiny", "num_querys=3", r"no option '(model\.)?num_querys': did you mean (model\.)?num_queries"),
    ("sam_clip-tiny", "generator.box_nms_threshold=2", r"generator\.box_nms_threshold must be float ≥ 0 and ≤ 1, not 2"),
    ("sam_mi-tiny", "behaviour=official", r"behaviour( must be 'paper', not 'official'| is fixed)"),
]


@pytest.mark.parametrize(("model", "setting", "message"), IMPOSSIBLE)
def test_impossible_values_are_refused_by_load(model: str, setting: str, message: str) -> None:
    name, value = setting.split("=")
    with pytest.raises(UsageError, match=rf"^{model}.*{message}") as refused:
        lexiseg.load(model, device="cpu", **{name: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("model", "setting", "message"), IMPOSSIBLE)
def test_impossible_values_are_refused_by_segment(
    model: str, setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    arguments = ["segment", str(tmp_path / "a.png"), "--classes", "sky", "--model", model, "--device", "cpu", "--set", setting]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(rf"lexiseg: {model}.*{message}.*\n", told.err)


@pytest.mark.parametrize(("model", "setting", "message"), [row for row in IMPOSSIBLE if row[0] in RECIPES])
def test_impossible_values_are_refused_by_train(
    model: str, setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", model, f"model.{setting}", "--output", str(tmp_path / "run")]) == 2
    told = capsys.readouterr()
    assert "is fixed" not in told.err
    assert re.fullmatch(rf"lexiseg: {model}.*{message}.*\n", told.err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", TRAINED)
def test_options_fixed_by_the_weights_are_refused(name: str) -> None:
    config = MODELS[name].config
    fixed = sorted({option.name for option in describe(config)} - config.RUNTIME - {"generator"})
    for option in [entry for entry in fixed if entry.split(".")[0] not in config.RUNTIME][:2]:
        with pytest.raises(UsageError, match=rf"^{name}: {option} is fixed by the trained weights; .* templates"):
            lexiseg.load(name, device="cpu", **{option: flat(config)[option]})


def test_what_the_weights_leave_open_can_be_changed() -> None:
    with pytest.raises(UsageError, match=r"num_queries is fixed by the trained weights; options that can be changed: alpha"):
        lexiseg.load("fcclip-tiny", device="cpu", num_queries=3)
    config = lexiseg.load("fcclip-tiny", device="cpu", alpha=0.5, shortest_edge=None).segmenter.config
    before = read_card(ASSETS / "fcclip-tiny")
    assert before is not None
    newer = {"object_threshold": 0.0}  # than the card
    assert flat(config) == {**newer, **before["config"], "alpha": 0.5, "shortest_edge": None}
    generator = {"generator.pred_iou_threshold": 0.25, "overlap_threshold": "0.1"}
    options = flat(lexiseg.load("sam_clip-tiny", device="cpu", **generator).segmenter.config)
    assert (options["generator.pred_iou_threshold"], options["overlap_threshold"]) == (0.25, 0.1)


# --- the backbones they were trained on -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_embedded_cards_name_the_backbones_that_are_here(name: str) -> None:
    """And their configs are those of the models, as far as weights depend on them and the card does not say they are older."""
    variant, card = MODELS[name], read_card(ASSETS / name)
    assert card is not None
    assert card["backbones"] == {part.name: part.source.origin() for part in variant.parts if part.source is not None}
    ours, theirs = flat(variant.config), flat(variant._config_of(read_weights(ASSETS / name)))
    older = {key.removeprefix("model.") for key in card.get("older", ())}
    fixed = [key for key in ours if key.split(".")[0] not in variant.config.RUNTIME and key not in older]
    assert theirs.keys() == ours.keys()
    beside = json.loads((ASSETS / name / "card.json").read_text(encoding="utf-8"))
    assert beside.pop("sha256") == {"model.safetensors": digest_of(ASSETS / name / "model.safetensors")}
    assert beside == card
    assert {key: theirs[key] for key in fixed} == {key: ours[key] for key in fixed}


@pytest.fixture
def on_another_clip(tmp_path: Path) -> Path:
    """`fcclip-tiny` as if it had been trained on another CLIP."""
    saved = read_weights(ASSETS / "fcclip-tiny")
    card = {**saved.card, "backbones": {"clip": {"file": "mine/other_clip.safetensors", "sha256": "f" * 64}}}
    write_safetensors(saved.tensors, tmp_path / "run/model.safetensors", {CARD_KEY: json.dumps(card)})
    return tmp_path / "run"


def test_weights_trained_on_another_backbone(on_another_clip: Path, tmp_path: Path) -> None:
    """With the published backbone they are refused; who gives a file is warned, unless it is the one of the card."""
    told = r"was trained on the clip mine/other_clip\.safetensors \(SHA-256 f{12}…\), not on .*open_clip_model\.safetensors"
    with pytest.raises(WeightsError, match=rf"{told}.*--weights clip=FILE"):
        lexiseg.load("fcclip-tiny", weights=on_another_clip, device="cpu")
    clip = ASSETS / "clip-tiny-efficientnet"
    with pytest.warns(UserWarning, match=told):
        lexiseg.load("fcclip-tiny", weights={"fcclip": on_another_clip, "clip": clip}, device="cpu")
    copy = shutil.copytree(clip, tmp_path / "copy")
    for shared in ASSETS.glob("clip-tiny-*.*"):
        shutil.copy(shared, copy)
    config = copy / "open_clip_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("../", ""), encoding="utf-8")
    lexiseg.load("fcclip-tiny", weights={"clip": copy}, device="cpu")  # the same file elsewhere; no warning


# --- checkpoints of the authors ---------------------------------------------------------------------------------------


def random_state(segmenter: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        for value in segmenter.state_dict().values():
            if value.is_floating_point():
                value.normal_()
    return {name: value.clone() for name, value in segmenter.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def maskclip_case() -> tuple[MaskClip, dict[str, Tensor], tuple[Part, ...]]:
    """A small MaskCLIP on a ResNet, its state under official names, and its parts."""
    proposer = partial(tiny_mask2former, "resnet", classes=0)
    config = MaskClipConfig(clip_image_size=64, shortest_edge=64, relative_blocks=(0, 1))
    segmenter = MaskClip(tiny_clip("vit"), proposer(), config).eval()  # type: ignore[arg-type]
    random_state(segmenter.relative)
    saved = SavedWeights(
        {key: value for key, value in segmenter.state_dict().items() if not key.startswith("clip.") or ".visual." in key},
        {},
        Path("x"),
    )
    state = MaskClipCheckpoint().official(saved)
    return segmenter, state, (VIT, Part("proposer", proposer, lambda _: proposer()))


def catseg_case() -> tuple[CatSeg, dict[str, Tensor], tuple[Part, ...]]:
    segmenter = CatSeg(tiny_clip("vit"), CatSegConfig(**COST_SIZES, behaviour="official")).eval()  # type: ignore[arg-type]
    state = CatSegCheckpoint().official(SavedWeights(random_state(segmenter), {}, Path("x")))
    return segmenter, state, (VIT,)


@pytest.mark.parametrize(
    ("build", "form", "dropped"),
    [
        (maskclip_case, MaskClipCheckpoint(), "criterion.empty_weight"),
        (catseg_case, CatSegCheckpoint(), "sem_seg_head.predictor.transformer.layers.0.swin_block.block_2.attn_mask"),
    ],
)
def test_checkpoints_there_and_back(
    build: Callable[[], tuple[Segmenter, dict[str, Tensor], tuple[Part, ...]]], form: Official, dropped: str, tmp_path: Path
) -> None:
    """Under our names and official ones the same tensors; and the file as published loads as the same model."""
    segmenter, state, parts = build()
    published = {**state, dropped: torch.ones(3)}
    assert set(form.dropped(published)) == {dropped}
    ours = form.ours(published, "x.pth")
    assert same(form.official(SavedWeights(ours, {}, Path("x"))), state)
    own = segmenter.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in ours.items())
    left = {name for name in own.keys() - ours.keys() if not name.endswith("num_batches_tracked")}
    assert {name.split(".")[0] for name in left} <= {name.split(".")[0] for name in form.partial}
    torch.save({"model": published}, tmp_path / "published.pth")
    variant = Variant("case", "of the tests", type(segmenter), segmenter.config, parts, Source("", "", recipe="x"), form)
    loaded = variant.load({segmenter.key: str(tmp_path / "published.pth")}).eval()
    images, text = some_images((60, 80)), some_text()
    with torch.no_grad():
        pairs = zip(numbers(loaded(images, text)), numbers(segmenter(images, text)), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    with pytest.raises(WeightsError, match=r"something\.weight"):
        form.ours({**published, "something.weight": torch.ones(1)}, "x.pth")


def test_the_config_of_a_published_checkpoint_is_that_of_its_form() -> None:
    for name, variant in MODELS.items():
        if variant.official is not None:
            card = variant.official_card()
            config: MethodConfig = variant._config_of(SavedWeights({}, card, Path("x")))
            wanted = {key: getattr(config, key) for key in variant.official.options}
            assert wanted == dict(variant.official.options), name
            assert card["training_classes"], name
