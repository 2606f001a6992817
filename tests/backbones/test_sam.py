"""SAM, HQ-SAM and SAM 2 behind one interface, on tiny random models, against transformers' own forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    EdgeTamVisionConfig,
    Sam2Config,
    Sam2Model,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
    TimmWrapperConfig,
)
from transformers.models.edgetam.configuration_edgetam import EdgeTamMaskDecoderConfig, EdgeTamPromptEncoderConfig

from lexiseg.backbones.sam import Sam2Backbone, SamBackbone, SamFamily, SamHqBackbone
from lexiseg.backbones.sam_loading import (
    DECODER_NORM_EPS,
    build_sam,
    from_official_state,
    load_sam,
    print_without_hub,
    sam_vit,
)
from lexiseg.backbones.sam_weights import from_official, to_official
from lexiseg.errors import UsageError, WeightsError

DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 4, "iou_head_hidden_dim": 32}
PROMPT = {"hidden_size": 32, "image_size": 64, "patch_size": 16}
VISION = {
    "image_size": 64, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "output_channels": 32, "window_size": 3, "global_attn_indexes": [1], "num_pos_feats": 16,
}  # fmt: skip


def tiny_sam() -> SamConfig:
    return SamConfig(
        vision_config=VISION, prompt_encoder_config=PROMPT,
        mask_decoder_config={**DECODER, "layer_norm_eps": DECODER_NORM_EPS},
    )  # fmt: skip


def tiny_hq() -> SamHQConfig:
    return SamHQConfig(
        vision_config=VISION, prompt_encoder_config=PROMPT,
        mask_decoder_config={**DECODER, "layer_norm_eps": DECODER_NORM_EPS, "vit_dim": 32},
    )  # fmt: skip


def tiny_sam2() -> Sam2Config:
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 16, "image_size": [64, 64], "blocks_per_stage": [1, 2, 1, 1],
        "embed_dim_per_stage": [16, 32, 48, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4], "global_attention_blocks": [2],
        "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": [64, 48, 32, 16],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32,
    }  # fmt: skip
    return Sam2Config(vision_config=vision, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER)


def tiny_edgetam() -> EdgeTamConfig:
    print_without_hub()
    channels = [8, 16, 24, 32]
    trunk = TimmWrapperConfig(
        architecture="resnet10t",
        model_args={
            "in_chans": 3, "features_only": True, "out_indices": [1, 2, 3, 4], "layers": [1, 1, 1, 1], "channels": channels,
            "stem_width": 8, "stem_type": "deep",
        },
    )  # fmt: skip
    vision = EdgeTamVisionConfig(
        backbone_config=trunk, backbone_channel_list=channels[::-1], backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32, fpn_top_down_levels=[0, 1, 2, 3], fpn_kernel_size=1, fpn_padding=0,
    )  # fmt: skip
    prompts, decoder = EdgeTamPromptEncoderConfig(**PROMPT), EdgeTamMaskDecoderConfig(**DECODER)
    return EdgeTamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)


CONFIGS = {"sam": tiny_sam, "sam_hq": tiny_hq, "sam2": tiny_sam2, "edgetam": tiny_edgetam}


def tiny(name: str) -> SamFamily:
    """A tiny model whose every weight is random, so that no path is silent."""
    torch.manual_seed(1)
    backbone = build_sam(CONFIGS[name]())
    with torch.no_grad():
        for parameter in backbone.parameters():
            noise = torch.randn_like(parameter)
            spread = 1.4 * parameter[0].numel() ** -0.5 if name == "edgetam" and parameter.dim() == 4 else 0.3
            parameter.copy_(spread * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return backbone


PROMPTS: dict[str, dict[str, Tensor]] = {
    "points": {
        "points": torch.tensor([[[8.0, 9.0], [40.0, 3.0]], [[30.0, 50.0], [1.0, 1.0]]]),
        "labels": torch.tensor([[1, 0]] * 2),
    },
    "boxes": {"boxes": torch.tensor([[4.0, 5.0, 40.0, 30.0], [0.0, 10.0, 20.0, 60.0], [1.0, 2.0, 3.0, 4.0]])},
    "masks": {"masks": torch.linspace(-3, 3, 2 * 16 * 16).reshape(2, 1, 16, 16)},
    "points and masks": {"points": torch.tensor([[[8.0, 9.0]], [[50.0, 9.0]]]), "masks": torch.ones(2, 1, 16, 16)},
}  # fmt: skip


@pytest.fixture(params=list(CONFIGS))
def backbone(request: pytest.FixtureRequest) -> SamFamily:
    return tiny(request.param)


def test_declarations(backbone: SamFamily) -> None:
    declared = (backbone.image_size, backbone.grid, backbone.stride, backbone.channels, backbone.mask_size)
    assert declared == (64, 4, 16, 32, 16)
    with torch.no_grad():
        assert backbone.encode(torch.zeros(2, 3, 64, 64)).shape == (2, 32, 4, 4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sam", "sam2", "edgetam"])  # HQ-SAM's there differs from the authors', see SamHqBackbone
@pytest.mark.parametrize("kind", ["points", "boxes"])
@pytest.mark.parametrize("multimask", [True, False])
def test_decodes_as_transformers_does(name: str, kind: str, multimask: bool) -> None:
    backbone, prompts = tiny(name), PROMPTS[kind]
    images = torch.randn(1, 3, 64, 64)
    embeddings, skips = backbone.encode_with_skips(images)
    logits, quality = backbone.decode(embeddings, **prompts, skips=skips, multimask=multimask)
    batch = {f"input_{prompt}": value[None] for prompt, value in prompts.items()}
    expected = backbone.model(pixel_values=images, **batch, multimask_output=multimask)
    torch.testing.assert_close(logits, expected.pred_masks[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(quality, expected.iou_scores[0], rtol=1e-4, atol=1e-4)
    assert float(logits.std()) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("kind", list(PROMPTS))
def test_prompts_are_independent(backbone: SamFamily, kind: str) -> None:
    embeddings, skips = backbone.encode_with_skips(torch.randn(1, 3, 64, 64))
    prompts = PROMPTS[kind]
    logits, quality = backbone.decode(embeddings, **prompts, skips=skips)
    number = len(next(iter(prompts.values())))
    assert logits.shape == (number, quality.shape[1], 16, 16)
    for row in range(number):
        alone = {name: value[row : row + 1] for name, value in prompts.items()}
        one_logits, one_quality = backbone.decode(embeddings, **alone, skips=skips)
        torch.testing.assert_close(one_logits[0], logits[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one_quality[0], quality[row], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_hq_sam_without_its_token_is_sams_best_mask() -> None:
    """Degeneration: the HQ token's last layer at zero switches HQ-SAM off."""
    hq, sam = tiny("sam_hq"), tiny("sam")
    shared = {key: value for key, value in hq.model.state_dict().items() if key in sam.model.state_dict()}
    sam.model.load_state_dict(shared)
    hq_decoder, prompts, images = hq.model.mask_decoder, PROMPTS["points"], torch.randn(1, 3, 64, 64)
    hq_decoder.hq_mask_mlp.proj_out.weight.zero_()
    hq_decoder.hq_mask_mlp.proj_out.bias.zero_()
    # the mask tokens attend to the HQ token even so; SAM's heads therefore read HQ-SAM's transformer
    embeddings, skips = hq.encode_with_skips(images)
    sparse, dense = hq._embed_prompts(prompts["points"], prompts["labels"], None, None)
    tokens = torch.cat([hq._output_tokens().expand(1, 2, -1, -1), sparse], dim=2)
    attended, image = hq._attend(tokens, embeddings + dense)
    for multimask in (True, False):
        expected, expected_quality = sam._answer(attended, image, (), multimask=multimask)
        best = expected_quality.argmax(dim=1)
        logits, quality = hq.decode(embeddings, **prompts, skips=skips, multimask=multimask)
        assert logits.shape == (2, 1, 16, 16)
        torch.testing.assert_close(logits[:, 0], expected[torch.arange(2), best])
        torch.testing.assert_close(quality[:, 0], expected_quality.amax(dim=1))
    sharpened = tiny("sam_hq").decode(embeddings, **prompts, skips=skips)[0]
    assert not torch.allclose(sharpened, hq.decode(embeddings, **prompts, skips=skips)[0], atol=1e-3)


