"""What must hold for FC-CLIP beyond the laws of all methods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import WeightsError
from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods.fcclip.model import FcClip, shortest_side
from lexiseg.methods.weights import SavedWeights, fill
from lexiseg.structures import ImageBatch, MaskTarget
from lexiseg.text.vocabulary import Vocabulary
from tests.laws.builders import some_images, some_text, tiny_fcclip


@pytest.fixture(params=["convnext", "resnet"])
def segmenter(request: pytest.FixtureRequest) -> FcClip:
    return tiny_fcclip(request.param)


def test_without_ensemble_the_classes_are_the_decoders(segmenter):
    images, text = some_images((60, 80)), some_text()
    segmenter.config = replace(segmenter.config, alpha=0.0, beta=0.0)
    pixels, resized_size = segmenter.network_input(images.image(0))
    decoded = segmenter.decode(pixels, resized_size, segmenter.clip_features(pixels), text)
    assert_close(segmenter(images, text).classes, decoded.classes.log_softmax(-1))


def test_seen_classes_listen_less_to_clip(segmenter):
    images, text = some_images((60, 80)), some_text()
    nobody, everybody = (segmenter(images, replace(text, seen=torch.full((5,), seen))) for seen in (False, True))
    segmenter.config = replace(segmenter.config, alpha=segmenter.config.beta)
    same = segmenter(images, replace(text, seen=torch.ones(5, dtype=torch.bool)))
    assert (nobody.classes - everybody.classes).abs().max() > 1e-3
    assert torch.equal(same.classes, nobody.classes)
    assert torch.equal(segmenter(images, text).classes, nobody.classes), "who was not asked counts as unseen"


def test_what_is_trained_gets_gradients_and_what_is_frozen_none(segmenter):
    segmenter.train()
    assert not segmenter.clip.training
    pixels = some_images((64, 64), (64, 64)).pixels
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, 32:] = True, True
    targets = [MaskTarget(masks, torch.tensor([0, 3])), MaskTarget(masks[:1], torch.tensor([1]))]
    torch.manual_seed(0)
    losses = segmenter.loss(ImageBatch(pixels, ((64, 64), (64, 64))), some_text(), targets, SetLossOptions(points=64))
    assert len(losses) == 3 * (1 + len(segmenter.mask_decoder.layers))
    sum(losses.values()).backward()
    for name, parameter in segmenter.named_parameters():
        assert (parameter.grad is not None and parameter.grad.isfinite().all()) == (not name.startswith("clip.")), name


def test_the_size_in_the_network():
    assert shortest_side((480, 640), 800, 1333) == (800, 1067)
    assert shortest_side((400, 4000), 800, 1333) == (133, 1333)
    assert shortest_side((1, 5000), 800, 1333) == (1, 1333)


def test_padding_is_zero_once_normalised(segmenter):
    pixels, resized_size = segmenter.network_input(some_images((50, 70)).image(0))
    assert resized_size == (64, 90)
    assert pixels.shape == (1, 3, 64, 96)
    assert segmenter.clip._normalised(pixels)[..., 90:].abs().max() < 1e-6


def test_the_pipeline_says_which_classes_were_seen():
    segmenter = tiny_fcclip("convnext")
    segmenter.config = replace(segmenter.config, templates="none")
    segmenter.training_classes = Vocabulary.builtin("coco").class_names
    text = Pipeline(segmenter).embed(Vocabulary.parse("person; zebra crossing; Sky; sofa, couch"))
    assert text.seen is not None
    assert text.seen.tolist() == [True, False, True, True]
    assert_close(text.vectors.norm(dim=-1), torch.ones(5))


class Sly:
    """What must never be run."""

    def __reduce__(self):
        return print, ("run",)


def test_a_published_file_is_read_as_tensors_or_refused(tmp_path, capsys):
    state = {"a": torch.arange(3.0)}
    for name, document in (("plain.pth", state), ("wrapped.pth", {"model": state, "iteration": 7})):
        torch.save(document, tmp_path / name)
        assert torch.equal(read_state(tmp_path / name)["a"], state["a"])
    torch.save({"model": Sly()}, tmp_path / "sly.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "plain.pth").read_bytes()[:200])
    for name, message in (
        ("sly", "cannot read"),
        ("list", "no dictionary of tensors"),
        ("cut", "cannot read"),
        ("no", "do not exist"),
    ):
        with pytest.raises(WeightsError, match=message):
            read_state(tmp_path / f"{name}.pth")
    assert capsys.readouterr().out == ""


def test_weights_fill_the_model_or_are_refused(segmenter):
    head = {name: value + 1 for name, value in segmenter.state_dict().items() if not name.startswith("clip.")}
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    fill(segmenter, SavedWeights(head, {}, Path("x.pth")), elsewhere={"clip"})
    for name, value in segmenter.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("clip.") else head[name]), name
    some = next(iter(head))
    for wrong, message in (
        ({name: value for name, value in head.items() if name != some}, f"{some} is missing"),
        ({**head, "more": torch.zeros(1)}, "more is unknown"),
        ({**head, some: torch.zeros(1)}, rf"{some} is \(1,\), not"),
    ):
        with pytest.raises(WeightsError, match=rf"x\.pth is another model's: {message}"):
            fill(segmenter, SavedWeights(wrong, {}, Path("x.pth")), elsewhere={"clip"})


@pytest.mark.parametrize("name", ["fcclip-convnext-l", "cmpf-rn50x64"])
def test_without_a_file_it_says_where_the_weights_are(name):
    with pytest.raises(
        WeightsError, match=rf"open https://drive\.google\.com/file/d/\S+ in a browser and save the file as \S+{name}\.pth"
    ):
        load(name)
