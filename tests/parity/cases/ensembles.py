"""Class and mask ensemble; semantic, panoptic and instance results of fixed predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.ensembles import class_ensemble, classify_vectors, geometric_mean, kept_masks, mask_ensemble
from lexiseg.postprocess import MASK2FORMER, Policy, Region, instances, panoptic, semantic_best, semantic_scores
from lexiseg.structures import Geometry, MaskPrediction, Size, TextEmbeddings
from tests.parity.report import Row, load_case, max_difference

TOLERANCE = 1e-5
STRIDE = 32  # padding of FC-CLIP's images
MASK_STEP, SCORE_STEP = 5, 3  # how the recorded maps were thinned


def text_of(names_per_class: list[int], vectors: Tensor, seen: Tensor, things: list[int]) -> TextEmbeddings:
    class_index = torch.arange(len(names_per_class)).repeat_interleave(torch.tensor(names_per_class))
    is_thing = torch.tensor([label in things for label in range(len(names_per_class))])
    return TextEmbeddings(vectors, class_index, tuple(map(str, range(len(names_per_class)))), is_thing, seen.bool())


def paper(path: Path) -> list[Row]:
    """Eq. (7) and (12) as written."""
    tensors, document = load_case(path)
    seen = tensors["in.seen"]
    masks = tensors["in.mask_logits"]
    size = (int(masks.shape[-2]), int(masks.shape[-1]))

    def prediction(masks: Tensor, probabilities: Tensor) -> MaskPrediction:
        return MaskPrediction(masks, probabilities.log(), False, (Geometry.unresized(size),))

    rows = []

    def row(quantity: str, ours: Tensor, tolerance: float = TOLERANCE) -> None:
        rows.append(Row(path.name, quantity, max_difference(ours, tensors[quantity]), tolerance))

    weights = {"alpha": document["alpha"], "beta": document["beta"]}
    detector, clip = prediction(masks, tensors["in.detector"]), tensors["in.clip"].log()
    row("out.class_ensemble", geometric_mean(detector.classes, clip, seen, **weights).exp())
    model = class_ensemble(detector, clip, seen, **weights)
    row("out.class_ensemble", model.classes.exp())
    row("out.semantic", torch.stack(list(semantic_scores(model, divide=False))))
    sam = prediction(tensors["in.sam_masks"][None] * 2.0 - 1, tensors["in.sam_probabilities"][None])
    row("out.kept", kept_masks(sam, seen, xi=document["xi"])[0], 0)
    both = mask_ensemble(model, sam, seen, epsilon=document["epsilon"], xi=document["xi"])
    row("out.final", torch.stack(list(semantic_scores(both, divide=False))))
    label = next(semantic_best(both))[1]
    rows.append(Row(path.name, "classes of out.final", max_difference(label, tensors["out.final"][0].argmax(0)), 0))
    alone = replace(sam, masks=both.semantic_ensemble[1].masks, valid=both.semantic_ensemble[1].valid)
    row("out.sam_semantic", torch.stack(list(semantic_scores(alone, divide=False))))
    return rows


def official_class_ensemble(path: Path) -> list[Row]:
    """From pooled features to the ensembled classes, the resized masks and the semantic scores."""
    tensors, document = load_case(path)
    seen = tensors["category_overlapping_mask"].bool()
    text = text_of(document["num_templates"], tensors["text_classifier"][: sum(document["num_templates"])], seen, [])
    size: Size = (document["image_hw"][0], document["image_hw"][1])
    output: Size = (document["output_hw"][0], document["output_hw"][1])
    masks, grid = tensors["pred_masks"], tensors["clip_vis_dense"]
    inside = functional.interpolate(masks, grid.shape[-2:], mode="bilinear", align_corners=False) > 0
    covered = inside.any(-1).any(-1) if "rn_valid" in path.name else None
    if covered is None:
        area = inside.float().flatten(2)
        pooled = (area @ grid.flatten(2).mT / (area.sum(-1, keepdim=True) + 1e-8)) @ tensors["projection"]
    else:
        pooled = tensors["pooled_projected"]
    scale = tensors["logit_scale"].exp().clamp(max=100)
    clip = classify_vectors(pooled, text, scale, tensors["void_embedding"][0])[..., :-1].log_softmax(-1)
    detector = MaskPrediction(masks, tensors["pred_logits"].log_softmax(-1), True, (Geometry.unresized(output),))
    weights = {"alpha": document["alpha"], "beta": document["beta"]}
    ensembled = class_ensemble(detector, clip, seen, **weights, behaviour="official", covered=covered)
    rows = []

    def row(quantity: str, ours: Tensor, tolerance: float = TOLERANCE) -> None:
        rows.append(Row(path.name, quantity, max_difference(ours, tensors[quantity]), tolerance))

    row("mask_cls", ensembled.classes[0])
    padded = (-(-size[0] // STRIDE) * STRIDE, -(-size[1] // STRIDE) * STRIDE)
    resized = Geometry(padded, size, output).upsample(masks[0])
    row("mask_pred_resized", resized[:, ::MASK_STEP, ::MASK_STEP])
    scores = next(semantic_scores(replace(ensembled, masks=resized[None]), divide=False))
    row("sem_seg", scores[:, ::SCORE_STEP, ::SCORE_STEP])
    return rows


def official_inference(path: Path) -> list[Row]:
    """Semantic, panoptic, instance and SAM-ensemble results of fixed masks and classes."""
    tensors, document = load_case(path)
    masks = tensors["mask_pred"][None]
    size = (int(masks.shape[-2]), int(masks.shape[-1]))
    classes = tensors["mask_cls"][None].log_softmax(-1)  # the official functions begin with a softmax
    prediction = MaskPrediction(masks, classes, True, (Geometry.unresized(size),))
    seen = tensors["category_overlapping_mask"].bool()
    names = [1] * document["num_classes"]
    text = text_of(names, torch.eye(len(names)), seen, document["things_contiguous"])
    rows = compare_scores(path.name, "sem_seg", prediction, tensors["sem_seg"])
    for name, segments in document["segments_info"].items():
        least, overlap = (float(part[2:].lstrip("t")) for part in name.removeprefix("panoptic_").split("_"))
        rows += compare_panoptic(path.name, name, prediction, text, (least, overlap), (tensors[name], segments))
    rows += _instances(path.name, prediction, text, tensors)
    rows += _sam(path.name, prediction, seen, tensors, document)
    return rows


def compare_panoptic(
    case: str,
    name: str,
    prediction: MaskPrediction,
    text: TextEmbeddings,
    thresholds: tuple[float, float],
    expected: tuple[Tensor, list[dict[str, Any]]],
) -> list[Row]:
    """The panoptic map and its segments, of a least score and a least overlap."""
    policy = replace(MASK2FORMER, object_threshold=thresholds[0], overlap=thresholds[1])
    numbers, regions = panoptic(prediction, text, policy)[0]
    found = [(number, region.label, bool(text.things[region.label])) for number, region in enumerate(regions, start=1)]
    segments = [(segment["id"], segment["category_id"], segment["isthing"]) for segment in expected[1]]
    return [
        Row(case, name, max_difference(numbers, expected[0]), 0),
        Row(case, f"{name} segments", float(found != segments), 0),
    ]


def compare_scores(case: str, name: str, prediction: MaskPrediction, reference: Tensor) -> list[Row]:
    scores, label = next(semantic_scores(prediction, divide=False)), next(semantic_best(prediction))[1]
    relative = max_difference(scores, reference) / max(1.0, float(reference.abs().max()))
    return [
        Row(case, name, relative, TOLERANCE),
        Row(case, f"{name}: pixels of another class", float((label != reference.argmax(0)).sum()), 0),
    ]


def _instances(case: str, prediction: MaskPrediction, text: TextEmbeddings, tensors: dict[str, Tensor]) -> list[Row]:
    everything = replace(text, things=torch.ones_like(text.things))
    most = len(tensors["instance_instance_only.scores"])  # nothing is filtered there
    runs: dict[str, tuple[TextEmbeddings, Policy]] = {
        "instance_panoptic_on": (text, replace(MASK2FORMER, detections=100)),
        "instance_panoptic_on_top30": (text, replace(MASK2FORMER, detections=30)),
        "instance_instance_only": (everything, replace(MASK2FORMER, detections=most)),
    }
    rows = []
    for name, (words, policy) in runs.items():
        found = instances(prediction, words, policy)[0]
        recorded = zip(
            tensors[f"{name}.pred_masks"].bool(),
            tensors[f"{name}.pred_classes"].tolist(),
            tensors[f"{name}.scores"].tolist(),
            strict=True,
        )
        expected = [Region(mask, label, score) for mask, label, score in recorded if mask.any()]  # we drop empty masks
        expected.sort(key=lambda region: -region.score)
        rows.append(Row(case, f"{name}: number", float(abs(len(found) - len(expected))), 0))
        if len(found) != len(expected):
            continue
        scores = max((abs(a.score - b.score) for a, b in zip(found, expected, strict=True)), default=0.0)
        same = [sum(a.label == b.label and bool((a.mask == b.mask).all()) for b in expected) for a in found]
        rows.append(Row(case, f"{name}: scores", scores, TOLERANCE))
        rows.append(Row(case, f"{name}: without its like", float(same.count(0)), 0))
    return rows


def _sam(
    case: str, prediction: MaskPrediction, seen: Tensor, tensors: dict[str, Tensor], document: dict[str, Any]
) -> list[Row]:
    rows = []
    for name in ("mixed", "none_pass"):
        logits = tensors[f"sam_ensemble_{name}.sam_mask_cls_logits"]
        classes = logits.log_softmax(-1)
        sam = MaskPrediction(tensors["sam_mask_pred"][None], classes, True, prediction.geometries)
        kept = kept_masks(sam, seen, behaviour="official")[0]
        rows.append(Row(case, f"{name}: kept", max_difference(kept, tensors[f"sam_ensemble_{name}.kept"]), 0))
        both = mask_ensemble(prediction, sam, seen, epsilon=document["alpha_mask"], behaviour="official")
        rows += compare_scores(case, f"sam_ensemble_{name}.sem_seg", both, tensors[f"sam_ensemble_{name}.sem_seg"])
        if name == "mixed":
            half = mask_ensemble(prediction, sam, seen, epsilon=0.5, behaviour="official")
            rows += compare_scores(case, "sam_ensemble_alpha0.5.sem_seg", half, tensors["sam_ensemble_alpha0.5.sem_seg"])
    return rows


CASES = {
    "equations_cmpf_ensembles*": paper,
    "05_class_ensemble_*": official_class_ensemble,
    "05_inference_functions*": official_inference,
}
