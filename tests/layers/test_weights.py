"""Official names of FC-CLIP's and FrozenSeg's trained part. The full-size lists are parity cases (07_keys_*)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lexiseg.errors import WeightsError
from lexiseg.layers.pixel_decoder import PixelDecoder
from lexiseg.methods.cmpf.injectors import FeatureInjector, QueryInjector
from lexiseg.methods.cmpf.sam_features import SamFeatures
from lexiseg.methods.fcclip.weights import from_official, names_to_official, to_official
from tests.layers.builders import decoder

LARGE = {"width": 64, "layers": 2, "heads": 2, "feedforward": 8}


def head() -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "pixel_decoder": PixelDecoder((4, 8, 12, 16), (4, 8, 16, 32), **LARGE),
            "mask_decoder": decoder(),
            "sam_features": SamFeatures(8, **LARGE, behaviour="official"),
            "feature_injector": FeatureInjector(width=16, heads=2),
            "query_injector": QueryInjector(channels=16),
        }
    )


def test_there_and_back() -> None:
    ours = head().state_dict()
    official = {name: ours[key] for key, name in names_to_official(ours).items()}
    assert len(official) == len(ours)
    others = {"backbone.clip_model.logit_scale": torch.tensor(1.0), "sam.image_encoder.pos_embed": torch.zeros(2)}
    checkpoint = from_official(official | others | {"criterion.empty_weight": torch.ones(3)})
    assert checkpoint.head.keys() == ours.keys()
    assert all(checkpoint.head[name] is tensor for name, tensor in ours.items())
    assert list(checkpoint.clip) == ["logit_scale"]
    assert list(checkpoint.sam) == ["image_encoder.pos_embed"]
    assert to_official(checkpoint).keys() == (official | others).keys()


def test_layers_of_the_injector_are_counted_from_one() -> None:
    name = "feature_injector.attentions.4.norm.weight"
    assert names_to_official([name])[name] == "sem_seg_head.predictor.transformer_cross_attention_layers_sam.3.norm.weight"


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(WeightsError, match=r"sem_seg_head\.predictor\.input_proj\.0\.weight"):
        from_official({"sem_seg_head.predictor.input_proj.0.weight": torch.zeros(1)})
    own = nn.ModuleDict({"query_injector": QueryInjector(channels=8, own_projection=8)}).state_dict()
    with pytest.raises(WeightsError, match="4 keys"):
        names_to_official(own)
