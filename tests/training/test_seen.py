"""Which classes count as seen follows the data of the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.methods import MODELS
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.loop import train
from tests.training.recipes import recipe


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """Two pictures with label maps of a zebra on gravel."""
    folder = tmp_path / "own"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(2):
        labels = np.full((64, 64), 1, np.uint8)
        labels[16:40, 8 + 16 * number : 32 + 16 * number] = 0
        Image.fromarray(labels).save(folder / "labels" / f"{number}.png")
        Image.fromarray(np.where(labels[..., None] == 0, 220, 60).astype(np.uint8).repeat(3, 2)).save(
            folder / "images" / f"{number}.png"
        )
    (folder / "classes.txt").write_text("zebra, striped horse\ngravel\n")
    return folder


def test_the_classes_of_the_training_are_seen_and_no_others(own_data, tmp_path):
    trained = train(recipe("steps=1", f"data={own_data}"), tmp_path / "run", device="cpu", workers=0)
    segmenter = MODELS["fcclip-test"].load({"fcclip": str(trained)})
    assert segmenter.training_classes == (("zebra", "striped horse"), ("gravel",))
    text = Pipeline(segmenter.eval()).embed(Vocabulary.parse("striped horse; gravel; person"))
    assert text.seen is not None
    assert text.seen.tolist() == [True, True, False]


def test_seen_is_set_by_the_caller():
    segment = load("fcclip-tiny", seen="zebra; gravel")
    text = segment.embed(Vocabulary.parse("zebra; dog"))
    assert text.seen is not None
    assert text.seen.tolist() == [True, False]


def test_the_shipped_weights_state_their_classes():
    seen = Vocabulary.builtin("emoji-seen")
    for name in ("fcclip-tiny", "cmpf-tiny", "catseg-tiny", "sam_mi-tiny", "escnet-tiny", "fovseg-tiny"):
        assert MODELS[name].load().training_classes == seen.class_names, name


def test_official_weights_of_coco_call_its_classes_seen():
    card = MODELS["fcclip-convnext-l"].official_card()
    assert card["training_classes"] == Vocabulary.builtin("coco").class_names