@torch.no_grad()
def test_decoding_needs_a_prompt_and_its_skips(backbone: SamFamily) -> None:
    embeddings, skips = backbone.encode_with_skips(torch.zeros(1, 3, 64, 64))
    with pytest.raises(UsageError, match="got none"):
        backbone.decode(embeddings, skips=skips)
    with pytest.raises(UsageError, match="got 2 and 3"):
        backbone.decode(embeddings, points=torch.zeros(2, 1, 2), boxes=torch.zeros(3, 4), skips=skips)
    if skips:
        with pytest.raises(UsageError, match="encode_with_skips"):
            backbone.decode(embeddings, points=torch.zeros(2, 1, 2))


def test_preprocessing_pads_after_normalising() -> None:
    backbone = tiny("sam")
    image = torch.rand(3, 30, 45)
    inputs = backbone.preprocess(image)
    assert inputs.shape == (1, 3, 64, 64)
    assert backbone.geometry((30, 45)).resized_size == (43, 64)  # 30 · 64 / 45 = 42.67
    assert torch.equal(inputs[:, :, 43:], torch.zeros(1, 3, 21, 64))
    mean = torch.tensor([123.675, 116.28, 103.53]) / 255
    assert torch.allclose(backbone.preprocess(mean[:, None, None].expand(3, 64, 64)), torch.zeros(1), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (64, 64), (33, 90)])
