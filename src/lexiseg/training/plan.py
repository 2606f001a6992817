"""Parameters, memory and first batch of a training before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from lexiseg.errors import DataError
from lexiseg.methods import model_named
from lexiseg.methods.base import Segmenter
from lexiseg.methods.recipe import Recipe
from lexiseg.structures import PanopticMap, PanopticSegment, TextEmbeddings
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.batches import batches, points_of
from lexiseg.training.dist import DistContext
from lexiseg.training.examples import Examples, open_examples
from lexiseg.training.objective import Objective, fiser_of
from lexiseg.training.optimiser import optimiser_of
from lexiseg.training.text_sampler import TextSampler

SEGMENTS = 10  # of a stand-in image, about as many as a COCO image has
PROBES = (4, 2)  # memory is measured on images reduced by these factors and extrapolated linearly in their area
GIB = 2**30
_ATEN = torch.ops.aten
_DRAWN = {_ATEN.normal_, _ATEN.uniform_}
_PRODUCTS = {
    _ATEN.addmm,
    _ATEN.baddbmm,
    _ATEN.bmm,
    _ATEN.convolution,
    _ATEN.mm,
    _ATEN._scaled_dot_product_efficient_attention,
    _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu,
}


def plan(recipe: Recipe, *, root: str | Path | None = None, dist: DistContext) -> dict[str, Any]:
    """Estimate the size of a training; needs no weights, and no data.

    Returns:
        ``parameters`` (total, trainable, frozen), ``memory_GiB`` per process (weights, gradients, optimiser, and activations
        saved for the backward pass per image, extrapolated from two small ones), ``batch`` (shapes of the first batch),
        ``missing`` (data that is not available).
    """
    missing: list[str] = []
    with ShapesOnly():
        segmenter = model_named(recipe.name).empty(recipe.model).to(dist.device)
    try:
        examples = open_examples(recipe.data, root, seed=recipe.seed)
    except DataError as error:
        missing.append(str(error))
        examples = stand_in(recipe.jitter.side, Vocabulary.builtin("coco"))
    optimiser_of(segmenter, recipe.stages[0])
    first = next(batches(examples, recipe.jitter, seed=recipe.seed, batch_size=recipe.batch_size, first=0, steps=1))
    total = sum(parameter.numel() for parameter in segmenter.parameters())
    trained = [entry for entry in segmenter.trainable() if entry.parameter.requires_grad]
    trainable = sum(entry.num_parameters for entry in trained)
    weights, state = 4 * total / GIB, 12 * sum(entry.parameter.numel() for entry in trained) / GIB
    per_image = kept_of_an_image(recipe, segmenter, examples.vocabulary, dist.device) / GIB
    images = recipe.batch_size // dist.world_size // recipe.grad_accum_steps
    return {
        "recipe": recipe.name,
        "data": examples.name,
        "pictures": examples.count,
        "classes": len(examples.vocabulary),
        "steps": recipe.steps,
        "parameters": {"total": total, "trainable": trainable, "frozen": total - trainable},
        "memory_GiB": {
            "all": weights + state + images * per_image,
            "weights": weights,
            "optimiser": state,
            "of each image": per_image,
        },
        "images_at_once": images,
        "batch": {"images": list(first.images.pixels.shape), "segments": [len(target) for target in first.targets]},
        "missing": missing,
    }


def kept_of_an_image(recipe: Recipe, segmenter: Segmenter, vocabulary: Vocabulary, device: torch.device) -> float:
    """Bytes of activations saved for the backward pass per image, in float32."""
    text_sampler = TextSampler(
        segmenter,
        vocabulary,
        device,
        max_classes=recipe.max_classes_per_batch,
        seed=recipe.seed,
        text=stand_in_text(segmenter, vocabulary),
    )
    fiser = fiser_of(segmenter, recipe.fiser)
    objective = Objective(segmenter, text_sampler, recipe, None if fiser is None else fiser.to(device))
    weights = {parameter.untyped_storage().data_ptr() for parameter in objective.parameters()}
    segmenter.train()
    measured = []
    for factor in PROBES:
        jitter = replace(recipe.jitter, side=max(64, recipe.jitter.side // factor // 32 * 32))
        batch = next(batches(stand_in(jitter.side, vocabulary), jitter, seed=0, batch_size=1, first=0, steps=1)).to(device)
        saved: dict[int, int] = {}

        def record(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with ShapesOnly(), torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            losses = objective(batch, points_of(batch.positions, 0, device))
        measured.append((jitter.side**2, sum(saved.values())))
        del losses
    (small_area, small_bytes), (large_area, large_bytes) = measured
    growth = (large_bytes - small_bytes) * (recipe.jitter.side**2 - small_area) / (large_area - small_area)
    return small_bytes + growth


class ShapesOnly(TorchDispatchMode):
    """Within it no product is computed and no random number drawn: their results are zeros of the same shape.

    What a network saves for the backward pass has the same size, and a model of any size is built and run at little cost.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in _DRAWN:
            return args[0].zero_()
        if func.overloadpacket not in _PRODUCTS:
            return func(*args, **kwargs)
        device = next(value.device for value in tree_iter(args) if isinstance(value, Tensor))
        shapes = func(*tree_map_only(Tensor, _on_meta, args), **tree_map_only(Tensor, _on_meta, kwargs))
        return tree_map_only(Tensor, lambda value: torch.zeros_like(value, device=device), shapes)


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def stand_in_text(segmenter: Segmenter, vocabulary: Vocabulary) -> TextEmbeddings:
    """Text embeddings of the size of a vocabulary's, of no meaning."""
    vectors = functional.normalize(torch.ones(len(vocabulary.all_names), segmenter.clip.width), dim=-1)
    class_index, things = torch.tensor(vocabulary.class_index), torch.tensor(vocabulary.things)
    return TextEmbeddings(vectors, class_index, vocabulary.names, things)


def stand_in(side: int, vocabulary: Vocabulary) -> Examples:
    """A single synthetic example of horizontal stripes, for when the data is missing."""
    count = min(SEGMENTS, len(vocabulary))
    ids = np.repeat(np.arange(1, count + 1, dtype=np.int32), -(-side // count))[:side]
    truth = PanopticMap(
        np.tile(ids[:, None], (1, side)), tuple(PanopticSegment(number, number - 1) for number in range(1, count + 1))
    )
    grey = np.full((side, side, 3), 128, np.uint8)
    return Examples("a stand-in", vocabulary, 1, lambda _: (grey, truth))
