"""What holds for every method on every device and in every precision.

No GPU is needed: `tests.laws.pretended` has one that complains as a GPU would. `tools/gpu_check.sh` looks at a real one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lexiseg import postprocess
from lexiseg.inference.pipeline import Pipeline, regions_of
from lexiseg.methods.base import NamesRegions, Segmenter
from lexiseg.methods.prompts import TakesPrompts, parse_prompts
from lexiseg.methods.recipe import Trainable
from lexiseg.postprocess import Policy
from lexiseg.structures import MaskTarget
from lexiseg.training.batches import points_of
from tests.laws.builders import BUILDERS, some_images, some_text
from tests.laws.pretended import CPU, GPU, OnGpu, PretendedGpu, on_gpu

# who asks whether there is a GPU is told that there is none
pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")


@pytest.fixture(params=list(BUILDERS))
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return BUILDERS[request.param]()


def test_the_pretended_gpu_complains():
    with PretendedGpu():
        there = torch.ones(3, device=GPU)
        assert isinstance(there + 1, OnGpu)
        assert there.sum().item() == 3
        assert there[torch.tensor([0, 2])].tolist() == [1, 1]
        assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3)[there.long()]
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=GPU, generator=torch.Generator())
        with pytest.raises((TypeError, RuntimeError), match="numpy"):
            there.numpy()


def test_it_stays_on_its_device(segmenter):
    images, text = some_images((60, 80)), some_text()
    here = list(postprocess.semantic_scores(segmenter(images, text)))
    with PretendedGpu():
        on_gpu(segmenter)
        text = text.to(GPU)
        prediction = segmenter(images.to(GPU), text)
        there = [scores.cpu() for scores in postprocess.semantic_scores(prediction)]
        for task in segmenter.tasks:
            assert all(isinstance(region.mask, OnGpu) for region in regions_of(prediction, text, task, Policy()))
        if isinstance(segmenter, NamesRegions):
            regions = torch.ones(2, 60, 80, dtype=torch.bool, device=GPU)
            assert isinstance(segmenter.name_regions(images.to(GPU).image(0), regions, text).classes, OnGpu)
        if isinstance(segmenter, TakesPrompts):
            prompts = parse_prompts([(30, 20)], [(10, 10, 50, 40)], (60, 80))
            of_prompts = segmenter.predict_prompts(images.to(GPU).image(0), prompts, text)
            assert all(region is None or isinstance(region.mask, OnGpu) for region in postprocess.of_each_mask(of_prompts))
    assert_close(there, here, atol=1e-3, rtol=1e-3)


def test_its_losses_stay_on_its_device(segmenter):
    if not isinstance(segmenter, Trainable):
        pytest.skip("nothing in it learns")
    segmenter.train()
    images, text, draw = some_images((64, 64), (64, 64)), some_text(), points_of((0, 1), 0, CPU)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :30], masks[1, 30:, 20:] = True, True
    targets = [MaskTarget(masks, torch.tensor([0, 3])), MaskTarget(masks[:1], torch.tensor([1]))]
    here = segmenter.loss(images, text, targets, None, draw)
    with PretendedGpu():
        on_gpu(segmenter)
        draw = points_of((0, 1), 0, GPU)
        there = segmenter.loss(images.to(GPU), text.to(GPU), [target.to(GPU) for target in targets], None, draw)
        there = {name: loss.cpu() for name, loss in there.items()}
    assert_close(there, here, atol=1e-4, rtol=1e-4)


def test_a_pipeline_takes_pictures_and_names_there():
    pixels = np.kron(np.random.default_rng(0).integers(0, 255, (3, 4, 3)), np.ones((32, 32, 1))).astype(np.uint8)
    segmenter = BUILDERS["fcclip (convnext)"]()
    here = Pipeline(segmenter)(pixels, "dog; grass; red heart, heart", task="semantic")
    with PretendedGpu():
        there = Pipeline(on_gpu(segmenter), device=GPU)(pixels, "dog; grass; red heart, heart", task="semantic")
    assert np.mean(there.semantic == here.semantic) > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_works_in_half_precision(segmenter, dtype):
    images, text = some_images((60, 80)), some_text()
    with torch.autocast("cpu", dtype):
        prediction = segmenter(images, text)
    assert next(iter(postprocess.semantic_scores(prediction))).isfinite().all()
    for task in segmenter.tasks:
        assert all(0 <= region.score <= 1.01 for region in regions_of(prediction, text, task, Policy()))
