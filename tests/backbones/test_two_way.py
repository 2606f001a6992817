"""SAM's decoder in its shorter order of operations computes what transformers' computes, and only as much as is needed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lexiseg.backbones.sam import SamFamily
from lexiseg.backbones.two_way import is_shorter, two_way
from tests.backbones.test_sam import tiny


def embedded(backbone: SamFamily, count: int) -> tuple[Tensor, Tensor]:
    """Image embeddings and points."""
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(1, backbone.channels, backbone.grid, backbone.grid, generator=generator)
    return embeddings, torch.rand(count, 1, 2, generator=generator) * backbone.image_size


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_tokens_and_cells_are_those_of_transformers(shared: bool) -> None:
    transformer = tiny("sam").model.mask_decoder.transformer.double()
    width = transformer.layers[0].hidden_size
    generator = torch.Generator().manual_seed(0)
    prompts, cells, positions = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 5, width), (1 if shared else 3, 16, width), (1, 16, width))
    )
    for parameter in transformer.parameters():  # biases are 0 in a new model
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    image, places = (values.transpose(1, 2).reshape(-1, width, 4, 4) for values in (cells, positions))
    if shared:
        expected = transformer(prompts[None], image, places, attention_similarity=None)
        expected = expected[0][0], expected[1].flatten(0, 1)
    else:  # prompts with images of their own, one by one
        rows = [transformer(prompts[None, [row]], image[[row]], places, attention_similarity=None) for row in range(3)]
        expected = torch.cat([row[0][0] for row in rows]), torch.cat([row[1].flatten(0, 1) for row in rows])
    for ours, theirs in zip(two_way(transformer, prompts, cells, positions), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])
@torch.no_grad()
def test_masks_are_the_same_in_both_orders(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny(kind)
    embeddings, points = embedded(backbone, 4)
    _, skips = backbone.encode_with_skips(torch.zeros(1, 3, backbone.image_size, backbone.image_size))
    results = []
    for shorter in (True, False):
        monkeypatch.setattr("lexiseg.backbones.sam.is_shorter", lambda *_, shorter=shorter: shorter)
        results.append(backbone.decode(embeddings, points=points, skips=skips))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_many_tokens_take_the_plain_order() -> None:
    transformer = tiny("sam").model.mask_decoder.transformer
    attention = transformer.final_attn_token_to_image
    most = attention.internal_dim // attention.num_attention_heads
    assert is_shorter(transformer, most - 1)
    assert not is_shorter(transformer, most)


@pytest.mark.parametrize("kind", ["sam", "sam_hq", "sam2"])
@pytest.mark.parametrize("multimask", [True, False])
@torch.no_grad()
def test_only_promising_prompts_are_upsampled(kind: str, multimask: bool) -> None:
    """Their masks are those of all prompts."""
    backbone = tiny(kind)
    embeddings, points = embedded(backbone, 6)
    _, skips = backbone.encode_with_skips(torch.zeros(1, 3, backbone.image_size, backbone.image_size))
    logits, pred_iou = backbone.decode(embeddings, points=points, multimask=multimask, skips=skips)
    for threshold in (0.0, float(pred_iou.median()), float(pred_iou.max()) + 1):
        masks, scores, rows = backbone.decode_promising(embeddings, points, threshold, multimask=multimask, skips=skips)
        wanted = torch.nonzero((pred_iou > threshold).any(1)).flatten()
        if threshold == 0.0 or (kind == "sam2" and not multimask):
            wanted = torch.arange(6)
        assert set(wanted.tolist()) <= set(rows.tolist())
        torch.testing.assert_close(masks, logits[rows], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scores, pred_iou[rows], rtol=1e-4, atol=1e-5)
        if kind != "sam_hq":
            assert rows.tolist() == wanted.tolist()
