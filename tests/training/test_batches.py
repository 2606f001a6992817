"""Pictures of a training: picture and truth stay together, and every step knows its pictures."""

from __future__ import annotations

import colorsys
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from lexiseg.errors import DataError, UsageError
from lexiseg.methods.recipe import Jitter
from lexiseg.structures import PanopticMap, PanopticSegment
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.augment import jittered, recoloured
from lexiseg.training.batches import batches, example_at, points_of
from lexiseg.training.examples import Examples, open_examples
from lexiseg.training.scenes import write_scenes
from lexiseg.world import scenes, world_classes

PLAIN = Jitter(side=64, min_scale=1.0, max_scale=1.0, mirror=0.0)


def blocks(high: int = 48, wide: int = 64) -> tuple[np.ndarray, PanopticMap]:
    """A picture whose grey is 50 times the number of the segment; the third segment is a crowd, the fourth is not there."""
    ids = np.zeros((high, wide), np.int32)
    ids[: high // 2], ids[high // 2 :, : wide // 2], ids[high // 2 :, wide // 2 :] = 1, 2, 3
    segments = (PanopticSegment(1, 7), PanopticSegment(2, 5), PanopticSegment(3, 5, crowd=True), PanopticSegment(4, 9))
    return np.repeat((50 * ids).astype(np.uint8)[..., None], 3, 2), PanopticMap(ids, segments)


@pytest.mark.parametrize("seed", range(12))
def test_masks_lie_where_their_pixels_are(seed):
    jitter = Jitter(side=64, min_scale=0.5, max_scale=2.0)
    image, target = jittered(*blocks(), jitter, np.random.default_rng(seed))
    assert image.shape == (3, 64, 64)
    assert set(target.labels.tolist()) <= {7, 5}
    assert target.masks.flatten(1).any(1).all()
    assert target.masks.sum(0).max() <= 1
    grey = (image[0] * 255).round()
    for mask, label in zip(target.masks, target.labels.tolist(), strict=True):
        inner = -functional.max_pool2d(-mask[None].float(), 5, stride=1, padding=2)[0] > 0  # its border has mixed colours
        assert (grey[inner] - {7: 50.0, 5: 100.0}[label]).abs().le(1).all()
        assert not mask[(grey - 128).abs() < 0.5].any(), "nothing beyond the picture"


def test_without_variation_the_picture_just_fits():
    image, target = jittered(*blocks(), PLAIN, np.random.default_rng(0))
    assert torch.equal((image[0, :48] * 255).round(), torch.from_numpy(blocks()[0][..., 0]).float())
    assert (image[:, 48:] * 255).round().unique().tolist() == [128.0]
    assert target.labels.tolist() == [7, 5], "crowds and what is not there are left out"
    assert target.masks[0].sum() == 24 * 64


def test_mirrored():
    image, _ = jittered(*blocks(), Jitter(side=64, min_scale=1.0, max_scale=1.0, mirror=1.0), np.random.default_rng(0))
    assert torch.equal((image[0, :48] * 255).round(), torch.from_numpy(blocks()[0][:, ::-1, 0].copy()).float())


def test_the_shorter_side_fits():
    """No square has anything beyond the picture, and all of the picture's height is in it."""
    jitter = Jitter(side=40, min_scale=1.0, max_scale=1.0, mirror=0.0, fit="shorter")
    wide = blocks()[1].ids
    for ids in (wide, np.ascontiguousarray(wide.T)):
        pixels = np.repeat((50 * ids).astype(np.uint8)[..., None], 3, 2)
        truth = PanopticMap(ids, blocks()[1].segments)
        starts = set()
        for seed in range(6):
            image, target = jittered(pixels, truth, jitter, np.random.default_rng(seed))
            assert image.shape == (3, 40, 40)
            assert not ((image * 255).round() == 128).all(0).any()
            starts.add(int(target.masks[target.labels == 5].sum()))
        assert len(starts) > 1, "the longer side is cut at random"


def test_colours_vary():
    pixels, truth = blocks()
    pixels = pixels + np.array([40, 20, 0], np.uint8)
    plain, coloured = PLAIN, replace(PLAIN, colours=True)
    there = jittered(pixels, truth, plain, np.random.default_rng(0))
    found = [jittered(pixels, truth, coloured, np.random.default_rng(seed)) for seed in (*range(8), 0)]
    assert all(torch.equal(each[1].masks, there[1].masks) for each in found), "the truth stays"
    assert len({float(image.sum()) for image, _ in found}) > 5
    assert torch.equal(found[0][0], found[-1][0]), "a function of the seed"


def test_recoloured_by_hand():
    """Each change by itself, against colorsys and plain arithmetic."""
    random = np.random.default_rng(0)
    pixels = random.integers(30, 220, (5, 6, 3)).astype(np.uint8)

    class Fixed:
        """Chances and amounts that are given."""

        def __init__(self, which: int | None, amount: float) -> None:
            self.chances = np.ones(5)
            if which is not None:
                self.chances[which] = 0
            self.amounts = np.full(4, amount)

        def random(self, _: int) -> np.ndarray:
            return self.chances

        def uniform(self, *_: int) -> np.ndarray:
            return self.amounts

    def hsv(change):
        rows = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels.reshape(-1, 3) / 255]
        return np.array(rows).reshape(pixels.shape) * 255

    expected = {
        None: lambda _: pixels,
        0: lambda amount: np.clip(pixels + 32.0 * amount, 0, 255),
        1: lambda amount: np.clip(pixels * (1 + amount / 2), 0, 255),
        2: lambda amount: hsv(lambda h, s, v: (h, min(1, s * (1 + amount / 2)), v)),
        3: lambda amount: hsv(lambda h, s, v: ((h + 0.1 * amount) % 1, s, v)),
    }
    for which, by_hand in expected.items():
        for amount in (-0.8, 0.6):
            found = recoloured(pixels, Fixed(which, amount))  # type: ignore[arg-type]
            assert found.dtype == np.uint8
            assert np.abs(found.astype(float) - by_hand(amount)).max() <= 0.51 + (which == 3), which
    assert np.array_equal(recoloured(np.zeros((2, 2, 3), np.uint8), Fixed(2, 1.0)), np.zeros((2, 2, 3)))  # type: ignore[arg-type]


