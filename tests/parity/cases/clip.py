"""CLIP: CAT-Seg's dense ViT path, FC-CLIP's ConvNeXt and ResNet features, regions and texts, full-size names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import register_model
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.clip import (
    ClipBackbone,
    ClipMeanPooled,
    ClipResNet,
    ClipViT,
    assemble_clip,
    build_clip,
    pack_projections,
    split_projections,
)
from lexiseg.backbones.clip_vit import resized_positions
from tests.parity.report import Row, load_case, max_difference

OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
PREFIX = "backbone.clip_model."
TEMPLATES = 14  # prompts of a name in FC-CLIP's text classifier

# What the manifests call a backbone -> open_clip's architecture.
ARCHITECTURES = {
    "convnextL": "convnext_large_d_320",
    "rn50": "RN50-quickgelu",
    "rn50x4": "RN50x4-quickgelu",
    "rn50x16": "RN50x16-quickgelu",
    "rn50x64": "RN50x64-quickgelu",
    "vitb": "ViT-B-16-quickgelu",
    "vitl336": "ViT-L-14-336-quickgelu",
}


def no_tokenizer(texts: list[str]) -> Tensor:
    raise AssertionError(f"the cases hold tokens, not texts such as {texts[:1]}")


@torch.no_grad()
def catseg_clip_dense(path: Path) -> list[Row]:
    """The value-only dense path, guidance levels, both position tables, whole images and texts."""
    tensors, document = load_case(path)
    sizes = document["config"]
    vision = {
        "layers": sizes["vision_layers"],
        "width": sizes["vision_width"],
        "patch_size": sizes["vision_patch_size"],
        "image_size": sizes["image_resolution"],
        "head_width": 64,
    }
    text = {
        "context_length": sizes["context_length"],
        "vocab_size": sizes["vocab_size"],
        "width": sizes["transformer_width"],
        "heads": sizes["transformer_heads"],
        "layers": sizes["transformer_layers"],
    }
    config = {"embed_dim": sizes["embed_dim"], "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    clip = assemble_clip(config, no_tokenizer, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).eval()  # images come normalised
    assert isinstance(clip, ClipViT)
    official = {name.removeprefix("sd."): tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    texts = "text.tokens" in tensors  # the copy in the repository leaves the text tower out; the 05 cases run the same code
    clip.clip_model.load_state_dict(pack_projections(official), strict=texts)
    back = split_projections({name: tensor for name, tensor in clip.clip_model.state_dict().items() if texts or _visual(name)})

    def row(quantity: str, ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> Row:
        return Row(path.name, quantity, max_difference(ours, reference), tolerance)

    rows = [_set_row(path.name, "names after packing and splitting", back, official)]
    for group in ("native", "interp"):
        hooks = {
            int(name.removeprefix(f"{group}.block").removesuffix("_LND")): name for name in tensors if _is_hook(name, group)
        }
        clip.level_blocks = tuple(sorted(hooks))
        image = tensors[f"{group}.image"]
        features = clip.features(image)
        for level, number in zip(features.levels, clip.level_blocks, strict=True):
            rows.append(row(f"{group} block {number}", level.flatten(2).permute(2, 0, 1), tensors[hooks[number]][1:]))
        tokens = tensors[f"{group}.dense_out"]
        rows.append(row(f"{group} dense with class token", clip.project_tokens(features), tokens))
        rows.append(row(f"{group} dense map", clip.dense(image).flatten(2).mT, tokens[:, 1:]))
    rows.append(row("native image embedding", clip.encode_image(tensors["native.image"]), tensors["native.global_out"]))
    tower, grid = clip.clip_model.visual, features.grid
    table = resized_positions(tower.positional_embedding, tower.grid_size, grid)
    rows.append(row("interp position table", table, tensors["interp.resized_pos_embed"]))
    if texts:
        unit = functional.normalize(tensors["text.features"], dim=-1)
        rows.append(row("text embeddings", clip.encode_text(tensors["text.tokens"]), unit))
    return rows


def _visual(name: str) -> bool:
    return name.startswith("visual.")


def _is_hook(name: str, group: str) -> bool:
    return name.startswith(f"{group}.block") and name.endswith("_LND")


@torch.no_grad()
def fcclip_features(path: Path) -> list[Row]:
    """Normalised input, res2 … res5, the map that is pooled, pooled regions and the text classifier."""
    tensors, document = load_case(path)
    clip = fcclip_backbone(path, document)
    assert isinstance(clip, ClipMeanPooled | ClipResNet)
    clip.mean = tuple(value / 255 for value in document["pixel_mean"])
    clip.std = tuple(value / 255 for value in document["pixel_std"])

    def row(quantity: str, ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> Row:
        return Row(path.name, quantity, max_difference(ours, reference), tolerance)

    reference = tensors["record.normalized_padded_image"]
    image = torch.tensor(clip.mean)[None, :, None, None].expand_as(reference).clone()  # padded after the normalisation: with 0
    height, width = document["image_hw"]
    image[..., :height, :width] = tensors["image"] / 255
    rows = [row("normalised image", clip._normalised(image), reference)]
    features = clip.features(image)
    for name, level in zip(("res2", "res3", "res4", "res5"), features.levels, strict=True):
        rows.append(row(name, level, tensors[f"record.clip_features.{name}"]))
    rows.append(row("clip_vis_dense", features.last, tensors["record.clip_features.clip_vis_dense"]))
    pooled = clip.embed_regions_official(features, tensors["record.pred_masks"])
    rows.append(row("region embeddings, official rule", pooled, tensors["record.pooled_clip_projected"]))
    tokens = clip.tokenize(document["test_class_names"])
    rows.append(row("text tokens", tokens[:8], tensors["record.text_tokens_first8"], 0.0))
    prompts = clip.encode_text(tokens)
    names = functional.normalize(prompts.unflatten(0, (-1, TEMPLATES)).mean(1), dim=-1)
    rows.append(row("text classifier", names, tensors["record.text_classifier"]))
    return rows


def fcclip_names(path: Path) -> list[Row]:
    """Names and shapes of the official backbone's weights are those of our open_clip model."""
    main = path.with_name(path.name.removesuffix("_weights"))
    tensors, _ = load_case(path)
    prefix = f"state_dict.{PREFIX}"
    official = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    ours = fcclip_backbone(main, load_case(main)[1]).clip_model.state_dict()
    del ours["token_embedding.weight"]  # the files hold the rows in use only
    return [_set_row(path.name, "backbone names and shapes", ours, official)]


