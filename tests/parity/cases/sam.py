"""SAM: a whole tiny model, the automatic mask generator on fixed logits, the published checkpoints' key lists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Sam2Config, SamConfig, SamHQConfig

from lexiseg.backbones import sam2_weights
from lexiseg.backbones.mask_generator import (
    MaskGeneratorOptions,
    crop_boxes,
    filter_masks,
    join,
    remove_regions,
    suppress,
)
from lexiseg.backbones.sam import SamFamily, Skips
from lexiseg.backbones.sam_loading import DECODER_NORM_EPS, from_official_state, sam_vit
from lexiseg.backbones.sam_weights import check_keys, from_official, names_from_official, names_to_official
from lexiseg.ops.masks import box_nms, boxes_of_masks, near_crop_edge, remove_small_regions, stability_score
from lexiseg.ops.points import unit_grid
from lexiseg.ops.rle import area_of_counts, compress, decompress, encode_masks
from lexiseg.structures import Geometry
from tests.parity.report import Row, load_case, max_difference

TOLERANCE = 1e-5


def official_config(config: dict[str, Any]) -> SamConfig:
    """transformers' configuration of an official one."""
    decoder, prompt = config["decoder"], config["prompt"]
    width = config["out_chans"]
    return SamConfig(
        vision_config={
            "image_size": config["img_size"],
            "patch_size": config["patch"],
            "hidden_size": config["embed_dim"],
            "num_hidden_layers": config["depth"],
            "num_attention_heads": config["num_heads"],
            "mlp_ratio": float(config["mlp_ratio"]),
            "window_size": config["window_size"],
            "global_attn_indexes": config["global_attn_indexes"],
            "output_channels": width,
            "use_rel_pos": config["use_rel_pos"],
            "num_pos_feats": prompt["embed_dim"] // 2,
        },
        prompt_encoder_config={
            "hidden_size": prompt["embed_dim"],
            "image_size": config["img_size"],
            "patch_size": config["patch"],
            "mask_input_channels": prompt["mask_in_chans"],
        },
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": decoder["mlp_dim"],
            "num_hidden_layers": decoder["depth"],
            "num_attention_heads": decoder["num_heads"],
            "num_multimask_outputs": decoder["num_multimask_outputs"],
            "iou_head_depth": decoder["iou_head_depth"],
            "iou_head_hidden_dim": decoder["iou_head_hidden_dim"],
            "layer_norm_eps": DECODER_NORM_EPS,
        },
    )


@torch.no_grad()
def tiny(path: Path) -> list[Row]:
    """Encoder, prompt encoder, decoder with every kind of prompt, predictor."""
    tensors, document = load_case(path)
    state = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
    backbone = from_official_state(state, path.name, official_config(document["config"]))
    rows = []

    def compare(quantity: str, ours: Tensor) -> None:
        rows.append(Row(path.name, quantity, max_difference(ours, tensors[quantity]), TOLERANCE))

    image = tensors["in.image"]  # RGB in 0..255, its longer side that of the input: nothing to resize
    pixels = backbone.preprocess(image / 255)
    compare("out.preprocessed", pixels)
    embeddings = backbone.encode(tensors["out.preprocessed"])
    compare("out.image_embeddings", embeddings)
    compare("out.dense_pe", backbone.model.get_image_wide_positional_embeddings())
    for kind in document["prompts"]:
        rows += _prompted(backbone, embeddings, tensors, path.name, kind)
    if "predictor.in.image_uint8_HWC" in tensors:
        rows += _predictor(backbone, tensors, path.name)
    return rows


def _prompted(backbone: SamFamily, embeddings: Tensor, tensors: dict[str, Tensor], case: str, kind: str) -> list[Row]:
    names = {"points": "point_coords", "labels": "point_labels", "boxes": "boxes", "masks": "mask_input"}
    prompts = {ours: tensors.get(f"{kind}.in.{official}") for ours, official in names.items()}
    sparse, dense = backbone._embed_prompts(**prompts)
    results: dict[str, Tensor] = {"sparse": tensors[f"{kind}.sparse"][:, :0] if sparse is None else sparse[0], "dense": dense}
    for mode, multimask in (("multi", True), ("single", False)):
        logits, pred_iou = backbone.decode(embeddings, **prompts, multimask=multimask)
        results |= {f"{mode}.low_res": logits, f"{mode}.iou": pred_iou}
    rows = [
        Row(case, f"{kind}.{name}", max_difference(result, tensors[f"{kind}.{name}"]), TOLERANCE)
        for name, result in results.items()
        if f"{kind}.{name}" in tensors
    ]
    prefix = f"{kind}.multi.masks_logits_"
    image_size = (int(tensors["in.image"].shape[-2]), int(tensors["in.image"].shape[-1]))
    for key in [key for key in tensors if key.startswith(prefix)]:
        high, wide = (int(side) for side in key.removeprefix(prefix).split("x"))
        side = (backbone.image_size, backbone.image_size)
        upsampled = Geometry(side, image_size, (high, wide)).upsample(results["multi.low_res"].flatten(0, 1))
        rows.append(Row(case, key, max_difference(upsampled.reshape(tensors[key].shape), tensors[key]), TOLERANCE))
    return rows


