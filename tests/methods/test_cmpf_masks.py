"""CMPF's ensemble of masks in the model: what switches it off, what it changes, and where SAM's masks come to lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lexiseg.backbones.mask_generator import GeneratedMasks, generate_masks, grid_points
from lexiseg.backbones.sam import SamFamily
from lexiseg.ensembles import classify_vectors
from lexiseg.errors import UsageError
from lexiseg.inference.pipeline import load
from lexiseg.methods import MODELS
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.cmpf.sam_masks import OFFICIAL, SamMasks, official_cells
from lexiseg.methods.fcclip.weights import Checkpoint, to_official
from lexiseg.methods.variant import Part
from lexiseg.postprocess import instances, panoptic, semantic_scores
from lexiseg.structures import Geometry, ImageBatch, TextEmbeddings
from tests.laws.builders import (
    EVERY_MASK,
    loud_sam,
    some_images,
    some_text,
    tiny_clip,
    tiny_cmpf,
    tiny_cmpf_with_masks,
    tiny_sam,
)

SEEN = torch.tensor([True, False, True, False, False])
KINDS = pytest.mark.parametrize("kind", ["convnext", "resnet"])
BEHAVIOURS = pytest.mark.parametrize("behaviour", ["paper", "official"])


def words() -> TextEmbeddings:
    return replace(some_text(), seen=SEEN)


def sums(prediction, **options) -> list[torch.Tensor]:
    return list(semantic_scores(prediction, divide=False, **options))


# --- what it changes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"mask_ensemble": False}, {"mask_sam": None}])
def test_switched_off_it_is_the_model_without_it_bit_for_bit(options, monkeypatch):
    images, text = some_images((60, 80), (72, 48)), words()
    plain, off = tiny_cmpf("convnext")(images, text), tiny_cmpf_with_masks("convnext", **options)
    monkeypatch.setattr(Cmpf, "sam_predictions", None)  # SAM is not even asked
    found = off(images, text)
    assert torch.equal(found.masks, plain.masks)
    assert torch.equal(found.classes, plain.classes)
    assert found.semantic_ensemble == ()


@KINDS
def test_panoptic_and_instance_results_and_seen_classes_stay(kind):
    images, text = some_images((60, 80), (72, 48)), words()
    plain, found = tiny_cmpf(kind)(images, text), tiny_cmpf_with_masks(kind)(images, text)
    for one, other in zip(panoptic(found, text), panoptic(plain, text), strict=True):
        assert torch.equal(one[0], other[0])
    for one, other in zip(instances(found, text), instances(plain, text), strict=True):
        assert [region.score for region in one] == [region.score for region in other]
    for one, other in zip(sums(found), sums(plain), strict=True):
        assert torch.equal(one[SEEN], other[SEEN])
        assert (one[~SEEN] - other[~SEEN]).abs().max() > 0.01


@BEHAVIOURS
def test_semantic_scores_follow_equation_12(behaviour):
    """Against SAM's own masks in pixels: of the paper cut at zero, of the official program as probabilities."""
    images, text, side = some_images((60, 80)), words(), 64 if behaviour == "paper" else 512
    segmenter = tiny_cmpf_with_masks("convnext", behaviour=behaviour, epsilon=0.3, shortest_edge=side)
    generated = generate_masks(segmenter.mask_sam, images.image(0), EVERY_MASK.options, grid_points(2))
    [sam] = segmenter.sam_predictions(list(images), segmenter.encode_images(list(images)), text, EVERY_MASK)
    best = sam.classes[0].exp().masked_fill(SEEN & (behaviour == "official"), 0).amax(-1)
    kept, xi = best > best.median(), float(best.median())
    segmenter.config = replace(segmenter.config, xi=xi)
    assert 0 < kept.sum() < len(kept)
    if behaviour == "paper":
        inside = generated.binary().float()
    else:
        inside = segmenter.mask_sam.geometry((60, 80)).upsample(generated.logits).sigmoid()
    theirs = torch.einsum("qk,qhw->khw", sam.classes[0, kept].exp(), inside[kept])
    model = sums(tiny_cmpf("convnext", behaviour=behaviour, shortest_edge=side)(images, text))[0]
    expected = torch.where(SEEN[:, None, None], model, 0.7 * model + 0.3 * theirs)
    found = sums(segmenter(images, text))[0]
    assert (expected - model)[~SEEN].abs().max() > 0.1
    if behaviour == "official":
        assert_close(found, expected, atol=1e-4, rtol=1e-4)
    else:  # between inside and outside the steep logits pass through zero within a pixel
        assert ((found - expected).abs() > 1e-3).float().mean() < 0.02


