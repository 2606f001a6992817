"""FiSeR: the loss, its options, and every method that it attaches to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lexiseg.errors import UsageError
from lexiseg.losses.fiser import Fiser, FiserOptions
from lexiseg.structures import MaskTarget
from tests.laws.builders import some_text, tiny_clip


def fiser(**options: Any) -> tuple[Any, Fiser]:
    clip = tiny_clip("vit").requires_grad_(False)
    torch.manual_seed(5)
    return clip, Fiser(clip, FiserOptions(weight=1.0, **options))


def targets_of(*labels: list[int]) -> list[MaskTarget]:
    return [MaskTarget(torch.ones(len(each), 4, 4, dtype=torch.bool), torch.tensor(each, dtype=torch.long)) for each in labels]


def test_covered_words_do_not_tell_which_they_were() -> None:
    clip, loss = fiser()
    tokens = clip.tokenize(["tree", "moss", "tree house"])
    covered = clip.encode_text(tokens, covered=loss.covered)
    assert_close(covered[0], covered[1])
    assert (clip.encode_text(tokens)[0] - covered[0]).abs().max() > 1e-3
    assert (covered[0] - covered[2]).abs().max() > 1e-4, "how many words there were stays"


def test_images_of_few_names_are_padded_without_a_trace() -> None:
    """The loss of a batch is the mean of those of its images alone; an image without names adds nothing."""
    clip, loss = fiser()
    patches, text, chance = torch.randn(3, 6, 24), some_text(), torch.tensor([0.1, 0.9, 0.5])
    targets = targets_of([0, 3, 3, 4], [2], [])
    whole = loss(clip, patches, text, targets, chance)
    alone = [loss(clip, patches[n : n + 1], text, targets[n : n + 1], chance[n : n + 1]) for n in range(3)]
    assert alone[2] == 0
    assert_close(whole, sum(alone) / 3, atol=1e-4, rtol=1e-4)
    nothing = loss(clip, patches[:1].requires_grad_(), text, targets_of([]), chance[:1])
    nothing.backward()
    assert all(parameter.grad is not None for parameter in loss.parameters()), "as several processes need it"


def test_chance_covers_every_name() -> None:
    clip, loss = fiser()
    patches, text, targets = torch.randn(1, 6, 24), some_text(), targets_of([0, 2, 4])
    with torch.no_grad():
        found = [float(loss(clip, patches, text, targets, torch.tensor([chance]))) for chance in (0.0, 0.3, 0.4, 0.99, 1.0)]
    assert found[0] == found[1]
    assert found[3] == found[4]
    assert len(set(found)) == 3


def test_a_name_can_be_found_from_the_patches_and_the_other_names() -> None:
    clip, loss = fiser()
    text, pictures = some_text(), torch.randn(5, 1, 24).expand(-1, 6, -1)
    optimiser = torch.optim.Adam(loss.parameters(), 3e-3)
    targets, patches = targets_of(*([label] for label in range(5))), pictures.clone()
    for _ in range(60):
        optimiser.zero_grad()
        found = loss(clip, patches, text, targets, torch.zeros(5))
        found.backward()
        optimiser.step()
    assert float(found.detach()) < 0.1
    swapped = loss(clip, patches.flip(0), text, targets, torch.zeros(5))
    assert float(swapped.detach()) > 1


def test_gradients_reach_the_patches_and_not_the_text_tower() -> None:
    clip, loss = fiser()
    patches = torch.randn(1, 6, 24, requires_grad=True)
    text = some_text()
    loss(clip, patches, text, targets_of([0, 1]), torch.tensor([0.2])).backward()
    assert patches.grad is not None
    assert patches.grad.abs().max() > 0
    assert loss.covered.grad is not None
    assert loss.covered.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in clip.parameters())


@pytest.mark.parametrize("options", [{}, {"words": "tokens"}, {"candidates": "image"}, {"temperature": 1.0}])
def test_the_loss_is_equations_3_to_6(options: dict[str, Any]) -> None:
    """Of one image of three names, the second one masked."""
    clip, loss = fiser(**options)
    image, text, present = torch.randn(1, 6, 24), some_text(), [0, 2, 4]
    found = loss(clip, image, text, targets_of(present), torch.tensor([0.5]))
    names, classes = [text.names[label] for label in present], text.mean()
    covered = clip.encode_text(clip.tokenize(names[1:2]), covered=loss.covered)
    tokens, masked = torch.cat([classes[:1], covered, classes[4:5]]), [1]
    if options.get("words") == "tokens":
        pieces = [*clip.encode_words(clip.tokenize(names))]
        pieces[1] = clip.encode_words(clip.tokenize(names[1:2]), covered=loss.covered)[0]
        tokens, masked = torch.cat(pieces), list(range(len(pieces[0]), len(pieces[0]) + len(pieces[1])))
    hidden = loss.predictor(torch.cat([tokens, image[0]])[None])[0]  # Eq. (3)
    z = loss.classifier(hidden[masked].mean(0))
    candidates = present if options.get("candidates") == "image" else list(range(5))
    cosines = torch.nn.functional.cosine_similarity(z[None], classes[candidates], dim=-1)  # Eq. (4), Eq. (5)
    logits = cosines / options.get("temperature", 0.07)
    expected = logits.logsumexp(0) - logits[candidates.index(2)]  # Eq. (6)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_options() -> None:
    clip, loss = fiser(learn_temperature=True, identity=False, layers=1, heads=2)
    assert len(loss.predictor.layers) == 1
    assert math.exp(float(loss.log_scale.detach())) == pytest.approx(1 / 0.07)
    loss(clip, torch.randn(1, 6, 24), some_text(), targets_of([0, 1]), torch.tensor([0.2])).backward()
    assert loss.log_scale.grad is not None
    assert (loss.classifier.weight - torch.eye(24)).abs().max() > 0.01
    assert_close(fiser()[1].classifier.weight, torch.eye(24))
    with pytest.raises(UsageError, match=r"fiser\.heads = 5 does not divide the 24 channels"):
        fiser(heads=5)