def _predictor(backbone: SamFamily, tensors: dict[str, Tensor], case: str) -> list[Row]:
    image = tensors["predictor.in.image_uint8_HWC"].permute(2, 0, 1).float() / 255
    size = (int(image.shape[1]), int(image.shape[2]))
    expected = {
        key.removeprefix("predictor."): tensor
        for key, tensor in tensors.items()
        if key.startswith("predictor.") and not key.startswith("predictor.in.")
    }
    coordinates, box = expected["coords_transformed"], expected["box_transformed"]
    shape = expected["resized_input_image"].shape
    inputs = backbone.preprocess(image)
    high, wide = backbone.geometry(size).resized_size
    if (high, wide) != tuple(shape[:2]):
        return [Row(case, "predictor.resized_input_image", float("inf"), TOLERANCE)]
    mean, std = inputs.new_tensor([123.675, 116.28, 103.53]), inputs.new_tensor([58.395, 57.12, 57.375])
    resized = (inputs[0, :, :high, :wide].permute(1, 2, 0) * std + mean).round()
    embeddings = backbone.encode(inputs)
    labels = torch.tensor([[1] + [0] * (len(coordinates) - 1)])  # not recorded: the first point is inside, the others not
    low_resolution, pred_iou = backbone.decode(
        embeddings, points=coordinates[None], labels=labels, boxes=box.reshape(1, 4), multimask=len(expected["iou"]) > 1
    )
    results = {
        "resized_input_image": resized,
        "low_res": low_resolution[0],
        "iou": pred_iou[0],
        "mask_logits": backbone.geometry(size).upsample(low_resolution[0]),
    }
    return [
        Row(case, f"predictor.{name}", max_difference(result, expected[name]), TOLERANCE) for name, result in results.items()
    ]


@torch.no_grad()
def generator(path: Path) -> list[Row]:
    """The mask generator after the decoder, on fixed logits at image size; all of it exactly."""
    tensors, document = load_case(path)
    logits, pred_iou = tensors["in.mask_logits"], tensors["in.iou_preds"]
    size = (int(logits.shape[1]), int(logits.shape[2]))
    rows = []

    def exact(quantity: str, difference: float, tolerance: float = 0.0) -> None:
        rows.append(Row(path.name, quantity, difference, tolerance))

    inside = logits > 0
    boxes, runs = boxes_of_masks(inside), encode_masks(inside)
    whole = (0, 0, size[1], size[0])
    exact("out.stability", max_difference(stability_score(logits), tensors["out.stability"], equal_nan=True))
    exact("out.boxes_xyxy", max_difference(boxes, tensors["out.boxes_xyxy"]))
    exact("areas", _different([area_of_counts(counts) for counts in runs], document["areas"]))
    for key in [key for key in tensors if key.startswith("out.nms_keep_all_")]:
        kept = box_nms(boxes, pred_iou, float(key.removeprefix("out.nms_keep_all_")))
        exact(key, max_difference(kept, tensors[key]))
    near = near_crop_edge(boxes, whole, size)
    exact("out.near_crop_edge_fullimage", max_difference(near, tensors["out.near_crop_edge_fullimage"]))
    for key in [key for key in tensors if key.startswith("out.near_crop_edge_crop")]:
        corner, image = key.removeprefix("out.near_crop_edge_crop").split("_in_")
        left, top = (int(number) for number in corner.split("_"))
        wide, high = (int(number) for number in image.split("x"))
        near = near_crop_edge(boxes, (left, top, left + size[1], top + size[0]), (high, wide))
        exact(key, max_difference(near, tensors[key]))
    known = [entry["counts"] for entry in document["uncompressed_rles"]]
    found = [counts.tolist() for counts in runs]
    exact("uncompressed_rles", float(sum(counts not in found for counts in known)))
    for kind in ("holes", "islands"):
        before, after = tensors[f"in.small_regions_{kind}"], tensors[f"out.small_regions_{kind}"]
        mask, changed = remove_small_regions(before > 0, document["small_regions"]["area_thresh"], kind)
        exact(f"out.small_regions_{kind}", max_difference(mask, after > 0))
        exact(f"small_regions {kind} changed", float(changed != document["small_regions"]["changed"][kind]))
    for key, recorded in document.items():
        if found_size := re.fullmatch(r"crop_boxes_h(\d+)_w(\d+)", key):
            high, wide = (int(number) for number in found_size.groups())
            for layers, expected in recorded.items():
                crops, numbers = crop_boxes((high, wide), int(layers), MaskGeneratorOptions().crop_overlap)
                exact(f"{key} {layers} layers", _different([[list(crop) for crop in crops], numbers], expected))
        if found_grid := re.fullmatch(r"point_grids_pps(\d+)_layers\d+_downscale(\d+)", key):
            side, downscale = (int(number) for number in found_grid.groups())
            for layer, grid in enumerate(recorded):
                points = unit_grid(int(side / downscale**layer))
                exact(f"point grid of layer {layer}", max_difference(points, torch.tensor(grid, dtype=torch.float64)))
    for name, run in document["runs"].items():
        rows += _run(path.name, name, run, logits, pred_iou, tensors["in.point_grid_norm"])
    return rows


