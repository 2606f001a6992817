"""MaskCLIP's mask tokens: relative mask attention and refinement in four blocks of a deep CLIP, and what is shipped after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.clip import ClipViT, assemble_clip
from lexiseg.backbones.mask2former import Mask2Former
from lexiseg.backbones.mask2former_weights import from_official as proposer_from_official
from lexiseg.backbones.sam_weights import check_keys
from lexiseg.ensembles import classify_vectors
from lexiseg.methods import MODELS
from lexiseg.methods.maskclip.config import MaskClipConfig
from lexiseg.methods.maskclip.model import MaskClip, without_last
from lexiseg.methods.maskclip.weights import relative_from_official, taken_apart
from lexiseg.methods.weights import check
from lexiseg.postprocess import semantic_scores
from lexiseg.structures import Geometry, MaskPrediction, TextEmbeddings
from tests.laws.builders import SomeProposals
from tests.parity.cases.clip import no_tokenizer
from tests.parity.cases.ensembles import compare_panoptic, text_of
from tests.parity.report import Row, load_case, max_difference


def loaded(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> MaskClip:
    """Ours with the official weights of a case."""
    config = document["config"]
    vision = {
        "layers": config["layers"],
        "width": config["width"],
        "head_width": document["head_dim"],
        "patch_size": config["patch_size"],
        "image_size": config["input_resolution"],
    }
    text = {"context_length": 8, "vocab_size": 10, "width": 8, "heads": 1, "layers": 1}
    model = {"embed_dim": config["output_dim"], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    clip = assemble_clip(model, no_tokenizer, mean=(0, 0, 0), std=(1, 1, 1)).eval()  # images come normalised
    assert isinstance(clip, ClipViT)
    official = {name.removeprefix("sd."): tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    relative, rest = relative_from_official(official)
    clip.clip_model.load_state_dict({**clip.clip_model.state_dict(), **rest})
    blocks = tuple(number for number in MaskClipConfig().relative_blocks if number < config["layers"])
    options = MaskClipConfig(clip_image_size=config["input_resolution"], relative_blocks=blocks, masks_at_once=None)
    segmenter = MaskClip(clip, SomeProposals(), options).eval()
    segmenter.relative.load_state_dict(relative)
    return segmenter


def tokens(path: Path) -> list[Row]:
    """From pictures and mask logits to embeddings, classes and redrawn masks; all masks at once and some at a time."""
    tensors, document = load_case(path)
    segmenter, config = loaded(tensors, document), document["config"]
    clip = segmenter.clip
    features = clip.features(tensors["in.image"])
    unit = functional.normalize(tensors["in.txt_embed"], dim=-1)
    names = TextEmbeddings(unit, torch.arange(7), tuple("abcdefg"), torch.ones(7, dtype=torch.bool))
    vectors, masks = segmenter.embed(features, tensors["in.masks"], names)
    cosines = classify_vectors(vectors, names, 1 / config["temperature"])
    expected = tensors["out.pred_logits"].log_softmax(-1)
    segmenter.config = replace(segmenter.config, masks_at_once=7)
    parts, _ = segmenter.embed(features, tensors["in.masks"], names)
    return [
        Row(path.name, "embeddings of masks", max_difference(vectors, tensors["out.mask_embeds"]), 1e-4),
        Row(path.name, "log-probabilities", max_difference(cosines, expected), 1e-3),
        Row(path.name, "masks drawn again", max_difference(masks, tensors["out.pred_masks"]), 1e-3),
        Row(path.name, "seven masks at once", max_difference(parts, vectors), 1e-5),
    ]


@torch.no_grad()
def first_blocks(path: Path) -> list[Row]:
    """The tokens after some of the first blocks, the relative one among them, and the masks that one draws."""
    tensors, document = load_case(path)
    rows, count = [], tensors["in.masks"].shape[1]
    for number in (0, 5, 6):
        recorded = tensors[f"out.block{number}"].transpose(0, 1)
        segmenter = loaded(tensors, document)
        tower: Any = segmenter.clip.clip_model.visual
        features = segmenter.clip.features(tensors["in.image"])
        after = tower.transformer.resblocks[number](features.last[:, number])
        tower.transformer.resblocks = tower.transformer.resblocks[: number + 1]
        tower.ln_post, tower.proj = torch.nn.Identity(), torch.nn.Parameter(torch.eye(tower.proj.shape[0]))
        own, masks = segmenter.clip.mask_tokens(features, tensors["in.masks"], segmenter.attend(features.grid))
        rows.append(Row(path.name, f"mask tokens after block {number}", max_difference(own, recorded[:, :count]), 1e-4))
        rows.append(Row(path.name, f"image tokens after block {number}", max_difference(after, recorded[:, count:]), 1e-4))
    rows.append(Row(path.name, "masks drawn again", max_difference(masks[:1], tensors["out.masks_before_block11"]), 1e-4))
    return rows


def shipped(path: Path) -> list[Row]:
    """Semantic and panoptic results of fixed logits; the last class is in the second only."""
    tensors, document = load_case(path)
    logits, masks = tensors["in.mask_cls"], tensors["in.mask_pred"][None]
    size, count = (int(masks.shape[-2]), int(masks.shape[-1])), logits.shape[-1]
    plain = MaskPrediction(masks, logits.log_softmax(-1)[None], False, (Geometry.unresized(size),))
    prediction = without_last(plain)
    text = text_of([1] * count, torch.eye(count), torch.zeros(count), document["things"])
    scores = next(semantic_scores(prediction, divide=False))
    thresholds = document["obj_thr"], document["overlap"]
    expected = tensors["out.panoptic"], document["segments"]
    return [
        Row(path.name, "semantic", max_difference(scores[:-1], tensors["out.semantic"]), 1e-5),
        Row(path.name, "the last class", float(scores[-1].abs().max()), 0),
        *compare_panoptic(path.name, "panoptic", prediction, text, thresholds, expected),
    ]


def manifest(path: Path) -> list[Row]:
    """The published checkpoint's keys and shapes: all consumed, none of our parameters without a source."""
    _, document = load_case(path)
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in document["keys"].items()}
        segmenter = MODELS["maskclip-vit-l14"].empty()
    assert isinstance(segmenter, MaskClip)
    checkpoint = taken_apart(state, path.name)
    own = segmenter.clip.clip_model.state_dict()
    check(checkpoint.vision, {name: own[name] for name in own if name.startswith("visual.")}, path.name)
    check(checkpoint.relative, segmenter.relative.state_dict(), path.name)
    assert isinstance(segmenter.proposer, Mask2Former)
    check_keys(proposer_from_official(checkpoint.proposer), segmenter.proposer.model.state_dict(), path.name)
    learnt = sum(parameter.numel() for parameter in segmenter.relative.parameters())
    return [Row(path.name, "what is trained", float(abs(learnt - document["trainable_params"])), 0)]


CASES: dict[str, Callable[[Path], list[Row]]] = {
    "maskclip_tiny": tokens,
    "maskclip_first_blocks": first_blocks,
    "maskclip_postprocess": shipped,
    "manifest_maskclip_r50_vitl336_coco": manifest,
}
