"""Metrics against the official tools: panopticapi, pycocotools, lvis, detectron2's SemSegEvaluator.

A case ``08_X.json`` holds the official figures; the files they were measured on are in the folder ``08`` beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lexiseg.metrics import SemanticScores, score_instances, score_panoptic
from lexiseg.ops.rle import area_of_counts, compress, decompress
from tests.parity.report import Row, load_case, max_difference

TOLERANCE = 1e-9
ABSENT = {-1, None}  # how the tools say that there was nothing to measure


def difference(ours: float | None, reference: float | None) -> float:
    """Absolute difference; 0 where both say that there is nothing, inf where only one does."""
    if ours is None or reference in ABSENT or reference is None:
        return 0.0 if ours is None and reference in ABSENT else float("inf")
    return abs(ours - reference)


def panoptic_quality(path: Path) -> list[Row]:
    """All, things, stuff, and each class with its counts."""
    _, document = load_case(path)
    folder = path.parent / "08"
    score = score_panoptic(folder / "panoptic_pred.json", folder / "panoptic_gt.json").document()
    result = score["result"]
    category_ids = sorted(entry["id"] for entry in json.loads((folder / "panoptic_gt.json").read_text())["categories"])
    rows = []

    def compare(quantity: str, *pairs: tuple[float | None, float | None]) -> None:
        rows.append(Row(path.name, quantity, max(difference(ours, reference) for ours, reference in pairs), TOLERANCE))

    named = {"All": result, "Things": result["groups"]["things"], "Stuff": result["groups"]["stuff"]}
    for name, numbers in named.items():
        for ours, theirs in (("PQ", "pq"), ("SQ", "sq"), ("RQ", "rq"), ("classes", "n")):
            compare(f"{name} {ours}", (numbers[ours], document["results"][name][theirs]))
    nothing = {"iou": 0, "tp": 0, "fp": 0, "fn": 0}
    counts = [document["per_cat_counts"].get(str(category), nothing) for category in category_ids]
    for ours, theirs in (("IoU_sum", "iou"), ("matched", "tp"), ("wrong", "fp"), ("missed", "fn")):
        compare(
            f"{ours} of each class", *((row[ours], count[theirs]) for row, count in zip(score["classes"], counts, strict=True))
        )
    for ours, theirs in (("PQ", "pq"), ("SQ", "sq"), ("RQ", "rq")):
        known = [document["per_class"].get(str(category), {}).get(theirs) if count["tp"] + count["fp"] + count["fn"] else None
                 for category, count in zip(category_ids, counts, strict=True)]  # fmt: skip
        compare(f"{ours} of each class", *((row[ours], value) for row, value in zip(score["classes"], known, strict=True)))
    return rows


def coco_precision(path: Path) -> list[Row]:
    """pycocotools' twelve figures, and AP of each class."""
    _, document = load_case(path)
    folder = path.parent / "08"
    score = score_instances(folder / "coco_dets.json", folder / "coco_gt.json").document()
    figures = dict(zip(document["stat_names"], document["segm"]["stats"], strict=True))
    return _precision_rows(path.name, score, figures, document["segm"]["per_class_AP"])


def lvis_precision(path: Path) -> list[Row]:
    """The figures of the ``lvis`` package, and AP of each class."""
    _, document = load_case(path)
    folder = path.parent / "08"
    score = score_instances(folder / "lvis_dets.json", folder / "lvis_gt.json").document()
    result = score["result"]
    for name, letter in (("rare", "r"), ("common", "c"), ("frequent", "f")):
        result[f"AP{letter}"] = result["groups"][name]["AP"]
    figures = {name.replace("ARs@300", "ARs").replace("ARm@300", "ARm").replace("ARl@300", "ARl").replace("@", ""): value
               for name, value in document["segm"].items()}  # fmt: skip
    return _precision_rows(path.name, score, figures, document["per_class_AP"])


