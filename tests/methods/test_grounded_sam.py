"""Grounded-SAM: prompts, scores and boxes beside transformers' own, and what names do to each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional
from torch.testing import assert_close
from torchvision.ops import batched_nms, nms
from transformers import BertTokenizer
from transformers.models.grounding_dino.modeling_grounding_dino import (
    build_label_maps,
    generate_masks_with_special_tokens_and_transfer_map,
)
from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor, _merge_candidate_labels_text

import lexiseg
from lexiseg import postprocess
from lexiseg.backbones.grounding_dino import spelling_vocabulary
from lexiseg.backbones.sam_loading import config_document
from lexiseg.cli import main
from lexiseg.errors import UsageError
from lexiseg.inference.pipeline import Pipeline
from lexiseg.methods.grounded_sam.model import Detections, GroundedSam, only_near, phrase_scores, phrases_of, text_order
from lexiseg.methods.grounded_sam.prompts import phrase_of, prompts_of
from lexiseg.structures import ImageBatch, TextEmbeddings
from lexiseg.text.embed import with_vectors
from lexiseg.text.vocabulary import Vocabulary
from tests.backbones import test_grounding_dino, test_sam
from tests.laws.builders import some_images, tiny_dino, tiny_grounded_sam, tiny_sam

OPEN: dict[str, Any] = {"nms_threshold": 1.0, "class_nms_threshold": 1.0, "max_boxes": 10_000}  # nothing is suppressed


def text_of(classes: str) -> TextEmbeddings:
    vocabulary = Vocabulary.parse(classes)
    return with_vectors(vocabulary, torch.zeros(len(vocabulary.all_names), 0))


def letters(phrase: str) -> list[int]:
    return [1000 + ord(letter) for letter in phrase]


# --- prompts ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.text("abc", min_size=1, max_size=9), max_size=40), st.integers(12, 60), st.none() | st.integers(1, 7))
@settings(deadline=None)
def test_no_name_is_lost(phrases: list[str], most: int, names: int | None) -> None:
    """Whatever the limits, the prompts hold all phrases, whole and in order, and no prompt is longer than allowed."""
    prompts = prompts_of(phrases, letters, most, names)
    read = []
    for prompt in prompts:
        assert prompt.first == len(read)
        assert len(prompt.tokens) <= most
        assert 1 <= len(prompt.spans) <= (names or len(phrases))
        assert (prompt.tokens[0], *prompt.tokens[-2:]) == (101, 1012, 102)
        for start, stop in prompt.spans:
            read.append(list(prompt.tokens[start:stop]))
            assert prompt.tokens[stop] == 1012
    assert read == [letters(phrase) for phrase in phrases]


def test_prompts_are_as_full_as_they_can_be() -> None:
    assert [len(prompt.spans) for prompt in prompts_of(["ab"] * 7, letters, 12)] == [3, 3, 1]
    assert [len(prompt.spans) for prompt in prompts_of(["ab"] * 7, letters, 11)] == [3, 3, 1]
    assert [len(prompt.spans) for prompt in prompts_of(["ab"] * 7, letters, 10)] == [2, 2, 2, 1]


def test_a_name_without_or_with_too_many_tokens_is_named() -> None:
    assert len(prompts_of(["a" * 9], letters, 12)) == 1
    with pytest.raises(UsageError, match=r"the name 'aaaaaaaaaa' has 10 tokens; Grounding DINO takes 9: shorten it"):
        prompts_of(["b", "a" * 10], letters, 12)
    with pytest.raises(UsageError, match="the name '' has no letter"):
        prompts_of([""], letters, 12)
    with pytest.raises(UsageError, match="no letter that Grounding DINO reads"):
        tiny_grounded_sam()(some_images((60, 80)), text_of("dog; ..."))


def test_prompts_are_those_of_the_official_processor() -> None:
    names = ["Traffic light", "a cat", "Dog", "x-ray", "CAFÉ"]
    vocabulary = spelling_vocabulary()
    official = BertTokenizer(vocab=vocabulary)(_merge_candidate_labels_text(names)).input_ids
    (prompt,) = prompts_of([phrase_of(name) for name in names], tiny_dino().tokenize, 256)
    assert list(prompt.tokens) == official
    maps = build_label_maps(torch.zeros(1, 4, 256), torch.tensor([official]))[0]
    assert torch.equal(prompt.positive_map(), maps[:, : len(official)].bool())


@pytest.mark.parametrize(
    ("name", "phrase"),
    [("St. Bernard", "st bernard"), ("what?", "what"), ("traffic_light", "traffic light"), ("  U.S.  flag ", "u s flag")],
)
def test_a_name_stays_one_phrase(name: str, phrase: str) -> None:
    assert phrase_of(name) == phrase


def test_names_do_not_see_each_other_before_the_image() -> None:
    """The text encoder's features of a phrase are the same in any prompt: what couples names is the fusion with the image."""
    detector = tiny_dino()

    def encoded(phrases: list[str], number: int) -> torch.Tensor:
        (prompt,) = prompts_of(phrases, detector.tokenize, 40)
        ids, model = torch.tensor([prompt.tokens]), detector.model.model
        masks, positions = generate_masks_with_special_tokens_and_transfer_map(ids, model.special_tokens)
        states = model.text_backbone(ids, masks[:, None], torch.zeros_like(ids), positions).last_hidden_state
        return states[0, slice(*prompt.spans[number])]

    assert_close(encoded(["dog"], 0), encoded(["a cat", "dog", "sky"], 1))


