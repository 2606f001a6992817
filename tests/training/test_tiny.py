"""The trainings of the tiny encoders: their parts, a few steps of each, and that what is shipped was really trained."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones import configs
from lexiseg.backbones.clip import build_clip, load_clip
from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.configs import ASSETS
from lexiseg.backbones.sam import Sam2Backbone
from lexiseg.backbones.sam_loading import load_sam
from lexiseg.backbones.state_dicts import read_state
from lexiseg.inference.pipeline import load
from lexiseg.methods import recipe_named
from lexiseg.methods.weights import read_card
from lexiseg.training import clip_tiny, pack, sam_tiny, tiny, tiny_family
from lexiseg.training.clip_tiny import crop_embeddings, image_weights, region_embeddings, thing_boxes, visible
from lexiseg.training.sam_prompts import (
    CELL,
    CORNERS,
    MIN_PIXELS,
    NEGATIVE,
    PADDING,
    POSITIVE,
    Prompts,
    corrections,
    prompts_on,
)
from lexiseg.training.sam_tiny import likeness, losses, mask_loss, prompted, tiny_sam
from lexiseg.training.score import parts, whole
from lexiseg.training.tiny import (
    SEGMENTS,
    Budget,
    Run,
    SceneBatch,
    ScenePool,
    SceneStream,
    colour_augmented,
    learning_rate,
    parameter_groups,
)
from lexiseg.world import scenes, world_classes

CPU = torch.device("cpu")

# --- the schedule -----------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    budget = Budget(1000)
    rates = [learning_rate(budget.progress(step, 1e9), step, 2.0, warmup=100, cooldown=0.3) for step in range(1001)]
    assert rates[0] == pytest.approx(0.02)
    assert all(later > earlier for earlier, later in pairwise(rates[:100]))
    assert rates[100:700] == [2.0] * 600
    assert rates[1000] == 0
    assert all(later < earlier for earlier, later in pairwise(rates[701:]))


def test_by_the_clock_it_falls_to_zero_in_time() -> None:
    """However few steps there were, and however uneven."""
    budget = Budget(10**6, minutes=2)
    spent = [seconds**1.5 / 120**0.5 for seconds in range(121)]
    rates = [learning_rate(budget.progress(300 + row, now), 300 + row, 2.0) for row, now in enumerate(spent)]
    assert all(later <= earlier for earlier, later in pairwise(rates))
    assert rates[0] == 2.0
    assert rates[-1] == 0
    assert rates[100] == pytest.approx(2.0 * (1 - spent[100] / 120) / 0.3)


@given(st.integers(1, 1000), st.integers(0, 2000), st.floats(0, 1e5), st.none() | st.floats(0.1, 100))
def test_progress_is_that_of_whatever_ends_first(steps: int, step: int, seconds: float, minutes: float | None) -> None:
    found = Budget(steps, minutes).progress(step, seconds)
    assert found == max(Budget(steps).progress(step, 0), Budget(10**12, minutes).progress(0, seconds))
    assert 0 <= found <= 1
    assert (found == 1) == (step >= steps or (minutes is not None and seconds / (60 * minutes) >= 1))


def test_without_cooldown_it_stays() -> None:
    assert learning_rate(1.0, 500, 2.0, cooldown=0) == 2.0


def test_every_parameter_is_in_one_group_and_only_kernels_decay() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Embedding(5, 3))
    groups = parameter_groups([(model[0], 1.0), (model, 0.5)], 0.1)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])
    assert {group["rate"] for group in groups if any(p is model[0].weight for p in group["params"])} == {1.0}


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(tiny.time, "monotonic", lambda: now)
    run = Run(tmp_path)
    assert run.load() is None
    now += 30
    run.save({"step": 7, "weights": torch.arange(3.0)})
    now += 500  # nobody trains
    again = Run(tmp_path)
    state = again.load()
    assert state is not None
    assert state["step"] == 7
    assert torch.equal(state["weights"], torch.arange(3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    now += 12
    assert again.seconds == 42
    again.log(step=8, loss=0.123456789)
    again.log(step=9)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"step": 8, "loss": 0.12346, "seconds": 42}, {"step": 9, "seconds": 42}]


# --- scenes in batches ------------------------------------------------------------------------------------------------


@lru_cache
def some_scenes(size: int = 128, count: int = 12) -> tuple[Any, ...]:
    return tuple(scenes("val", count, seed=3, size=size))


def some_batch(size: int = 128, count: int = 12) -> SceneBatch:
    return SceneBatch.of(some_scenes(size, count))


def test_masks_of_a_batch_are_the_segments() -> None:
    batch, chosen = some_batch(), some_scenes()
    masks = batch.masks()
    assert masks.shape == (len(batch), SEGMENTS, 128, 128)
    assert (masks.sum(1) == 1).all(), "every pixel is in one segment"
    things = batch.things()
    for row, scene in enumerate(chosen):
        assert torch.equal(batch.images[row], torch.from_numpy(scene.image).permute(2, 0, 1))
        there = {segment.id - 1 for segment in scene.segments}
        for column in range(SEGMENTS):
            assert bool(masks[row, column].any()) == (column in there) == bool(batch.labels[row, column] >= 0)
        for segment in scene.segments:
            assert batch.labels[row, segment.id - 1] == segment.label
            assert bool(things[row, segment.id - 1]) == (segment.style is not None) == world_classes()[segment.label].thing
            assert np.array_equal(masks[row, segment.id - 1].numpy(), scene.panoptic == segment.id)
    assert not things[batch.labels < 0].any()
    assert batch.floats().amin() >= 0
    assert 0.9 < batch.floats().amax() <= 1


def test_boxes_are_the_smallest_around_their_masks() -> None:
    batch = some_batch()
    boxes = batch.boxes()
    for image, segment in (batch.labels >= 0).nonzero().tolist():
        rows, columns = batch.masks()[image, segment].nonzero().unbind(1)
        assert boxes[image, segment].tolist() == [
            [columns.min(), rows.min()],
            [columns.max() + 1, rows.max() + 1],
        ]


def test_a_stream_is_shared_out_among_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def images(worker: int | None, workers: int, count: int, **options: Any) -> list[Tensor]:
        info = None if worker is None else SimpleNamespace(id=worker, num_workers=workers)
        monkeypatch.setattr(tiny, "get_worker_info", lambda: info)
        stream = iter(SceneStream(5, 32, count=2, **{"near": False, "restyle": False, **options}))
        return [image for _ in range(count) for image in next(stream).images]

    alone = images(None, 1, 3)
    first, second, third = (images(worker, 3, 1) for worker in range(3))
    shared = [image for one in zip(first, second, third, strict=True) for image in one]
    assert all(torch.equal(*pair) for pair in zip(alone, shared, strict=True))
    restyled = images(None, 1, 3, restyle=True)
    assert any(not torch.equal(*pair) for pair in zip(alone, restyled, strict=True))
    assert all(torch.equal(*pair) for pair in zip(restyled, images(None, 1, 3, restyle=True), strict=True))


def test_every_second_scene_is_near() -> None:
    batch = next(iter(SceneStream(5, 64, count=24, near=True, restyle=False)))
    sides = (batch.boxes()[..., 1, :] - batch.boxes()[..., 0, :]).amax(-1) * batch.things()
    assert sides[1::2].amax(1).mean() > 1.2 * sides[::2].amax(1).mean()
    assert (batch.things()[1::2].sum(1) <= 4).all()


class Numbered:
    """Instead of scenes: batches of four pictures, all of one value."""

    size = 8

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count, self.error = count, error

    def __iter__(self) -> Iterator[SceneBatch]:
        for value in range(self.count):
            labels = torch.full((4, SEGMENTS), value)
            ids = torch.full((4, 8, 8), value, dtype=torch.uint8)
            yield SceneBatch(ids[:, None].expand(-1, 3, -1, -1), ids, labels)
        if self.error is not None:
            raise self.error


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes are rendered by the pool's thread, without processes."""
    monkeypatch.setattr(tiny, "DataLoader", lambda stream, **_: stream)


