"""Grounding DINO's inputs, outputs and weights, beside transformers' own processor and model."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch.testing import assert_close
from transformers.models.grounding_dino.image_processing_grounding_dino import GroundingDinoImageProcessor

from lexiseg.backbones.grounding_dino import (
    GroundingDino,
    grounding_dino,
    input_size,
    load_grounding_dino,
    spelling_vocabulary,
)
from lexiseg.errors import UsageError, WeightsError
from tests.laws.builders import some_images, tiny_dino, tiny_dino_config

FAMILIES = ("grounding-dino", "mm-grounding-dino")
PHRASE = [101, 200, 300, 1012, 201, 1012, 102]


@cache
def published(family: str) -> dict[str, bytes]:
    """The files of a tiny model, as transformers saves it and as they are on the hub."""
    detector = tiny_dino(family)
    weights = {name: value.contiguous().clone() for name, value in detector.model.state_dict().items()}
    return {
        "config.json": detector.model.config.to_json_string(use_diff=False).encode(),
        "model.safetensors": save(weights),
        "vocab.txt": "".join(f"{piece}\n" for piece in pieces(spelling_vocabulary())).encode(),
    }


def pieces(vocabulary: dict[str, int]) -> list[str]:
    return sorted(vocabulary, key=lambda piece: vocabulary[piece])


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with the model of a family, the first if none is given."""
    path = tmp_path / "detector"
    path.mkdir()
    for name, content in published(getattr(request, "param", FAMILIES[0])).items():
        (path / name).write_bytes(content)
    return path


def outputs(detector: GroundingDino) -> tuple[torch.Tensor, torch.Tensor]:
    image = some_images((60, 80)).image(0)
    with torch.no_grad():
        return detector.detect(detector.features(detector.preprocess(image, 64, 128)), PHRASE)


def changed(folder: Path, change: dict[str, Any]) -> None:
    """Change values of the config by dotted names."""
    document = json.loads((folder / "config.json").read_bytes())
    for name, value in change.items():
        holder = document
        *way, last = name.split(".")
        for key in way:
            holder = holder[key]
        holder[last] = value
    (folder / "config.json").write_text(json.dumps(document))