# --- scores and boxes -------------------------------------------------------------------------------------------------


def test_scores_of_a_name_are_of_its_tokens() -> None:
    probabilities = torch.tensor([[0.9, 0.2, 0.6, 0.9, 0.1, 0.9], [0.1, 0.1, 0.1, 0.9, 0.2, 0.9]])
    spans = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]).bool()
    assert_close(phrase_scores(probabilities, spans, 0.15, "mean"), torch.tensor([[0.4, 0.0], [0.0, 0.2]]))
    assert_close(phrase_scores(probabilities, spans, 0.15, "max"), torch.tensor([[0.6, 0.0], [0.0, 0.2]]))
    assert phrase_scores(probabilities[:0], spans, 0.15, "max").shape == (0, 2)


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
@pytest.mark.parametrize(("box", "text"), [(0.2, 0.1), (0.3, 0.3), (0.1, 0.4)])
def test_boxes_and_names_are_those_of_the_official_processor(family: str, box: float, text: float) -> None:
    """Of names that are one letter each, which the processor's labels give back."""
    names = list("abcdefgh")
    segmenter = tiny_grounded_sam(family, box_threshold=box, text_threshold=text, name_score="max", **OPEN)
    detector, image = segmenter.detector, some_images((60, 80)).image(0)
    (prompt,) = prompts_of(names, detector.tokenize, detector.max_tokens)
    features = detector.features(detector.preprocess(image, 64, 128))
    (found,) = segmenter._detected(features, [prompt], [(60, 80)])
    ids = torch.tensor([prompt.tokens])
    outputs = detector.model(pixel_values=features.pixels, input_ids=ids)
    processor = SimpleNamespace(batch_decode=BertTokenizer(vocab=spelling_vocabulary()).batch_decode)
    (official,) = GroundingDinoProcessor.post_process_grounded_object_detection(
        processor, outputs, ids, threshold=box, text_threshold=text, target_sizes=[(60, 80)]
    )
    labels = [set(label.replace("[SEP]", "").replace(".", " ").split()) for label in official["text_labels"]]
    rows = [row for row, label in enumerate(labels) if label]  # the processor keeps boxes without a name, too
    assert rows
    limit = torch.tensor([80.0, 60.0, 80.0, 60.0])
    assert_close(found.boxes, torch.minimum(official["boxes"][rows].clamp(min=0), limit), atol=1e-4, rtol=0)
    assert [{names[index] for index in row.nonzero().flatten().tolist()} for row in found.scores] == [labels[r] for r in rows]
    assert (found.scores.amax(1) <= official["scores"][rows] + 1e-6).all()  # of the processor's, full stops count, too


def test_boxes_are_suppressed_as_by_torchvision() -> None:
    """First within classes, then over all; the rows come best first."""
    torch.manual_seed(0)
    corner = torch.rand(300, 2) * 20
    boxes = torch.cat([corner, corner + 5 + 5 * torch.rand(300, 2)], -1)
    scores = torch.rand(300, 4)
    segmenter = tiny_grounded_sam(class_nms_threshold=0.4, nms_threshold=0.6, max_boxes=1000)
    rows = segmenter._suppressed(Detections(boxes, scores), torch.arange(4))
    score, label = scores.max(-1)
    within = batched_nms(boxes, score, label, 0.4)
    expected = within[nms(boxes[within], score[within], 0.6)]
    assert rows.tolist() == expected.tolist()
    assert len(rows) < len(within) < 300
    segmenter.config = replace(segmenter.config, max_boxes=7)
    assert segmenter._suppressed(Detections(boxes, scores), torch.arange(4)).tolist() == expected[:7].tolist()