def _run(case: str, name: str, run: dict[str, Any], logits: Tensor, pred_iou: Tensor, unit_points: Tensor) -> list[Row]:
    settings, records = run["settings"], run["records"]
    options = MaskGeneratorOptions(
        points_per_batch=settings["points_per_batch"],
        pred_iou_threshold=settings["pred_iou_thresh"],
        stability_threshold=settings["stability_score_thresh"],
        stability_offset=settings["stability_score_offset"],
        box_nms_threshold=settings["box_nms_thresh"],
        crop_layers=settings["crop_n_layers"],
        crop_nms_threshold=settings["crop_nms_thresh"],
        crop_overlap=settings["crop_overlap_ratio"],
        crop_points_downscale=settings["crop_n_points_downscale_factor"],
        min_region_area=settings["min_mask_region_area"],
        full_resolution=True,
    )
    size = (int(logits.shape[1]), int(logits.shape[2]))
    per_point = len(logits) // len(unit_points)
    points = (unit_points.double() * torch.tensor([size[1], size[0]])).repeat_interleave(per_point, dim=0)
    step = options.points_per_batch * per_point
    batches = [
        filter_masks(
            logits[start : start + step],
            pred_iou[start : start + step],
            points[start : start + step],
            geometry=Geometry.unresized(size),
            crop=(0, 0, size[1], size[0]),
            image=Geometry.unresized(size),
            options=options,
        )
        for start in range(0, len(logits), step)
    ]
    masks = remove_regions(suppress(join(batches), options.box_nms_threshold), options)
    rows = [Row(case, f"{name}: number of masks", float(abs(len(masks) - len(records))), 0)]
    if len(masks) != len(records):
        return rows
    left, top, right, bottom = masks.boxes.unbind(dim=1)
    segmentations = [record["segmentation"] for record in records]
    expected_runs = [
        (decompress(entry["counts"]) if isinstance(entry["counts"], str) else np.array(entry["counts"])).tolist()
        for entry in segmentations
    ]
    texts = [entry["counts"] for entry in segmentations if isinstance(entry["counts"], str)]
    compared = {
        "run lengths": _different([counts.tolist() for counts in masks.runs], expected_runs),
        "strings": _different([compress(counts) for counts in masks.runs][: len(texts)], texts),
        "areas": _different(masks.areas.tolist(), [record["area"] for record in records]),
        "boxes": _against(torch.stack([left, top, right - left, bottom - top], dim=1), records, "bbox"),
        "predicted IoU": _against(masks.pred_iou, records, "predicted_iou"),
        "stability": _against(masks.stability, records, "stability_score"),
        "crops": _against(torch.stack([masks.crops[:, 0], masks.crops[:, 1], *_extents(masks.crops)], 1), records, "crop_box"),
    }
    rows += [Row(case, f"{name}: {quantity}", difference, 0) for quantity, difference in compared.items()]
    # the prompts were recorded in single precision, the records in double
    rows.append(Row(case, f"{name}: points", _against(masks.points[:, None], records, "point_coords"), TOLERANCE))
    return rows


