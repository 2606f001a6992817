"""Reading ahead: in order, never too far, and whoever stops is not kept waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from lexiseg.ops.ahead import read_ahead


def read(item: int) -> int:
    if item % 4 == 3:
        raise ValueError(item)
    return 10 * item


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_items_come_in_order_with_what_was_read_or_raised(workers: int, count: int) -> None:
    found = list(read_ahead(range(count), read, workers=workers, ahead=2))
    assert [item for item, _ in found] == list(range(count))
    for item, result in found:
        if item % 4 == 3:
            assert isinstance(result, ValueError)
            assert result.args == (item,)
        else:
            assert result == 10 * item


@pytest.mark.parametrize(("workers", "ahead"), [(0, 5), (1, 0), (2, 3), (4, 1)])
def test_no_more_is_taken_than_was_allowed(workers: int, ahead: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 30:
            taken += 1
            yield taken

    for number, _ in enumerate(read_ahead(items(), read, workers=workers, ahead=ahead), start=1):
        assert number <= taken <= number + ahead


def test_the_next_are_read_while_one_is_worked_on() -> None:
    begun = [threading.Event() for _ in range(4)]
    with closing(read_ahead(range(4), lambda item: begun[item].set(), workers=2, ahead=2)) as pairs:
        next(pairs)
        assert all(event.wait(60) for event in begun[:3])


def test_who_stops_early_leaves_no_thread_and_no_reading_behind() -> None:
    before, held, begun = threading.active_count(), threading.Event(), list[int]()

    def slow(item: int) -> None:
        begun.append(item)
        assert item == 0 or held.wait(60)

    pairs = read_ahead(range(1000), slow, workers=2, ahead=900)
    assert next(pairs) == (0, None)
    threading.Timer(0.1, held.set).start()
    pairs.close()
    assert len(begun) < 10
    assert threading.active_count() <= before + 1, "but for the timer"