def test_any_image_size(backbone: SamFamily, size: tuple[int, int]) -> None:
    assert backbone.preprocess(torch.rand(3, *size)).shape == (1, 3, 64, 64)
    assert backbone.geometry(size).upsample(torch.randn(2, 16, 16)).shape == (2, *size)
    corner = backbone.scale_points(torch.tensor([[size[1], size[0]]]).double(), size)
    expected = (64, 64) if isinstance(backbone, Sam2Backbone) else backbone.geometry(size).resized_size[::-1]
    assert corner.tolist() == [list(map(float, expected))]


def test_key_map_both_ways() -> None:
    for backbone in (tiny("sam"), tiny("sam_hq")):
        state = backbone.model.state_dict()
        official = to_official(state)
        assert len(official) == len(state) - 1  # transformers ties two copies of the position matrix
        back = from_official({**official, "pixel_mean": torch.zeros(3)})
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state)
    with pytest.raises(WeightsError, match=r"1 keys are none of official.*image_encoder\.rope"):
        from_official({"image_encoder.rope": torch.zeros(1)})
    with pytest.raises(WeightsError, match="strange"):
        to_official({"strange": torch.zeros(1)})


def test_official_state_with_something_wrong() -> None:
    official = to_official(tiny("sam").model.state_dict())
    good = from_official_state(official, "tiny.pth", tiny_sam())
    assert isinstance(good, SamBackbone)
    missing = {key: value for key, value in official.items() if key != "mask_decoder.iou_token.weight"}
    with pytest.raises(WeightsError, match=r"tiny.pth does not fit.*1 missing: mask_decoder\.iou_token"):
        from_official_state(missing, "tiny.pth", tiny_sam())
    with pytest.raises(WeightsError, match="of another shape"):
        from_official_state({**official, "mask_decoder.iou_token.weight": torch.zeros(2, 32)}, "tiny.pth", tiny_sam())
    with pytest.raises(WeightsError, match="width 32"):
        from_official_state(official, "tiny.pth")


@pytest.mark.parametrize("model", [SamModel, SamHQModel, Sam2Model, EdgeTamModel])
def test_save_and_load_is_the_same(tmp_path: Path, model: type) -> None:
    name = {SamModel: "sam", SamHQModel: "sam_hq", Sam2Model: "sam2", EdgeTamModel: "edgetam"}[model]
    kind = {"sam": SamBackbone, "sam_hq": SamHqBackbone, "sam2": Sam2Backbone, "edgetam": Sam2Backbone}[name]
    original = tiny(name)
    original.model.save_pretrained(tmp_path)
    loaded = load_sam(tmp_path)
    assert type(loaded) is kind
    state = original.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())
    assert not loaded.training


def test_missing_and_damaged_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no SAM weights at nowhere/sam\.pth"):
        load_sam("nowhere/sam.pth")
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load_sam(tmp_path)
    with pytest.raises(WeightsError, match=r"cannot fetch config\.json of facebook/sam-vit-base.*put config"):
        load_sam("facebook/sam-vit-base")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(WeightsError, match="cannot read weights from"):
            load_sam(tmp_path / name)
    torch.save({"weights": {"a": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(WeightsError, match="no dictionary of tensors"):
        load_sam(tmp_path / "nested.pth")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")  # as SAM 2 is published, but none of its names
    with pytest.raises(WeightsError, match="1 keys are none of official SAM's"):
        load_sam(tmp_path / "other.pth")
    save_file({"image_encoder.pos_embed": torch.zeros(1, 2, 2, 8)}, tmp_path / "small.safetensors")
    with pytest.raises(WeightsError, match="width 8"):
        load_sam(tmp_path / "small.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="'bert' model"):
        load_sam(tmp_path)


def test_unknown_size() -> None:
    with pytest.raises(UsageError, match="unknown SAM size 'x'; there are b, l, h"):
        sam_vit("x")  # type: ignore[arg-type]
