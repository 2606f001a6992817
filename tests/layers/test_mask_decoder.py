"""The masked-attention decoder: its functions against plain loops and PyTorch's own attention, and its laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.errors import UsageError
from lexiseg.layers.mask_decoder import Attention, DecodedMasks, cells_read, class_logits, mask_pool, masks_to_attn_mask
from lexiseg.layers.pixel_decoder import PixelFeatures
from lexiseg.structures import TextEmbeddings, Trace
from tests.layers.builders import LAYERS, QUERIES, TEXT_WIDTH, WIDTH, decoder, features, one_of, text


def test_mask_pool_is_the_mean_inside() -> None:
    cells, logits = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    pooled = mask_pool(cells, logits)
    for image in range(2):
        for query in range(6):
            inside = logits[image, query] > 0
            torch.testing.assert_close(pooled[image, query], cells[image][:, inside].mean(1))


@pytest.mark.parametrize("size", [(4, 5), (9, 7), (1, 1)])
def test_empty_masks_pool_to_zero(size: tuple[int, int]) -> None:
    logits = torch.randn(1, 3, *size)
    logits[:, 1] = -1.0
    pooled = mask_pool(torch.randn(1, 2, 4, 5), logits)
    assert torch.equal(pooled[:, 1], torch.zeros(1, 2))
    assert pooled.isfinite().all()


def test_masks_get_no_gradient_from_pooling() -> None:
    cells, logits = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(1, 2, 3, 3, requires_grad=True)
    mask_pool(cells, logits).sum().backward()
    assert logits.grad is None
    assert cells.grad is not None


def test_a_query_looks_inside_its_mask_or_everywhere() -> None:
    logits = torch.tensor([[3.0, -3.0, 0.0, -1e-3]]).view(1, 1, 2, 2)
    assert masks_to_attn_mask(logits, (2, 2)).flatten().tolist() == [True, False, True, False]
    assert masks_to_attn_mask(torch.full((1, 1, 2, 2), -5.0), (3, 3)).all()


def test_class_logits() -> None:
    vocabulary, embeddings = text((2, 1)), torch.randn(1, 4, TEXT_WIDTH)
    void = functional.normalize(torch.randn(1, TEXT_WIDTH), dim=-1)
    ours = class_logits(embeddings, vocabulary, void, torch.tensor(2.0).log())
    first, second, third = (functional.cosine_similarity(embeddings, row, dim=-1) for row in vocabulary.vectors)
    last = functional.cosine_similarity(embeddings, void[0], dim=-1)
    torch.testing.assert_close(ours, 2 * torch.stack([torch.maximum(first, second), third, last], dim=-1))
    assert class_logits(embeddings, vocabulary, void, torch.tensor(50.0)).abs().max() <= 100.001


def test_attention_is_pytorchs() -> None:
    ours, theirs = Attention(WIDTH, 4), nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    with torch.no_grad():
        for parameter, given in zip(ours.parameters(), theirs.parameters(), strict=True):
            nn.init.normal_(given)
            parameter.copy_(given)
    query, key, value = torch.randn(2, 3, WIDTH), torch.randn(2, 7, WIDTH), torch.randn(2, 7, WIDTH)
    attn_mask = torch.rand(2, 3, 7) > 0.5
    attn_mask[..., 0] = True
    expected, shares = theirs(query, key, value, attn_mask=~attn_mask.repeat_interleave(4, dim=0))
    torch.testing.assert_close(ours(query, key, value, attn_mask), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.attn_weights(query, key, attn_mask), shares, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_batch_of_two_is_two_of_one(device: torch.device) -> None:
    module, vocabulary = decoder().to(device), text().to(device)
    both = features(2)
    both = PixelFeatures(both.mask_features.to(device), tuple(level.to(device) for level in both.levels))
    together = module(both, vocabulary)
    for image in range(2):
        alone = module(one_of(both, image), vocabulary)
        torch.testing.assert_close(together.masks[image], alone.masks[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.classes[image], alone.classes[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_permuting_queries_permutes_the_prediction() -> None:
    module, vocabulary, given, order = decoder(), text(), features(), torch.randperm(QUERIES)
    before = module(given, vocabulary)
    for embedding in (module.query_features, module.query_positions):
        embedding.weight.copy_(embedding.weight[order].clone())
    after = module(given, vocabulary)
    torch.testing.assert_close(after.masks, before.masks[:, order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.classes, before.classes[:, order], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_classes_are_told_apart_by_their_text_only() -> None:
    module, vocabulary, given = decoder(), text(), features()
    whole = module(given, vocabulary)
    assert whole.classes.shape == (1, QUERIES, len(vocabulary) + 1)
    for order in ([2, 0, 1], [1]):
        part = module(given, vocabulary.select(order))
        assert torch.equal(part.masks, whole.masks)
        torch.testing.assert_close(part.classes, whole.classes[..., [*order, -1]])


@torch.no_grad()
def test_auxiliary_predictions_change_nothing_and_are_those_of_shorter_decoders() -> None:
    module, vocabulary, given = decoder(), text(), features()
    plain, deep = module(given, vocabulary), module(given, vocabulary, auxiliary=True)
    assert plain.auxiliary == ()
    assert len(deep.auxiliary) == LAYERS
    _assert_alike(plain, deep)
    for length in (0, 4):
        short = decoder(length)
        short.load_state_dict({name: tensor for name, tensor in module.state_dict().items() if name in short.state_dict()})
        _assert_alike(short(given, vocabulary), deep.auxiliary[length])


def _assert_alike(one: DecodedMasks, other: DecodedMasks) -> None:
    """But for rounding: with auxiliary predictions the heads see the queries of all layers at once."""
    torch.testing.assert_close(one.masks, other.masks, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.classes, other.classes, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "smaller", "cells"),
    [
        ((16, 24), (2, 3), 4 * 6),
        ((16, 24), (4, 12), 8 * 24),
        ((16, 24), (8, 12), 16 * 24),
        ((9, 12), (3, 4), 9 * 12),
        ((5, 7), (2, 3), 5 * 7),
        ((1, 4), (2, 2), 1 * 4),
        ((4, 4), (4, 4), 4 * 4),
    ],
)
def test_what_resizing_does_not_read_changes_nothing(size: tuple[int, int], smaller: tuple[int, int], cells: int) -> None:
    maps = torch.randn(2, 3, *size)
    read = cells_read(maps, smaller)
    assert read[0, 0].numel() == cells
    whole, part = (functional.interpolate(given, smaller, mode="bilinear", align_corners=False) for given in (maps, read))
    torch.testing.assert_close(whole, part, atol=1e-6, rtol=0)


@torch.no_grad()
def test_each_layer_looks_inside_the_masks_predicted_before_it() -> None:
    module, given = decoder(), features(2, size=(16, 20))
    looked: list[Tensor] = []
    for layer in module.layers:
        layer.register_forward_pre_hook(lambda _, inputs: looked.append(inputs[3]))
    decoded = module(given, text(), auxiliary=True)
    for number, (attn_mask, before) in enumerate(zip(looked, decoded.auxiliary, strict=True)):
        size = given.levels[number % 3].shape[-2:]
        logits = functional.interpolate(before.masks, size, mode="bilinear", align_corners=False).flatten(2)
        expected = (logits > 0) | (logits <= 0).all(-1, keepdim=True)
        assert torch.equal(attn_mask | (logits.abs() < 1e-5), expected | (logits.abs() < 1e-5))


@torch.no_grad()
def test_a_trace_has_the_masks_of_all_layers_and_where_queries_look() -> None:
    module, given, trace = decoder(), features(1, size=(16, 20)), Trace()
    decoded = module(given, text(), auxiliary=True, trace=trace)
    for number, made in enumerate((*decoded.auxiliary, decoded)):
        torch.testing.assert_close(trace[f"masks.{number}"], made.masks[0], atol=1e-5, rtol=1e-5)
    for number in range(1, LAYERS + 1):
        looks, before = trace[f"attention.{number}"], trace[f"masks.{number - 1}"]
        torch.testing.assert_close(looks.sum((-2, -1)), torch.ones(QUERIES))
        logits = functional.interpolate(before[None], looks.shape[-2:], mode="bilinear", align_corners=False)[0]
        outside = (logits < -1e-5) & (logits > 1e-5).any(-1).any(-1)[:, None, None]
        assert looks[outside].count_nonzero() == 0
    assert torch.equal(trace["pixels"], given.mask_features[0])


def test_every_parameter_gets_a_gradient() -> None:
    module = decoder().train()
    decoded = module(features(), text(), auxiliary=True)
    losses: list[Tensor] = [
        (output.masks**2).mean() + output.classes.softmax(-1)[..., 0].mean() for output in (decoded, *decoded.auxiliary)
    ]
    sum(losses).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 1)])
def test_smallest_features(size: tuple[int, int]) -> None:
    decoded = decoder()(features(size=size), text((1,)))
    assert decoded.masks.shape == (1, QUERIES, *size)
    assert decoded.masks.isfinite().all()
    assert decoded.classes.isfinite().all()


@torch.no_grad()
def test_masks_that_are_empty_everywhere() -> None:
    module, given = decoder(), features()
    module.mask_head[-1].weight.zero_()
    module.mask_head[-1].bias.fill_(-1.0)
    decoded = module(PixelFeatures(given.mask_features.abs(), given.levels), text())
    assert (decoded.masks < 0).all()
    assert decoded.classes.isfinite().all()


def wide_text() -> TextEmbeddings:
    vocabulary = text()
    return TextEmbeddings(
        functional.pad(vocabulary.vectors, (0, 1)), vocabulary.class_index, vocabulary.names, vocabulary.things
    )


def test_what_does_not_fit_is_refused() -> None:
    module, given, vocabulary = decoder(), features(), text()
    with pytest.raises(UsageError, match="takes 3 feature levels; got 2"):
        module(PixelFeatures(given.mask_features, given.levels[:2]), vocabulary)
    with pytest.raises(UsageError, match=r"features of 16 channels; got \[8, 16\]"):
        module(PixelFeatures(given.mask_features[:, :8], given.levels), vocabulary)
    with pytest.raises(UsageError, match="width 12; got 13"):
        module(given, wide_text())