def _extents(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


def _against(ours: Tensor, records: list[dict[str, Any]], key: str) -> float:
    reference = torch.tensor([record[key] for record in records], dtype=torch.float64)
    return max_difference(ours, reference.reshape(ours.shape), equal_nan=True)


def _different(ours: list[Any], reference: list[Any]) -> float:
    """How many entries differ."""
    return float(len(ours) != len(reference)) or float(sum(a != b for a, b in zip(ours, reference, strict=True)))


def manifest(path: Path) -> list[Row]:
    """A published checkpoint's keys and shapes: all consumed, none of our parameters without a source."""
    _, document = load_case(path)
    with torch.device("meta"):
        backbone = sam_vit(document["model"].removeprefix("sam_vit_"))
        official = {key: torch.empty(shape) for key, shape in document["keys"].items()}
    ours = from_official(official)
    check_keys(ours, backbone.model.state_dict(), path.name)
    names = names_from_official(official)
    back = names_to_official(ours)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    buffers = sum(official[key].numel() for key in document["buffers"])
    return [
        Row(path.name, "keys not consumed", float(len(official) - len(names)), 0),
        Row(path.name, "keys lost on the way back", float(len(official.keys() ^ set(back.values()))), 0),
        Row(path.name, "parameters", float(abs(parameters - buffers - document["num_params"])), 0),
    ]


@torch.no_grad()
def tiny_hq(path: Path) -> list[Row]:
    """HQ-SAM's encoder with its early map, and its decoder with points, boxes and masks."""
    tensors, document = load_case(path)
    state = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
    parts = official_config(document["config"]).to_dict()
    config = SamHQConfig(
        vision_config=parts["vision_config"],
        prompt_encoder_config=parts["prompt_encoder_config"],
        mask_decoder_config={**parts["mask_decoder_config"], "vit_dim": document["config"]["embed_dim"]},
    )
    backbone = from_official_state(state, path.name, config)
    embeddings, skips = backbone.encode_with_skips(tensors["in.image"])
    return [
        Row(path.name, "embedding", max_difference(embeddings, tensors["out.embedding"]), TOLERANCE),
        *_answers(backbone, embeddings, skips, tensors, path.name),
    ]


@torch.no_grad()
def tiny_sam2(path: Path) -> list[Row]:
    """SAM 2's encoder with its finer maps, and its decoder with points, boxes and masks."""
    tensors, document = load_case(path)
    state = {key.removeprefix("sd."): tensor for key, tensor in tensors.items() if key.startswith("sd.")}
    sizes = document["config"]
    widths = [sizes["embed_dim"] * 2**stage for stage in range(4)]
    side, width = sizes["img_size"], sizes["channels"]
    trunk = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "image_size": [side, side],
        "blocks_per_stage": sizes["stages"],
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": sizes["window_spec"],
        "global_attention_blocks": sizes["global_att_blocks"],
        "window_positional_embedding_background_size": sizes["background"],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": trunk,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[side // stride] * 2 for stride in (4, 8, 16)],
        "fpn_hidden_size": width,
    }
    prompts = {"hidden_size": width, "image_size": side, "patch_size": 16, "mask_input_channels": sizes["mask_in_chans"]}
    masks = {
        "hidden_size": width,
        "mlp_dim": sizes["mlp_dim"],
        "num_attention_heads": sizes["num_heads"],
        "iou_head_hidden_dim": sizes["iou_head_hidden_dim"],
    }
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks)
    backbone = from_official_state(state, path.name, config)
    back = sam2_weights.to_official(sam2_weights.from_official(state))
    embeddings, skips = backbone.encode_with_skips(tensors["in.image"])
    return [
        Row(path.name, "names there and back", len(back.keys() ^ state.keys()), 0),
        Row(path.name, "embedding", max_difference(embeddings, tensors["out.embedding"]), TOLERANCE),
        Row(path.name, "fine", max_difference(skips[0], tensors["out.fine"]), TOLERANCE),
        Row(path.name, "middle", max_difference(skips[1], tensors["out.middle"]), TOLERANCE),
        *_answers(backbone, embeddings, skips, tensors, path.name, 3e-5),  # of logits up to 40
    ]


def _answers(
    backbone: SamFamily, embeddings: Tensor, skips: Skips, tensors: dict[str, Tensor], case: str, tolerance: float = TOLERANCE
) -> list[Row]:
    """The decoder's logits and qualities for each kind of prompt that was recorded."""
    rows = []
    for kind in sorted({key.split(".")[1] for key in tensors if key.endswith(".logits")}):
        names = {"points": ("points", "labels"), "boxes": ("boxes",), "masks": ("masks",)}
        given = names.get(kind, ("points", "labels", "masks"))
        for mode in ("multi", "single"):
            prompts = {name: tensors[f"in.{name}"] for name in given}
            found = backbone.decode(embeddings, **prompts, multimask=mode == "multi", skips=skips)
            rows += [
                Row(case, f"{kind}.{mode}.{name}", max_difference(one, tensors[f"out.{kind}.{mode}.{name}"]), tolerance)
                for name, one in zip(("logits", "quality"), found, strict=True)
            ]
    return rows


CASES = {
    "sam_tiny*": tiny,
    "sam_hq_tiny*": tiny_hq,
    "sam2_tiny*": tiny_sam2,
    "sam_amg*": generator,
    "manifest_sam_vit_*": manifest,
}
