"""The names a batch is asked for: those in its pictures are among them, and a text tower that learns gets its gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lexiseg.methods.base import Segmenter
from lexiseg.structures import ImageBatch, MaskTarget
from lexiseg.text.vocabulary import ClassName, Vocabulary
from lexiseg.training.batches import Batch
from lexiseg.training.text_sampler import TextSampler, training_text
from tests.laws.builders import tiny_catseg, tiny_fcclip

CPU = torch.device("cpu")


def vocabulary() -> Vocabulary:
    """Ten classes; the fourth has two names."""
    names = [("cat",), ("dog",), ("tree",), ("sky", "heaven"), ("grass",), ("car",), ("bus",), ("lake",), ("road",), ("boat",)]
    return Vocabulary(tuple(ClassName(name, tuple(others)) for name, *others in names))


def batch(*labels: tuple[int, ...], first: int = 0) -> Batch:
    targets = tuple(MaskTarget(torch.ones(len(each), 4, 4, dtype=torch.bool), torch.tensor(each).long()) for each in labels)
    images = ImageBatch(torch.rand(len(labels), 3, 4, 4), ((4, 4),) * len(labels))
    return Batch(images, targets, tuple(range(first, first + len(labels))))


def names(segmenter: Segmenter | None = None, max_classes: int = 5) -> TextSampler:
    segmenter = segmenter or replace_templates(tiny_fcclip("convnext"))
    return TextSampler(segmenter, vocabulary(), CPU, max_classes=max_classes, seed=3)


def replace_templates(segmenter: Segmenter) -> Segmenter:
    segmenter.config = replace(segmenter.config, templates="none")
    return segmenter


@pytest.mark.parametrize("most", [4, 5, 9])
def test_what_is_there_is_asked_for(most: int) -> None:
    asked = names(max_classes=most)
    for labels in ([(7, 3), (3,)], [(0, 1), (2, 9)], [(), (5,)]):
        given = batch(*labels)
        text, targets = asked.sample(given)
        assert len(text) == most
        assert len(set(text.names)) == most
        for before, after in zip(given.targets, targets, strict=True):
            assert [text.names[label] for label in after.labels] == [asked.text.names[label] for label in before.labels]
            assert torch.equal(after.masks, before.masks)
        whole = asked.text.select([asked.text.names.index(name) for name in text.names])
        assert torch.equal(text.vectors, whole.vectors)


def test_more_present_than_asked_for() -> None:
    text, _ = names(max_classes=2).sample(batch((1, 2), (5, 8)))
    assert text.names == ("dog", "tree", "car", "road")


def test_others_are_a_function_of_the_batch() -> None:
    chosen = [names().sample(batch((1,), first=first))[0].names for first in (0, 0, 2, 4, 6)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 2


def test_all_of_them() -> None:
    for most in (0, 10, 40):
        asked, given = names(max_classes=most), batch((1, 2))
        text, targets = asked.sample(given)
        assert text is asked.text
        assert targets is given.targets


def test_a_tower_that_learns_is_asked_again() -> None:
    segmenter = replace_templates(tiny_catseg())
    asked = names(segmenter)
    text, _ = asked.sample(batch((3, 1)))
    still = asked.text.select([asked.text.names.index(name) for name in text.names])
    assert_close(text.vectors.detach(), still.vectors, atol=1e-6, rtol=0)
    assert torch.equal(text.class_index, still.class_index)
    text.vectors.sum().backward()
    tower = segmenter.clip.clip_model.transformer.resblocks[0].attn.in_proj_weight
    assert tower.grad is not None
    assert tower.grad.abs().max() > 0
    with torch.no_grad():
        tower.mul_(1.5)
    again, _ = asked.sample(batch((3, 1)))
    assert (again.vectors - text.vectors).abs().max() > 1e-4
    frozen, _ = names().sample(batch((3, 1)))
    assert not frozen.vectors.requires_grad


def test_a_tower_that_learns_is_not_cached(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("LEXISEG_CACHE", str(tmp_path))
    training_text(replace_templates(tiny_catseg()), vocabulary())
    assert not list(tmp_path.rglob("*.safetensors"))
    training_text(replace_templates(tiny_fcclip("convnext")), vocabulary())
    assert list(tmp_path.rglob("*.safetensors"))