def full_size_names(path: Path) -> list[Row]:
    """Names and shapes of a full-size official backbone are those of our model, built on the meta device."""
    _, document = load_case(path)
    official = {name.removeprefix(PREFIX): row["shape"] for name, row in document["keys"].items() if name.startswith(PREFIX)}
    with torch.device("meta"):
        clip = build_clip(ARCHITECTURES[document["model"].split("_")[1]])
    return _name_rows(path.name, clip.clip_model.state_dict(), official)


def catseg_names(path: Path) -> list[Row]:
    """Names and shapes of CAT-Seg's full-size CLIP are ours after splitting the projections."""
    _, document = load_case(path)
    prefix = "sem_seg_head.predictor.clip_model."
    official = {name.removeprefix(prefix): shape for name, shape in document["keys"].items() if name.startswith(prefix)}
    with torch.device("meta"):
        clip = build_clip(ARCHITECTURES[document["model"].removeprefix("catseg_")])
    return _name_rows(path.name, split_projections(clip.clip_model.state_dict()), official)


def _name_rows(case: str, ours: Mapping[str, Tensor], official: Mapping[str, list[int]]) -> list[Row]:
    differing = [name for name in ours.keys() & official.keys() if list(ours[name].shape) != list(official[name])]
    return [
        Row(case, "missing names", float(len(official.keys() - ours.keys())), 0.0),
        Row(case, "unexpected names", float(len(ours.keys() - official.keys())), 0.0),
        Row(case, "differing shapes", float(len(differing)), 0.0),
    ]


def _set_row(case: str, quantity: str, ours: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> Row:
    shapes = {name: list(tensor.shape) for name, tensor in official.items()}
    return Row(case, quantity, sum(row.difference for row in _name_rows(case, ours, shapes)), 0.0)


def fcclip_backbone(path: Path, document: Mapping[str, Any]) -> ClipBackbone:
    """The backbone of a tiny FC-CLIP or FrozenSeg with its weights."""
    stored, _ = load_case(path.with_name(f"{path.name}_weights"))
    prefix = f"state_dict.{PREFIX}"
    state = {name.removeprefix(prefix): tensor.float() for name, tensor in stored.items() if name.startswith(prefix)}
    config = dict(document["open_clip_cfg"])
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"] = config["vision_cfg"] | {"timm_model_name": _registered_convnext(*_convnext_sizes(state))}
    from open_clip import SimpleTokenizer

    clip = assemble_clip(config, SimpleTokenizer(context_length=config["text_cfg"]["context_length"]), **OPENAI).eval()
    table = torch.zeros_like(clip.clip_model.token_embedding.weight)
    table[stored["token_ids"]] = stored["token_rows"].float()
    clip.clip_model.load_state_dict(state | {"token_embedding.weight": table})
    return clip


def _convnext_sizes(state: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Depths and widths of the stages, read off the weights."""
    parts = [name.split(".") for name in state if name.startswith("visual.trunk.stages.")]
    blocks = {(int(part[3]), int(part[5])) for part in parts if part[4] == "blocks"}
    stages = sorted({stage for stage, _ in blocks})
    depths = tuple(sum(stage == class_index for class_index, _ in blocks) for stage in stages)
    return depths, tuple(len(state[f"visual.trunk.stages.{stage}.blocks.0.conv_dw.weight"]) for stage in stages)


@lru_cache
def _registered_convnext(depths: tuple[int, ...], widths: tuple[int, ...]) -> str:
    """The name under which timm makes a convnext_large with other depths and widths."""

    def make(pretrained: bool = False, **options: Any) -> torch.nn.Module:
        return timm.create_model("convnext_large", pretrained=pretrained, depths=depths, dims=widths, **options)

    make.__name__ = "convnext_parity_" + "_".join(map(str, depths + widths))
    register_model(make)
    return make.__name__


CASES: dict[str, Callable[[Path], list[Row]]] = {
    "catseg_clip_dense": catseg_clip_dense,
    "05_*_full_*[!as]": fcclip_features,  # neither ..._extra nor ..._weights
    "05_*_full_*_weights": fcclip_names,
    "07_keys_*": full_size_names,
    "manifest_catseg_*": catseg_names,
}
