"""Seconds and memory of FC-CLIP and CMPF, stage by stage, beside the same in the official order of operations.

``python benchmarks/methods.py [--model NAME] [--side 800] [--repeat 2] [--tiny] [--json]``

The networks have random weights; what they predict then is nothing, so post-processing works on a made prediction: scenes
of the emoji world as masks, most queries "no object". "Official order" is that of the published programs in plain PyTorch,
written here: deformable attention samples all heads at once and keeps all samples; each layer of the decoder makes masks at
full size and classes; all queries are resized to the picture before anything is dropped. It does the same arithmetic, so both
must give the same: that is checked, and the exit status is 1 if they do not.

Of each stage the shortest run counts, in seconds of the processor (other programs do not count) and of the clock; ratios are
of the former. Memory is the most that the process grew while the stage ran (Linux only), for the weights while they were made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.ensembles import class_ensemble
from lexiseg.inference.cost import Cost, measure
from lexiseg.layers import deformable
from lexiseg.layers.mask_decoder import DecodedMasks, Injection, MaskDecoder, class_logits, mask_pool, masks_to_attn_mask
from lexiseg.layers.pixel_decoder import PixelFeatures
from lexiseg.methods import MODELS
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.postprocess import MASK2FORMER, Region, instances, label_map, panoptic, semantic_best
from lexiseg.structures import Geometry, MaskPrediction, Size, TextEmbeddings, size_of
from lexiseg.world import scenes

FULL, TINY = ("fcclip-convnext-l", "cmpf-convnext-l"), ("fcclip-tiny", "cmpf-tiny")
PHOTO = (683 / 800, 1024 / 800)  # height and width of the picture for each pixel of the network's shorter side
TOLERANCE = 1e-5  # of logits, relative to the largest; of scores
TIE = 1e-5  # classes whose scores differ by less are as good as each other
FIRM, SECOND, NOTHING = 0.9, 0.6, 0.97  # class probability of a query for a segment, of its double, of "no object"


@dataclass(frozen=True)
class Row:
    """One line of the table; ``official`` is None where both orders do the same."""

    stage: str
    ours: Cost
    official: Cost | None = None


# --- the official order, plainly ----------------------------------------------------------------------------------------


def plain_attention(value: Tensor, sizes: Sequence[Size], locations: Tensor, weights: Tensor) -> Tensor:
    """`deformable.deformable_attention` with all heads at once and the samples of all levels kept."""
    batch, queries, heads = locations.shape[:3]
    places = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [B M, Q, L, P, 2]
    samples = []
    for level, (part, size) in enumerate(zip(value.split([high * wide for high, wide in sizes], 1), sizes, strict=True)):
        grid = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)
        samples.append(functional.grid_sample(grid, places[:, :, level], padding_mode="zeros", align_corners=False))
    shares = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    attended: Tensor = (torch.stack(samples, dim=-2).flatten(-2) * shares).sum(-1)
    together: Tensor = attended.unflatten(0, (batch, heads)).flatten(1, 2)
    return together.mT


def plain_decoder(
    decoder: MaskDecoder, features: PixelFeatures, text: TextEmbeddings, injection: Injection | None
) -> DecodedMasks:
    """`MaskDecoder` with masks at full size and classes after every layer."""
    pixels = features.mask_features
    memories = [decoder._memory(level, number) for number, level in enumerate(features.levels)]
    queries = decoder.query_features.weight.expand(len(pixels), -1, -1)

    def heads() -> DecodedMasks:
        normed = decoder.norm(queries)
        masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_head(normed), pixels)
        pooled = decoder.pooled_projection(mask_pool(pixels, masks))
        classes = class_logits(decoder.class_head(pooled + normed), text, decoder.void_vector, decoder.logit_scale)
        return DecodedMasks(masks, classes)

    predicted = heads()
    for number, layer in enumerate(decoder.layers, start=1):
        memory = memories[(number - 1) % len(memories)]
        if injection is not None:
            if number > 1:
                queries = injection.queries(number - 1, queries, lambda made=predicted.masks: made, decoder.pooled_projection)
            memory = injection.features(number, memory)
        allowed = masks_to_attn_mask(predicted.masks, memory.size)
        queries = layer(queries, decoder.query_positions.weight, memory, allowed)
        predicted = heads()
    return predicted


def plain_resized(prediction: MaskPrediction) -> Tensor:
    """All mask logits [Q, H, W] of the only image, at its size."""
    (geometry,) = prediction.geometries
    pixels = functional.interpolate(prediction.masks, geometry.padded_size, mode="bilinear", align_corners=False)
    high, wide = geometry.resized_size
    return functional.interpolate(pixels[..., :high, :wide], geometry.size, mode="bilinear", align_corners=False)[0]


def plain_semantic(prediction: MaskPrediction, logits: Tensor) -> Tensor:
    """Scores of all classes at all pixels, [K, H, W]."""
    return torch.einsum("qk,qhw->khw", prediction.classes[0].exp()[:, :-1], logits.sigmoid())


def plain_panoptic(prediction: MaskPrediction, logits: Tensor, things: Tensor) -> tuple[Tensor, list[tuple[int, float]]]:
    """A map of region numbers and (label, score) of each; `MASK2FORMER`'s rules."""
    score, label = prediction.classes[0].exp().max(-1)
    probability = logits.sigmoid()
    named = label != prediction.classes.shape[-1] - 1
    score, label, probability = score[named], label[named], probability[named]
    numbers = torch.zeros(logits.shape[-2:], dtype=torch.int32)
    regions: list[tuple[int, float]] = []
    stuff: dict[int, int] = {}
    if len(score) == 0:
        return numbers, regions
    winner = (score[:, None, None] * probability).argmax(0)
    for row, name in enumerate(label.tolist()):
        won, mask = winner == row, probability[row] >= 0.5
        own = won & mask
        if not (won.any() and mask.any() and own.any()) or won.sum() / mask.sum() < MASK2FORMER.overlap:
            continue
        if name in stuff:
            numbers[own] = stuff[name]
            earlier = regions[stuff[name] - 1]
            regions[stuff[name] - 1] = (name, max(earlier[1], float(score[row])))
            continue
        regions.append((name, float(score[row])))
        numbers[own] = len(regions)
        if not things[name]:
            stuff[name] = len(regions)
    return numbers, regions


