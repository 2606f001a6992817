"""Ids over frames: what moves slowly keeps its own, and the matching is the best there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.inference.tracks import Tracker, Tracking, assigned, iou
from lexiseg.ops.packed import PackedMask, PackedMasks
from lexiseg.structures import Segment

SIZE = (60, 60)
SKY = 9  # label of stuff
Mask = NDArray[np.bool_]


def segment(label: int) -> Segment:
    return Segment(0, label, f"class {label}", label != SKY, 0.5, 0, (0, 0, 0, 0))


def square(top: float, left: float, side: int = 10) -> Mask:
    mask = np.zeros(SIZE, bool)
    mask[max(0, round(top)) : round(top) + side, max(0, round(left)) : round(left) + side] = True
    return mask


def update(tracker: Tracker, *things: tuple[int, Mask]) -> list[int]:
    masks = np.stack([mask for _, mask in things]) if things else np.zeros((0, *SIZE), bool)
    return tracker.update([segment(label) for label, _ in things], masks)


def test_what_moves_slowly_keeps_its_id_also_in_other_orders():
    rng, tracker = np.random.default_rng(0), Tracker("panoptic")
    where = rng.uniform(0, 8, (5, 2)) + np.array([(0, 0), (0, 30), (25, 10), (45, 0), (45, 40)])
    labels, known = rng.integers(0, 2, 5), {}
    for _ in range(30):
        order = rng.permutation(5)
        ids = update(tracker, *((int(labels[n]), square(*where[n])) for n in order))
        known = known or dict(zip(order.tolist(), ids, strict=True))
        assert ids == [known[n] for n in order.tolist()]
        where = np.clip(where + rng.uniform(-3, 3, where.shape) * (1, 0.3), 0, 50)
        where[:, 0] = np.clip(where[:, 0], [0, 0, 22, 43, 43], [10, 10, 30, 50, 50])


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_two_that_change_places_keep_their_ids(task):
    tracker = Tracker(task)
    for angle in np.linspace(0, np.pi, 30):
        first = square(25 + 20 * np.sin(angle), 25 + 20 * np.cos(angle))
        second = square(25 - 20 * np.sin(angle), 25 - 20 * np.cos(angle))
        assert not (first & second).any()
        assert update(tracker, (0, first), (0, second)) == [1, 2]
    assert (first == square(25, 5)).all()


def test_a_thing_of_another_class_is_another_thing():
    tracker = Tracker("panoptic")
    assert update(tracker, (0, square(5, 5)), (1, square(30, 30))) == [1, 2]
    assert update(tracker, (1, square(5, 5)), (1, square(30, 30))) == [3, 2]


def test_a_class_of_stuff_has_one_id():
    tracker = Tracker("panoptic")
    assert update(tracker, (0, square(5, 5)), (SKY, square(30, 30))) == [1, 2]
    for _ in range(10):
        assert update(tracker) == []
    assert update(tracker, (SKY, square(0, 40)), (0, square(5, 5))) == [2, 3]


def test_semantic_results_have_one_id_per_class():
    tracker = Tracker("semantic")
    assert update(tracker, (0, square(5, 5)), (1, square(30, 30))) == [1, 2]
    assert update(tracker, (1, square(5, 5)), (0, square(30, 30))) == [2, 1]


@pytest.mark.parametrize("gap", [0, 1, 3])
def test_a_thing_may_be_missing_for_a_gap(gap):
    for missing in range(6):
        tracker = Tracker("panoptic", Tracking(gap=gap))
        update(tracker, (0, square(5, 5)))
        for _ in range(missing):
            update(tracker, (0, square(40, 40)))
        (again,) = update(tracker, (0, square(6, 6)))
        assert (again == 1) == (missing <= gap)


def test_the_least_iou_decides():
    before, after = square(0, 0), square(0, 5)  # IoU 1/3
    for least, ids in ((0.3, [1]), (1 / 3, [1]), (0.34, [2])):
        tracker = Tracker("panoptic", Tracking(iou=least))
        update(tracker, (0, before))
        assert update(tracker, (0, after)) == ids


def noise(rng: np.random.Generator, count: int, size: tuple[int, int] = (5, 5)) -> Mask:
    """Masks that overlap, some empty."""
    return rng.random((count, *size)) < rng.uniform(0, 0.9, (count, 1, 1))


def test_ids_of_a_frame_differ_whatever_it_holds():
    rng, tracker = np.random.default_rng(1), Tracker("instance", Tracking(iou=0.2, gap=4))
    for _ in range(60):
        count = int(rng.integers(0, 9))
        ids = tracker.update([segment(int(label)) for label in rng.integers(0, 3, count)], noise(rng, count))
        assert len(set(ids)) == len(ids) == count
        assert min(ids, default=1) >= 1


def matchings(rows: int, columns: int) -> Iterator[list[tuple[int, int]]]:
    """All ways to give each row a column of its own, or none."""
    for order in permutations([*range(columns), *[None] * rows], rows):
        yield [(row, column) for row, column in enumerate(order) if column is not None]


def test_the_matching_is_the_best_of_all():
    rng = np.random.default_rng(2)
    several = 0
    for _ in range(60):
        before, after, least = noise(rng, int(rng.integers(0, 5))), noise(rng, int(rng.integers(0, 5))), rng.uniform(0.05, 0.4)
        table = np.zeros((len(before), len(after)))
        for row, first in enumerate(before):
            for column, second in enumerate(after):
                table[row, column] = (first & second).sum() / max(1, (first | second).sum())
                assert iou(PackedMask.of(first), PackedMask.of(second)) == pytest.approx(table[row, column])
        allowed = (pairs for pairs in matchings(*table.shape) if all(table[pair] >= least for pair in pairs))
        best = max(allowed, key=lambda pairs: sum(table[pair] for pair in pairs))
        pairs = assigned(list(map(PackedMask.of, before)), list(map(PackedMask.of, after)), least)
        assert sorted(pairs) == sorted(best)
        several += len(pairs) > 1
    assert several > 5


def test_packed_masks_have_the_same_ids():
    rng = np.random.default_rng(3)
    plain, packed = Tracker("panoptic"), Tracker("panoptic")
    for _ in range(10):
        masks = noise(rng, 4, (9, 7))
        segments: Sequence[Segment] = [segment(int(label)) for label in rng.integers(0, 2, 4)]
        pieces = [[piece] if (piece := PackedMask.of(mask)) else [] for mask in masks]
        assert plain.update(segments, masks) == packed.update(segments, PackedMasks((9, 7), pieces))


@pytest.mark.parametrize("options", [{"iou": 0.0}, {"iou": 1.1}, {"gap": -1}])
def test_options_have_bounds(options):
    with pytest.raises(UsageError, match="track"):
        Tracking(**options)
