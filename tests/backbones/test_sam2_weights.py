"""Official files of SAM 2: their names, their sizes, and what does not belong to single images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Sam2Config

from lexiseg.backbones import sam2_weights
from lexiseg.backbones.sam import Sam2Backbone
from lexiseg.backbones.sam_loading import build_sam, load_sam
from lexiseg.errors import WeightsError
from tests.backbones.test_sam import tiny

# Parameters of the image model, and what each published size says of its encoder; with the tracker, which is left out here,
# they have 38.9, 46.0, 80.8 and 224.4 million, as published.
SIZES = {
    (96, 12): (31_441_233, [1, 2, 7, 2], [5, 7, 9]),
    (96, 16): (38_539_089, [1, 2, 11, 2], [7, 10, 13]),
    (112, 24): (73_328_913, [2, 3, 16, 3], [12, 16, 20]),
    (144, 48): (216_925_377, [2, 6, 36, 4], [23, 33, 43]),
}


def official(model: torch.nn.Module) -> dict[str, Tensor]:
    """As Meta's program writes it, the tracker's weights included."""
    tracker = {key: torch.zeros(1) for key in ("maskmem_tpos_enc", "memory_encoder.out_proj.bias", "no_obj_embed_spatial")}
    return sam2_weights.to_official(model.state_dict()) | tracker


def test_names_there_and_back() -> None:
    ours = tiny("sam2").model.state_dict()
    back = sam2_weights.from_official(sam2_weights.to_official(ours))
    assert back.keys() == ours.keys()
    copy, original = "prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding"
    assert torch.equal(back[copy], ours[original])  # one tensor officially, two here
    assert all(torch.equal(back[key], ours[key]) for key in ours if key != copy)


@pytest.mark.parametrize("size", SIZES)
def test_the_size_of_a_file_is_seen_in_it(size: tuple[int, int]) -> None:
    width, blocks = size
    shapes: Mapping[str, Tensor] = {
        sam2_weights.SAM2_KEY: torch.empty(width, 3, 7, 7, device="meta"),
        **{f"image_encoder.trunk.blocks.{number}.norm1.weight": torch.empty(0) for number in range(blocks)},
    }
    config = sam2_weights.sam2_config(shapes, "a file")
    count, stages, everywhere = SIZES[size]
    trunk = config.vision_config.backbone_config
    assert (trunk.blocks_per_stage, trunk.global_attention_blocks) == (stages, everywhere)
    with torch.device("meta"):
        backbone = build_sam(config)
    assert isinstance(backbone, Sam2Backbone)
    tied = 2 * 128  # one tensor, two names
    assert sum(tensor.numel() for tensor in backbone.model.state_dict().values()) - count in {0, tied}
    assert set(sam2_weights.from_official(official(backbone.model))) == set(backbone.model.state_dict())


def test_an_official_file_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("sam2")
    torch.save({"model": official(model.model)}, tmp_path / "sam2.1_hiera_tiny.pt")

    def config(*_: Any) -> Sam2Config:
        return model.model.config

    monkeypatch.setattr(sam2_weights, "sam2_config", config)
    loaded = load_sam(tmp_path / "sam2.1_hiera_tiny.pt")
    image = torch.rand(3, 40, 60)
    assert torch.equal(loaded.encode(loaded.preprocess(image)), model.encode(model.preprocess(image)))


def test_what_is_none_of_the_published_is_refused(tmp_path: Path) -> None:
    state = official(tiny("sam2").model)
    torch.save(state, tmp_path / "sam2.pt")
    with pytest.raises(WeightsError, match="width 16 with 5 blocks"):
        load_sam(tmp_path / "sam2.pt")
    with pytest.raises(WeightsError, match="something"):
        sam2_weights.from_official(state | {"something.weight": torch.zeros(1)})