def _precision_rows(case: str, score: dict[str, Any], figures: dict[str, float], classes: list[float | None]) -> list[Row]:
    rows = [Row(case, name, difference(score["result"][name], figure), TOLERANCE) for name, figure in figures.items()]
    return rows + [
        Row(case, f"AP of class {place}", difference(row["AP"], figure), TOLERANCE)
        for place, (row, figure) in enumerate(zip(score["classes"], classes, strict=True))
    ]


def semantic_scores(path: Path) -> list[Row]:
    """detectron2's figures, which are percent."""
    tensors, document = load_case(path)
    metric = SemanticScores(document["num_classes"])
    for image in range(sum(name.startswith("gt.") for name in tensors)):
        truth, found = (tensors[f"{kind}.{image}"].numpy().astype(np.int32) for kind in ("gt", "pred"))
        truth[truth == document["ignore_label"]] = -1
        metric.update(image, truth, found)
    result, reference = metric.result(), document["results"]
    names = {"mIoU": "mIoU", "FWIoU": "fwIoU", "mean_accuracy": "mACC", "pixel_accuracy": "pACC"}
    pairs = [(ours, result[ours], reference[theirs]) for ours, theirs in names.items()]
    for row in metric.table([f"c{label}" for label in range(metric.classes)]):
        pairs += [(f"{kind} of {row['name']}", row[kind], reference[f"{theirs}-{row['name']}"])
                  for kind, theirs in (("IoU", "IoU"), ("accuracy", "ACC"))]  # fmt: skip
    confusion = torch.from_numpy(metric.sums[:, :-1].T)  # the tool's is result by truth
    return [
        Row(path.name, "confusion matrix", max_difference(confusion, tensors["conf_matrix"][:-1, :-1]), 0),
        *(Row(path.name, name, difference(ours, None if theirs is None else theirs / 100), TOLERANCE)
          for name, ours, theirs in pairs),
    ]  # fmt: skip


def masks(path: Path) -> list[Row]:
    """The strings of pycocotools' masks, read and written again; and the areas of those that state them."""
    _, document = load_case(path)
    records = document["annotations"] if isinstance(document, dict) else document
    texts = [record["segmentation"]["counts"] for record in records]
    pixels = [area_of_counts(decompress(text)) for text in texts]
    sizes = [high * wide for high, wide in (record["segmentation"]["size"] for record in records)]
    return [
        Row(path.name, "strings that change", float(sum(compress(decompress(text)) != text for text in texts)), 0),
        Row(path.name, "masks larger than their image", float(sum(map(int.__gt__, pixels, sizes))), 0),
    ]


def panoptic_inputs(path: Path) -> list[Row]:
    """PNGs and JSON say the same."""
    _, document = load_case(path)
    unequal = other_areas = 0
    for annotation in document["annotations"]:
        with Image.open(path / annotation["file_name"]) as opened:
            ids, areas = np.unique(np.asarray(opened).astype(np.int64) @ [1, 1 << 8, 1 << 16], return_counts=True)
        pixels = dict(zip(ids.tolist(), areas.tolist(), strict=True))
        pixels.pop(0, None)
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        unequal += len(pixels.keys() ^ segments.keys())
        other_areas += sum(segment.get("area", pixels[number]) != pixels[number] for number, segment in segments.items())
    return [
        Row(path.name, "segments in PNG or JSON alone", float(unequal), 0),
        Row(path.name, "areas other than stated", float(other_areas), 0),
    ]


CASES = {
    "08_panoptic_pq": panoptic_quality,
    "08_coco_ap": coco_precision,
    "08_lvis_ap": lvis_precision,
    "08_miou": semantic_scores,
    "coco_gt": masks,
    "coco_dets": masks,
    "lvis_gt": masks,
    "lvis_dets": masks,
    "panoptic_gt": panoptic_inputs,
    "panoptic_pred": panoptic_inputs,
}