def plain_instances(prediction: MaskPrediction, logits: Tensor, things: Tensor) -> list[Region]:
    """The things among the best pairs of query and class; `MASK2FORMER`'s rules."""
    probability = prediction.classes[0].softmax(-1)[:, :-1]
    score, flat = probability.flatten().topk(min(MASK2FORMER.detections, probability.numel()), sorted=False)
    row, label = flat // probability.shape[1], flat % probability.shape[1]
    kept = things[label]
    score, row, label = score[kept], row[kept], label[kept]
    chosen = logits[row]
    inside = (chosen > 0).float()
    certainty = (chosen.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    scores = (score * certainty).tolist()
    return [
        Region(mask > 0, name, value) for mask, name, value in zip(inside, label.tolist(), scores, strict=True) if value > 0
    ]


# --- what both work on --------------------------------------------------------------------------------------------------


def random_text(classes: int, width: int) -> TextEmbeddings:
    """A vocabulary of directions at random; every third class is stuff."""
    vectors = functional.normalize(torch.randn(classes, width, generator=torch.Generator().manual_seed(classes)), dim=-1)
    numbers = torch.arange(classes)
    names = tuple(f"class {number}" for number in range(classes))
    return TextEmbeddings(vectors, numbers, names, numbers % 3 != 0)


def scene_prediction(geometry: Geometry, queries: int, text: TextEmbeddings) -> MaskPrediction:
    """A prediction as a trained model makes it: a firm query for each segment of a few scenes side by side, some doubles
    that lose, and the rest "no object", with any mask."""
    random = torch.Generator().manual_seed(0)
    grid = (geometry.padded_size[0] // 4, geometry.padded_size[1] // 4)
    tiles = [torch.from_numpy(scene.panoptic) for scene in scenes("val", 6)]
    ids = torch.stack([tile + 100 * number for number, tile in enumerate(tiles)]).unflatten(0, (2, 3))
    picture = ids.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    segments = picture.unique().tolist()[: queries // 3]
    masks = torch.stack([(picture == segment).float() for segment in segments])
    masks = functional.interpolate(masks[None], grid, mode="area")[0]
    edges = functional.avg_pool2d(masks[None], 5, stride=1, padding=2, count_include_pad=False)[0]
    firm = 16 * edges - 8
    doubles = firm[: len(segments) // 2].roll(2, dims=-1) - 1
    others = firm[torch.randint(len(firm), (queries - len(firm) - len(doubles),), generator=random)] - 3
    logits = torch.cat([firm, doubles, others])
    logits = logits + 0.3 * torch.randn(logits.shape, generator=random)
    classes = torch.randn(queries, len(text) + 1, generator=random)
    labels = torch.randint(len(text), (queries,), generator=random)
    chance = torch.full((queries,), NOTHING)
    chance[: len(firm)], chance[len(firm) : len(firm) + len(doubles)] = FIRM, SECOND
    labels[len(firm) + len(doubles) :] = len(text)
    labels[len(firm) : len(firm) + len(doubles)] = labels[: len(doubles)]
    chance = (chance - 0.02 * torch.rand(queries, generator=random))[:, None]
    other = classes.scatter(1, labels[:, None], -torch.inf).softmax(1) * (1 - chance)
    probability = other.scatter(1, labels[:, None], chance)
    return MaskPrediction(logits[None], probability.log()[None], True, (geometry,))


# --- the comparison -----------------------------------------------------------------------------------------------------


def build(name: str) -> FcClip:
    """A model with random weights, in evaluation mode."""
    segmenter = MODELS[name].empty()
    assert isinstance(segmenter, FcClip)
    return segmenter.eval()


def network(name: str, side: int, classes: int, repeat: int) -> tuple[list[Row], list[str]]:
    """The stages before post-processing, and in what both orders differ."""
    torch.manual_seed(0)
    segmenter, weights = measure(lambda: build(name), 1)
    segmenter.config = replace(segmenter.config, shortest_edge=side)
    size = (round(PHOTO[0] * side), round(PHOTO[1] * side))
    text = random_text(classes, segmenter.clip.width)
    seen = torch.arange(classes) % 2 == 0
    pixels, resized_size = segmenter.network_input(torch.rand(3, *size))
    features, clip = measure(lambda: segmenter.clip_features(pixels), repeat)
    rows = [Row("weights", weights), Row("clip", clip)]
    if isinstance(segmenter, Cmpf):
        _, sam = measure(lambda: segmenter.sam_embedding(pixels, resized_size), repeat)
        rows.append(Row("sam", sam))
    injection = segmenter.injection(pixels, resized_size)
    ours, mine = measure(lambda: segmenter.pixel_decoder(features.levels), repeat)
    with patch.object(deformable, "deformable_attention", plain_attention):
        plain, theirs = measure(lambda: segmenter.pixel_decoder(features.levels), repeat)
    rows.append(Row("pixel decoder", mine, theirs))
    differences = [
        difference("pixel decoder", mine, theirs)
        for mine, theirs in zip((ours.mask_features, *ours.levels), (plain.mask_features, *plain.levels), strict=True)
    ]
    decoded, mine = measure(lambda: segmenter.mask_decoder(ours, text, injection=injection), repeat)
    expected, theirs = measure(lambda: plain_decoder(segmenter.mask_decoder, ours, text, injection), repeat)
    rows.append(Row("mask decoder", mine, theirs))
    differences += [
        difference("masks", decoded.masks, expected.masks),
        difference("classes", decoded.classes, expected.classes),
    ]
    prediction = MaskPrediction(
        decoded.masks,
        decoded.classes.log_softmax(-1),
        True,
        (Geometry(size_of(pixels), resized_size, size),),
    )

    def ensemble() -> MaskPrediction:
        names, covered = segmenter._clip_classes(features, decoded.masks, text)
        return class_ensemble(prediction, names, seen, behaviour=segmenter.config.behaviour, covered=covered)

    rows.append(Row("classify, ensemble", measure(ensemble, repeat)[1]))
    return rows, [problem for problem in differences if problem]


def difference(name: str, ours: Tensor, official: Tensor) -> str:
    """What to say if two tensors are not the same; nothing if they are."""
    apart = float((ours - official).abs().max() / official.abs().max())
    return "" if apart <= TOLERANCE else f"{name} differ by {apart:.1e} of the largest"


def post_processing(side: int, queries: int, classes: int, repeat: int) -> tuple[list[Row], list[str]]:
    """The three tasks, each alone and all together; and in what both orders differ."""
    size, resized_size = (round(PHOTO[0] * side), round(PHOTO[1] * side)), (side, round(1199 / 800 * side))
    padded_size = (-(-resized_size[0] // 32) * 32, -(-resized_size[1] // 32) * 32)
    text = random_text(classes, 8)
    prediction = scene_prediction(Geometry(padded_size, resized_size, size), queries, text)
    problems = []

    best, mine = measure(lambda: next(semantic_best(prediction)), repeat)
    labels = label_map(*best, MASK2FORMER)
    scores, theirs = measure(lambda: plain_semantic(prediction, plain_resized(prediction)), repeat)
    rows = [Row(f"semantic, {classes} classes", mine, theirs)]
    chosen = scores.gather(0, labels.long().clamp(min=0)[None])[0]
    if (labels < 0).any() or (scores.amax(0) - chosen > TIE).any():
        problems.append(f"semantic labels differ ({classes} classes)")
    different = int((scores.argmax(0) != labels).sum())
    print(f"{classes} classes: {different} of {labels.numel()} labels differ, by a tie", file=sys.stderr)
    del scores, chosen

    [(numbers, regions)], mine = measure(lambda: panoptic(prediction, text, MASK2FORMER), repeat)
    (expected, official), theirs = measure(lambda: plain_panoptic(prediction, plain_resized(prediction), text.things), repeat)
    rows.append(Row(f"panoptic, {classes} classes", mine, theirs))
    if not torch.equal(numbers, expected) or not same_scores([(one.label, one.score) for one in regions], official):
        problems.append(f"panoptic results differ ({classes} classes)")
    [found], mine = measure(lambda: instances(prediction, text, MASK2FORMER), repeat)
    plain, theirs = measure(lambda: plain_instances(prediction, plain_resized(prediction), text.things), repeat)
    rows.append(Row(f"instance, {classes} classes", mine, theirs))
    if not same_instances(found, plain):
        problems.append(f"instances differ ({classes} classes)")

    def all_of_ours() -> None:
        next(semantic_best(prediction))
        panoptic(prediction, text, MASK2FORMER)
        instances(prediction, text, MASK2FORMER)

    def all_of_theirs() -> None:
        logits = plain_resized(prediction)
        plain_semantic(prediction, logits).argmax(0)
        plain_panoptic(prediction, logits, text.things)
        plain_instances(prediction, logits, text.things)

    rows.append(Row(f"all three, {classes} classes", measure(all_of_ours, repeat)[1], measure(all_of_theirs, repeat)[1]))
    print(f"{len(regions)} regions, {len(found)} instances of {queries} queries", file=sys.stderr)
    return rows, problems


def same_scores(ours: Sequence[tuple[int, float]], official: Sequence[tuple[int, float]]) -> bool:
    """Whether labels are equal, and scores but for rounding."""
    return len(ours) == len(official) and all(
        label == other and abs(score - expected) <= TOLERANCE
        for (label, score), (other, expected) in zip(ours, official, strict=True)
    )


def same_instances(ours: Sequence[Region], official: Sequence[Region]) -> bool:
    """Whether there are the same masks with the same labels and scores, in any order."""
    rest = list(official)
    for one in ours:
        twin = next(
            (
                place
                for place, other in enumerate(rest)
                if one.label == other.label and abs(one.score - other.score) <= TOLERANCE and torch.equal(one.mask, other.mask)
            ),
            None,
        )
        if twin is None:
            return False
        del rest[twin]
    return not rest


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Seconds of the processor and of the clock, memory, ours and in the official order."""
    print(
        f"{title:<26}{'ours: cpu s':>12}{'wall s':>9}{'MiB':>8}{'official order: cpu s':>24}{'wall s':>9}{'MiB':>8}{'ratio':>8}"
    )
    for row in rows:
        line = f"{row.stage:<26}{row.ours.cpu:>12.3f}{row.ours.wall:>9.3f}{row.ours.memory:>8.0f}"
        if row.official is None:
            print(f"{line}{'the same':>24}")
            continue
        ratio = row.official.cpu / row.ours.cpu
        print(f"{line}{row.official.cpu:>24.3f}{row.official.wall:>9.3f}{row.official.memory:>8.0f}{ratio:>7.1f}x")


def as_dict(row: Row) -> dict[str, Any]:
    return {"stage": row.stage, "ours": vars(row.ours), "official": None if row.official is None else vars(row.official)}


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether both orders agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*FULL, *TINY], action="append", help="may be repeated (default: both)")
    parser.add_argument("--side", type=int, help="pixels of the network's shorter side (default: 800, tiny: 256)")
    parser.add_argument("--repeat", type=int, default=2, help="runs, of which the shortest counts")
    parser.add_argument("--tiny", action="store_true", help="the tiny models, in seconds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    side = options.side or (256 if options.tiny else 800)
    models = options.model or (TINY if options.tiny else FULL)
    tables: dict[str, list[Row]] = {}
    problems: list[str] = []
    for name in models:
        tables[name], differences = network(name, side, 150, options.repeat)
        problems += [f"{name}: {problem}" for problem in differences]
    tables["post-processing"] = []
    for classes in (150, 847):
        rows, differences = post_processing(side, 100 if options.tiny else 250, classes, options.repeat)
        tables["post-processing"] += rows
        problems += differences
    if options.json:
        print(json.dumps({title: [as_dict(row) for row in rows] for title, rows in tables.items()} | {"problems": problems}))
    else:
        print(f"shorter side {side}, {torch.get_num_threads()} threads, {torch.__version__}")
        for title, rows in tables.items():
            print_table(title, rows)
        print("\n".join(problems) or "results identical")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
