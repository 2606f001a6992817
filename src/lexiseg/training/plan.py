"""What a training would be, before it begins: parameters, memory, the first batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lexiseg.errors import DataError
from lexiseg.methods import model_named
from lexiseg.methods.base import Segmenter
from lexiseg.methods.recipe import Recipe, Trainable
from lexiseg.structures import PanopticMap, PanopticSegment
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.batches import batches, points_of
from lexiseg.training.dist import DistContext
from lexiseg.training.examples import Examples, open_examples
from lexiseg.training.optimiser import optimiser_of
from lexiseg.training.text_sampler import TextSampler

SEGMENTS = 10  # of the stand-in for a picture, about what a COCO picture has
PROBES = (4, 2)  # memory is measured on pictures so many times smaller, and grows with their area
GIB = 2**30


def plan(recipe: Recipe, *, root: str | Path | None = None, dist: DistContext) -> dict[str, Any]:
    """A training's size; needs no weights, and can do without the data.

    Returns:
        ``parameters`` (total, trainable, frozen), ``memory_GiB`` of each process (weights, gradients, optimiser, and what the
        backward pass keeps of each image, estimated from two small ones), ``batch`` (shapes of the first one), ``missing``
        (what of the data is not here).
    """
    missing: list[str] = []
    segmenter = model_named(recipe.name).empty(recipe.model).to(dist.device)
    try:
        examples = open_examples(recipe.data, root, seed=recipe.seed)
    except DataError as error:
        missing.append(str(error))
        examples = stand_in(recipe.jitter.side, Vocabulary.builtin("coco"))
    optimiser_of(segmenter, recipe.stages[0])
    first = next(batches(examples, recipe.jitter, seed=recipe.seed, batch_size=recipe.batch_size, first=0, steps=1))
    total = sum(parameter.numel() for parameter in segmenter.parameters())
    trained = [one for one in segmenter.trainable() if one.parameter.requires_grad]
    trainable = sum(one.num_parameters for one in trained)
    weights, state = 4 * total / GIB, 12 * sum(one.parameter.numel() for one in trained) / GIB
    kept = kept_of_an_image(recipe, segmenter, examples.vocabulary, dist.device) / GIB
    images = recipe.batch_size // dist.world_size // recipe.grad_accum_steps
    return {
        "recipe": recipe.name,
        "data": examples.name,
        "pictures": examples.count,
        "classes": len(examples.vocabulary),
        "steps": recipe.steps,
        "parameters": {"total": total, "trainable": trainable, "frozen": total - trainable},
        "memory_GiB": {"all": weights + state + images * kept, "weights": weights, "optimiser": state, "of each image": kept},
        "images_at_once": images,
        "batch": {"images": list(first.images.pixels.shape), "segments": [len(target) for target in first.targets]},
        "missing": missing,
    }


def kept_of_an_image(recipe: Recipe, segmenter: Segmenter, vocabulary: Vocabulary, device: torch.device) -> float:
    """Bytes that the backward pass keeps of one image, in float32."""
    assert isinstance(segmenter, Trainable)
    weights = {parameter.untyped_storage().data_ptr() for parameter in segmenter.parameters()}
    text_sampler = TextSampler(
        segmenter, vocabulary, device, max_classes=recipe.max_classes_per_batch, seed=recipe.seed, cache=None
    )
    segmenter.train()
    measured = []
    for factor in PROBES:
        jitter = replace(recipe.jitter, side=max(64, recipe.jitter.side // factor // 32 * 32))
        one = next(batches(stand_in(jitter.side, vocabulary), jitter, seed=0, batch_size=1, first=0, steps=1)).to(device)
        held: dict[int, int] = {}

        def note(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            text, targets = text_sampler.sample(one)
            losses = segmenter.loss(one.images, text, targets, recipe.loss, points_of(one.positions, 0, device))
        measured.append((jitter.side**2, sum(held.values())))
        del losses
    (small, less), (large, more) = measured
    return less + (more - less) * (recipe.jitter.side**2 - small) / (large - small)


def stand_in(side: int, vocabulary: Vocabulary) -> Examples:
    """Stripes in place of pictures."""
    count = min(SEGMENTS, len(vocabulary))
    ids = np.repeat(np.arange(1, count + 1, dtype=np.int32), -(-side // count))[:side]
    truth = PanopticMap(
        np.tile(ids[:, None], (1, side)), tuple(PanopticSegment(number, number - 1) for number in range(1, count + 1))
    )
    grey = np.full((side, side, 3), 128, np.uint8)
    return Examples("a stand-in", vocabulary, 1, lambda _: (grey, truth))
