"""Whether what SAM is asked and says matters: a trained ESC-Net or SAM-MI as it is, with other prompts or masks, with none.

``python benchmarks/prompts_matter.py [--model escnet-tiny] [--weights FOLDER] [--scenes 64] [--json]`` segments scenes of the
emoji world (seed 12345, trained styles, all names) several times, and prints mIoU and its difference to the first row, with the
interval of 95 % of a bootstrap over the scenes, which are the same in all rows. Of ESC-Net:

    own        as trained
    shuffled   SAM's blocks get the points and masks of another class, drawn at random, for each scene and block
    noise      they get pseudo prompts of random probabilities
    removed    (F_v^n)' is F_v after the last norm of SAM's block: no prompts, no attention

Of SAM-MI (``--model sam_mi-tiny``), the masks that are injected:

    none       no injection
    own        SAM's masks, aggregated by class
    shifted    the same, moved by half the picture
    true       those of the truth, one a segment
    displaced  the same, moved by half the picture

For ESC-Net then a linear probe, trained on ``--probe`` scenes of seed 777 and tested on as many of seed 12345: is a cell one of
class n? Average precision from its correlation alone, and with what the first SAM block makes of the cell: the mean over the
classes, its own (F_v^n)', and that of another class's prompts. 24 names a scene, those that are there among them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.sam import SamFamily
from lexiseg.errors import UsageError
from lexiseg.inference.pipeline import Pipeline, as_segmentation, load, regions_of
from lexiseg.inference.results import measurable
from lexiseg.methods.base import Segmenter
from lexiseg.methods.correlation import CostVolume
from lexiseg.methods.escnet.blocks import PromptedBlocks
from lexiseg.methods.escnet.model import EscNet
from lexiseg.methods.escnet.prompts import PseudoPrompts, pseudo_prompts
from lexiseg.methods.sam_mi.model import SamMi
from lexiseg.methods.sam_mi.targets import at_centres
from lexiseg.metrics import SemanticScores
from lexiseg.metrics.bootstrap import RESAMPLES, Counts, miou, paired, pixel_counts
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.world import Scene, scenes, world_classes

PROMPTS = ("own", "shuffled", "noise", "removed")
MASKS = ("none", "own", "shifted", "true", "displaced")
NAMES = 24  # of the linear probe, for each scene, as many as in a training batch
INPUTS = ("correlation", "mean over classes", "own", "another class's prompts")


@contextmanager
def changed(segmenter: Segmenter, change: str, number: int, scene: Scene) -> Iterator[None]:
    """Change one of `PROMPTS` or `MASKS` while a scene is segmented."""
    if isinstance(segmenter, EscNet):
        with prompts_changed(segmenter, change, number):
            yield
    else:
        assert isinstance(segmenter, SamMi)
        with masks_changed(segmenter, change, scene):
            yield


@contextmanager
def masks_changed(segmenter: SamMi, change: str, scene: Scene) -> Iterator[None]:
    """Change the masks that are injected."""
    injected = segmenter.aggregated

    def of_changed(volume: CostVolume, masks: list[Tensor], **options: Any) -> Tensor:
        side = masks[0].shape[-1]
        if change in ("true", "displaced"):
            masks = [at_centres(torch.stack([torch.from_numpy(scene.panoptic == each.id) for each in scene.segments]), side)]
        if change in ("shifted", "displaced"):
            masks = [each.roll(side // 2, -1) for each in masks]
        return injected(volume, None if change == "none" else masks, **options)

    segmenter.aggregated = of_changed  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        segmenter.aggregated = injected  # type: ignore[method-assign]


@contextmanager
def prompts_changed(segmenter: EscNet, change: str, seed: int) -> Iterator[None]:
    """Change what SAM's blocks get or give, for all classes of a picture at once."""
    sam, generator = segmenter.sam, torch.Generator().manual_seed(seed)
    assert isinstance(sam, PromptedBlocks)

    def before(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        *others, prompts = given
        if change == "shuffled":
            prompts = shuffled(prompts, generator)
        elif change == "noise":
            noise = torch.rand(prompts.members[:, 0].shape, generator=generator)
            prompts = pseudo_prompts(noise, segmenter.config.num_regions, segmenter.config.threshold)
        return (*others, prompts)

    def after(_: Any, given: tuple[Any, ...], refined: Tensor) -> Tensor:
        number, _, cells, _ = given
        unprompted: Tensor = sam.blocks[number].block.layer_norm4(cells)  # type: ignore[union-attr, operator]
        return unprompted if change == "removed" else refined

    hooks = sam.register_forward_pre_hook(before), sam.register_forward_hook(after)
    config, segmenter.config = segmenter.config, replace(segmenter.config, classes_at_once=None)
    try:
        yield
    finally:
        segmenter.config = config
        for hook in hooks:
            hook.remove()


def shuffled(prompts: PseudoPrompts, generator: torch.Generator) -> PseudoPrompts:
    """Give each class the prompts of another one: a random cyclic order."""
    order = torch.randperm(len(prompts.valid), generator=generator)
    other = torch.empty_like(order).scatter(0, order, order.roll(1))
    return PseudoPrompts(*(getattr(prompts, field.name)[other] for field in fields(prompts)))


def counted(pipeline: Pipeline, chosen: Sequence[Scene], change: str) -> Counts:
    """The pixels of every scene and class."""
    vocabulary = Vocabulary.builtin("emoji")
    text, policy = pipeline.embed(vocabulary), pipeline.segmenter.policy
    scores, counts = SemanticScores(len(text)), []
    for number, scene in enumerate(chosen):
        with changed(pipeline.segmenter, change, number, scene):
            regions = regions_of(pipeline.predict(scene.image, text), text, "semantic", policy)
        segmentation = measurable(as_segmentation("semantic", scene.image, vocabulary, regions))
        counts.append(pixel_counts(scores.count(scene.semantic(), segmentation)))
    return np.stack(counts)


def compared(pipeline: Pipeline, count: int) -> list[dict[str, Any]]:
    """mIoU of each change, and its difference to the first with an interval of 95 %."""
    chosen, changes = list(scenes("val", count, seed=12345)), PROMPTS if isinstance(pipeline.segmenter, EscNet) else MASKS
    every = {change: counted(pipeline, chosen, change) for change in changes}
    rows = {change: asdict(paired(counts, every[changes[0]], miou)) for change, counts in every.items()}
    return [{"change": change, "mIoU": row.pop("value"), **row} for change, row in rows.items()]


@torch.no_grad()
def probe_samples(pipeline: Pipeline, count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs [N, features] of the probes, and whether each cell belongs to the class, [N]."""
    segmenter, text = pipeline.segmenter, pipeline.embed(Vocabulary.builtin("emoji"))
    assert isinstance(segmenter, EscNet)
    inputs: dict[str, list[Tensor]] = {name: [] for name in INPUTS}
    answers = []
    for number, scene in enumerate(scenes("val", count, seed=seed)):
        truth = torch.from_numpy(scene.semantic())
        labels = truth[truth >= 0].unique()
        order = torch.randperm(len(text), generator=torch.Generator().manual_seed(number))
        names = torch.cat([labels, order[~torch.isin(order, labels)][: NAMES - len(labels)]])
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
        volume = segmenter.encode(image, text.select(names))
        cost = volume.cost[0].flatten(1).unsqueeze(-1) * segmenter.clip.logit_scale  # [K, h · w, 1]
        scaled = torch.cat([cost, cost.softmax(0)], dim=-1)
        own, other = (first_block(segmenter, volume, change, number) for change in ("own", "shuffled"))
        mean = own.mean(0, keepdim=True).expand_as(own)
        inputs["correlation"].append(scaled.flatten(0, 1))
        for name, refined in zip(INPUTS[1:], (mean, own, other), strict=True):
            inputs[name].append(torch.cat([scaled, refined], dim=-1).flatten(0, 1).half())
        masks = torch.stack([truth == label for label in names]).float()
        answers.append((functional.adaptive_avg_pool2d(masks, volume.cost.shape[-1]) > 0.5).flatten())
    return {name: torch.cat(parts) for name, parts in inputs.items()}, torch.cat(answers)


def first_block(segmenter: EscNet, volume: CostVolume, change: str, seed: int) -> Tensor:
    """(F_v^n)' [K, h · w, C] of the first SAM block."""
    outputs: list[Tensor] = []
    with prompts_changed(segmenter, change, seed):
        hook = segmenter.sam.register_forward_hook(lambda _module, _given, refined: outputs.append(refined))
        segmenter.decode(volume)
        hook.remove()
    return outputs[0]


def probed(pipeline: Pipeline, count: int) -> dict[str, float]:
    """Average precision of a logistic regression on each of `INPUTS`."""
    (train, answers), (test, truth) = (probe_samples(pipeline, count, seed) for seed in (777, 12345))
    return {name: average_precision(fitted(train[name].float(), answers, test[name].float()), truth) for name in INPUTS}


def fitted(inputs: Tensor, answers: Tensor, test: Tensor) -> Tensor:
    """Scores of test inputs by a logistic regression on the training inputs."""
    mean, std = inputs.mean(0), inputs.std(0) + 1e-4
    inputs, test, target = (inputs - mean) / std, (test - mean) / std, answers.float()
    weights = torch.zeros(inputs.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(inputs @ weights[1:] + weights[0], target)
        loss = loss + 1e-5 * weights.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return test @ weights.detach()[1:]


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Mean of the precision at each true sample, in the order of their scores."""
    hits = truth[scores.argsort(descending=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / hits.sum())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="escnet-tiny")
    parser.add_argument("--weights", type=Path, help="folder of trained weights in place of the package's")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--probe", type=int, default=20, help="scenes to train and as many to test the linear probe; 0: none")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    pipeline = load(arguments.model, weights=arguments.weights, device="cpu")
    if not isinstance(pipeline.segmenter, SamMi | EscNet) or not isinstance(pipeline.segmenter.sam, PromptedBlocks | SamFamily):
        raise UsageError(f"{arguments.model} does not prompt SAM; choose a model of ESC-Net or SAM-MI")
    rows = compared(pipeline, arguments.scenes)
    probe = probed(pipeline, arguments.probe) if arguments.probe and isinstance(pipeline.segmenter, EscNet) else {}
    if arguments.json:
        print(json.dumps({"model": arguments.model, "scenes": arguments.scenes, "rows": rows, "probe": probe}))
        return
    print(f"{arguments.model} on {arguments.scenes} scenes of seed 12345, {len(world_classes())} names")
    print(f"{'':10s}{'mIoU':>8s}{'difference':>12s}   95 % of {RESAMPLES} resamples of the scenes")
    for row in rows:
        print(f"{row['change']:10s}{row['mIoU']:8.4f}{row['difference']:+12.4f}   {row['low']:+.4f} to {row['high']:+.4f}")
    for name, precision in probe.items():
        print(f"linear probe, {name:24s} average precision {precision:.3f}")


if __name__ == "__main__":
    main()
