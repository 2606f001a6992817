"""The emoji world: classes, splits, and scenes whose ground truth is exact and repeatable."""

from __future__ import annotations

import numpy as np
import pytest

from lexiseg.errors import UsageError
from lexiseg.world import scenes, splits, sprites, styles, world_classes
from lexiseg.world.textures import TEXTURES, VARIANTS, tile


def test_enough_classes_in_every_style_with_one_name_each():
    rows = world_classes()
    things = [row for row in rows if row.thing]
    assert len(things) >= 400
    assert len(rows) - len(things) >= 20
    assert len(styles()) >= 3
    assert len({row.name for row in rows}) == len(rows)
    words = [name for row in rows for name in row.names]
    assert len(set(words)) == len(words), "a word stands for two classes"


def test_three_tenths_of_the_names_are_unseen_in_things_and_in_stuff():
    for thing in (True, False):
        rows = [row for row in world_classes() if row.thing is thing]
        assert sum(not row.seen for row in rows) == round(0.3 * len(rows))


@pytest.mark.parametrize("style", styles())
def test_every_sprite_shows_something(style):
    drawn = sprites(style)
    assert len(drawn) == sum(row.thing for row in world_classes())
    for row, sprite in zip(world_classes(), drawn, strict=False):
        opaque = np.asarray(sprite.getchannel("A")) > 128
        assert 0.02 < opaque.mean() <= 1, row.name
        assert max(np.ptp(axis) for axis in np.nonzero(opaque)) > 80, row.name


@pytest.mark.parametrize("index", range(len(TEXTURES)))
def test_textures_are_pictures_and_vary(index):
    first, second = tile(index, 0), tile(index, VARIANTS - 1)
    assert first.dtype == np.uint8
    assert first.std() > 3
    assert (first != second).mean() > 0.1


def test_a_scene_is_a_function_of_its_seed_alone():
    whole = list(scenes("val", 4, seed=5, size=96))
    third = next(scenes("val", 1, seed=5, size=96, first=2))
    assert (whole[2].image == third.image).all()
    assert (whole[2].panoptic == third.panoptic).all()
    assert whole[2].segments == third.segments
    other = next(scenes("val", 1, seed=6, size=96, first=2))
    assert (other.image != third.image).any()


@pytest.mark.parametrize("split", ["train", "val", "style"])
def test_ground_truth_covers_every_pixel_with_an_allowed_segment(split):
    rule = splits()[split]
    for scene in scenes(split, 25, seed=1, size=128):
        assert set(np.unique(scene.panoptic)) == {segment.id for segment in scene.segments}
        for segment in scene.segments:
            row = world_classes()[segment.label]
            assert row.thing == (segment.style is not None)
            assert segment.style is None or segment.style in rule.styles
            assert row.seen or not rule.seen_only
        assert set(np.unique(scene.semantic())) == {segment.label for segment in scene.segments}


def test_the_held_out_style_is_in_no_other_split():
    held_out = splits()["style"].styles
    assert len(held_out) == 1
    assert all(held_out[0] not in splits()[name].styles for name in ("train", "val"))


def test_ground_truth_is_where_the_object_is():
    """Painting a segment's pixels over the picture hides the object: what is left of it outside is shadow and blur."""
    differences = []
    for index in range(12):
        scene = next(scenes("val", 1, seed=9, first=index))
        for segment in scene.segments:
            mask = scene.panoptic == segment.id
            if segment.style and mask.sum() > 400:
                inner = mask & np.roll(mask, 3, 0) & np.roll(mask, -3, 0) & np.roll(mask, 3, 1) & np.roll(mask, -3, 1)
                ring = ~mask & (np.roll(mask, 4, 0) | np.roll(mask, -4, 0) | np.roll(mask, 4, 1) | np.roll(mask, -4, 1))
                differences.append(np.abs(scene.image[inner].mean(0) - scene.image[ring].mean(0)).sum())
    assert np.mean(differences) > 60


def test_objects_hide_each_other_but_not_wholly():
    occluded = 0
    for scene in scenes("val", 60, seed=2, size=128):
        pixels = np.bincount(scene.panoptic.ravel())
        assert all(pixels[segment.id] > 0 for segment in scene.segments)
        boxes = [np.argwhere(scene.panoptic == segment.id) for segment in scene.segments if segment.style]
        spans = [(box.min(0), box.max(0)) for box in boxes]
        occluded += any(
            (first[0] < second[1]).all() and (second[0] < first[1]).all()
            for number, first in enumerate(spans)
            for second in spans[number + 1 :]
        )
    assert occluded > 10


def test_an_unknown_split_is_named():
    with pytest.raises(UsageError, match="unknown split 'test'; the emoji world has train, val, style"):
        next(scenes("test", 1))
