"""What must hold for CAT-Seg beyond the laws of all methods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lexiseg
from lexiseg.errors import WeightsError
from lexiseg.methods.base import Model
from lexiseg.methods.catseg import variants
from lexiseg.methods.catseg.model import CANVAS, CROP, STRIDE, CatSeg
from lexiseg.methods.catseg.weights import dropped, from_official, names_from_official, to_official
from lexiseg.structures import Trace
from tests.laws.builders import some_images, some_text, tiny_catseg


def test_every_pixel_counts_its_crops_and_the_whole_alike() -> None:
    """With the row of the canvas in place of the model, the mosaic is the canvas again."""
    segmenter = tiny_catseg(side=CROP)
    rows = torch.linspace(-2, 2, CANVAS)[:, None].expand(CANVAS, CANVAS)
    views = iter([None, *((top, left) for top in (0, STRIDE) for left in (0, STRIDE))])

    def logits(*_: object) -> Tensor:
        place = next(views)
        if place is None:
            return torch.nn.functional.interpolate(rows[None, None], (CROP, CROP), mode="bilinear", align_corners=False)
        return rows[None, None, place[0] : place[0] + CROP, place[1] : place[1] + CROP]

    segmenter.logits = logits  # type: ignore[method-assign,assignment]
    found = segmenter._mosaic(torch.rand(3, 50, 70), some_text(), None)
    assert_close(found[0], rows.sigmoid(), atol=1e-3, rtol=0)


def test_names_of_a_class() -> None:
    """Officially the first name is the class; else every cell takes its best name."""
    text = some_text()  # class 1 has two names
    first = torch.ones(len(text.owner), dtype=torch.bool)
    first[2] = False
    short = replace(text, vectors=text.vectors[first], owner=text.owner[first])
    images = some_images((60, 80))
    official, paper = tiny_catseg(behaviour="official"), tiny_catseg()
    assert torch.equal(official(images, text).logits, official(images, short).logits)
    assert (paper(images, text).logits - paper(images, short).logits).abs().max() > 1e-4
    assert torch.equal(text.first(), short.vectors)
    assert_close(text.mean()[1], torch.nn.functional.normalize(text.vectors[1:3].sum(0), dim=0))
    costs = Trace()
    tiny_catseg(sliding=False)(images, text, trace=costs)
    each = [Trace(), Trace()]
    for number, trace in enumerate(each):
        keep = torch.arange(len(text.owner)) != 2 - number
        tiny_catseg(sliding=False)(images, replace(text, vectors=text.vectors[keep], owner=text.owner[keep]), trace=trace)
    assert_close(costs["cost"], torch.maximum(each[0]["cost"], each[1]["cost"]))


def test_only_the_official_behaviour_pads_a_whole_picture() -> None:
    image, text = some_images((33, 65)), some_text()
    official, paper = (tiny_catseg(sliding=False, behaviour=which) for which in ("official", "paper"))
    assert (official(image, text).logits - paper(image, text).logits).abs().max() > 1e-4
    square = some_images((64, 64))
    text = replace(text, vectors=text.first(), owner=torch.arange(5))
    assert_close(official(square, text).logits, paper(square, text).logits)


def test_what_it_trains() -> None:
    segmenter = tiny_catseg()
    trained = dict(segmenter.trained_parameters())
    clip = {name: values for name, values in trained.items() if name.startswith("clip.")}
    towers = (segmenter.clip.clip_model.visual.transformer, segmenter.clip.clip_model.transformer)
    assert len(clip) == 2 * sum(len(tower.resblocks) for tower in towers)
    block = towers[0].resblocks[0].attn
    packed, width = block.in_proj_weight, block.embed_dim
    name = next(name for name in clip if name.endswith("visual.transformer.resblocks.0.attn.in_proj_weight.value"))
    assert torch.equal(clip[name], packed[2 * width :])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> CatSeg:
    """The published model in small: what `variants.skeleton` builds."""

    def skeleton(*_: Any) -> CatSeg:
        return tiny_catseg(behaviour="official")

    monkeypatch.setattr(variants, "skeleton", skeleton)
    return skeleton()


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
    assert torch.equal(loaded(images, text).logits, small(images, text).logits)


def test_what_does_not_fit_is_refused(small: CatSeg, tmp_path: Path) -> None:
    path = official_file(small, tmp_path)
    document = torch.load(path, weights_only=True)
    del document["model"]["upsample1.bias"]
    torch.save(document, path)
    with pytest.raises(WeightsError, match=r"enlarge\.0\.bias is missing"):
        lexiseg.load("catseg-vit-b16", weights=path)
    document["model"]["something.weight"] = torch.zeros(1)
    torch.save(document, path)
    with pytest.raises(WeightsError, match=r"something\.weight"):
        lexiseg.load("catseg-vit-b16", weights=path)
    with pytest.raises(WeightsError, match="--weights catseg=FILE"):
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
    model: Model = variants.MODELS[name]
    counts = model.parameters()
    assert (counts["total"], counts["trainable"]) == (total, trainable)
