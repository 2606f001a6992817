"""CAT-Seg: aggregation of the cost volume, sliding windows, the whole model, full-size names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexiseg.backbones.clip import ClipViT, assemble_clip
from lexiseg.backbones.state_dicts import compiled, rename_all
from lexiseg.layers.cost_aggregation import CostAggregation, correlation, nearest_classes, shifted_window_mask
from lexiseg.methods import MODELS
from lexiseg.methods.catseg.config import CatSegConfig
from lexiseg.methods.catseg.model import CatSeg
from lexiseg.methods.catseg.weights import AGGREGATION_RULES, dropped, from_official, to_official
from lexiseg.postprocess import semantic_scores
from lexiseg.structures import OUTSIDE, Geometry, ImageBatch, PixelPrediction, TextEmbeddings
from tests.parity.cases.clip import OPENAI, no_tokenizer
from tests.parity.report import Row, load_case, max_difference


def sizes_of(config: Mapping[str, Any], *, width: str, heads: str, window: str) -> dict[str, Any]:
    """Ours, from an official configuration; aggregator and whole model have other names for three of them."""
    return {
        "width": config[width],
        "appearance": config["appearance_guidance_proj_dim"],
        "text": config["text_guidance_proj_dim"],
        "decoder": tuple(config["decoder_dims"]),
        "decoder_guides": tuple(config["decoder_guidance_proj_dims"]),
        "layers": config["num_layers"],
        "heads": config[heads],
        "window": config[window],
        "attention": config["attention_type"],
    }


def aggregation(path: Path) -> list[Row]:
    """The aggregator, whole and in parts."""
    tensors, document = load_case(path)
    config = document["config"]
    official = {name.removeprefix("sd."): tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    kept = {name: tensor for name, tensor in official.items() if not dropped(name)}
    names = rename_all(kept, compiled(AGGREGATION_RULES, 0), "official CAT-Seg's")
    sizes = sizes_of(config, width="hidden_dim", heads="nheads", window="window_size")
    guides = tuple(config["decoder_guidance_dims"])
    model = CostAggregation(config["text_guidance_dim"], guides, length=config["pad_len"], **sizes).eval()
    model.load_state_dict({names[key]: tensor for key, tensor in kept.items()})
    pooling, found = config["pooling_size"][0], []
    for one in range(len(tensors["in.img_feats"])):  # each image has texts of its own in these cases
        image, text = tensors["in.img_feats"][one : one + 1], tensors["in.text_feats"][one, :, 0]
        appearance, *guides = (tensors[f"in.guid{name}"][one : one + 1] for name in ("0_24", "1_48", "2_96"))
        volume = correlation(image, text)
        kept = nearest_classes(volume, config["pad_len"])
        model.classes_at_once = None
        whole = model(volume, text, appearance, tuple(guides), kept=kept, pooling=pooling)
        model.classes_at_once = 2
        parts = model(volume, text, appearance, tuple(guides), kept=kept, pooling=pooling)
        found.append((whole, parts, volume))
    logits, parts, volume = (torch.cat(each) for each in zip(*found, strict=True))
    rows = [
        Row(
            path.name, "cost volume", max_difference(volume[:, : tensors["out.corr"].shape[2]], tensors["out.corr"][:, 0]), 1e-5
        ),
        Row(path.name, "logits", max_difference(logits, tensors["out.logits"]), 1e-4),
        Row(path.name, "two classes at once", max_difference(parts, logits), 1e-5),
    ]
    if "out.selected_classes_mask" in tensors:
        selected = (logits > OUTSIDE).flatten(2).any(-1)
        rows.append(Row(path.name, "classes kept", max_difference(selected, tensors["out.selected_classes_mask"].bool()), 0))
    for name, mask in official.items():
        if dropped(name):
            own = shifted_window_mask(tuple(config["feature_resolution"]), config["window_size"], config["window_size"] // 2)
            rows.append(Row(path.name, "neighbours in shifted windows", max_difference(own, mask == 0), 0))
    return rows


def sliding(path: Path) -> list[Row]:
    """The mosaic of crops and the whole picture, with recorded logits in place of the model."""
    tensors, document = load_case(path)
    recorded, looked = list(tensors["in.fake_head_logits"]), []
    segmenter = CatSeg(tiny_clip(CLIP), CatSegConfig(image_size=document["kernel"]))

    def see(squares: Tensor, _: TextEmbeddings) -> None:
        looked.append(squares[0])

    def decode(*_: object, **__: object) -> Tensor:
        return recorded[-1 if len(looked) == 1 else len(looked) - 2][None]  # ours looks at the whole picture first

    segmenter.encode, segmenter.decode = see, decode  # type: ignore[method-assign,assignment]
    size = tuple(document["height_width"])
    probability = segmenter._probabilities([tensors["in.image_uint8"] / 255], nothing(), None)[0]
    mean, std = (torch.tensor(OPENAI[name])[:, None, None] for name in ("mean", "std"))
    seen = torch.stack([(crop - mean) / std for crop in (*looked[1:], looked[0])])
    return [
        Row(path.name, "crops", max_difference(seen[..., ::8, ::8], tensors["out.clip_input_crops_sub8"]), 1e-5),
        Row(path.name, "canvas", max_difference(probability[:, ::4, ::4], tensors["out.sem_seg_640_sub4"]), 1e-5),
        Row(path.name, "picture", max_difference(at_size(probability, size), tensors["out.sem_seg_160x200"]), 1e-5),
    ]


def end_to_end(path: Path) -> list[Row]:
    """The whole model with the official weights loaded, on the whole picture and on crops."""
    tensors, document = load_case(path)
    config = document["config"]
    clip = tiny_clip(document["clip_config"])
    clip.level_blocks = (1, 2, 3)  # the official one hooks blocks 1 and 2 of four
    sizes = sizes_of(config, width="hidden_dims", heads="num_heads", window="window_sizes")
    options = {OPTIONS[name]: value for name, value in sizes.items()}
    options |= {"guide_channels": tuple(config["decoder_guidance_dims"]), "behaviour": "official"}
    segmenter = CatSeg(clip, CatSegConfig(**options)).eval()
    official = {name.removeprefix("sd."): tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    segmenter.load_state_dict(from_official(official))
    back = to_official(segmenter.state_dict())
    vectors = clip.encode_text(tensors["text.tokens"])
    count = len(document["classes"])
    text = TextEmbeddings(vectors, torch.arange(count), tuple(document["classes"]), torch.ones(count, dtype=torch.bool))
    image = tensors["in.image_uint8"] / 255
    size = tensors["whole.sem_seg_argmax"].shape
    rows = [
        Row(path.name, "names there and back", len({key for key in official if not dropped(key)} ^ set(back)), 0),
        Row(path.name, "text embeddings", max_difference(vectors, unit(tensors["text.embed"][:, 0])), 1e-5),
    ]
    for name, crops in (("whole", False), ("sliding", True)):
        segmenter.config = replace(segmenter.config, sliding=crops)
        found = []
        decode = segmenter.decode

        def kept(*given: Any, inner: Callable[..., Tensor] = decode, into: list[Tensor] = found, **options: Any) -> Tensor:
            into.append(inner(*given, **options))
            return into[-1]

        segmenter.decode = kept  # type: ignore[method-assign,assignment]
        probability = segmenter(ImageBatch.of([image]), text).probabilities[0]
        segmenter.decode = decode  # type: ignore[method-assign]
        looked = torch.cat([*found[1:], found[0]])
        scores = at_size(probability, tuple(size))
        best, second = scores.topk(2, dim=0).values
        differs = (tensors[f"{name}.sem_seg_argmax"] != scores.argmax(0)) & (best - second > 1e-5)
        rows += [
            Row(path.name, f"{name}: logits", max_difference(looked[..., ::4, ::4], tensors[f"{name}.head_logits_crop"]), 1e-4),
            Row(path.name, f"{name}: scores", max_difference(scores[:, ::2, ::2], tensors[f"{name}.sem_seg"]), 1e-5),
            Row(path.name, f"{name}: pixels of another class", float(differs.sum()), 0),
        ]
    return rows


def full_size(path: Path) -> list[Row]:
    """Names, shapes and what is trained of the full-size model."""
    _, document = load_case(path)
    with torch.device("meta"):
        segmenter = MODELS[NAMES[document["model"]]].empty()
    official = {key: tuple(shape) for key, shape in document["keys"].items() if not dropped(key)}
    ours = {key: tuple(tensor.shape) for key, tensor in to_official(segmenter.state_dict()).items()}
    differing = [key for key in official.keys() | ours.keys() if official.get(key) != ours.get(key)]
    trained = list(segmenter.trained_parameters())
    tensors = sum(2 if one.frozen_rows else 1 for one in trained)  # queries and values in one
    return [
        Row(path.name, "names and shapes that differ", len(differing), 0),
        Row(path.name, "trained numbers", abs(sum(one.num_parameters for one in trained) - document["trainable_params"]), 0),
        Row(path.name, "tensors trained", abs(tensors - len(document["trainable_keys"])), 0),
    ]


def tiny_clip(config: Mapping[str, int]) -> ClipViT:
    """A CLIP of the sizes that official configurations give."""
    clip = assemble_clip(
        {
            "embed_dim": config["embed_dim"],
            "vision_cfg": {
                "layers": config["vision_layers"],
                "width": config["vision_width"],
                "patch_size": config["vision_patch_size"],
                "image_size": config["image_resolution"],
                "head_width": 64,
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": config["vocab_size"],
                "width": config["transformer_width"],
                "heads": config["transformer_heads"],
                "layers": config["transformer_layers"],
            },
            "quick_gelu": True,
        },
        no_tokenizer,
        **OPENAI,
    )
    assert isinstance(clip, ClipViT)
    return clip.eval()


def nothing() -> TextEmbeddings:
    return TextEmbeddings(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), (), torch.zeros(0, dtype=torch.bool))


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def at_size(probability: Tensor, size: tuple[int, int]) -> Tensor:
    """What post-processing makes of probabilities [K, h, w]."""
    return next(semantic_scores(PixelPrediction(probability[None], (Geometry.unresized(size),))))


CLIP = {
    "embed_dim": 32, "image_resolution": 64, "vision_layers": 4, "vision_width": 64, "vision_patch_size": 16,
    "transformer_width": 64, "transformer_heads": 1, "transformer_layers": 1, "vocab_size": 512,
}  # fmt: skip
OPTIONS = {  # of the whole model, by their names in the aggregation
    "width": "hidden_dim", "appearance": "appearance_dim", "text": "text_dim", "decoder": "decoder_channels",
    "decoder_guides": "decoder_guide_channels", "layers": "num_layers", "heads": "num_heads", "window": "window_size",
    "attention": "class_attention",
}  # fmt: skip
NAMES = {"catseg_vitb": "catseg-vit-b16", "catseg_vitl336": "catseg-vit-l14"}
CASES: dict[str, Callable[[Path], list[Row]]] = {
    "catseg_agg_*": aggregation,
    "catseg_sliding": sliding,
    "catseg_e2e": end_to_end,
    "manifest_catseg_v*": full_size,
}
