"""What must hold for CAT-Seg beyond the laws of all methods."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lexiseg
from lexiseg.errors import WeightsError
from lexiseg.methods import MODELS
from lexiseg.methods.catseg.model import CatSeg
from lexiseg.methods.catseg.weights import dropped, from_official, names_from_official, to_official
from lexiseg.methods.correlation import CANVAS, CROP, STRIDE
from lexiseg.methods.recipe import Stage
from lexiseg.methods.variant import Part
from lexiseg.structures import ImageBatch, MaskTarget, Trace
from lexiseg.text.embed import embed_names
from lexiseg.training.optimiser import optimiser_of
from tests.laws.builders import some_images, some_text, tiny_catseg, tiny_clip


def test_every_pixel_counts_its_crops_and_the_whole_alike() -> None:
    """With the row of the canvas in place of the model, the mosaic is the canvas again."""
    segmenter = tiny_catseg(image_size=CROP)
    rows = torch.linspace(-2, 2, CANVAS)[:, None].expand(CANVAS, CANVAS)
    views = iter([None, *((top, left) for top in (0, STRIDE) for left in (0, STRIDE))])

    def logits(*_: object, **__: object) -> Tensor:
        place = next(views)
        if place is None:
            return torch.nn.functional.interpolate(rows[None, None], (CROP, CROP), mode="bilinear", align_corners=False)
        return rows[None, None, place[0] : place[0] + CROP, place[1] : place[1] + CROP]

    segmenter.decode = logits  # type: ignore[method-assign,assignment]
    found = segmenter(ImageBatch.of([torch.rand(3, 50, 70)]), some_text()).probabilities
    assert_close(found[0, 0], rows.sigmoid(), atol=1e-3, rtol=0)


def test_names_of_a_class() -> None:
    """Officially the first name is the class; else every cell takes its best name."""
    text = some_text()  # class 1 has two names
    first = torch.ones(len(text.class_index), dtype=torch.bool)
    first[2] = False
    short = replace(text, vectors=text.vectors[first], class_index=text.class_index[first])
    images = some_images((60, 80))
    official, paper = tiny_catseg(behaviour="official"), tiny_catseg()
    assert torch.equal(official(images, text).probabilities, official(images, short).probabilities)
    assert (paper(images, text).probabilities - paper(images, short).probabilities).abs().max() > 1e-4
    assert torch.equal(text.first(), short.vectors)
    assert_close(text.mean()[1], torch.nn.functional.normalize(text.vectors[1:3].sum(0), dim=0))
    costs = Trace()
    tiny_catseg(sliding=False)(images, text, trace=costs)
    each = [Trace(), Trace()]
    for number, trace in enumerate(each):
        keep = torch.arange(len(text.class_index)) != 2 - number
        tiny_catseg(sliding=False)(
            images, replace(text, vectors=text.vectors[keep], class_index=text.class_index[keep]), trace=trace
        )
    assert_close(costs["cost"], torch.maximum(each[0]["cost"], each[1]["cost"]))


def test_only_the_official_behaviour_pads_a_whole_picture() -> None:
    image, text = some_images((33, 65)), some_text()
    official, paper = (tiny_catseg(sliding=False, behaviour=which) for which in ("official", "paper"))
    assert (official(image, text).probabilities - paper(image, text).probabilities).abs().max() > 1e-4
    square = some_images((64, 64))
    text = replace(text, vectors=text.first(), class_index=torch.arange(5))
    assert_close(official(square, text).probabilities, paper(square, text).probabilities)


def test_what_it_trains() -> None:
    segmenter = tiny_catseg()
    trained = {one.name: one for one in segmenter.trained_parameters()}
    clip = [one for name, one in trained.items() if name.startswith("clip.")]
    towers = (segmenter.clip.clip_model.visual.transformer, segmenter.clip.clip_model.transformer)
    assert {id(one.parameter) for one in clip} == {
        id(block.attn.in_proj_weight) for tower in towers for block in tower.resblocks
    }
    assert all(one.frozen_rows == (slice(len(one.parameter) // 3, len(one.parameter) // 3 * 2),) for one in clip)
    rest = [one for name, one in trained.items() if not name.startswith("clip.")]
    assert not any(one.frozen_rows for one in rest)
    assert len(rest) == len([*segmenter.upsample.parameters(), *segmenter.aggregation.parameters()])


def test_a_step_leaves_the_keys_alone() -> None:
    """Neither gradient nor weight decay moves what is not trained, the keys between the queries and the values included."""
    segmenter, text, images = tiny_catseg(), some_text(), some_images((64, 64), (64, 64))
    before = {name: values.clone() for name, values in segmenter.state_dict().items()}
    optimiser = optimiser_of(segmenter, Stage(3, lr=1e-2, weight_decay=0.5))
    targets = [MaskTarget(torch.ones(1, 64, 64, dtype=torch.bool), torch.tensor([label])) for label in (0, 2)]
    names = [f"thing {number}" for number in range(len(text.class_index))]
    for _ in range(3):
        optimiser.zero_grad()
        vectors = embed_names(segmenter.clip, names, ["{}"])
        losses = segmenter.loss(images, replace(text, vectors=vectors), targets)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimiser.step()
    last = f"visual.transformer.resblocks.{segmenter.clip.depth - 1}.attn.in_proj_weight"
    for name, values in segmenter.state_dict().items():
        if not name.startswith("clip."):
            continue
        if name.endswith("attn.in_proj_weight"):
            width = len(values) // 3
            query, key, value = (
                (now - then).abs().max() for now, then in zip(values.split(width), before[name].split(width), strict=True)
            )
            assert key == 0, name
            assert value > 1e-3, name
            assert query > 1e-3 or name.endswith(last), name
        else:
            assert torch.equal(values, before[name]), name


def test_it_learns() -> None:
    """The left half of a picture is one class, the right half another: a few steps are enough to see it."""
    segmenter, text = tiny_catseg(sliding=False, max_classes=0), some_text()
    half = torch.zeros(2, 64, 64, dtype=torch.bool)
    half[0, :, :32], half[1, :, 32:] = True, True
    pixels = torch.where(half[0], 0.9, 0.1).expand(1, 3, 64, 64).contiguous()
    images, target = ImageBatch(pixels, ((64, 64),)), MaskTarget(half, torch.tensor([0, 2]))
    optimiser = optimiser_of(segmenter.train(), Stage(60, lr=1e-2, lr_multipliers={"clip": 0.01}))
    for _ in range(60):
        optimiser.zero_grad()
        loss = segmenter.loss(images, text, [target])["pixels"]
        loss.backward()
        optimiser.step()
    found = segmenter.eval()(images, text).probabilities[0].argmax(0)
    middle = found.shape[-1] // 2
    assert (found[:, : middle - 1] == 0).float().mean() > 0.95
    assert (found[:, middle + 1 :] == 2).float().mean() > 0.95


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> CatSeg:
    """The published model in small."""
    segmenter = tiny_catseg(behaviour="official")
    clip = Part("clip", partial(tiny_clip, "vit"), lambda _: tiny_clip("vit"))
    variant = replace(MODELS["catseg-vit-b16"], config=segmenter.config, parts=(clip,))
    monkeypatch.setitem(MODELS, "catseg-vit-b16", variant)
    return segmenter


def official_file(segmenter: CatSeg, folder: Path) -> Path:
    state = to_official(segmenter.state_dict())
    state["sem_seg_head.predictor.transformer.layers.0.swin_block.block_2.attn_mask"] = torch.zeros(4, 4, 4)
    torch.save({"model": state, "iteration": 79999}, folder / "model_base.pth")
    return folder / "model_base.pth"


def test_an_official_file_loads(small: CatSeg, tmp_path: Path) -> None:
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(0.01)
    loaded = lexiseg.load("catseg-vit-b16", weights=official_file(small, tmp_path), device="cpu").segmenter
    images, text = some_images((40, 50)), some_text()
    assert torch.equal(loaded(images, text).probabilities, small(images, text).probabilities)


def test_what_does_not_fit_is_refused(small: CatSeg, tmp_path: Path) -> None:
    path = official_file(small, tmp_path)
    document = torch.load(path, weights_only=True)
    del document["model"]["upsample1.bias"]
    torch.save(document, path)
    with pytest.raises(WeightsError, match=r"upsample\.0\.bias is missing"):
        lexiseg.load("catseg-vit-b16", weights=path)
    document["model"]["something.weight"] = torch.zeros(1)
    torch.save(document, path)
    with pytest.raises(WeightsError, match=r"something\.weight"):
        lexiseg.load("catseg-vit-b16", weights=path)
    with pytest.raises(WeightsError, match=r"give a copy of model_base\.pth with --weights"):
        lexiseg.load("catseg-vit-b16")


def test_names_there_and_back() -> None:
    ours = tiny_catseg().state_dict()
    official = to_official(ours)
    assert not any(dropped(name) for name in official)
    assert set(names_from_official(official).values()) == {name for name in ours if not name.startswith("clip.")}
    assert all(torch.equal(tensor, ours[name]) for name, tensor in from_official(official).items())


@pytest.mark.parametrize(
    ("name", "total", "trainable"),
    [("catseg-vit-b16", 154_289_378, 25_115_873), ("catseg-vit-l14", 433_726_946, 70_270_177)],
)
def test_the_full_size_is_the_official_one(name: str, total: int, trainable: int) -> None:
    counts = MODELS[name].num_parameters()
    assert (counts["total"], counts["trainable"]) == (total, trainable)
