"""Variations of the drawings: functions of their generator, that stay drawings of the same thing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lexiseg.world import Scene, render, restyled, split_named, splits, sprites
from lexiseg.world.restyle import KEPT, STEPS, Restyle

Picture = Image.Image


def disc(wide: int, high: int, colour: tuple[int, int, int, int] = (200, 40, 40, 255)) -> Picture:
    drawn = Image.new("RGBA", (wide, high))
    ImageDraw.Draw(drawn).ellipse((0, 0, wide - 1, high - 1), colour)
    return drawn


SPRITES: dict[str, Picture] = {
    "drawing": sprites("noto")[7],
    "another": sprites("fluent")[300],
    "disc": disc(96, 96),
    "wide": disc(150, 20),
    "column": Image.new("RGBA", (1, 40), (10, 200, 90, 255)),
    "row": Image.new("RGBA", (40, 1), (10, 200, 90, 255)),
    "pixel": Image.new("RGBA", (1, 1), (10, 200, 90, 255)),
    "black": Image.new("RGBA", (64, 64), (0, 0, 0, 255)),
    "white": Image.new("RGBA", (64, 64), (255, 255, 255, 255)),
    "faint": disc(64, 64, (90, 90, 240, 30)),
    "nothing": Image.new("RGBA", (32, 32)),
    "noise": Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 50, 4), dtype=np.uint8)),
}


def alpha(sprite: Picture) -> np.ndarray:
    return np.asarray(sprite.getchannel("A"))


@pytest.mark.parametrize("kind", list(SPRITES))
@pytest.mark.parametrize("step", [step for step, _ in STEPS], ids=lambda step: step.__name__)
def test_every_step_takes_every_sprite(step: Restyle, kind: str) -> None:
    before = SPRITES[kind].copy()
    for seed in range(12):
        found = step(np.random.default_rng(seed), SPRITES[kind])
        assert found.mode == "RGBA"
        assert found.size == before.size
        assert step(np.random.default_rng(seed), SPRITES[kind]).tobytes() == found.tobytes()
    assert SPRITES[kind].tobytes() == before.tobytes(), "the drawings are shared: nobody may paint on them"


@pytest.mark.parametrize("step", [step for step, _ in STEPS], ids=lambda step: step.__name__)
def test_every_step_changes_something(step: Restyle) -> None:
    """And none changes where the thing is, but for the two whose business that is."""
    for kind in ("drawing", "another"):
        given = SPRITES[kind]
        found = [step(np.random.default_rng(seed), given) for seed in range(8)]
        assert len({one.tobytes() for one in found}) >= 3, "there are two medians"
        visible = alpha(given) > 0
        changes = [np.abs(np.asarray(one, int) - np.asarray(given, int))[visible].mean() for one in found]
        assert np.mean(changes) > 0.8
        if step.__name__ not in ("bent", "outlined", "drawn_in_lines"):
            assert all((alpha(one) == alpha(given)).all() for one in found)
        if step.__name__ in ("outlined", "drawn_in_lines"):  # a line around the thing
            assert all((alpha(one) >= alpha(given)).all() for one in found)


@pytest.mark.parametrize("kind", list(SPRITES))
def test_a_variation_is_a_function_of_its_generator(kind: str) -> None:
    given = SPRITES[kind]
    for seed in range(20):
        first, second = (restyled(np.random.default_rng(seed), given) for _ in range(2))
        assert first.mode == "RGBA"
        assert first.tobytes() == second.tobytes()
        assert min(first.size) >= 1
        assert first.getchannel("A").getbbox() in ((0, 0, *first.size), given.getchannel("A").getbbox()), "cut to what is drawn"


def test_some_stay_and_the_others_differ() -> None:
    given, count = SPRITES["drawing"], 200
    found = [restyled(np.random.default_rng(seed), given) for seed in range(count)]
    kept = sum(one is given for one in found)
    untouched = KEPT + (1 - KEPT) * np.prod([1 - probability for _, probability in STEPS])
    assert 0.5 * KEPT < kept / count < 1.5 * untouched
    assert len({one.tobytes() for one in found}) > 0.6 * count


def overlap(given: Picture, varied: Picture) -> float:
    """IoU of what is drawn, each cut out and brought to one size, as scenes do with it."""
    masks = [alpha(one.crop(one.getchannel("A").getbbox()).resize((64, 64))) > 128 for one in (given, varied)]
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


@pytest.mark.parametrize("style", split_named("val").styles)
def test_the_shape_stays(style: str) -> None:
    drawings, rng = sprites(style), np.random.default_rng(3)
    found = [overlap(drawing, restyled(rng, drawing)) for drawing in drawings[::4]]
    assert np.mean(found) > 0.75
    assert np.quantile(found, 0.02) > 0.3


def marked(rng: np.random.Generator, sprite: Picture) -> Picture:
    """Varied, then painted in one colour that no texture has."""
    varied = restyled(rng, sprite)
    painted = Image.new("RGBA", varied.size, (255, 0, 255, 255))
    painted.putalpha(varied.getchannel("A"))
    return painted


def magenta(scene: Scene) -> np.ndarray:
    red, green, blue = np.moveaxis(scene.image.astype(int), -1, 0)
    return np.minimum(red, blue) - green > 60


def test_the_ground_truth_of_varied_drawings_is_exact() -> None:
    split = splits()["val"]
    right = pixels = 0
    for index in range(12):
        scene = render((5, index), split, size=128, restyle=marked)
        assert set(np.unique(scene.panoptic)) == {segment.id for segment in scene.segments}
        things = np.isin(scene.panoptic, [segment.id for segment in scene.segments if segment.style is not None])
        right += (things == magenta(scene)).sum()
        pixels += things.size
        inner = things & np.all([np.roll(things, shift, axis) for shift in (2, -2) for axis in (0, 1)], axis=0)
        assert magenta(scene)[inner].mean() > 0.97 if inner.any() else True
    assert right / pixels > 0.985, "but for half transparent borders"


def test_a_scene_without_variations_is_what_it_always_was() -> None:
    """Whoever does not ask for them gets the scenes on which all scores were measured."""
    split = splits()["val"]
    for index in range(8):
        plain = render((1, index), split, size=96)
        same = render((1, index), split, size=96, restyle=lambda _, sprite: sprite)
        varied = render((1, index), split, size=96, restyle=restyled)
        assert (plain.image == same.image).all()
        assert (plain.panoptic == same.panoptic).all()
        assert plain.segments == same.segments
        assert (varied.image != plain.image).any() or len(plain.segments) < 3
        again = render((1, index), split, size=96, restyle=restyled)
        assert (varied.image == again.image).all()
        assert (varied.panoptic == again.panoptic).all()


def test_the_first_scene_of_a_seed_is_the_recorded_one() -> None:
    """Of the world's first version: a draw more or less, anywhere, moves all that follow."""
    scene = render((5, 0x97DFBA65, 0), splits()["val"], size=96)
    pixels = [int((scene.panoptic == segment.id).sum()) for segment in scene.segments]
    assert [(segment.label, segment.style) for segment in scene.segments] == [
        (445, None),
        (191, "noto"),
        (162, "noto"),
        (112, "noto"),
    ]
    np.testing.assert_allclose(pixels, [8446, 213, 417, 140], atol=8)
    np.testing.assert_allclose(scene.image.mean((0, 1)), [140.6, 137.8, 118.1], atol=1)
