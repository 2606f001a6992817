"""What a stranger's config may say, and that nothing else is let through."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import transformers

from lexiseg.backbones import configs
from lexiseg.backbones.configs import (
    ASSETS,
    check_clip_config,
    check_preprocessing,
    own_options,
    read_config,
    read_vocabulary,
)
from lexiseg.errors import WeightsError

VISION = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}
TEXT = {"context_length": 16, "vocab_size": 2048, "width": 32, "heads": 2, "layers": 1}
CONFIG = Path("open_clip_config.json")


def model(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **own: Any) -> dict[str, Any]:
    """A config of a CLIP with something added."""
    return {"embed_dim": 24, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {})} | own


def test_all_architectures_of_open_clip_may_be_given_but_for_the_hub_s() -> None:
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        of_the_hub = any(key.startswith("hf_") or key == "strip_sep_token" for key in config["text_cfg"])
        if of_the_hub or "multimodal_cfg" in config:
            with pytest.raises(WeightsError):
                check_clip_config(config, name)
        else:
            check_clip_config(config, name)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (model(text={"tokenizer_kwargs": {"trust_remote_code": True}}), "text_cfg.tokenizer_kwargs"),
        (model(text={"tokenizer_kwargs": {"reduction_mask": "syntax"}}), "text_cfg.tokenizer_kwargs"),  # fetches a corpus
        (model(text={"tokenizer_kwargs": {"additional_special_tokens": ["(a+)+$"]}}), "text_cfg.tokenizer_kwargs"),
        (model(text={"hf_tokenizer_name": "someone/tokenizer"}), "text_cfg.hf_tokenizer_name"),
        (model(text={"hf_model_name": "someone/model"}), "text_cfg.hf_model_name"),
        (model(text={"hf_model_pretrained": True}), "text_cfg.hf_model_pretrained"),
        (model(text={"tokenizer_mode": "clips"}), "text_cfg.tokenizer_mode"),
        (model(text={"layers": [1, 2]}), "text_cfg.layers"),
        (model(text={"layers": 10**9}), "text_cfg.layers"),
        (model(text={"width": 10**6}), "text_cfg.width"),
        (model(text={"context_length": 10**6}), "text_cfg.context_length"),
        (model({"layers": 1000}), "vision_cfg.layers"),
        (model({"width": 10**6}), "vision_cfg.width"),
        (model({"width": 0}), "vision_cfg.width"),
        (model({"image_size": [64, 10**5]}), "vision_cfg.image_size"),
        (model({"image_size": 4096, "patch_size": 16}), "4096 pixels per side are more than 128 patches of 16"),
        (model({"mlp_ratio": 1e300}), "vision_cfg.mlp_ratio"),
        (model(embed_dim=10**6), "model_cfg.embed_dim"),
        (model(text={"act_kwargs": {"inplace": True}}), "text_cfg.act_kwargs"),
        (model({"timm_model_name": "hf-hub:someone/model"}), "vision_cfg.timm_model_name"),
        (model({"timm_model_name": "local-dir:/tmp/model"}), "vision_cfg.timm_model_name"),
        (model({"timm_model_name": "../model"}), "vision_cfg.timm_model_name"),
        (model({"timm_model_name": ["convnext_tiny"]}), "vision_cfg.timm_model_name"),
        (model({"timm_model_pretrained": "https://example.org"}), "vision_cfg.timm_model_pretrained"),
        (model({"norm_kwargs": {"eps": "1"}}), "vision_cfg.norm_kwargs"),
        (model({"norm_kwargs": {"device": "cuda"}}), "vision_cfg.norm_kwargs"),
        (model({"width": True}), "vision_cfg.width"),
        (model({"mlp_ratio": float("nan")}), "vision_cfg.mlp_ratio"),
        (model({"pretrained_image": "x"}), "vision_cfg.pretrained_image"),
        (model(cast_dtype="float16"), "model_cfg.cast_dtype"),
        (model(vision_cfg=[]), "model_cfg.vision_cfg"),
        ({"embed_dim": 24, "vision_cfg": VISION}, "has no text_cfg"),
    ],
)
def test_what_a_clip_s_config_may_not_say_is_named(config: dict[str, Any], where: str) -> None:
    with pytest.raises(WeightsError) as caught:
        check_clip_config(config, CONFIG)
    assert str(caught.value).startswith(f"{CONFIG}: ")
    assert where in str(caught.value)


def test_colours_are_three_numbers() -> None:
    check_preprocessing({"mean": [0, 0.5, 1], "std": None, "interpolation": "bicubic"}, CONFIG)
    for values in ([], {"mean": [0.5]}, {"mean": "abc"}, {"std": [1, 1, 0]}, {"mean": [float("inf"), 0, 0]}):
        with pytest.raises(WeightsError, match="preprocess_cfg"):
            check_preprocessing(values, CONFIG)


def test_configs_are_small_json_objects(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(WeightsError, match=r"cannot read .*config\.json"):
        read_config(path)
    for content, message in (
        ("[" * 200_000, "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "but a list"),
        (json.dumps({"a": "x" * configs.CONFIG_BYTES}), "more than 1 MiB"),
    ):
        path.write_text(content)
        with pytest.raises(WeightsError, match=message):
            read_config(path)
    path.write_text('{"a": 1}')
    assert read_config(path) == {"a": 1}


def test_vocabularies_lie_in_the_folder_or_in_the_package(tmp_path: Path) -> None:
    packed = gzip.compress(b"#\na b\n")
    folder = tmp_path / "clip"
    (folder / "inner").mkdir(parents=True)
    for path in (folder / "bpe.gz", folder / "inner/bpe.gz", tmp_path / "bpe.gz"):
        path.write_bytes(packed)
    (folder / "link.gz").symlink_to(tmp_path / "bpe.gz")
    (folder / "loop.gz").symlink_to(folder / "loop.gz")
    (folder / "linked").symlink_to(tmp_path)
    for name in ("bpe.gz", "inner/bpe.gz", "inner/../bpe.gz"):
        assert read_vocabulary(folder, name, CONFIG) == packed
    outside = ("../bpe.gz", "link.gz", "linked/bpe.gz", "inner/../../bpe.gz", str(folder / "bpe.gz"), "/etc/passwd", 3, "a\0b")
    for name in (*outside, "loop.gz", "inner", ""):
        with pytest.raises(WeightsError, match=r"open_clip_config\.json"):
            read_vocabulary(folder, name, CONFIG)
    shared = (ASSETS / "clip-tiny-bpe.txt.gz").read_bytes()
    assert read_vocabulary(ASSETS / "clip-tiny-vit", "../clip-tiny-bpe.txt.gz", CONFIG) == shared


def test_vocabularies_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "VOCABULARY_BYTES", 2**20)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**21)))
    with pytest.raises(WeightsError, match=r"bomb\.gz unpacks to more than 1 MiB"):
        read_vocabulary(tmp_path, "bomb.gz", CONFIG)
    (tmp_path / "large.gz").write_bytes(bytes(2**20 + 1))
    with pytest.raises(WeightsError, match=r"large\.gz has more than 1 MiB"):
        read_vocabulary(tmp_path, "large.gz", CONFIG)
    for content in (
        b"no gzip",
        gzip.compress(b"text")[:-6],
        gzip.compress(b"\xff\xff"),
        gzip.compress(b"text")[:10] + b"zzzzzzzz",
    ):
        (tmp_path / "bad.gz").write_bytes(content)
        with pytest.raises(WeightsError, match=r"bad\.gz is not a byte-pair vocabulary"):
            read_vocabulary(tmp_path, "bad.gz", CONFIG)


def test_of_transformers_configs_only_the_model_s_own_options_are_read() -> None:
    options = {
        "hidden_size": 32,
        "global_attn_indexes": [0, 1],
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "auto_map": {"AutoModel": "code.Model"},
        "model_type": "timm_wrapper",
        "quantization_config": {"quant_method": "someone"},
    }
    found = own_options(transformers.SamVisionConfig, options, "config.json", hidden_act="relu")
    assert found == {"hidden_size": 32, "global_attn_indexes": [0, 1], "hidden_act": "relu"}
    for wrong in (
        *({"hidden_size": {"a": 1}}, {"global_attn_indexes": [{}]}, []),
        *({"hidden_size": 10**6}, {"num_hidden_layers": 1000}, {"mlp_ratio": float("nan")}, {"global_attn_indexes": [0] * 999}),
        *({"hidden_act": "x" * 999}, {"image_size": -(10**6)}, {"attention_dropout": 256}, {"attention_dropout": -0.1}),
    ):
        with pytest.raises(WeightsError, match=r"config\.json.* must "):
            own_options(transformers.SamVisionConfig, wrong, "config.json")


@pytest.mark.parametrize("wrong", [{"window_size": 1000}, {"window_size": -1}, {"num_attention_heads": -16}])
def test_sizes_that_no_published_model_has_are_refused(wrong: dict[str, Any]) -> None:
    """A window of 1000 cells would pad maps of 16 to a thousand, and attend for minutes."""
    with pytest.raises(WeightsError, match=next(iter(wrong))):
        own_options(transformers.SamVisionConfig, wrong, "config.json")
