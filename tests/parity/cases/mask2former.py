"""Mask2Former: a whole tiny model with a Swin, the published checkpoints' key lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from lexiseg.backbones.mask2former import MEAN, STD, Architecture, from_official_state, mask2former
from lexiseg.backbones.mask2former_weights import dropped, from_official, names_from_official, to_official
from lexiseg.backbones.sam_weights import check_keys
from lexiseg.postprocess import MASK2FORMER, instances
from lexiseg.structures import Geometry, MaskPrediction
from tests.parity.cases.ensembles import compare_panoptic, compare_scores, text_of
from tests.parity.report import Row, load_case, max_difference

TOLERANCE = 1e-5
OF_MASKS = 3e-5  # their logits go up to 7


@torch.no_grad()
def tiny(path: Path) -> list[Row]:
    """The backbone's maps, the mask features, the last masks and classes, and the same from an image."""
    tensors, _ = load_case(path)
    state = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
    backbone = from_official_state(state, path.name)
    back = to_official(backbone.model.state_dict())
    kept = {key: tensor for key, tensor in state.items() if not dropped(key)}
    inputs = tensors["in.x_normalized"]
    proposals = backbone.propose(inputs)
    assert proposals.classes is not None
    pixels = backbone.model.model.pixel_level_module(inputs, output_hidden_states=True)
    mean, std = (torch.tensor(rgb)[:, None, None] for rgb in (MEAN, STD))
    whole = backbone((inputs * std + mean) / 255)
    return [
        Row(path.name, "names there and back", float(len(back.keys() ^ kept.keys())), 0),
        Row(path.name, "weights there and back", max(max_difference(back[key], kept[key]) for key in kept), 0),
        *(
            Row(path.name, f"res{number}", max_difference(level, tensors[f"out.res{number}"]), TOLERANCE)
            for number, level in enumerate(pixels.encoder_hidden_states, start=2)
        ),
        Row(
            path.name,
            "mask features",
            max_difference(pixels.decoder_last_hidden_state, tensors["out.mask_features"]),
            TOLERANCE,
        ),
        Row(path.name, "classes", max_difference(proposals.classes, tensors["out.pred_logits"]), TOLERANCE),
        Row(path.name, "masks", max_difference(proposals.masks, tensors["out.pred_masks"]), OF_MASKS),
        Row(path.name, "masks of an image", max_difference(whole.masks, tensors["out.pred_masks"]), OF_MASKS),
    ]


def results(path: Path) -> list[Row]:
    """Semantic, panoptic and instance results of fixed masks and classes."""
    tensors, document = load_case(path)
    masks, size = tensors["in.mask_pred"][None], tuple(tensors["in.mask_pred"].shape[-2:])
    count = tensors["in.mask_cls"].shape[-1] - 1
    prediction = MaskPrediction(masks, tensors["in.mask_cls"].log_softmax(-1)[None], True, (Geometry.unresized(size),))
    text = text_of([1] * count, torch.eye(count), torch.zeros(count), document["things"])
    rows = compare_scores(path.name, "semantic", prediction, tensors["out.semantic"])
    for name, segments in document["segments"].items():
        least, overlap = (float(part) for part in name.removeprefix("panoptic_").split("_"))
        rows += compare_panoptic(path.name, name, prediction, text, (least, overlap), (tensors[f"out.{name}"], segments))
    everything = replace(text, things=torch.ones_like(text.things))
    for name, words in (("instance_panopticTrue", text), ("instance_panopticFalse", everything)):
        found = instances(prediction, words, replace(MASK2FORMER, detections=document["topk"]))[0]
        ours = {(region.label, int(region.mask.sum())): region.score for region in found}
        areas = tensors[f"out.{name}.masks"].flatten(1).sum(1).tolist()
        labels, scores = tensors[f"out.{name}.classes"].tolist(), tensors[f"out.{name}.scores"].tolist()
        theirs = dict(zip(zip(labels, areas, strict=True), scores, strict=True))
        rows.append(Row(path.name, f"{name}: other instances", float(len(ours.keys() ^ theirs.keys())), 0))
        rows.append(Row(path.name, f"{name}: scores", max(abs(ours.get(key, 9.0) - theirs[key]) for key in theirs), TOLERANCE))
    return rows


def manifest(path: Path) -> list[Row]:
    """A published checkpoint's keys and shapes: all consumed, none of our parameters without a source."""
    _, document = load_case(path)
    name = path.name.removeprefix("manifest_mask2former_").replace("_", "-")
    architecture = next(each for each in get_args(Architecture) if name.startswith(each))
    with torch.device("meta"):
        backbone = mask2former(architecture)
        official = {key: torch.empty(shape) for key, shape in document["keys"].items()}
    ours = from_official(official)
    check_keys(ours, backbone.model.state_dict(), path.name)
    names, back = names_from_official(official), to_official(ours)
    shapes = {key: tensor.shape for key, tensor in back.items()}
    unlike = sum(shapes.get(key) != official[key].shape for key in names)
    return [
        Row(path.name, "keys not consumed", float(sum(key not in names and not dropped(key) for key in official)), 0),
        Row(path.name, "two keys of one name", float(len(names) - len(set(names.values()))), 0),
        Row(path.name, "keys lost on the way back", float(len(back.keys() ^ names.keys()) + unlike), 0),
    ]


CASES = {
    "mask2former_tiny*": tiny,
    "mask2former_postprocess": results,
    "manifest_mask2former_*": manifest,
}
