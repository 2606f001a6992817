"""Configs beside weights: CLIP's, SAM's, SAM 2's, EdgeTAM's, Mask2Former's and Grounding DINO's, of the tiniest models, which
are then loaded."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import torch

from lexiseg.backbones.clip import CONFIG_FILE, WEIGHTS_FILE, load_clip
from lexiseg.backbones.grounding_dino import load_grounding_dino
from lexiseg.backbones.mask2former import load_mask2former
from lexiseg.backbones.sam_loading import load_sam
from tests.backbones import test_grounding_dino, test_mask2former, test_sam
from tests.fuzz.mutations import mutated_bytes, mutated_json, paths
from tests.fuzz.watched import watched

SUFFIX = ".config"
DETECTORS = "grounding-dino", "mm-grounding-dino"
CLIP_FILES = CONFIG_FILE, WEIGHTS_FILE, "bpe.txt.gz"
CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 514, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    "lexiseg": {"bpe": "bpe.txt.gz"},
}
_SIZES = (
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    16,
    31,
    32,
    33,
    48,
    64,
    100,
    128,
    256,
    1000,
    4096,
    10**5,
    10**6,
    2**31,
    2**63,
    -1,
    -16,
    0.5,
    1e-9,
    1e308,
)
_NAMES = (
    "someone/model", "hf-hub:someone/model", "local-dir:.", "../x", "vit_huge_patch14_224", "vit_giant_patch14_clip_224",
    "resnet50",
    "gelu", "relu", "silu", "no_such", "sam", "sam2", "sam_hq", "edgetam", "mobile_sam", "mask2former", "swin", "resnet",
    "bottleneck", "basic", "grounding-dino", "mm-grounding-dino", "bert", "sine", "learned",
)  # fmt: skip
_KEYS = {
    "trust_remote_code": True, "auto_map": {"AutoModel": "code.Model"}, "attn_implementation": "someone/kernel",
    "hf_model_name": "someone/model",
    "hf_tokenizer_name": "someone/model", "tokenizer_kwargs": {"trust_remote_code": True}, "timm_model_name": "convnext_tiny",
    "quantization_config": {"quant_method": "someone"}, "use_timm_backbone": True, "backbone": "resnet50",
    "pos_embed_type": "sin_cos_2d",
    "attentional_pool": True, "block_type": "custom", "no_causal_mask": True, "custom_text": True, "embed_cls": True,
    "pool_type": "none",
    "timm_pool": "avg", "ls_init_value": 0.1, "patch_dropout": 0.5, "output_tokens": True, "patch_size": None,
    "torch_dtype": "float16",
    "dtype": "float4", "proj_type": "none", "use_absolute_embeddings": True, "pre_norm": True, "qk_norm": True,
    "init_logit_bias": -10,
}  # fmt: skip


def prepare(folder: Path) -> None:
    """Folders of tiny models, whose configs are replaced by the inputs."""
    for name, files in folders().items():
        (folder / name).mkdir(parents=True)
        for file, content in files.items():
            (folder / name / file).write_bytes(content)


def inputs(random: np.random.Generator) -> bytes:
    """A line that says which file of which model, and that file: a mutated config, now and then a mutated vocabulary."""
    kinds = tuple(folders())
    kind = kinds[int(random.integers(len(kinds)))]
    if kind == "clip" and random.random() < 0.2:
        return f"clip/{CLIP_FILES[2]}\n".encode() + _vocabulary(random)
    if kind in DETECTORS and random.random() < 0.2:
        return f"{kind}/vocab.txt\n".encode() + mutated_bytes(folders()[kind]["vocab.txt"], random)
    file = CLIP_FILES[0] if kind == "clip" else "config.json"
    document = json.loads(folders()[kind][file])
    if random.random() < 0.4:
        return f"{kind}/{file}\n".encode() + mutated_json(document, random)
    for _ in range(int(random.integers(1, 4))):
        *way, key = _pick(random, tuple(paths(document)))
        holder = document
        for step in way:
            holder = holder[step]
        if random.random() < 0.3 and isinstance(holder, dict):
            key = _pick(random, tuple(_KEYS))
            holder[key] = _KEYS[key]
        elif isinstance(holder[key], str):
            holder[key] = _pick(random, _NAMES)
        elif isinstance(holder[key], bool):
            holder[key] = not holder[key]
        elif not isinstance(holder[key], dict | list):
            holder[key] = _pick(random, _SIZES)
        elif isinstance(holder[key], list):
            holder[key] = _pick(random, (holder[key] * 40, holder[key][:-1], [], holder[key] + [_pick(random, _SIZES)], 3))
    return f"{kind}/{file}\n".encode() + json.dumps(document).encode()


def attempt(path: Path) -> None:
    """Load the model, and let it look at something small."""
    name, _, content = path.read_bytes().partition(b"\n")
    kind, file = name.decode().split("/")
    folder = path.parent / kind
    (folder / file).write_bytes(content)
    try:
        watched(lambda: _used(kind, folder))
    finally:
        (folder / file).write_bytes(folders()[kind][file])


@torch.no_grad()
def _used(kind: str, folder: Path) -> None:
    if kind == "clip":
        clip = load_clip(folder)
        clip.encode_text(clip.tokenize(["a house", "x" * 99, ""]))
        if clip.image_size <= 64:
            clip.dense(torch.rand(1, 3, clip.image_size, clip.image_size))
    elif kind in DETECTORS:
        detector = load_grounding_dino(folder)
        tokens = [101, *detector.tokenize("a house")[:16], 1012, 102]
        detector.detect(detector.features(detector.preprocess(torch.rand(3, 40, 60), 64, 128)), tokens[: detector.max_tokens])
    elif kind.startswith("mask2former"):
        load_mask2former(folder)(torch.rand(1, 3, 64, 64))
    else:
        sam = load_sam(folder)
        if sam.image_size <= 64:
            embedding, skips = sam.encode_with_skips(sam.preprocess(torch.rand(3, 40, 60)))
            sam.decode(embedding, points=torch.tensor([[[20.0, 30.0]]]), skips=skips)


def _vocabulary(random: np.random.Generator) -> bytes:
    """Byte-pair rules, mutated before or after they are packed."""
    words = ["#version", "h o", "ho u", "hou se</w>", "a b", "x x"]
    for _ in range(int(random.integers(0, 4))):
        words.insert(
            int(random.integers(len(words) + 1)), _pick(random, ("", "a", "a b c", "é è", "\0 \0", "x x", " ", "h o", "a  b"))
        )
    text = "\n".join(words).encode()
    if random.random() < 0.3:
        text = mutated_bytes(text, random)
    if random.random() < 0.05:
        text = b"a b\n" * 2**20
    packed = gzip.compress(text, mtime=0)
    return mutated_bytes(packed, random) if random.random() < 0.3 else packed


def _pick(random: np.random.Generator, choices: tuple[Any, ...]) -> Any:
    return choices[int(random.integers(len(choices)))]


@cache
def folders() -> dict[str, dict[str, bytes]]:
    """The files of tiny models, by name."""
    torch.manual_seed(0)
    state = open_clip.CLIP(**CLIP_CONFIG["model_cfg"]).state_dict()
    found = {
        "clip": {
            CLIP_FILES[0]: json.dumps(CLIP_CONFIG).encode(),
            CLIP_FILES[1]: safetensors.torch.save({name: value.contiguous() for name, value in state.items()}),
            CLIP_FILES[2]: gzip.compress(b"#version\n", mtime=0),
        }
    }
    models: dict[str, Any] = {name: test_sam.tiny(name) for name in ("sam", "sam_hq", "sam2", "edgetam")}
    models |= {"mask2former": test_mask2former.tiny("swin"), "mask2former_resnet": test_mask2former.tiny("resnet")}
    for name, model in models.items():
        weights = {key: value.contiguous().clone() for key, value in model.model.state_dict().items()}
        found[name] = {
            "config.json": model.model.config.to_json_string(use_diff=False).encode(),
            "model.safetensors": safetensors.torch.save(weights),
        }
    return found | {name: test_grounding_dino.published(name) for name in DETECTORS}