def arrived(pool: ScenePool, count: int) -> None:
    """Wait until so many batches wait to enter."""
    deadline = time.monotonic() + 30
    while pool._arrivals.qsize() < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.usefixtures("here")
def test_a_pool_draws_from_what_arrived_and_forgets_the_oldest() -> None:
    pool = ScenePool(Numbered(5), CPU, workers=1, capacity=8, fresh=1)  # type: ignore[arg-type]
    known = []
    for number in range(5):
        arrived(pool, min(1, 5 - number))
        batch = pool.draw(4)
        assert len(batch) == 4
        known.append(pool.arrived // 4)
        values = batch.labels[:, 0]
        assert set(values.tolist()) <= {pool.arrived // 4 - 1, pool.arrived // 4 - 2}, "the last two of those that entered"
        assert torch.equal(batch.images[:, 0, 0, 0].long(), values), "pictures and labels stay together"
        assert torch.equal(batch.ids[:, 0, 0].long(), values)
        if pool.arrived == 20:
            break
    assert known[0] == 2, "the first draw waits for twice of what it takes"
    assert all(later == earlier + 1 for earlier, later in pairwise(known))
    seen = {value for _ in range(20) for value in pool.draw(4).labels[:, 0].tolist()}
    assert seen == {3, 4}, "a pool that gets nothing new still gives all it has"


@pytest.mark.usefixtures("here")
def test_a_pool_takes_no_more_than_it_may() -> None:
    pool = ScenePool(Numbered(8), CPU, workers=1, capacity=100, fresh=3)  # type: ignore[arg-type]
    arrived(pool, 8)
    pool.draw(1)
    assert pool.arrived == 12
    pool.draw(1)
    assert pool.arrived == 24
    pool.draw(1)
    assert pool.arrived == 32
    seen = {value for _ in range(40) for value in pool.draw(8).labels[:, 0].tolist()}
    assert seen == set(range(8))


@pytest.mark.usefixtures("here")
def test_what_fails_in_a_worker_is_raised_where_scenes_are_wanted() -> None:
    pool = ScenePool(Numbered(1, ValueError("no such style")), CPU, workers=1, capacity=8, fresh=1)  # type: ignore[arg-type]
    arrived(pool, 2)
    pool.draw(2)
    with pytest.raises(ValueError, match="no such style"):
        pool.draw(2)


def test_colours_change_but_stay_colours() -> None:
    images = some_batch(64).floats()
    changed = colour_augmented(images)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed - images).abs().mean() > 0.02
    grey = torch.full((4, 3, 2, 2), 0.5)
    torch.testing.assert_close(colour_augmented(grey), grey)
    plain = colour_augmented(images, grey=1.0)
    torch.testing.assert_close(plain[:, 0], plain[:, 2])
    varied = torch.rand(64, 3, 1, 1) * 0.4 + 0.3
    turned = colour_augmented(varied, turned=1.0, grey=0.0).flatten(1) - 0.5
    assert functional.cosine_similarity(turned, varied.flatten(1) - 0.5).min() < 0.3, "any hue"


# --- prompts of SAM ---------------------------------------------------------------------------------------------------


def meant(batch: SceneBatch, prompts: Prompts) -> Tensor:
    """[B, N], the column of the segment that each prompt means."""
    shares = functional.avg_pool2d(batch.masks().float(), CELL)
    same = (shares[:, None] == prompts.masks[:, :, None]).flatten(3).all(-1)  # [B, N, S]
    there = same & (batch.labels >= 0)[:, None]
    assert (there.sum(-1) == 1).all(), "each means one region"
    return there.int().argmax(-1)


def segment_at(batch: SceneBatch, points: Tensor) -> Tensor:
    """[B, N], the column of the segment under points [B, N, 2]."""
    x, y = points.long().clamp(0, batch.ids.shape[-1] - 1).unbind(-1)
    return batch.ids[torch.arange(len(batch))[:, None], y, x].long() - 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9))
