"""What CAT-Seg and its relatives have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexiseg.methods.correlation import CorrelationSegmenter
from lexiseg.structures import MaskTarget
from tests.laws.builders import some_images, some_text, tiny_catseg, tiny_escnet


@pytest.mark.parametrize("build", [partial(tiny_catseg, max_classes=0), tiny_escnet], ids=["catseg", "escnet"])
def test_parts_learn_the_same_and_keep_less(build: Callable[..., CorrelationSegmenter]) -> None:
    """In training, what a part of the classes needed is computed again on the way back."""
    images, text = some_images((64, 64), (64, 64)), some_text(9)
    targets = [MaskTarget(torch.ones(1, 64, 64, dtype=torch.bool), torch.tensor([label])) for label in (0, 2)]
    gradients, kept = [], []
    for at_once in (None, 2):
        segmenter, held = build(classes_at_once=at_once).train(), [0]

        def count(tensor: Tensor, held: list[int] = held) -> Tensor:
            held[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = segmenter.loss(images, text, targets)["pixels"]
        loss.backward()
        kept.append(held[0])
        gradients.append([p.grad for name, p in segmenter.named_parameters() if not name.startswith("clip.")])
    assert kept[1] < 0.5 * kept[0]
    assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)