# --- inputs and outputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (427, 640), (800, 900), (100, 1000), (333, 77), (3, 300), (20, 20)])
def test_images_are_resized_as_by_the_official_processor(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    picture = coarse.resize(size[::-1], Image.Resampling.BICUBIC)
    processor = GroundingDinoImageProcessor(size={"shortest_edge": 80, "longest_edge": 133})
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    found = tiny_dino().preprocess(pixels, 80, 133)
    assert found.shape == expected.shape
    assert found.shape[-2:] == input_size(size, 80, 133)
    step = 1 / 255 / 0.224  # the processor rounds to 8 bits, in two directions one after the other
    assert_close(found, expected, atol=1.01 * step, rtol=0)
    assert (found - expected).abs().mean() < 0.4 * step


@pytest.mark.parametrize("family", FAMILIES)
def test_detection_is_transformers_forward(family: str) -> None:
    """Of two images, of which the second is in another batch there."""
    detector, images = tiny_dino(family), some_images((60, 80), (60, 80))
    inputs = torch.cat([detector.preprocess(image, 64, 128) for image in images])
    with torch.no_grad():
        logits, boxes = detector.detect(detector.features(inputs), PHRASE)
        expected = detector.model(pixel_values=inputs, input_ids=torch.tensor([PHRASE, PHRASE]))
    assert logits.shape == (2, 12, len(PHRASE))
    assert_close(logits, expected.logits[..., : len(PHRASE)])
    centre, extent = expected.pred_boxes.split(2, -1)
    assert_close(boxes, torch.cat([centre - extent / 2, centre + extent / 2], -1))


def test_the_image_tower_runs_once_for_all_prompts() -> None:
    detector, runs = tiny_dino(), []
    tower = detector.model.model.backbone
    tower.register_forward_hook(lambda *_: runs.append(1))
    features = detector.features(torch.rand(1, 3, 64, 64))
    first = detector.detect(features, PHRASE)
    detector.detect(features, [*PHRASE[:4], 102])
    assert_close(first, detector.detect(features, PHRASE), rtol=0, atol=0)
    assert len(runs) == 1
    assert detector.model.model.backbone is tower


@pytest.mark.parametrize("size", [(4, 130), (130, 4)])
def test_thin_inputs_have_cells_for_all_queries(size: tuple[int, int]) -> None:
    """Boxes are still of the image, not of the padding."""
    detector = tiny_dino(num_queries=60)
    features = detector.features(torch.rand(1, 3, *size))
    assert features.pixels.shape[2:] == tuple(32 if side == 4 else side for side in size)
    assert features.mask.sum() == size[0] * size[1]
    logits, boxes = detector.detect(features, PHRASE)
    assert logits.shape == (1, 60, len(PHRASE))
    assert boxes.isfinite().all()


def test_tokens_are_those_of_bert() -> None:
    """But for its special tokens, which a name cannot be."""
    words = ["dog", "##s", "cat", "traffic", "light", "cafe", "é"]
    vocabulary = spelling_vocabulary()
    for number, word in enumerate(words):
        old = next(piece for piece, index in vocabulary.items() if index == 400 + number)
        del vocabulary[old]
        vocabulary[word] = 400 + number
    detector = GroundingDino(tiny_dino().model, vocabulary)
    official = transformers.BertTokenizer(vocab=vocabulary)
    for text in ("dog", "Dogs", "traffic light", "CAFÉ", "cat's", "x-ray 7", "日本", "\u200d🙂", "dog  cat"):
        assert detector.tokenize(text) == official(text, add_special_tokens=False).input_ids, text
    assert 102 not in detector.tokenize("[SEP]")


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
def test_a_folder_loads(folder: Path) -> None:
    family = json.loads((folder / "config.json").read_bytes())["model_type"]
    loaded = load_grounding_dino(folder)
    assert_close(outputs(loaded), outputs(tiny_dino(family)), rtol=0, atol=0)
    assert not loaded.training
    again = load_grounding_dino(folder / "model.safetensors")
    assert_close(outputs(again), outputs(loaded), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_loads(family: str, tmp_path: Path) -> None:
    """In its earlier names, without the second names of heads, and the vocabulary in the form of the tokenizers library."""
    expected = outputs(tiny_dino(family))
    model = tiny_dino_config(family), tiny_dino(family).model.state_dict()
    official = getattr(transformers, type(model[0]).__name__.replace("Config", "ForObjectDetection"))(model[0])
    missing, extra = official.load_state_dict(model[1], strict=False)
    assert not extra
    assert all("layernorm" in name for name in missing)
    official.save_pretrained(tmp_path)
    transformers.BertTokenizer(vocab=spelling_vocabulary()).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    saved = load_file(tmp_path / "model.safetensors")
    assert any("attention.self.query" in name and "swin" not in name for name in saved)
    assert not any(name.startswith("model.decoder.bbox_embed") for name in saved)
    loaded = load_grounding_dino(tmp_path)
    assert_close(outputs(loaded), expected, rtol=0, atol=0)
    assert loaded.tokenize("a dog") == tiny_dino(family).tokenize("a dog")
    parameters = loaded.model.state_dict(keep_vars=True)
    assert parameters["model.decoder.bbox_embed.0.layers.0.weight"] is parameters["bbox_embed.1.layers.0.weight"]


def test_a_head_of_its_own_is_not_made_up(folder: Path) -> None:
    """Where layers have boxes of their own, the box head of one is not another's."""
    changed(folder, {"decoder_bbox_embed_share": False})
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if "bbox_embed.1." not in name}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit the model: 12 missing: bbox_embed\.1"):
        load_grounding_dino(folder)


def test_pytorch_s_files_load(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_close(outputs(load_grounding_dino(folder)), outputs(tiny_dino()), rtol=0, atol=0)


def test_published_sizes() -> None:
    """172 and 233 million parameters, as the model cards say."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in grounding_dino(size).parameters()) for size in ("swin-t", "swin-b")]
    assert [round(count / 1e6) for count in counts] == [172, 232]
    with pytest.raises(UsageError, match=r"unknown 'grounding-dino' 'swin-x'; there are swin-t, swin-b"):
        grounding_dino("swin-x")  # type: ignore[arg-type]


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    for name, said in (
        ("vocab.txt", "vocab.txt or tokenizer.json"),
        ("model.safetensors", "model.safetensors or pytorch_model"),
    ):
        other = tmp_path / name
        shutil.copytree(folder, other)
        (other / name).unlink()
        with pytest.raises(WeightsError, match=f"has no {said}"):
            load_grounding_dino(other)
    with pytest.raises(WeightsError, match=r"no Grounding DINO at nowhere/model\.pth; give a folder"):
        load_grounding_dino("nowhere/model.pth")


# --- what a stranger's folder may not say -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "sam"}, "holds a 'sam' model"),
        ({"model_type": ["grounding-dino"]}, "holds a"),
        ({"backbone_config": None}, "only a swin and a bert are supported"),
        ({"backbone_config": {"model_type": "resnet"}}, "only a swin and a bert"),
        ({"text_config": {"model_type": "llama"}}, "only a swin and a bert"),
        ({"text_config": 3}, "must be an object"),
        ({"max_text_len": 10**9}, "max_text_len"),
        ({"max_text_len": 513}, "max_text_len must be a whole number in 4..512"),
        ({"max_text_len": 65}, "max_position_embeddings must be a whole number in 65"),
        ({"max_text_len": "256"}, "cannot build"),
        ({"num_queries": 10**6}, "num_queries"),
        ({"num_queries": 30_000}, "num_queries must be a whole number"),
        ({"num_queries": 13}, "does not fit the model"),
        ({"encoder_layers": 10**6}, "encoder_layers"),
        ({"encoder_layers": 0}, "encoder_layers"),
        ({"decoder_layers": 0}, "decoder_layers"),
        ({"encoder_n_points": 30_000}, "encoder_n_points"),
        ({"encoder_n_points": 0}, "encoder_n_points"),
        ({"encoder_attention_heads": 1}, "encoder_attention_heads"),
        ({"encoder_attention_heads": 5}, "cannot build|encoder_attention_heads must be even"),
        ({"num_feature_levels": 1}, "num_feature_levels"),
        ({"num_feature_levels": 2}, "cannot build|does not fit"),
        ({"d_model": 32}, "d_model"),
        ({"d_model": -64}, "d_model"),
        ({"positional_embedding_temperature": 0}, "positional_embedding_temperature"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"text_config.layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"backbone_config.layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"two_stage": False}, "two_stage must be True"),
        ({"embedding_init_target": False}, "embedding_init_target must be True"),
        ({"position_embedding_type": "learned"}, "position_embedding_type must be 'sine'"),
        ({"activation_function": "no_such"}, "cannot build"),
        ({"backbone_config.window_size": 1000}, "window_size"),
        ({"backbone_config.window_size": 0}, "window_size"),
        ({"backbone_config.depths": [1, 1, 1, 10**4]}, "depths"),
        ({"backbone_config.depths": [1, 1, 1]}, "cannot build"),
        ({"backbone_config.num_heads": [1, 1, 2]}, "depths and num_heads must be four"),
        ({"backbone_config.num_heads": 3}, "num_heads"),
        ({"backbone_config.use_absolute_embeddings": True}, "use_absolute_embeddings must be False"),
        ({"backbone_config.patch_size": 1}, "patch_size must be 4"),
        ({"backbone_config.out_indices": [4]}, "out_indices must be"),
        ({"backbone_config.out_features": ["stage1"]}, "out_indices must be"),
        ({"text_config.is_decoder": True}, "is_decoder must be False"),
        ({"text_config.vocab_size": 10}, "more pieces than the 10 embeddings"),
        ({"text_config.vocab_size": 2**15}, "does not fit the model"),
        ({"text_config.num_hidden_layers": 10**5}, "num_hidden_layers"),
        ({"text_config.num_attention_heads": 3}, "cannot build"),
    ],
)
def test_what_a_config_may_not_say_is_named(folder: Path, change: dict[str, Any], said: str) -> None:
    changed(folder, change)
    with pytest.raises(WeightsError, match=said) as caught:
        load_grounding_dino(folder)
    assert "\n" not in str(caught.value)


def test_code_of_a_repository_is_ignored(folder: Path) -> None:
    changed(
        folder, {"auto_map": {"AutoModel": "code.Model"}, "attn_implementation": "someone/kernel", "use_timm_backbone": True}
    )
    assert_close(outputs(load_grounding_dino(folder)), outputs(tiny_dino()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("vocab.txt", b"a\nb\n", r"vocab\.txt: \[CLS\] is token None, not 101"),
        ("vocab.txt", b"\xff\xfe", "is not a WordPiece vocabulary"),
        ("vocab.txt", b"", r"\[CLS\] is token None"),
        ("tokenizer.json", b"[]", "is not a WordPiece vocabulary"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": "b"}}}', "model.vocab must map pieces to ids"),
        ("tokenizer.json", b'{"model": {"vocab": [["a", 1.0]]}}', "model.vocab must map pieces to ids"),
        ("tokenizer.json", b"[" * 100_000, "is not a WordPiece vocabulary"),
    ],
)
def test_another_vocabulary_is_refused(folder: Path, file: str, content: bytes, said: str) -> None:
    (folder / "vocab.txt").unlink()
    (folder / file).write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        load_grounding_dino(folder)


def test_a_vocabulary_without_the_unknown_is_refused(folder: Path) -> None:
    text = (folder / "vocab.txt").read_text().replace("[UNK]", "[unk]")
    (folder / "vocab.txt").write_text(text)
    with pytest.raises(WeightsError, match=r"has no \[UNK\]"):
        load_grounding_dino(folder)