def test_prompts_mean_their_region(seed: int, count: int) -> None:
    batch = some_batch()
    torch.manual_seed(seed)
    prompts = prompts_on(batch, count)
    assert prompts.points.shape == (len(batch), count, 2, 2)
    assert prompts.given is None
    assert prompts.singles == (count + 1) // 2
    region = meant(batch, prompts)
    labels, points = prompts.labels, prompts.points
    area = batch.masks().flatten(2).sum(-1)
    assert (area.gather(1, region) >= MIN_PIXELS).all()

    single = labels[..., 1] == PADDING
    assert single[:, : prompts.singles].all(), "singles first"
    assert not single[:, prompts.singles :].any()
    box, click = labels[..., 0] == CORNERS[0], labels[..., 0] == POSITIVE
    assert (box | click).all()
    assert (segment_at(batch, points[:, :, 0])[click] == region[click]).all(), "the first click is inside"

    second, negative = click & (labels[..., 1] == POSITIVE), click & (labels[..., 1] == NEGATIVE)
    assert (single | box | second | negative).all()
    assert (segment_at(batch, points[:, :, 1])[second] == region[second]).all()
    assert (segment_at(batch, points[:, :, 1])[negative] != region[negative]).all()
    places = points[click | single][:, 0]
    assert torch.equal(places.frac(), torch.full_like(places, 0.5)), "centres of pixels"

    assert (labels[box] == torch.tensor(CORNERS)).all()
    true = batch.boxes().gather(1, region[..., None, None].expand(-1, -1, 2, 2))
    side = true[:, :, 1:] - true[:, :, :1]
    assert ((points - true).abs() <= 0.04 * 6 * side)[box].all(), "near the corners of the smallest box"


def test_prompts_are_of_every_kind() -> None:
    batch = some_batch()
    found = [prompts_on(batch, 40) for _ in range(8)]
    labels = torch.cat([one.labels[:, one.singles :] for one in found])
    shares = [float((labels == torch.tensor(kind)).all(-1).float().mean()) for kind in (CORNERS, (1, 0), (1, 1))]
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.04)
    things = torch.cat([batch.things().gather(1, meant(batch, one)) for one in found])
    has = (batch.things() & (batch.masks().flatten(2).sum(-1) >= MIN_PIXELS)).any(1)
    expected = (0.7 * has.float() + 0.3 * _share_of_things(batch)) / (0.7 * has.float() + 0.3)
    assert abs(float(things.float().mean() - expected.mean())) < 0.04
    clicks = torch.cat([one.points[:, : one.singles, 0] for one in found]).flatten(0, 1)
    assert len(clicks.unique(dim=0)) > 0.5 * len(clicks), "anywhere in the region"


def _share_of_things(batch: SceneBatch) -> Tensor:
    eligible = batch.masks().flatten(2).sum(-1) >= MIN_PIXELS
    return (batch.things() & eligible).sum(1) / eligible.sum(1)


def test_where_there_is_one_region_nothing_is_outside() -> None:
    labels = torch.full((2, SEGMENTS), -1)
    labels[:, 0] = len(world_classes()) - 1
    batch = SceneBatch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.ones(2, 32, 32, dtype=torch.uint8), labels)
    prompts = prompts_on(batch, 200)
    assert (prompts.masks == 1).all()
    assert not (prompts.labels == NEGATIVE).any()
    clicks = prompts.points[prompts.labels == POSITIVE]
    assert clicks.min() > 0
    assert clicks.max() < 32


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_corrections_click_where_the_answer_is_wrong(seed: int) -> None:
    batch = some_batch(64)
    torch.manual_seed(seed)
    prompts = prompts_on(batch, 6)
    side = prompts.masks.shape[-1]
    logits, quality = 15 * torch.randn(len(batch), 6, 3, side, side), torch.rand(len(batch), 6, 3)
    found = corrections(prompts, logits, quality)
    number, singles = len(batch) // 4, prompts.singles
    assert found.points.shape == (number, singles, 2, 2)
    assert torch.equal(found.points[:, :, 0], prompts.points[:number, :singles, 0]), "the click from before"
    assert torch.equal(found.masks, prompts.masks[:number, :singles])
    assert found.given is not None
    for image in range(number):
        for prompt in range(singles):
            best = logits[image, prompt, quality[image, prompt].argmax()]
            assert torch.equal(found.given[image, prompt], best.clamp(-20, 20)), "the best answer from before"
            x, y = (found.points[image, prompt, 1] / CELL).long().tolist()
            truth = bool(prompts.masks[image, prompt, y, x] > 0.5)
            assert bool(best[y, x] > 0) != truth
            assert found.labels[image, prompt].tolist() == [POSITIVE, POSITIVE if truth else NEGATIVE]


