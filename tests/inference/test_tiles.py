"""Tiles: a method without context gives the result of the whole picture; scores have no seam; segments join by one rule."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.tiles import Colours, drawn
from lexiseg.cli import main
from lexiseg.errors import UsageError
from lexiseg.exports.records import read_records
from lexiseg.inference.merging import PixelMerger, SegmentMerger, agreements, merge_tiles
from lexiseg.inference.pipeline import Pipeline
from lexiseg.inference.tiles import Span, Tile, Tiling, window_weights
from lexiseg.ops.packed import PackedMask, PackedMasks, painted
from lexiseg.ops.progress import Progress
from lexiseg.ops.rle import encode_mask, encode_masks
from lexiseg.postprocess import Policy, Region
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Geometry, PixelPrediction
from lexiseg.text.vocabulary import ClassName, Vocabulary

WIDTH, HEIGHT = 300, 200
IMAGE, IDS, LABELS = drawn(WIDTH, HEIGHT, 3)
CLASSES = sorted(set(LABELS))
THINGS = tuple(number < len(CLASSES) - 2 for number in range(len(CLASSES)))  # stuff has the highest labels
VOCABULARY = Vocabulary(tuple(ClassName(f"class {number}", thing=thing) for number, thing in enumerate(THINGS)))
COLOURS = np.stack([np.arange(len(LABELS)) * 7 % 256, np.arange(len(LABELS)) * 11 % 256, np.arange(len(LABELS))], 1).astype(
    np.uint8
)


def stand_in(*, pixels: bool = False) -> Pipeline:
    return Pipeline(Colours(COLOURS, np.array([CLASSES.index(label) for label in LABELS]), len(CLASSES), pixels=pixels))


def regions(result: Segmentation) -> list[tuple[int, float, int, tuple[int, ...], bytes]]:
    """What a result says, in an order of its own."""
    rows = zip(result.segments, result.masks, strict=True)
    return sorted(
        (segment.label, round(segment.score, 5), segment.area, segment.box, np.packbits(mask).tobytes())
        for segment, mask in rows
    )


@pytest.mark.parametrize("options", [{}, {"threshold": 0.8855, "background": "class 2"}], ids=["all", "void"])
@pytest.mark.parametrize(
    ("task", "pixels", "overlap"),
    [
        ("panoptic", False, 2),
        ("panoptic", False, 32),
        ("semantic", False, 8),
        ("instance", False, 2),
        ("semantic", True, 8),
        ("panoptic", True, 2),
    ],
)
def test_without_context_tiles_give_the_result_of_the_whole(task, pixels, options, overlap):
    method, image = stand_in(pixels=pixels), COLOURS[IDS]
    tiled = method(image, VOCABULARY, task=task, tile=64, overlap=overlap, **options)
    whole = method(image, VOCABULARY, task=task, **options)
    assert isinstance(tiled.masks, PackedMasks)
    assert regions(tiled) == regions(whole)
    if task == "panoptic" and not pixels and not options:  # every object of the world has one id, and stuff one a class
        assert len(tiled.segments) == len(LABELS)
        assert len(np.unique(np.stack([IDS, tiled.panoptic]).reshape(2, -1), axis=1).T) == len(LABELS)
    assert tiled.void == whole.void
    assert tiled.void > 0 or not options
    if task == "instance":
        scores = [segment.score for segment in tiled.segments]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
@pytest.mark.parametrize("tile", [300, 5000])
def test_a_picture_of_one_tile_is_not_cut(task, tile):
    tiled, whole = (stand_in()(COLOURS[IDS], VOCABULARY, task=task, tile=size) for size in (tile, None))
    assert tiled.segments == whole.segments
    assert isinstance(tiled.masks, np.ndarray)
    assert (tiled.masks == whole.masks).all()


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(200, 64, 8), (65, 64, 1), (64, 64, 32), (3, 64, 8), (129, 64, 32), (999, 70, 35)]
)
def test_tiles_cover_the_picture_and_weights_sum_to_one(length, tile, overlap):
    spans = Tiling(tile, overlap).grid((length, tile)).rows
    assert [span.core.start for span in spans] == [0, *(span.core.stop for span in spans[:-1])]
    assert (spans[0].pixels.start, spans[-1].pixels.stop, spans[-1].core.stop) == (0, length, length)
    total = torch.zeros(length)
    for span in spans:
        assert span.pixels.start <= span.core.start < span.core.stop <= span.pixels.stop
        assert span.pixels.stop - span.pixels.start == min(tile, length) == len(span.weights)
        total[span.pixels] += span.weights
    assert torch.allclose(total, torch.ones(length))
    assert all(first.pixels.stop - second.pixels.start >= overlap for first, second in pairwise(spans))


def test_weights_rise_without_steps_and_are_one_where_a_tile_is_alone():
    (first, second) = window_weights([0, 80], [100, 180], 20)
    assert (first[:80] == 1).all()
    assert (second[20:] == 1).all()
    assert first[80:].diff().abs().max() < 0.5 * np.pi / 20
    assert torch.allclose(second[:20], torch.sin(np.pi / 2 * (torch.arange(20) + 0.5) / 20) ** 2)


def test_scores_are_averaged_by_the_weights():
    """Against sums of the size of the picture."""
    generator, grid, size, classes = torch.Generator().manual_seed(0), Tiling(64, 20).grid((150, 171)), (150, 171), 5
    total, predictions = torch.zeros(classes, *size), {}
    for rows in grid.rows:
        for columns in grid.columns:
            high, wide = len(rows.weights), len(columns.weights)
            scores = torch.rand(1, classes, high, wide, generator=generator)
            predictions[rows.pixels.start, columns.pixels.start] = PixelPrediction(scores, (Geometry.unresized((high, wide)),))
            total[:, rows.pixels, columns.pixels] += scores[0] * rows.weights[:, None] * columns.weights
    merged = merge_tiles(
        grid,
        lambda rows, columns: predictions[rows.start, columns.start],
        lambda _: [],
        "semantic",
        [True] * 5,
        Policy(threshold=0.7),
    )
    score, label = total.max(0)
    label[score < 0.7] = -1
    assert [region.label for region in merged] == list(range(5))
    ids = painted(size, PackedMasks(size, [region.pieces for region in merged]), range(1, 6))
    assert (ids - 1 == label.numpy()).all()
    for region in merged:
        assert region.score == pytest.approx(float(score[label == region.label].mean()), abs=1e-5)


def tile(left: int, wide: int = 64) -> Tile:
    return Tile(
        Span(slice(0, 64), slice(0, 64), torch.ones(64)),
        Span(slice(left, left + wide), slice(left, left + wide), torch.ones(wide)),
    )


def merged(first: list[Region], second: list[Region]) -> list[int]:
    """Numbers of parts of the segments that come of two tiles, the first of columns 0 to 40, the second of 24 to 64."""
    rows = Span(slice(0, 64), slice(0, 64), torch.ones(64))
    merger = SegmentMerger(lambda prediction: prediction, [True, True, False])  # type: ignore[arg-type, return-value]
    for pixels, core, found in ((slice(0, 40), slice(0, 32), first), (slice(24, 64), slice(32, 64), second)):
        merger.add(Tile(rows, Span(pixels, core, torch.ones(40))), found)  # type: ignore[arg-type]
    return sorted(len(region.pieces) for region in merger.regions())


def band(top: int, bottom: int, label: int = 0, left: int = 0) -> Region:
    mask = torch.zeros(64, 40, dtype=torch.bool)
    mask[top:bottom, left:] = True
    return Region(mask, label, 0.5)


def test_segments_that_agree_in_the_overlap_are_one():
    assert merged([band(0, 30)], [band(0, 30)]) == [2]
    assert merged([band(0, 30)], [band(0, 16)]) == [2]  # 16 of 30 rows: IoU 0.53
    assert merged([band(0, 30)], [band(0, 15)]) == [1, 1]  # an IoU of one half does not exceed it
    assert merged([band(0, 30)], [band(0, 30, label=1)]) == [1, 1]
    assert merged([band(0, 10)], [band(40, 50)]) == [1, 1]
    assert merged([band(0, 10, label=2)], [band(40, 50, label=2)]) == [2]  # stuff
    assert merged([band(0, 30), band(0, 29)], [band(0, 29)]) == [1, 2]  # instances overlap: the better pair
    assert merged([], [band(0, 30)]) == [1]
    assert merged([], []) == []


def test_a_segment_outside_the_core_of_its_tile_is_left_to_the_other():
    assert merged([band(0, 30, left=35)], []) == [0]


def test_tiles_that_do_not_touch_do_not_agree():
    mask = PackedMask.of(np.ones((64, 64), bool))
    assert mask is not None
    assert list(agreements(tile(0), [], tile(100), [])) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 63}, "at least 64"),
        ({"tile": 64, "overlap": 33}, "1 to 32 pixels"),
        ({"tile": 64, "overlap": 64}, "choose another overlap"),
        ({"tile": 64, "overlap": 0}, "1 to 32 pixels"),
        ({"overlap": 8}, "give their size"),
        ({"tile": 64, "keep_scores": True}, "leave out tile"),
    ],
)
def test_what_does_not_go_together_is_said(options, message):
    with pytest.raises(UsageError, match=message):
        stand_in()(COLOURS[IDS], VOCABULARY, **options)


def test_progress_counts_tiles():
    seen: list[Progress] = []
    stand_in()(COLOURS[IDS], VOCABULARY, tile=128, overlap=16, progress=seen.append)
    tiles = [(progress.done, progress.total) for progress in seen if progress.stage == "tiles"]
    assert tiles == [(number, 6) for number in range(6)]
    assert {progress.stage for progress in seen} == {"read", "names", "tiles"}


def test_memory_is_that_of_rows_of_tiles(monkeypatch):
    sizes, held = [], []
    best = PixelMerger._best
    monkeypatch.setattr(
        PixelMerger, "_best", lambda self, *rows: sizes.append(rows) or held.append(len(self._tiles)) or best(self, *rows)
    )
    stand_in(pixels=True)(COLOURS[IDS], VOCABULARY, task="semantic", tile=64, overlap=8)
    assert max(held) == 2 * 6
    assert sum(bottom - top for top, bottom in sizes) == HEIGHT
    assert max(bottom - top for top, bottom in sizes) <= 64


def test_packed_masks_are_masks():
    rng = np.random.default_rng(0)
    masks = rng.random((4, 19, 23)) < 0.2
    masks[1], masks[2, :, :5], masks[3, :, 7:] = False, False, False
    pieces = [[piece for top in (0, 10) for piece in [PackedMask.of(mask[top : top + 10], top)] if piece] for mask in masks]
    packed = PackedMasks((19, 23), pieces)
    assert packed.shape == masks.shape
    assert (np.asarray(packed) == masks).all()
    assert [sum(piece.area for piece in parts) for parts in pieces] == masks.sum((1, 2)).tolist()
    assert (painted((19, 23), packed, [4, 3, 2, 1]) == painted((19, 23), masks, [4, 3, 2, 1])).all()
    window = pieces[0][0].within(slice(5, 15), slice(3, 20))
    assert (window == (masks[0] & (np.arange(19) < 10)[:, None])[5:15, 3:20]).all()


def test_a_mask_is_encoded_by_its_columns():
    masks = np.zeros((6, 5, 9), bool)
    masks[1, 2:4, 3:6] = masks[2, :, 4] = masks[3, :, 8] = masks[4, 4, 8] = masks[5] = True
    for mask, counts in zip(masks, encode_masks(torch.from_numpy(masks)), strict=True):
        assert encode_mask(mask).tolist() == counts.tolist()


def test_the_command_cuts_pictures_into_tiles(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("lexiseg.cli.segment.load", lambda *_, **__: stand_in())
    Image.fromarray(COLOURS[IDS]).save(tmp_path / "scene.png")
    call = [
        "segment",
        str(tmp_path / "scene.png"),
        "--classes",
        "; ".join(VOCABULARY.names),
        "--model",
        "sam_clip-tiny",
        "--tile",
        "64",
    ]
    assert main([*call, "--output", str(tmp_path / "out"), "--format", "overlay,json,map,coco"]) == 0
    (record,) = read_records(tmp_path / "out")
    whole = stand_in()(COLOURS[IDS], [f"{name} | thing" for name in VOCABULARY.names])
    expected = {counts.tobytes() for counts in whole.record("x").counts}
    assert expected == {counts.tobytes() for counts in record.counts}
    for wrong in (["--overlap", "64"], ["--batch", "2"], ["--format", "confidence"]):
        assert main([*call, "--output", str(tmp_path / "out"), *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