def test_nothing_but_void():
    pixels = np.zeros((30, 20, 3), np.uint8)
    _, target = jittered(pixels, PanopticMap(np.zeros((30, 20), np.int32), ()), PLAIN, np.random.default_rng(0))
    assert target.masks.shape == (0, 64, 64)
    assert target.labels.dtype == torch.int64


def test_each_example_once_an_epoch():
    epochs = [[example_at(position, 10, 3) for position in range(start, start + 10)] for start in (0, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [example_at(position, 10, 4) for position in range(10)] != epochs[0]


def numbered() -> Examples:
    def read(number):
        ids = np.full((8, 8), 1, np.int32)
        return np.full((8, 8, 3), number, np.uint8), PanopticMap(ids, (PanopticSegment(1, number),))

    return Examples("numbers", Vocabulary.builtin("coco"), 20, read)


def looked_at(**options) -> list[list[int]]:
    found = batches(numbered(), PLAIN, seed=5, **options)
    return [[int(target.labels[0]) for target in batch.targets] for batch in found]


def test_a_batch_is_shared_and_gone_on_with():
    whole = looked_at(batch_size=4, first=0, steps=6)
    assert looked_at(batch_size=4, first=2, steps=6) == whole[2:]
    halves = [looked_at(batch_size=4, first=0, steps=6, rank=rank, world_size=2) for rank in (0, 1)]
    assert [one + other for one, other in zip(*halves, strict=True)] == whole
    assert looked_at(batch_size=4, first=6, steps=6) == []


def test_parts_of_a_batch():
    batch = next(batches(numbered(), PLAIN, seed=5, batch_size=6, first=0, steps=1))
    parts = batch.parts(3)
    assert [part.positions for part in parts] == [(0, 1), (2, 3), (4, 5)]
    assert torch.equal(torch.cat([part.images.pixels for part in parts]), batch.images.pixels)


def test_points_do_not_know_their_batch():
    device = torch.device("cpu")
    together, alone = points_of([8, 9], 1, device), points_of([9], 1, device)
    together(0, 2, 5)
    for rows in (1, 3):
        assert torch.equal(together(1, rows, 5), alone(0, rows, 5))
    assert not torch.equal(points_of([9], 1, device)(0, 1, 5), points_of([9], 2, device)(0, 1, 5))


def test_scenes_in_the_words_of_the_training():
    examples = open_examples("world:train:64", seed=2)
    pixels, truth = examples.read(4)
    scene = next(scenes("train", 1, seed=2, size=64, first=4))
    assert np.array_equal(pixels, scene.image)
    names = [world_classes()[segment.label].name for segment in scene.segments]
    assert [examples.vocabulary.names[segment.label] for segment in truth.segments] == names
    assert all(world_classes()[segment.label].seen for segment in scene.segments)
    assert np.array_equal(pickle.loads(pickle.dumps(examples)).read(4)[0], pixels), "other processes can read it"


def test_data_of_ones_own(tmp_path):
    """Panoptic truth where there is one; label maps else, where each class is one segment."""
    write_scenes(tmp_path, "val", 2, size=64, progress=False)
    from_maps = open_examples(str(tmp_path))
    pixels, truth = from_maps.read(1)
    scene = next(scenes("val", 1, size=64, first=1))
    assert np.array_equal(pixels, scene.image)
    by_label = {segment.label: int((truth.ids == segment.id).sum()) for segment in truth.segments}
    labels, counts = np.unique(scene.semantic(), return_counts=True)
    assert by_label == dict(zip(labels.tolist(), counts.tolist(), strict=True))


def test_names_of_data_that_are_wrong(tmp_path):
    for name, words in (("world:train:7", "at least 32 pixels"), ("world:other", "unknown split 'other'")):
        with pytest.raises(UsageError, match=words):
            open_examples(name)
    with pytest.raises(DataError, match="coco-panoptic-train is missing"):
        open_examples("coco-panoptic-train", tmp_path)