def test_ties_do_not_depend_on_the_order_of_classes() -> None:
    """Two classes with a name in common have the same score where it is the best."""
    text = text_of("a, x; b, x; c")
    phrases, of_name = phrases_of(text)
    assert phrases == ["a", "b", "c", "x"]
    other = text.select([2, 1, 0])
    order, same = text_order(of_name, text.class_index), text_order(phrases_of(other)[1], other.class_index)
    assert [text.names[number] for number in order] == [other.names[number] for number in same]


def test_a_box_is_a_prompt_of_sam() -> None:
    """The masks are SAM's of the boxes, whatever the number decoded at a time."""
    segmenter, image = tiny_grounded_sam(boxes_per_batch=2, **OPEN), some_images((60, 80)).image(0)
    boxes = torch.tensor([[5.0, 6.0, 40.0, 50.0], [0.0, 0.0, 80.0, 60.0], [30.0, 30.0, 31.0, 31.0]])
    sam = segmenter.sam
    embedding = sam.encode(sam.preprocess(image))
    scaled = boxes * torch.tensor([64 / 80, 48 / 60]).repeat(2)
    for multimask in (False, True):
        segmenter.config = replace(segmenter.config, multimask=multimask)
        logits, pred_iou = sam.decode(embedding, boxes=scaled, multimask=multimask)
        expected = torch.stack([masks[ious.argmax()] for masks, ious in zip(logits, pred_iou, strict=True)])
        assert_close(segmenter._masks((60, 80), boxes, embedding, ()), expected, atol=1e-4, rtol=1e-4)


# --- what names do to each other --------------------------------------------------------------------------------------


def classes(segmenter: GroundedSam, text: TextEmbeddings) -> torch.Tensor:
    return segmenter(some_images((60, 80)), text).classes[0].exp()


def test_names_alone_do_not_depend_on_others() -> None:
    """With a name a prompt, each class has the boxes and scores that it has alone."""
    segmenter = tiny_grounded_sam(names_per_prompt=1, box_threshold=0.0, text_threshold=0.0, **OPEN)
    text = text_of("dog, puppy; grass; sky")
    together = classes(segmenter, text)
    for label in range(3):
        alone = classes(segmenter, text.select([label]))[:, 0]
        scores = together[:, label]
        assert_close(scores[scores > 0].sort().values, alone.sort().values)


def test_names_of_a_prompt_depend_on_each_other() -> None:
    segmenter = tiny_grounded_sam(box_threshold=0.0, text_threshold=0.0, **OPEN)
    both, alone = classes(segmenter, text_of("dog; sky"))[:, 0], classes(segmenter, text_of("dog"))[:, 0]
    assert (both.sort().values - alone.sort().values).abs().max() > 1e-3


def test_long_lists_are_split_and_every_class_has_scores() -> None:
    """80 names in prompts of 40 tokens; the boxes of a prompt have scores of its names only."""
    segmenter = tiny_grounded_sam(box_threshold=0.0, text_threshold=0.0, **OPEN)
    text = text_of("coco")
    scores = classes(segmenter, text)
    phrases, _ = phrases_of(text)
    prompts = prompts_of(phrases, segmenter.detector.tokenize, 40)
    assert len(prompts) > 10
    assert len(scores) == 12 * len(prompts)
    assert (scores.amax(0) > 0).all()
    assert ((scores > 0).sum(1) <= max(len(prompt.spans) for prompt in prompts)).all()
    regions = postprocess.instances(segmenter(some_images((60, 80)), text), text)[0]
    assert all(region.score > 1e-6 for region in regions)


def test_without_boxes_nothing_is_named() -> None:
    segmenter = tiny_grounded_sam(box_threshold=1.0)
    images, text = some_images((60, 80), (40, 40)), text_of("dog; sky")
    prediction = segmenter(images, text)
    assert prediction.valid is not None
    assert not prediction.valid.any()
    assert all((labels == postprocess.VOID).all() for labels in postprocess.semantic(prediction))
    assert postprocess.panoptic(prediction, text)[0][1] == []