def test_right_answers_are_corrected_as_well() -> None:
    """With nothing wrong the click falls anywhere, and says the truth."""
    prompts = prompts_on(some_batch(64, 3), 4)
    logits = (20 * prompts.masks - 10)[:, :, None].expand(-1, -1, 3, -1, -1)
    found = corrections(prompts, logits, torch.zeros(3, 4, 3))
    assert len(found.points) == 1, "of few images one"
    x, y = (found.points[0, :, 1] / CELL).long().unbind(-1)
    truth = found.masks[0, torch.arange(2), y, x] > 0.5
    assert torch.equal(found.labels[0, :, 1], truth.long())


# --- the model of SAM -------------------------------------------------------------------------------------------------


@lru_cache
def fresh_sam() -> Any:
    torch.manual_seed(0)
    return tiny_sam().eval().requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize("with_mask", [False, True])
def test_it_decodes_as_the_model_itself(with_mask: bool) -> None:
    """As transformers' forward, and as the adapter does in use, each prompt by itself."""
    model, batch = fresh_sam(), SceneBatch.of(some_scenes(256, 2))
    prompts = prompts_on(batch, 6)
    if with_mask:  # as corrections are, of two points each
        labels = prompts.labels.masked_fill(prompts.labels == PADDING, NEGATIVE)
        prompts = replace(prompts, labels=labels, given=torch.randn(prompts.masks.shape) * 4, singles=0)
    embeddings = sam_tiny.encode(model, batch.floats())
    logits, quality = sam_tiny.decode(model, embeddings, prompts)
    assert logits.shape == (2, 6, 3, 64, 64)
    sam = Sam2Backbone(model)
    for image in range(2):
        inputs = sam.preprocess(batch.floats()[image])
        embedding, skips = sam.encode_with_skips(inputs)
        torch.testing.assert_close(embeddings[0][image], embedding[0], atol=1e-5, rtol=1e-5)
        for number in range(6):
            last = 1 if prompts.labels[image, number, 1] == PADDING else 2
            points, labels = prompts.points[image, number, :last][None], prompts.labels[image, number, :last][None]
            given = None if prompts.given is None else prompts.given[image, number][None, None]
            own = model(
                pixel_values=inputs,
                input_points=points[None],
                input_labels=labels[None],
                input_masks=given,
                multimask_output=True,
            )
            ours = sam.decode(embedding, points=points, labels=labels, masks=given, skips=skips)
            for found in ((own.pred_masks[0], own.iou_scores[0]), ours):
                torch.testing.assert_close(logits[image, number], found[0][0], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(quality[image, number], found[1][0], atol=1e-5, rtol=1e-4)
            if last == 2 and tuple(labels[0].tolist()) == CORNERS:
                boxed = sam.decode(embedding, boxes=points.flatten(1), masks=given, skips=skips)
                torch.testing.assert_close(logits[image, number], boxed[0][0], atol=1e-5, rtol=1e-4)
    assert logits.std() > 0.05


@torch.no_grad()
def attention_near_the_click(model: Any) -> float:
    """What share of the first look of all tokens at the image falls within one cell of the click, of that by chance."""
    side = sam_tiny.SIZE // sam_tiny.PATCH
    cells = torch.cartesian_prod(torch.arange(1, side - 1, 3), torch.arange(1, side - 1, 3))
    points = (cells.flip(-1)[None, :, None] + 0.5) * sam_tiny.PATCH  # [1, N, 1, 2]
    attention, seen = model.mask_decoder.transformer.layers[0].cross_attn_token_to_image, {}
    hook = attention.register_forward_pre_hook(lambda _module, _args, kwargs: seen.update(kwargs), with_kwargs=True)
    embeddings = sam_tiny.encode(model, some_batch(256, 1).floats())
    sam_tiny._decode(model, embeddings, points, torch.ones(points.shape[:3], dtype=torch.long), None)
    hook.remove()
    query, key = (
        project(seen[name]).unflatten(-1, (attention.num_attention_heads, -1)).transpose(-2, -3)
        for project, name in ((attention.q_proj, "query"), (attention.k_proj, "key"))
    )
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mean(-3)[0].unflatten(-1, (side, side))  # [N, T, g, g]
    found = [weights[n, :, y - 1 : y + 2, x - 1 : x + 2].sum((-2, -1)) for n, (y, x) in enumerate(cells.tolist())]
    return float(torch.stack(found).mean() / (9 / side**2))


def test_a_fresh_sam_looks_where_the_click_is(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    assert attention_near_the_click(tiny_sam().eval()) > 4
    monkeypatch.setattr(sam_tiny, "_init_click_attention", lambda _: None)
    torch.manual_seed(1)
    assert attention_near_the_click(tiny_sam().eval()) < 1.5


def test_a_fresh_sam_lets_colours_through() -> None:
    picture = torch.zeros(1, 3, 256, 256)
    picture[:, 0, :, 128:] = 1.0  # right half red
    embeddings = sam_tiny.encode(fresh_sam(), picture)
    near = likeness(fresh_sam(), embeddings, torch.tensor([[[[200.0, 100.0], [0.0, 0.0]], [[20.0, 30.0], [0.0, 0.0]]]]))[0]
    assert near.shape == (2, 64, 64)
    assert near[0, :, 34:].mean() > near[0, :, :30].mean() + 0.5
    assert near[1, :, 34:].mean() < near[1, :, :30].mean() - 0.5


def test_a_cell_is_most_like_itself() -> None:
    near = likeness(fresh_sam(), sam_tiny.encode(fresh_sam(), some_batch(256, 1).floats()), torch.tensor([[[[81.0, 30.5]]]]))
    assert near[0, 0].argmax() == 7 * 64 + 20
    torch.testing.assert_close(near[0, 0].max(), torch.tensor(3.0), atol=1e-3, rtol=0)


# --- losses -----------------------------------------------------------------------------------------------------------


def square(left: int, size: int = 3) -> Tensor:
    truth = torch.zeros(1, 8, 8)
    truth[:, 2 : 2 + size, left : left + size] = 1
    return truth


def test_the_mask_loss_is_least_at_the_truth() -> None:
    truth = square(2)
    right, empty, full = 20 * (2 * truth - 1), torch.full((1, 8, 8), -20.0), torch.full((1, 8, 8), 20.0)
    assert mask_loss(right, truth) < 0.01
    assert mask_loss(empty, truth) > 1
    assert mask_loss(full, truth) > 1
    moved = [float(mask_loss(20 * (2 * square(left) - 1), truth)) for left in (2, 3, 4, 5)]
    assert moved == sorted(moved)
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    mask_loss(logits, truth).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad < 0, truth > 0.5), "every step leads there"


def test_the_loss_is_that_of_the_best_of_three() -> None:
    truth = square(2)[None]  # [B, N, m, m]
    answers = torch.stack([square(2), square(3), 1 - square(2)], dim=1)[None]
    logits, quality = 20 * (2 * answers - 1), torch.tensor([[[1.0, 0.5, 0.0]]])
    loss, overlap = losses(logits, quality, truth)
    torch.testing.assert_close(overlap, quality)
    each = mask_loss(logits, truth[:, :, None].expand_as(logits))
    torch.testing.assert_close(loss, each.min() + sam_tiny.EVERY * each.mean())
    worse, _ = losses(logits, quality + 0.5, truth)
    torch.testing.assert_close(worse - loss, torch.tensor(0.25), msg="the quality head learns the overlaps")


# --- CLIP -------------------------------------------------------------------------------------------------------------


def test_boxes_are_squares_around_visible_things() -> None:
    batch = some_batch()
    for margin in (1.0, 1.3):
        boxes, labels = thing_boxes(batch, margin=margin)
        chosen = (visible(batch) & batch.things()).nonzero()
        assert len(boxes) == len(labels) == len(chosen) > 20
        for (image, left, top, right, bottom), label, (row, column) in zip(
            boxes.tolist(), labels.tolist(), chosen.tolist(), strict=True
        ):
            assert (image, label) == (row, batch.labels[row, column])
            ys, xs = batch.masks()[row, column].nonzero().unbind(1)
            assert left <= xs.min()
            assert xs.max() + 1 <= right
            assert top <= ys.min()
            assert ys.max() + 1 <= bottom
            assert right - left == pytest.approx(bottom - top, rel=1e-5)
            longer = max(int(side.max() - side.min()) + 1 for side in (xs, ys))
            assert right - left == pytest.approx(margin * longer, rel=1e-5)


@pytest.mark.parametrize("name", ["clip-tiny-efficientnet", "clip-tiny-vit"])
@torch.no_grad()
def test_regions_and_boxes_are_embedded_with_their_labels(name: str) -> None:
    clip, batch = load_clip(ASSETS / name), some_batch(256, 2)
    vectors, labels = region_embeddings(clip, batch, side=96)
    assert torch.equal(labels, batch.labels[visible(batch)])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(labels)))
    if isinstance(clip, ClipViT):
        twice, both = region_embeddings(clip, batch, side=96, cells=True)
        assert torch.equal(both, labels.repeat(2))
        torch.testing.assert_close(twice[: len(labels)], vectors)
    crops, names = crop_embeddings(clip, batch, margin=1.2)
    assert torch.equal(names, thing_boxes(batch, margin=1.2)[1])
    torch.testing.assert_close(crops.norm(dim=-1), torch.ones(len(names)))
    few, some = crop_embeddings(clip, batch, margin=1.2, most=2)
    assert len(few) == len(some) == 2
    distances = torch.cdist(few, crops).argmin(1)
    assert torch.equal(names[distances], some)


