"""What must hold for CMPF beyond the laws of all methods: without its injectors it is FC-CLIP."""

from __future__ import annotations

import pytest
import torch

from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.structures import ImageBatch, MaskTarget
from tests.laws.builders import some_images, some_text, tiny_cmpf, tiny_fcclip


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
def test_without_injectors_it_is_fcclip_bit_for_bit(kind):
    images, text = some_images((60, 80)), some_text()
    fcclip, cmpf = tiny_fcclip(kind), tiny_cmpf(kind, query_layers=(), feature_layers=())
    missing, unexpected = cmpf.load_state_dict(fcclip.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("sam.") for name in missing)
    for one, other in ((cmpf(images, text), fcclip(images, text)),):
        assert torch.equal(one.masks, other.masks)
        assert torch.equal(one.classes, other.classes)


@pytest.mark.parametrize("options", [{"query_layers": ()}, {"feature_layers": ()}, {"behaviour": "official"}])
def test_each_injector_and_the_behaviour_make_a_difference(options):
    images, text = some_images((60, 80)), some_text()
    whole, changed = tiny_cmpf("convnext"), tiny_cmpf("convnext", **options)
    state = {name: value for name, value in whole.state_dict().items() if not name.startswith("sam_features.")}
    changed.load_state_dict(state, strict=False)
    assert (whole(images, text).masks - changed(images, text).masks).abs().max() > 1e-4


def test_sam_does_not_see_the_padding():
    segmenter = tiny_cmpf("convnext")
    pixels, resized_size = segmenter.network_input(some_images((50, 70)).image(0))
    other = pixels.clone()
    other[..., resized_size[1] :] = 0.9
    assert torch.equal(segmenter.sam_embedding(pixels, resized_size), segmenter.sam_embedding(other, resized_size))


def test_all_that_is_trained_gets_gradients_and_what_is_frozen_none():
    segmenter = tiny_cmpf("convnext").train()
    assert not segmenter.sam.training
    assert segmenter.trained_parts() == {"pixel_decoder", "mask_decoder", "sam_features", "query_injector", "feature_injector"}
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, 32:] = True, True
    torch.manual_seed(0)
    images = ImageBatch(some_images((64, 64)).pixels, ((64, 64),))
    losses = segmenter.loss(images, some_text(), [MaskTarget(masks, torch.tensor([0, 3]))], SetLossOptions(points=64))
    sum(losses.values()).backward()
    for name, parameter in segmenter.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith(("clip.", "sam."))), name