def test_text_without_names_is_refused() -> None:
    vectors_alone = replace(text_of("dog; sky"), all_names=())
    with pytest.raises(UsageError, match="these text embeddings have no names; make them with the model's own embed_text"):
        tiny_grounded_sam()(some_images((60, 80)), vectors_alone)


def test_far_from_masks_is_void_and_masks_are_unchanged() -> None:
    torch.manual_seed(0)
    logits = functional.interpolate(torch.randn(1, 5, 6, 6) - 0.7, (32, 32), mode="bicubic")[0] * 4
    near = only_near(logits)
    before, after = (functional.interpolate(each[None], (128, 128), mode="bilinear")[0] for each in (logits, near))
    assert torch.equal(before > 0, after > 0)
    assert_close(before[before > 0], after[before > 0], rtol=0, atol=0)
    assert (after.sigmoid() == 0).float().mean() > 0.3
    assert (after.sigmoid() > 0).float().mean() < (before > 0).float().mean() + 0.25


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sam_hq", "sam2", "edgetam"])
def test_any_sam_segments(kind: str) -> None:
    torch.manual_seed(0)
    segmenter = GroundedSam(tiny_dino(), test_sam.tiny(kind), tiny_grounded_sam().config).eval()
    prediction = segmenter(some_images((60, 80), (72, 48)), text_of("dog; sky"))
    assert prediction.masks.isfinite().all()
    assert prediction.valid is not None
    assert prediction.valid.any()
    assert all(scores.isfinite().all() for scores in postprocess.semantic_scores(prediction))


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_a_pipeline_does_all_tasks(task: Any) -> None:
    pixels = (some_images((60, 80)).image(0).permute(1, 2, 0) * 255).byte().numpy()
    segment = Pipeline(tiny_grounded_sam())
    result = segment(pixels, "dog, puppy; tree; lamp", task=task)
    assert result.segments
    assert {segment.name for segment in result.segments} <= {"dog", "tree", "lamp"}
    hidden = segment(pixels, "dog, puppy; tree; lamp", task=task, background="lamp")
    assert "lamp" not in {segment.name for segment in hidden.segments}
    assert segment.embed(Vocabulary.parse("dog, puppy")).all_names == ("dog", "puppy")


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, str]:
    """Folders of a tiny detector and a tiny SAM."""
    parts = {"detector": tmp_path / "detector", "sam": tmp_path / "sam"}
    for folder in parts.values():
        folder.mkdir()
    for name, content in test_grounding_dino.published("grounding-dino").items():
        (parts["detector"] / name).write_bytes(content)
    sam = tiny_sam()
    (parts["sam"] / "config.json").write_text(json.dumps(config_document(sam)))
    tensors = {name: tensor.contiguous().clone() for name, tensor in sam.model.state_dict().items()}
    save_file(tensors, parts["sam"] / "model.safetensors")
    return {name: str(folder) for name, folder in parts.items()}


def test_a_photograph_on_the_command_line(weights: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(photo)
    arguments = ["segment", str(photo), "--classes", "dog, puppy; grass", "--model", "grounded_sam-swin-t", "--json"]
    arguments += [part for name, folder in weights.items() for part in ("--weights", f"{name}={folder}")]
    small = ["--set", "shortest_edge=64", "--set", "box_threshold=0.05", "--set", "text_threshold=0.05"]
    assert main([*arguments, *small]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["segments"]
    assert main([*arguments, "--set", "templates=vild14"]) == 2
    assert "templates" in capsys.readouterr().err
    (Path(weights["detector"]) / "vocab.txt").write_text("a\n")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "vocab.txt: [CLS] is token None, not 101" in error
    assert "Traceback" not in error


def test_a_model_loads_by_name(weights: dict[str, str]) -> None:
    segment = lexiseg.load("grounded_sam-swin-t-sam2", weights=weights, max_boxes=3)
    assert isinstance(segment.segmenter, GroundedSam)
    assert segment.segmenter.config.max_boxes == 3
    images = ImageBatch.of([torch.rand(3, 32, 48)])
    assert segment.segmenter(images, segment.embed(Vocabulary.parse("dog"))).geometries[0].size == (32, 48)