def test_weights_of_imagenet_are_taken_in_their_order(tmp_path: Path) -> None:
    """The package that has them calls its layers otherwise, and ends in a classifier."""
    clip = build_clip(ASSETS / "clip-tiny-efficientnet")
    trunk = clip.clip_model.visual.trunk.state_dict()
    given = {f"_other.{number}": torch.randn(value.shape).to(value.dtype) for number, value in enumerate(trunk.values())}
    more = {"_fc.weight": torch.randn(1000, 1280), "_fc.bias": torch.randn(1000)}
    torch.save(given | more, tmp_path / "imagenet.pth")
    found = image_weights(tmp_path / "imagenet.pth", clip)
    assert list(found) == [f"trunk.{name}" for name in trunk]
    assert all(torch.equal(one, other) for one, other in zip(found.values(), given.values(), strict=True))
    result = clip.clip_model.visual.load_state_dict(found, strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith("head.") for name in result.missing_keys)

    names = list(given)
    wrong = {
        "short": {name: given[name] for name in names[:-3]},
        "swapped": {name: given[name] for name in (names[5], *names[1:5], names[0], *names[6:])},
    }
    for name, tensors in wrong.items():
        torch.save(tensors, tmp_path / f"{name}.pth")
        with pytest.raises(SystemExit, match=rf"{name}\.pth holds another network than EfficientNet"):
            image_weights(tmp_path / f"{name}.pth", clip)


