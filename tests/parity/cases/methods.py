"""Whole methods with the official weights: from a picture to semantic, panoptic and instance results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import SamConfig

from lexiseg.backbones.sam_loading import from_official_state
from lexiseg.ensembles import mask_ensemble
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods.cmpf.config import CmpfConfig
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.fcclip.config import FcClipConfig
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.fcclip.weights import from_official, names_from_official
from lexiseg.postprocess import MASK2FORMER, instances, panoptic, semantic_scores
from lexiseg.structures import Geometry, ImageBatch, MaskPrediction, MaskTarget, TextEmbeddings
from lexiseg.text.embed import embed_names
from lexiseg.text.templates import resolve_templates
from tests.parity.cases.clip import TEMPLATES, fcclip_backbone
from tests.parity.cases.losses import NAMES, count, in_turn, one_after_the_other
from tests.parity.report import Row, load_case, max_difference

# Of gradients: where rounding closes or opens a single cell of an attention mask, those of the layers around it move by this
# much, and the losses by less than their tolerance.
GRADIENTS = 5e-3
SAM_RUNS_LOGIT_SCALE = 4.6  # of CLIP, in the runs with SAM's masks; random weights would be sure of no mask otherwise


@torch.no_grad()
def full(path: Path) -> list[Row]:
    """FC-CLIP or CMPF: all that the official program returns for one picture, by the official behaviour."""
    tensors, document = load_case(path)
    segmenter = _segmenter(path, document)
    text = _text(segmenter, document)

    def row(quantity: str, ours: Tensor, reference: Tensor, tolerance: float = 1e-4) -> Row:
        return Row(path.name, quantity, max_difference(ours, reference), tolerance)

    image = tensors["image"] / 255
    pixels, resized_size = segmenter.network_input(image)
    prediction = segmenter._segment(segmenter.encode_images([image]), text)
    prediction = replace(prediction, geometries=(replace(prediction.geometries[0], size=tuple(document["output_hw"])),))
    rows = [row("normalised input", segmenter.clip._normalised(pixels), tensors["record.normalized_padded_image"], 1e-5)]
    if "record.sam_embedding" in tensors:  # a megabyte, which our own copy leaves out
        assert isinstance(segmenter, Cmpf)
        rows.append(row("SAM's embedding", segmenter.sam_embedding(pixels, resized_size), tensors["record.sam_embedding"]))
    decoded = segmenter.decode(pixels, resized_size, segmenter.clip_features(pixels), text)
    rows.append(row("class logits", decoded.classes, tensors["record.pred_logits"]))
    rows.append(row("masks", decoded.masks, tensors["record.pred_masks"]))
    rows.append(row("class ensemble", prediction.classes[0], tensors["record.semantic_inference.arg0"]))
    step = document.get("sem_seg_step", 1)  # the copy in the repository is thinned
    semantic = next(semantic_scores(prediction, divide=False))[:, ::step, ::step]
    rows.append(row("semantic", semantic, tensors["outputs.sem_seg"]))
    numbers, regions = panoptic(prediction, text, MASK2FORMER)[0]
    rows.append(row("panoptic map", numbers, tensors["outputs.panoptic_seg"], 0.0))
    named = [[number, region.label] for number, region in enumerate(regions, start=1)]
    expected = [[segment["id"], segment["category_id"]] for segment in document["segments_info"]]
    rows.append(row("panoptic classes", torch.tensor(named), torch.tensor(expected), 0.0))
    found = instances(prediction, text, MASK2FORMER)[0]
    scores = tensors["outputs.instances.scores"]
    sure = scores > 0  # the official program keeps empty masks, too
    order = scores[sure].sort(descending=True, stable=True).indices
    rows.append(row("instance scores", torch.tensor([region.score for region in found]), scores[sure][order]))
    high, wide = document["output_hw"]
    packed = tensors["outputs.instances.pred_masks_packed"][sure][order].numpy()
    masks = torch.from_numpy(np.unpackbits(packed, axis=1)[:, : high * wide].reshape(-1, high, wide)).bool()
    ours = torch.stack([region.mask for region in found])
    rows.append(row("instance areas", ours.sum((1, 2)).sort().values, masks.sum((1, 2)).sort().values, 0.0))
    return rows


@torch.no_grad()
def extra(path: Path) -> list[Row]:
    """The same picture where only semantic results are asked for, and with given masks of SAM.

    Asked for nothing else, the official program makes scores at the size of its input and resizes them; here the case does so.
    """
    tensors, _ = load_case(path)
    base = path.with_name(path.name.removesuffix("_extra"))
    recorded, document = load_case(base)
    segmenter = _segmenter(base, document)
    text = _text(segmenter, document)
    image, output = recorded["image"] / 255, (document["output_hw"][0], document["output_hw"][1])
    rows = []

    def row(quantity: str, ours: Tensor, tolerance: float = 1e-4) -> None:
        rows.append(Row(path.name, quantity, max_difference(ours, tensors[quantity]), tolerance))

    def scores(prediction: MaskPrediction) -> Tensor:
        return next(semantic_scores(prediction, divide=False))

    def resized_scores(prediction: MaskPrediction) -> Tensor:
        return functional.interpolate(scores(prediction)[None], output, mode="bilinear", align_corners=False)[0]

    prediction = segmenter._segment(segmenter.encode_images([image]), text)
    row("sem_only.mask_cls", prediction.classes[0])
    row("sem_only.sem_seg", resized_scores(prediction))
    if "sam_sem_only.sem_seg" not in tensors:  # the official program cannot do it with a ResNet
        return rows
    assert isinstance(segmenter, Cmpf)
    segmenter.clip.clip_model.logit_scale.fill_(SAM_RUNS_LOGIT_SCALE)
    masks, geometry = tensors["sam_mask_logits_original"], prediction.geometries[0]
    for name, size in (("sam_sem_only", geometry.size), ("sam_panoptic_cfg", output)):
        words = replace(text, seen=tensors[f"{name}.category_overlapping_mask"].bool())
        classes, valid = segmenter.sam_classes(segmenter.encode_images([image]), masks, Geometry.unresized(output), words)
        reference = tensors[f"{name}.sam_mask_cls"].log_softmax(-1)[..., :-1]
        rows.append(Row(path.name, f"{name}.sam_mask_cls", max_difference(classes, reference), 1e-4))
        one = segmenter._segment(segmenter.encode_images([image]), words)
        one = replace(one, geometries=(replace(geometry, size=size),))
        row(f"{name}.mask_cls", one.classes[0])
        sam = MaskPrediction(masks[None], classes, False, (Geometry.unresized(size),), valid)
        both = mask_ensemble(one, sam, tensors[f"{name}.category_overlapping_mask"].bool(), behaviour="official")
        row(f"{name}.sem_seg", scores(both) if size == output else resized_scores(both))
    return rows


@torch.enable_grad()
def training(path: Path) -> list[Row]:
    """A training step of CMPF with all random points given: losses of all layers, and the gradients of all parameters."""
    tensors, document = load_case(path)
    weights = path.with_name(document["weights"].removesuffix("_weights.safetensors"))
    _, model = load_case(weights)
    segmenter = _segmenter(weights, model).train()
    classes = [names.split(",") for names in model["train_stuff_classes"]]
    class_index = torch.tensor([label for label, names in enumerate(classes) for _ in names])
    vectors = embed_names(segmenter.clip, [name for names in classes for name in names], resolve_templates("vild14")).detach()
    things = torch.ones(len(classes), dtype=torch.bool)
    text = TextEmbeddings(vectors, class_index, tuple(names[0] for names in classes), things)
    pixels = tensors["image_small"].repeat_interleave(32, -1).repeat_interleave(32, -2) / 255
    targets = [_rectangles(rows, pixels.shape[-2:]) for rows in document["targets_rects_class_y0_x0_y1_x1"]]
    calls = [tensors[f"rand_calls.{number}"] for number in range(count(tensors, "rand_calls."))]
    layers = len(segmenter.mask_decoder.layers) + 1
    a_layer, shape = len(calls) // layers, torch.empty(1, model["head"]["queries"])
    stand_in = MaskPrediction(shape, shape, True, ())  # only its number of queries is asked for
    sources = [in_turn(calls[n * a_layer : (n + 1) * a_layer], targets, stand_in) for n in range(layers)]
    sizes = ((int(pixels.shape[-2]), int(pixels.shape[-1])),) * len(targets)
    options = SetLossOptions(points=document["num_points"])
    losses = segmenter.loss(ImageBatch(pixels, sizes), text, targets, options, one_after_the_other(sources, targets))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    rows = [Row(path.name, "total", max_difference(total, tensors["total"].reshape(())), 1e-3)]
    names = {name: name.removeprefix("loss_").split("_") for name in document["losses_weighted"]}
    ours = torch.stack([losses["_".join([NAMES[f"loss_{kind}"], *layer])] for kind, *layer in names.values()])
    recorded = torch.tensor(list(document["losses_weighted"].values()))
    rows.append(Row(path.name, "all losses", max_difference(ours, recorded), 1e-4))
    mapped = names_from_official(document["grad_norms"])
    parameters = dict(segmenter.named_parameters())
    norms = [(_norm(parameters[mapped[name]]), norm) for name, norm in document["grad_norms"].items()]
    rows.append(Row(path.name, "gradient norms, relative", max(abs(a - b) / max(1.0, b) for a, b in norms), GRADIENTS))
    whole = {name.removeprefix("grad."): value for name, value in tensors.items() if name.startswith("grad.")}
    worst = max(
        max_difference(parameters[mapped[name]].grad, value) / max(1.0, float(value.abs().max()))  # type: ignore[arg-type]
        for name, value in whole.items()
    )
    rows.append(Row(path.name, f"{len(whole)} gradients, relative", worst, GRADIENTS))
    return rows


def _norm(parameter: Tensor) -> float:
    return 0.0 if parameter.grad is None else float(parameter.grad.norm())


def _rectangles(rows: Sequence[Sequence[int]], size: Sequence[int]) -> MaskTarget:
    """Targets of rectangles (class, top, left, bottom, right)."""
    masks = torch.zeros(len(rows), *size, dtype=torch.bool)
    for mask, (_, top, left, bottom, right) in zip(masks, rows, strict=True):
        mask[top:bottom, left:right] = True
    return MaskTarget(masks, torch.tensor([row[0] for row in rows]))


def _segmenter(path: Path, document: Mapping[str, Any]) -> FcClip:
    """The small official model with its weights."""
    stored, _ = load_case(path.with_name(f"{path.name}_weights"))
    prefix = "state_dict."
    state = {name.removeprefix(prefix): tensor.float() for name, tensor in stored.items() if name.startswith(prefix)}
    checkpoint = from_official(state)
    head, clip = document["head"], fcclip_backbone(path, document)
    clip.mean, clip.std = (tuple(value / 255 for value in document[f"pixel_{name}"]) for name in ("mean", "std"))
    options = {
        "num_queries": head["queries"],
        "hidden_dim": head["hidden"],
        "num_layers": head["dec_layers"],
        "pixel_decoder_layers": head["enc_layers"],
        "pixel_decoder_ffn_dim": head["pixel_dim_feedforward"],
        "ffn_dim": head["dim_feedforward"],
        "num_heads": head["nheads"],
        "alpha": document["alpha"],
        "beta": document["beta"],
        "shortest_edge": None,
        "behaviour": "official",
    }
    if checkpoint.sam:
        sam = from_official_state(checkpoint.sam, path.name, _small_sam())
        config = CmpfConfig(sam_layers=head["enc_layers"], **options)
        segmenter: FcClip = Cmpf(clip, sam, config=config)  # type: ignore[arg-type]
    else:
        segmenter = FcClip(clip, FcClipConfig(**options))  # type: ignore[arg-type]  # a ConvNeXt or a ResNet
    missing, unexpected = segmenter.load_state_dict(checkpoint.head, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(("clip.", "sam.")) for name in missing), missing
    return segmenter.eval()


def _small_sam() -> SamConfig:
    """The SAM of the small official FrozenSeg."""
    return SamConfig(
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 128, "image_size": 1024,
            "patch_size": 16, "window_size": 14, "global_attn_indexes": [1], "output_channels": 64, "num_pos_feats": 32,
        },
        prompt_encoder_config={"hidden_size": 64, "image_size": 1024, "patch_size": 16, "mask_input_channels": 16},
        mask_decoder_config={
            "hidden_size": 64, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32, "layer_norm_eps": 1e-5,
        },
    )  # fmt: skip


def _text(segmenter: FcClip, document: Mapping[str, Any]) -> TextEmbeddings:
    tokens = segmenter.clip.tokenize(document["test_class_names"])
    names = functional.normalize(segmenter.clip.encode_text(tokens).unflatten(0, (-1, TEMPLATES)).mean(1), dim=-1)
    class_index = torch.tensor([label for label, count in enumerate(document["test_num_templates"]) for _ in range(count)])
    classes = tuple(document["test_stuff_classes"])
    things = torch.tensor([label in document["test_thing_ids"] for label in range(len(classes))])
    return TextEmbeddings(names, class_index, classes, things, torch.tensor(document["category_overlapping_mask"]).bool())


CASES: dict[str, Callable[[Path], list[Row]]] = {
    "05_*_full_*[nt]": full,  # neither ..._extra nor ..._weights
    "05_*_full_*_extra": extra,
    "10_frozenseg_training_*": training,
}
