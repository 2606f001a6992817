"""Mask2Former's loss: matching costs and assignment, chosen points, losses, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexiseg.losses.masks import uncertain_points
from lexiseg.losses.matching import Costs, PointSource, match, matching_cost
from lexiseg.losses.set_loss import SetLossOptions, set_loss
from lexiseg.structures import Geometry, MaskPrediction, MaskTarget
from tests.parity.report import Row, load_case, max_difference

TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-6  # they are small
NAMES = {"loss_ce": "class", "loss_mask": "mask", "loss_dice": "dice"}


def matcher_criterion(path: Path) -> list[Row]:
    """Predictions, targets and every random number are given."""
    tensors, document = load_case(path)
    config = document["config"]
    targets = _targets(tensors)
    layers = ["pred", *(f"pred.aux.{number}" for number in range(count(tensors, "pred.aux.")))]
    leaves = [
        tuple(tensors[f"{layer}.{name}"].clone().requires_grad_() for name in ("pred_masks", "pred_logits")) for layer in layers
    ]
    sizes = tuple((int(target.masks.shape[1]), int(target.masks.shape[2])) for target in targets)
    padded_size = (max(high for high, _ in sizes), max(wide for _, wide in sizes))
    geometries = tuple(Geometry.unresized(size, padded_size) for size in sizes)
    main, *auxiliary = (MaskPrediction(masks, logits, True, geometries) for masks, logits in leaves)
    prediction = replace(main, auxiliary=tuple(auxiliary))
    options = _options(config)
    rows = []

    def row(quantity: str, ours: Tensor, reference: Tensor, tolerance: float = TOLERANCE) -> None:
        rows.append(Row(path.name, quantity, max_difference(ours, reference), tolerance))

    calls = [tensors[f"rand_calls.{number}"] for number in range(count(tensors, "rand_calls."))]
    a_layer = len(calls) // len(layers)
    for number, layer in enumerate([main, *auxiliary]):
        drawn = calls[number * a_layer : (number + 1) * a_layer]
        matches = match(layer, targets, points=options.points, costs=options.costs, draw=in_turn(drawn, targets, layer))
        points, first = [], 0
        for image, (target, found) in enumerate(zip(targets, matches, strict=True)):
            cost = matching_cost(layer.masks[image], layer.classes[image], target, drawn[image][0], padded_size, options.costs)
            row(f"layer {number} image {image} cost", cost, tensors[f"matcher_cost.{number * len(targets) + image}"])
            row(f"layer {number} image {image} queries", found.queries, tensors[f"matched.{number}.{image}.src"], 0)
            row(f"layer {number} image {image} targets", found.targets, tensors[f"matched.{number}.{image}.tgt"], 0)
            last = first + len(found.queries)
            certain = int(options.importance * options.points)
            best = uncertain_points(layer.masks[image, found.queries], drawn[len(targets)][first:last], certain)
            points.append(torch.cat([best, drawn[len(targets) + 1][first:last]], 1))
            first = last
        row(f"layer {number} points", torch.cat(points), tensors[f"final_point_coords.{number}"], 0)

    sources = [in_turn(calls[n * a_layer : (n + 1) * a_layer], targets, main) for n in range(len(layers))]
    with torch.enable_grad():
        losses = set_loss(prediction, targets, options, one_after_the_other(sources, targets))
        total = torch.stack(list(losses.values())).sum()
    row("total", total, tensors["total"].reshape(()))
    for name, reference in document["losses"].items():
        kind, _, suffix = name.removeprefix("loss_").partition("_")
        ours = losses[NAMES[f"loss_{kind}"] + (f"_{suffix}" if suffix else "")] / config["weights"][name]
        row(name, ours, torch.tensor(reference))
    gradients = torch.autograd.grad(total, [leaf for pair in leaves for leaf in pair])
    for layer, masks, logits in zip(layers, gradients[::2], gradients[1::2], strict=True):
        prefix = layer.replace("pred", "grad", 1)
        row(f"{prefix}.pred_masks", masks, tensors[f"{prefix}.pred_masks"], GRADIENT_TOLERANCE)
        row(f"{prefix}.pred_logits", logits, tensors[f"{prefix}.pred_logits"], GRADIENT_TOLERANCE)
    return rows


def _options(config: dict[str, Any]) -> SetLossOptions:
    weights = config["weights"]
    return SetLossOptions(
        weights["loss_ce"],
        weights["loss_mask"],
        weights["loss_dice"],
        config["eos_coef"],
        config["num_points"],
        config["oversample_ratio"],
        config["importance_sample_ratio"],
        Costs(config["cost_class"], config["cost_mask"], config["cost_dice"]),
    )


def _targets(tensors: dict[str, Tensor]) -> list[MaskTarget]:
    return [
        MaskTarget(tensors[f"targets.{image}.masks"].bool(), tensors[f"targets.{image}.labels"])
        for image in range(count(tensors, "targets."))
    ]


def count(tensors: dict[str, Tensor], prefix: str) -> int:
    """How many numbers follow ``prefix`` in the names."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _order(drawn: list[Tensor], targets: list[MaskTarget], queries: int) -> Iterator[Tensor]:
    """The recorded numbers of a layer (one tensor an image, then two for all pairs) in the order we ask for them."""
    images, pairs = len(targets), [min(queries, len(target)) for target in targets]
    yield from (points for points, count in zip(drawn[:images], pairs, strict=True) if count)
    for together in drawn[images:]:
        yield from (points for points in together.split(pairs) if len(points))


def in_turn(drawn: list[Tensor], targets: list[MaskTarget], prediction: MaskPrediction) -> PointSource:
    recorded = _order(drawn, targets, prediction.masks.shape[1])

    def draw(_image: int, rows: int, count: int) -> Tensor:
        points = next(recorded)
        assert points.shape == (rows, count, 2), f"asked for {rows} × {count} points, recorded are {tuple(points.shape)}"
        return points

    return draw


def one_after_the_other(sources: list[PointSource], targets: list[MaskTarget]) -> PointSource:
    a_layer = 3 * sum(len(target) > 0 for target in targets)
    calls = iter(number // a_layer for number in range(a_layer * len(sources)))
    return lambda image, rows, count: sources[next(calls)](image, rows, count)


CASES = {"06_matcher_criterion*": matcher_criterion}
