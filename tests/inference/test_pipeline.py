"""A pipeline for several callers at once: each gets the embeddings of its own names."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lexiseg.errors import ImageError
from lexiseg.inference.pipeline import REMEMBERED, Pipeline, load
from lexiseg.methods.base import MethodConfig, Segmenter
from lexiseg.structures import Geometry, ImageBatch, MaskPrediction, TextEmbeddings, Trace
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.world import scenes
from tests.laws.builders import tiny_fcclip

SHORT, LONG = Vocabulary.parse("dog; cat; sky"), Vocabulary.parse("red; green, lime; blue; grey")

SIZES = ((240, 180), (256, 256), (240, 180))  # of pictures


class Letters(nn.Module):
    """A text tower whose vectors are a function of the prompt; it counts what it was asked."""

    identity = "letters"

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.tensor([[sum(map(ord, text)), len(text)] for text in texts])

    def encode_text(self, tokens: Tensor) -> Tensor:
        self.asked += len(tokens)
        return nn.functional.normalize(torch.sin(tokens[:, :1] * torch.arange(1.0, 9.0)), dim=-1)


class Rows(Segmenter):
    """One mask a class, a row of the picture, named by the place its vector has."""

    tasks = ("instance",)

    def __init__(self) -> None:
        super().__init__(MethodConfig())
        self.clip = Letters()  # type: ignore[assignment]

    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip}

    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> MaskPrediction:  # noqa: ARG002
        count = len(text.names)
        masks = torch.full((1, count, *images.sizes[0]), -9.0)
        masks[0, torch.arange(count), torch.arange(count)] = 9.0
        scores = text.per_class(text.vectors @ text.vectors.T[:, :count])
        return MaskPrediction(
            masks, (5 * scores.T[:count]).log_softmax(-1)[None], False, (Geometry.unresized(images.sizes[0]),)
        )


def vectors(vocabulary: Vocabulary) -> Tensor:
    return Pipeline(Rows()).embed(vocabulary).vectors


def test_a_call_that_comes_in_between_at_any_line_does_not_change_whose_embeddings_are_returned() -> None:
    pipeline, code = Pipeline(Rows()), Pipeline.embed.__code__
    expected, inside, lines = {SHORT: vectors(SHORT), LONG: vectors(LONG)}, False, 0

    def another_call(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal inside, lines
        if frame.f_code is not code or inside:
            return None
        if event != "call":  # before each line, and before the value is handed back
            inside, lines = True, lines + 1
            pipeline.embed(LONG)
            inside = False
        return another_call

    before = sys.gettrace()
    sys.settrace(another_call)
    try:
        found = [pipeline.embed(SHORT), pipeline.embed(SHORT)]
    finally:
        sys.settrace(before)
    assert lines > 4
    for text in found:
        torch.testing.assert_close(text.vectors, expected[SHORT], atol=0, rtol=0)


def test_many_threads_with_two_vocabularies_are_as_one() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    expected = {words: Pipeline(Rows())(pixels, words).document() for words in (SHORT, LONG)}
    pipeline, before = Pipeline(Rows()), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(16) as threads:
            calls = [(words, threads.submit(pipeline, pixels, words)) for _ in range(100) for words in (SHORT, LONG)]
            for words, call in calls:
                assert call.result().document() == expected[words]
    finally:
        sys.setswitchinterval(before)


def test_the_last_few_vocabularies_are_embedded_once_however_many_ask() -> None:
    pipeline = Pipeline(Rows())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(pipeline.embed, [SHORT] * 8))
    assert pipeline.segmenter.clip.asked == 3
    others = [Vocabulary.parse(f"thing number {number}") for number in range(REMEMBERED)]
    for words in others[1:]:
        pipeline.embed(words)
        pipeline.embed(SHORT)
    assert pipeline.segmenter.clip.asked == 3 + len(others) - 1
    for words in (*others, SHORT):
        pipeline.embed(words)
    assert pipeline.segmenter.clip.asked > 3 + len(others), "the one nobody asked for was given up"


def test_other_prompts_are_other_embeddings() -> None:
    pipeline = Pipeline(Rows())
    first = pipeline.embed(SHORT).vectors
    pipeline.segmenter.config = MethodConfig(templates="catseg")
    assert not torch.equal(pipeline.embed(SHORT).vectors, first)


@pytest.mark.parametrize("used", [False, True])
def test_a_pipeline_may_be_sent_to_another_process(used: bool) -> None:
    pipeline = Pipeline(Rows())
    if used:
        pipeline.embed(SHORT)
    torch.testing.assert_close(pickle.loads(pickle.dumps(pipeline)).embed(SHORT).vectors, vectors(SHORT))


@pytest.mark.parametrize("name", ["catseg-tiny", "fcclip-tiny"])
def test_a_list_of_pictures_gives_a_list_of_results(name: str) -> None:
    pipeline, drawn = load(name, device="cpu"), list(scenes("val", 3))
    labels = sorted({segment.label for scene in drawn for segment in scene.segments})
    words = Vocabulary(tuple(Vocabulary.builtin("emoji").classes[label] for label in labels))
    pictures = [scene.image[:high, :wide] for scene, (high, wide) in zip(drawn, SIZES, strict=True)]
    for task in pipeline.segmenter.tasks:
        together = pipeline(pictures, words, task=task)
        assert [result.size for result in together] == list(SIZES)
        assert sum(len(result.segments) for result in together) > 3
        for one, picture in zip(together, pictures, strict=True):
            alone = pipeline(picture, words, task=task)
            assert [segment.label for segment in one.segments] == [segment.label for segment in alone.segments]
            assert np.mean(one.masks != alone.masks) < 1e-3
            scores, expected = ([segment.score for segment in result.segments] for result in (one, alone))
            np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert pipeline([], words) == []
    assert len(pipeline((pictures[0],), words)) == 1


def test_pictures_of_a_list_know_their_files_and_a_bad_one_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path in paths:
        Image.new("RGB", (16, 8), "red").save(path)
    pipeline = Pipeline(tiny_fcclip("convnext"))
    assert [result.source for result in pipeline(paths, "dog")] == [str(path) for path in paths]
    with pytest.raises(ImageError, match=r"none\.png"):
        pipeline([*paths, tmp_path / "none.png"], "dog")
