"""What holds for every method: the laws of docs/architecture.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lexiseg import postprocess
from lexiseg.backbones.sam import SamBackbone
from lexiseg.errors import UsageError
from lexiseg.methods.base import Segmenter
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.correlation import CorrelationSegmenter
from lexiseg.methods.fovseg.model import FovSeg
from lexiseg.methods.grounded_sam.model import GroundedSam
from lexiseg.methods.sam_clip.model import SamClip
from lexiseg.methods.sam_mi.model import SamMi
from lexiseg.structures import ImageBatch, MaskPrediction, PixelPrediction, TextEmbeddings, Trace
from tests.laws import builders
from tests.laws.builders import BUILDERS

Prediction = MaskPrediction | PixelPrediction


@pytest.fixture(params=list(BUILDERS))
def segmenter(request: pytest.FixtureRequest, device: torch.device) -> Segmenter:
    return BUILDERS[request.param]().to(device)


@pytest.fixture
def some_images(device: torch.device) -> Callable[..., ImageBatch]:
    return lambda *sizes: builders.some_images(*sizes).to(device)


@pytest.fixture
def some_text(device: torch.device) -> Callable[..., TextEmbeddings]:
    return lambda *sizes: builders.some_text(*sizes).to(device)


def scores(prediction: Prediction) -> list[torch.Tensor]:
    return list(postprocess.semantic_scores(prediction))


def test_it_finds_something_so_that_the_laws_are_not_empty(segmenter, some_images, some_text):
    found = scores(segmenter(some_images((60, 80)), some_text()))[0]
    assert found.shape == (5, 60, 80)
    assert found.max() > 0.1
    assert found.std() > 1e-3


def test_a_batch_is_its_images_one_by_one(segmenter, some_images, some_text):
    """Three sizes, of which two images each go through the networks together, and not in the order of the batch."""
    images, text = some_images((60, 80), (72, 48), (60, 80), (40, 40), (72, 48)), some_text()
    together = segmenter(images, text)
    alone = [segmenter(ImageBatch.of([image]), text) for image in images]
    assert_close(scores(together), [scores(one)[0] for one in alone], atol=1e-5, rtol=1e-4)
    assert tuple(geometry.size for geometry in together.geometries) == images.sizes
    for part, one in zip(together.split(), alone, strict=True):
        assert part.geometries[0].size == one.geometries[0].size
        labels, expected = (next(postprocess.semantic_best(each))[1] for each in (part, one))
        best, second = scores(one)[0].topk(2, dim=0).values
        assert torch.equal(labels[best > second + 1e-5], expected[best > second + 1e-5])
        if isinstance(one, MaskPrediction):
            assert torch.equal(*(postprocess.panoptic(each, text)[0][0] for each in (part, one)))


def test_images_of_one_size_go_through_the_encoders_together(segmenter, some_images, some_text, monkeypatch):
    images, text = some_images((60, 80), (72, 48), (60, 80), (40, 40)), some_text()
    encoder: Any = segmenter.detector if isinstance(segmenter, GroundedSam) else segmenter.clip
    clip, sam, features, encode = [], [], encoder.features, SamBackbone.encode_with_skips
    monkeypatch.setattr(
        encoder, "features", lambda pixels, *rest, **named: (clip.append(len(pixels)), features(pixels, *rest, **named))[1]
    )
    monkeypatch.setattr(SamBackbone, "encode_with_skips", lambda own, pixels: (sam.append(len(pixels)), encode(own, pixels))[1])
    segmenter(images, text)
    if isinstance(segmenter, CorrelationSegmenter):  # views have one size, whatever the images'
        assert clip == [4] * (5 if segmenter.config.sliding else 1)
    else:
        assert clip == [2, 1, 1]
    if isinstance(segmenter, Cmpf):  # SAM sees what CLIP does, and the images once more for the ensemble of masks
        assert sam == [count for count in clip for _ in range(1 if segmenter.masks is None else 2)]
    else:  # its input has one size, whatever the images'
        assert sam == [4] * isinstance(segmenter, SamClip | SamMi | GroundedSam)


def test_permuting_classes_permutes_the_prediction(segmenter, some_images, some_text):
    images, text = some_images((60, 80)), some_text()
    order = torch.tensor([3, 0, 4, 1, 2], device=images.pixels.device)
    permuted, plain = segmenter(images, text.select(order)), segmenter(images, text)
    assert_close(permuted.per_class(), plain.per_class()[..., order], atol=1e-5, rtol=1e-4)
    assert_close(scores(permuted)[0], scores(plain)[0][order], atol=1e-5, rtol=1e-4)


def test_a_trace_changes_nothing(segmenter, some_images, some_text):
    images, text, trace = some_images((60, 80)), some_text(), Trace()
    traced, plain = segmenter(images, text, trace=trace), segmenter(images, text)
    assert torch.equal(traced.per_class(), plain.per_class())
    assert all(torch.equal(*pair) for pair in zip(scores(traced), scores(plain), strict=True))
    assert ("detector" if segmenter.reads_names else "clip") in trace
    assert all(value.isfinite().all() for value in trace.values())


def test_a_trace_is_of_one_image(segmenter, some_images, some_text):
    with pytest.raises(UsageError, match="a trace needs a batch of one image; got 2"):
        segmenter(some_images((60, 80), (72, 48)), some_text(), trace=Trace())


def test_one_class_works(segmenter, some_images, some_text):
    found = scores(segmenter(some_images((60, 80)), some_text(1)))[0]
    assert found.shape == (1, 60, 80)
    assert found.isfinite().all()


def test_naming_a_class_twice_the_same_changes_nothing(segmenter, some_images, some_text):
    images, text = some_images((60, 80)), some_text()
    first = text.class_index == 0
    doubled = replace(
        text,
        vectors=torch.cat([text.vectors[first], text.vectors]),
        class_index=torch.cat([text.class_index[first], text.class_index]),
        all_names=(text.all_names[0], *text.all_names),
    )
    assert_close(segmenter(images, doubled).per_class(), segmenter(images, text).per_class(), atol=1e-6, rtol=1e-5)


def test_a_synonym_never_lowers_its_class(segmenter, some_images, some_text):
    if isinstance(segmenter, CorrelationSegmenter):
        segmenter.behaviour = "official"  # one name a class; else classes see each other, and nobody can promise anything
    if isinstance(segmenter, FovSeg):
        segmenter.teva = torch.nn.ModuleList()  # its masks ask all names before they are named
    images, text = some_images((60, 80)), some_text()
    if isinstance(segmenter, GroundedSam):  # names of one prompt see each other; of several prompts, other boxes are best
        segmenter.config = replace(segmenter.config, names_per_prompt=1)
    extra = torch.nn.functional.normalize(torch.randn(1, text.vectors.shape[1]), dim=-1).to(text.vectors)
    classes = torch.cat([text.class_index, text.class_index.new_tensor([4])])
    richer = replace(
        text, vectors=torch.cat([text.vectors, extra]), class_index=classes, all_names=(*text.all_names, "synonym")
    )
    before, after = segmenter(images, text).per_class(), segmenter(images, richer).per_class()
    if isinstance(segmenter, GroundedSam):
        before, after = before.amax(1), after.amax(1)
    assert (after[..., 4] >= before[..., 4] - 1e-5).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_small_and_thin_images_give_finite_results(segmenter, size, some_images, some_text):
    prediction, text = segmenter(some_images(size), some_text()), some_text()
    assert scores(prediction)[0].isfinite().all()
    for task in ("panoptic", "instance"):
        if task in segmenter.tasks:
            regions = (
                postprocess.panoptic(prediction, text)[0][1]
                if task == "panoptic"
                else postprocess.instances(prediction, text)[0]
            )
            assert all(region.mask.shape == size and 0 <= region.score <= 1.0001 for region in regions)


def test_without_any_mask_nothing_is_named(segmenter, some_images, some_text):
    prediction, text = segmenter(some_images((20, 30)), some_text()), some_text()
    if isinstance(prediction, PixelPrediction):
        nothing = postprocess.Policy(threshold=1.0)
        assert (postprocess.semantic(prediction, nothing)[0] == postprocess.VOID).all()
        assert postprocess.panoptic(prediction, text, nothing)[0][1] == []
        return
    empty = replace(prediction, valid=torch.zeros_like(prediction.masks[..., 0, 0], dtype=torch.bool), semantic_ensemble=())
    assert (postprocess.semantic(empty)[0] == postprocess.VOID).all()
    assert postprocess.panoptic(empty, text)[0][1] == []
    assert postprocess.instances(empty, text)[0] == []


def test_saved_and_loaded_is_the_same(segmenter, tmp_path, some_images, some_text):
    images, text = some_images((60, 80)), some_text()
    before = segmenter(images, text)
    torch.save(segmenter.state_dict(), tmp_path / "weights.pt")
    with torch.no_grad():
        for parameter in segmenter.parameters():
            parameter.add_(1)
    segmenter.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert_close(segmenter(images, text).per_class(), before.per_class())


def test_the_parts_are_the_whole(segmenter):
    in_parts = {id(p) for part in segmenter.parts().values() for p in part.parameters()}
    assert in_parts == {id(p) for p in segmenter.parameters()}
    assert segmenter.trained_parts() <= set(segmenter.parts())