# --- where SAM's masks lie --------------------------------------------------------------------------------------------


def test_the_official_grid_is_moved_and_squeezed():
    masks, geometry = torch.randn(20, 9, 9), Geometry((64, 64), (40, 64), (50, 80))
    pixels = geometry.upsample(masks)
    expected = torch.zeros(1, 20, 32, 64)
    for row in range(25):
        for column in range(38):
            expected[0, :, row, column] = pixels[:, row * 50 // 25, column * 80 // 38]
    assert_close(official_cells(masks, geometry, (25, 38)), expected)
    assert official_cells(masks, geometry, (32, 64)).shape == (1, 20, 32, 64)


@KINDS
def test_masks_are_named_by_what_clip_sees_under_them(kind):
    """Two halves of an image that is not padded: each is named as CLIP names that half of its cells."""
    segmenter, text = tiny_cmpf_with_masks(kind), words()
    image = some_images((64, 128)).image(0)
    left = torch.where(torch.arange(16) < 8, 9.0, -9.0).expand(16, 16)
    whole = Geometry.unresized((64, 128))
    names, valid = segmenter.sam_classes(
        segmenter.encode_images([image]), torch.stack([left, -left, torch.full_like(left, -9.0)]), whole, text
    )
    features = segmenter.clip_features(image[None])
    high, wide = features.grid
    cells = (torch.arange(wide) < wide // 2).float().expand(1, 1, high, wide)
    vectors = segmenter.clip.embed_regions(features, torch.cat([cells, 1 - cells], 1))
    assert_close(names[:, :2], classify_vectors(vectors, text, segmenter.clip.logit_scale))
    assert valid.tolist() == [[True, True, False]]


@pytest.mark.parametrize(("kind", "valid"), [("convnext", True), ("resnet", False)])
def test_officially_no_object_competes_and_only_a_convnext_names_nothing(kind, valid):
    segmenter, text = tiny_cmpf_with_masks(kind, behaviour="official", shortest_edge=None), words()
    empty, whole = torch.full((1, 16, 16), -9.0), Geometry.unresized((512, 512))
    names, covered = segmenter.sam_classes(
        segmenter.encode_images(list(some_images((512, 512)))), torch.cat([-empty, empty]), whole, text
    )
    assert covered.tolist() == [[True, valid]]
    assert names[0, 0].exp().sum() < 0.9999


# --- SAM is asked -----------------------------------------------------------------------------------------------------


def test_pictures_with_and_without_masks_share_a_batch(monkeypatch):
    segmenter, text, images = tiny_cmpf_with_masks("convnext"), words(), some_images((60, 80), (72, 48), (40, 40))
    all_masks, counts = SamMasks.of, {80: 5, 48: 0, 40: 12}  # by the width of a picture

    def some_of(asked: SamMasks, sam: SamFamily, pictures: Sequence[torch.Tensor]) -> list[GeneratedMasks]:
        return [masks.select(torch.arange(counts[masks.geometry.size[1]])) for masks in all_masks(asked, sam, pictures)]

    monkeypatch.setattr(SamMasks, "of", some_of)
    together = segmenter(images, text)
    assert together.semantic_ensemble[1].masks.shape[1] == 12
    alone = [segmenter(ImageBatch.of([images.image(index)]), text) for index in range(3)]
    assert alone[1].semantic_ensemble[1].masks.shape[1] == 0
    for one, other in zip(sums(together), [sums(single)[0] for single in alone], strict=True):
        assert_close(one, other)
    model = sums(tiny_cmpf("convnext")(images, text))[1]
    assert_close(sums(together)[1], torch.where(SEEN[:, None, None], model, 0.8 * model))


def test_clip_looks_at_a_picture_once(monkeypatch):
    segmenter, images = tiny_cmpf_with_masks("convnext"), some_images((60, 80), (64, 64))
    looked, features = [], segmenter.clip.features
    monkeypatch.setattr(segmenter.clip, "features", lambda pixels: (looked.append(len(pixels)), features(pixels))[1])
    assert segmenter(images, words()).semantic_ensemble
    assert looked == [1, 1]


def test_another_sam_makes_the_masks():
    other, images, text = loud_sam(5), some_images((60, 80)), words()
    segmenter, own = (
        tiny_cmpf_with_masks("convnext", mask_sam=other),
        tiny_cmpf_with_masks("convnext", mask_sam=None, mask_ensemble=True),
    )
    assert torch.equal(segmenter(images, text).masks, own(images, text).masks)
    assert not torch.equal(segmenter(images, text).semantic_ensemble[1].masks, own(images, text).semantic_ensemble[1].masks)
    assert segmenter.parts()["mask_sam"] is other
    assert "mask_sam" not in own.parts()
    assert segmenter.trained_parts() == own.trained_parts()
    assert not segmenter.train().mask_sam.training
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_masks_come_from_the_cache_the_second_time(tmp_path, monkeypatch):
    image, text = some_images((60, 80)).image(0), words()
    kept = replace(EVERY_MASK, cache=tmp_path, identity="a")
    segmenter = tiny_cmpf_with_masks("convnext", masks=kept)
    [first] = segmenter.sam_predictions([image], segmenter.encode_images([image]), text, kept)
    assert len(list(tmp_path.iterdir())) == 1
    [plain] = segmenter.sam_predictions([image], segmenter.encode_images([image]), text, EVERY_MASK)
    monkeypatch.setattr(type(segmenter.mask_sam), "encode_with_skips", None)
    [second] = segmenter.sam_predictions([image], segmenter.encode_images([image]), text, kept)
    for one in (second, plain):
        assert torch.equal(first.masks, one.masks)
        assert torch.equal(first.classes, one.classes)
    with pytest.raises(TypeError):
        segmenter.sam_predictions([image], segmenter.encode_images([image]), text, replace(kept, identity="b"))


def test_masks_of_another_sam_are_not_taken_from_the_cache(tmp_path):
    """Without identity, the parameters tell."""
    images, kept, sam, other = [some_images((60, 80)).image(0)], replace(EVERY_MASK, cache=tmp_path), tiny_sam(), tiny_sam()
    other.load_state_dict(sam.state_dict())
    for each in (sam, other):
        kept.of(each, images)
        assert len(list(tmp_path.iterdir())) == 1
    another = tiny_sam()
    torch.nn.init.normal_(next(another.parameters()))
    kept.of(another, images)
    assert len(list(tmp_path.iterdir())) == 2


def test_only_the_largest_masks_are_kept():
    sam, image = loud_sam(), some_images((60, 80)).image(0)
    [every] = EVERY_MASK.of(sam, [image])
    assert len(every) > 3
    [two] = replace(EVERY_MASK, max_masks=2).of(sam, [image])
    assert two.areas.tolist() == sorted(every.areas.tolist(), reverse=True)[:2]
    assert len(replace(EVERY_MASK, max_masks=1000).of(sam, [image])[0]) == len(every)


# --- published models -------------------------------------------------------------------------------------------------


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, SamFamily]:
    """The published model in small; "b.pth" and "h.pth" are its SAMs."""
    sams = {"b.pth": loud_sam(), "h.pth": loud_sam(5)}
    clip = Part("clip", partial(tiny_clip, "convnext"), lambda _: tiny_clip("convnext"))
    own = Part("sam", loud_sam, lambda given: sams[given or "b.pth"])
    further = Part("mask_sam", loud_sam, lambda given: sams[given or "h.pth"], optional=True)
    config = tiny_cmpf("convnext", behaviour="official", query_layers=()).config
    variant = replace(MODELS["cmpf-convnext-l"], config=config, parts=(clip, own, further))
    monkeypatch.setitem(MODELS, "cmpf-convnext-l", variant)
    return sams


def test_a_published_model_takes_a_sam_for_its_masks(published, tmp_path):
    state = tiny_cmpf("convnext", behaviour="official", query_layers=()).state_dict()
    head = {name: value for name, value in state.items() if not name.startswith(("clip.", "sam."))}
    torch.save({"model": to_official(Checkpoint(head, {}, {}))}, tmp_path / "x.pth")
    plain = load("cmpf-convnext-l", weights={"cmpf": tmp_path / "x.pth"}, device="cpu").segmenter
    assert plain.masks is plain.mask_sam is None
    segmenter = load("cmpf-convnext-l", weights={"cmpf": tmp_path / "x.pth", "mask_sam": "h.pth"}, device="cpu").segmenter
    assert segmenter.mask_sam is published["h.pth"]
    assert segmenter.sam is published["b.pth"]
    assert segmenter.masks == OFFICIAL
    with pytest.raises(UsageError, match=r"no part 'masks' .* clip, cmpf, mask_sam, sam"):
        load("cmpf-convnext-l", weights={"masks": "h.pth"})