def test_an_open_clip_model_gives_its_image_tower(tmp_path: Path) -> None:
    clip = build_clip(ASSETS / "clip-tiny-vit")
    found = image_weights(ASSETS / "clip-tiny-vit/open_clip_model.safetensors", clip)
    own = clip.clip_model.visual.state_dict()
    assert found.keys() == own.keys()
    assert all(found[name].shape == value.shape for name, value in own.items())
    state = read_state(ASSETS / "clip-tiny-vit/open_clip_model.safetensors")
    assert all(torch.equal(value, state[f"visual.{name}"]) for name, value in found.items())
    torch.save({f"visual.{name}": value for name, value in own.items()} | {"logit_scale": torch.ones(())}, tmp_path / "a.pt")
    assert image_weights(tmp_path / "a.pt", clip).keys() == own.keys()


# --- a few steps of each training -------------------------------------------------------------------------------------


class UnpluggedError(Exception):
    """Somebody pulled the plug."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, here: None) -> None:  # noqa: ARG001 - a fixture for its effect
    """Trainings on small scenes, which keep a checkpoint after every step."""
    few = [*scenes("val", 2, seed=777, size=64)]
    towers = {name: replace(row, sides=(64,), side=64) for name, row in clip_tiny.TOWERS.items()}
    for module in (sam_tiny, clip_tiny):
        monkeypatch.setattr(module, "SIZE", 64)
        monkeypatch.setattr(module, "CHECKPOINT_EVERY", 1)
        monkeypatch.setattr(module, "scenes", lambda *_, **__: iter(few))
    monkeypatch.setattr(clip_tiny, "TOWERS", towers)
    monkeypatch.setattr(clip_tiny, "CROPS_AT_ONCE", 4)
    monkeypatch.setattr(clip_tiny, "LOG_EVERY", 1)


def options(run: Path, **more: Any) -> argparse.Namespace:
    common = {"run": run, "steps": 3, "minutes": None, "start": None, "seed": 0, "device": "cpu", "batch_size": 4}
    pool = {"workers": 1, "pool": 16, "fresh": 1, "evaluate_every": 1000}
    return argparse.Namespace(**{**common, **pool, **more})


def sam_options(run: Path, **more: Any) -> argparse.Namespace:
    return options(run, **{"lr": 1e-3, "cooldown": 0.6, "prompts": 4, **more})


def image_options(run: Path, tower: str, **more: Any) -> argparse.Namespace:
    return options(run, **{"stage": "images", "tower": tower, "names_of": None, "crops": 4, **more})


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, train: Callable[[], None]) -> None:
    """Run a training that ends before step number ``after``."""
    draw, count = ScenePool.draw, 0

    def draw_until(self: ScenePool, number: int) -> SceneBatch:
        nonlocal count
        count += 1
        if count > after:
            raise UnpluggedError
        return draw(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(ScenePool, "draw", draw_until)
        with pytest.raises(UnpluggedError):
            train()


def checkpoint(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "checkpoint.pt", weights_only=True)
    return state


def steps_of(optimiser: dict[str, Any]) -> set[int]:
    return {int(state["step"]) for state in optimiser["state"].values()}


@pytest.mark.usefixtures("small")
def test_sam_is_trained_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    interrupted(monkeypatch, 2, lambda: sam_tiny.train(sam_options(run)))
    before = checkpoint(run)
    assert before["step"] == 2
    assert steps_of(before["optimiser"]) == {2}
    sam_tiny.train(sam_options(run))
    after = checkpoint(run)
    assert after["step"] == 3
    assert steps_of(after["optimiser"]) == {3}
    assert after["seconds"] > before["seconds"]
    moved = [name for name, value in after["model"].items() if not torch.equal(value, before["model"][name])]
    assert any(name.startswith("vision_encoder") for name in moved)
    assert any(name.startswith("mask_decoder") for name in moved)
    assert any(name.startswith("prompt_encoder") for name in moved)
    assert all(value.isfinite().all() for value in after["model"].values())
    (row,) = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert row["step"] == 3
    assert {"trained_things", "trained_boxes", "new_style_centres", "new_style_stuff"} <= row.keys()

    # Packed, it is what it was, to half a step of eight bits.
    monkeypatch.setattr(pack, "ASSETS", tmp_path)
    card = pack.pack_encoder("sam-tiny", run, 4, {"start": "nothing"})
    assert card == json.loads((tmp_path / "sam-tiny/card.json").read_text())
    assert (card["steps"], card["seed"], card["start"], card["curve"]) == (3, 4, "nothing", [row])
    packed = load_sam(tmp_path / "sam-tiny")
    assert packed.image_size == 64
    for name, value in packed.model.state_dict().items():
        assert (value - after["model"][name]).abs().max() <= after["model"][name].abs().max() / 253, name

    # Another training can begin with what is in the package.
    start = tmp_path / "sam-tiny/model.safetensors"
    sam_tiny.train(sam_options(tmp_path / "next", minutes=1e-9, start=start))  # over before the first step
    begun = checkpoint(tmp_path / "next")
    assert begun["step"] == 0
    assert all(torch.equal(value, begun["model"][name]) for name, value in packed.model.state_dict().items())


@pytest.mark.usefixtures("small")
def test_clip_is_trained_in_two_steps_and_others_take_over_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with pytest.raises(SystemExit, match="train the image tower first"):
        clip_tiny.train_names("efficientnet", run, steps=1, seed=0)
    interrupted(monkeypatch, 2, lambda: clip_tiny.train_images(image_options(run, "efficientnet")))
    before = checkpoint(run)
    assert before["step"] == 2
    clip_tiny.train_images(image_options(run, "efficientnet"))
    after = checkpoint(run)
    assert after["step"] == 3
    assert steps_of(after["optimiser"]) == {3}
    assert (after["classes"] != before["classes"]).any()
    assert any((value != before["visual"][name]).any() for name, value in after["visual"].items())
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert {"trained_things", "trained_stuff", "trained_crops", "new_style_things"} <= rows[-1].keys()
    assert not (run / "model.pt").exists(), "the names are still to be learnt"

    clip_tiny.train_names("efficientnet", run, steps=2, seed=0)
    assert (run / "names").exists()
    model = torch.load(run / "model.pt", weights_only=True)
    assert all(torch.equal(model[f"visual.{name}"], value) for name, value in after["visual"].items()), "the tower is locked"
    torch.testing.assert_close(model["logit_scale"], after["scale"])

    assets = tmp_path / "assets"
    for name in ("clip-tiny-efficientnet", "clip-tiny-vit"):
        (assets / name).mkdir(parents=True)
        shutil.copy(ASSETS / name / "open_clip_config.json", assets / name)
    shutil.copy(ASSETS / "clip-tiny-bpe.txt.gz", assets)
    for module in (pack, configs, clip_tiny):
        monkeypatch.setattr(module, "ASSETS", assets)
    pack.pack_encoder("clip-tiny-efficientnet", run, 0, {})
    first = load_clip(assets / "clip-tiny-efficientnet")
    for name, value in first.clip_model.state_dict().items():
        assert (value - model[name]).abs().max() <= model[name].abs().max() / 253, name

    # The second one hits the names of the first.
    other, words = tmp_path / "other", (assets / pack.TEXT).read_bytes()
    arguments = {"names_of": "clip-tiny-efficientnet", "start": ASSETS / "clip-tiny-vit/open_clip_model.safetensors"}
    interrupted(monkeypatch, 1, lambda: clip_tiny.train_images(image_options(other, "vit", **arguments)))
    clip_tiny.train_images(image_options(other, "vit", **arguments))
    torch.testing.assert_close(checkpoint(other)["classes"], clip_tiny.class_names(first))
    pack.pack_encoder("clip-tiny-vit", other, 0, {})
    assert (assets / pack.TEXT).read_bytes() == words, "one text tower serves all"
    second = load_clip(assets / "clip-tiny-vit")
    tokens = first.tokenize(["a red car"])
    torch.testing.assert_close(second.encode_text(tokens), first.encode_text(tokens))


@pytest.mark.usefixtures("small")
def test_a_training_ends_by_the_clock(tmp_path: Path) -> None:
    sam_tiny.train(sam_options(tmp_path, steps=10**6, minutes=1e-9))
    assert checkpoint(tmp_path)["step"] <= 1


def test_captions_are_names_or_synonyms() -> None:
    chooser = random.Random(0)
    found = [clip_tiny._caption(chooser, ("car", "auto", "motorcar")) for _ in range(1000)]
    assert 0.55 < found.count("car") / 1000 < 0.65
    assert set(found) == {"car", "auto", "motorcar"}
    assert clip_tiny._caption(chooser, ("car",)) == "car"
    assert all(prompt.count("{}") == 1 and "\n" not in prompt for prompt in clip_tiny.PROMPTS)


# --- the whole family -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_failing_training_is_reported_and_the_others_go_on(tmp_path: Path, capfd: Any, side_by_side: bool) -> None:
    def job(name: str, command: str, pack_command: str = "pass") -> tiny_family.Job:
        return tiny_family.Job(name, [sys.executable, "-c", command], [sys.executable, "-c", pack_command])

    def touch(name: str) -> str:
        return f"open({str(tmp_path / name)!r}, 'w')"

    jobs = [
        job("first", "print('hello')", touch("first.packed")),
        job("broken", "raise ValueError('no such scene')", touch("broken.packed")),
        job("unpacked", "import os; print(os.environ['OMP_NUM_THREADS'])", "raise SystemExit(3)"),
        job("last", touch("last.made"), touch("last.packed")),
    ]
    assert sorted(tiny_family.run_all(iter(jobs), tmp_path, side_by_side=side_by_side)) == ["broken", "unpacked"]
    assert (tmp_path / "first.log").read_text() == "hello\n"
    assert (tmp_path / "unpacked.log").read_text() == "1\n"
    assert "no such scene" in (tmp_path / "broken.log").read_text()
    assert (tmp_path / "first.packed").exists()
    assert (tmp_path / "last.packed").exists()
    assert not (tmp_path / "broken.packed").exists(), "what failed is not packed"
    out = capfd.readouterr().out
    assert "broken failed:" in out
    assert "ValueError: no such scene" in out
    assert "last: " in out


def family_options(run: Path, **more: Any) -> argparse.Namespace:
    defaults = {
        "device": "cpu",
        "minutes": None,
        "steps": None,
        "heads": None,
        "imagenet": None,
        "go_on": False,
        "only": None,
        "seed": 3,
    }
    return argparse.Namespace(run=run, **{**defaults, **more})


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("go_on", [False, True])
@pytest.mark.parametrize("name", tiny_family.ENCODERS)
def test_the_trainings_of_encoders_understand_their_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, go_on: bool, gpu: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    found: list[argparse.Namespace] = []
    monkeypatch.setattr(sam_tiny, "train", found.append)
    monkeypatch.setattr(clip_tiny, "train_images", found.append)
    arguments = family_options(tmp_path, minutes=5.0, steps=70, imagenet=tmp_path / "i.pth", go_on=go_on)
    job = tiny_family.encoder(name, arguments, gpu=gpu)
    assert job.command[1] == "-m"
    module = {"lexiseg.training.sam_tiny": sam_tiny, "lexiseg.training.clip_tiny": clip_tiny}[job.command[2]]
    monkeypatch.setattr(sys, "argv", [job.command[2], *job.command[3:]])
    module.main()
    (options_found,) = found
    assert (options_found.run, options_found.seed, options_found.steps, options_found.minutes) == (tmp_path / name, 3, 70, 5.0)
    start = options_found.start
    if go_on:
        assert start.parent == ASSETS / name
        assert start.is_file()
    else:
        assert start == (tmp_path / "i.pth" if name == "clip-tiny-efficientnet" else None)
    packed: list[tuple[Any, ...]] = []
    monkeypatch.setattr(pack, "pack_encoder", lambda *arguments: packed.append(arguments) or {"steps": 70})
    monkeypatch.setattr(sys, "argv", [job.pack[2], *job.pack[3:]])
    pack.main()
    assert packed[0][:3] == (name, tmp_path / name, 3)
    assert ("start" in packed[0][3]) == (start is not None), "the card says what it began with"
    assert packed[0][3]["machine"].startswith("a GPU, torch" if gpu else "CPU, torch")


# --- what is shipped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "named"), [("sam_clip-tiny", 0.9), ("sam_clip-tiny-vit", 0.65)])
def test_what_is_shipped_was_trained(name: str, named: float) -> None:
    """A loose floor, on few scenes; `make score` has the figures."""
    found = dict(parts(load(name, device="cpu"), list(scenes("val", 6, seed=31)), "floor"))
    assert found["CLIP, true masks of things, top-1"] > named
    assert found["SAM, one click on a thing, IoU"] > 0.6
    assert found["SAM, box of a thing, IoU"] > 0.7


def test_who_is_asked_with_the_truth_is_right() -> None:
    """The score of SAM: of every region large enough, in the order of the segments, and the same each time."""
    sam, scene = load_sam(ASSETS / "sam-tiny"), next(scenes("val", 1, seed=31))
    first, second = (prompted(sam, scene, np.random.default_rng(5)) for _ in range(2))
    assert first == second
    large = [segment for segment in scene.segments if (scene.panoptic == segment.id).sum() >= MIN_PIXELS]
    assert [row.thing for row in first] == [segment.style is not None for segment in large]
    assert all(0 <= value <= 1 for row in first for value in (row.click, row.centre, row.box))


@pytest.mark.parametrize("name", pack.ENCODERS)
def test_weights_have_a_card_that_says_how_they_came_to_be(name: str) -> None:
    card = json.loads((ASSETS / name / "card.json").read_text())
    assert set(card) - {"start", "machine", "learning"} == {"data", "steps", "minutes", "seed", "licence", "curve"}
    assert card["licence"] == "Apache-2.0"
    assert 0 < card["curve"][-1]["step"] <= card["steps"]
    assert isinstance(card.get("start", "nothing"), str)


@pytest.mark.parametrize(
    ("name", "pixels", "things"),
    [(name, 0.15, 0.02) for name in ("fcclip-tiny", "cmpf-tiny", "fovseg-tiny", "catseg-tiny", "sam_mi-tiny", "escnet-tiny")],
)
def test_what_was_taught_to_segment(name: str, pixels: float, things: float) -> None:
    """A loose floor, on few scenes; `make score` has the figures."""
    card = read_card(ASSETS / name)
    assert card is not None
    recipe = json.loads(json.dumps(recipe_named(name).to_dict()))
    assert card["recipe"].keys() <= recipe.keys()
    changed = {key for key, value in card["recipe"].items() if recipe[key] != value}
    assert changed == set(card.get("older", ())), "it is what its recipe makes, but for what the card says is older"
    stages = {key: value for key, value in card["recipe"].items() if key.startswith("stages.") and key.endswith(".steps")}
    assert card["step"] == sum(stages.values()) == card["curve"][-1]["step"]
    found = dict(whole(load(name, device="cpu"), list(scenes("val", 4, seed=31)), "floor"))
    assert found["mIoU"] > pixels
    assert found["PQ"] > things
