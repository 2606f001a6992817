"""A few heads at a time attend as all at once, and as transformers' attention."""

from __future__ import annotations

import pytest
import torch
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionSdpaAttention

from lexiseg.backbones import relative_attention
from lexiseg.backbones.relative_attention import RelativeAttention
from lexiseg.backbones.sam import SamBackbone
from tests.backbones.test_sam import tiny


@pytest.mark.parametrize(("window", "size"), [(0, (8, 8)), (5, (5, 5)), (0, (6, 6))])
@pytest.mark.parametrize("entries", [1, 2**24])
@torch.no_grad()
def test_it_is_the_attention_of_transformers(
    window: int, size: tuple[int, int], entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the positions are interpolated to another size."""
    monkeypatch.setattr(relative_attention, "ENTRIES", entries)
    config = SamVisionConfig(hidden_size=24, num_attention_heads=3, image_size=64, patch_size=8)
    theirs = SamVisionSdpaAttention(config, window).double()
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64))
    maps = torch.randn(2, *size, 24, dtype=torch.float64)
    expected = theirs(maps)[0]
    ours = RelativeAttention(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours(maps)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])
def test_loaded_sams_have_it(kind: str) -> None:
    backbone = tiny(kind)
    assert isinstance(backbone, SamBackbone) == (kind == "sam")
    assert all(isinstance(layer.attn, RelativeAttention) for layer in backbone.model.vision_encoder.layers)
