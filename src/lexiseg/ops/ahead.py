"""Prefetching: reading the next items while the current ones are processed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], *, workers: int, ahead: int
) -> Generator[tuple[Item, Result | Exception], None, None]:
    """Yield each item with the result or the exception of ``read``, in the order of the items.

    Args:
        items: iterated lazily, by the caller's thread.
        read: called by threads, for several items in parallel.
        workers: number of threads; 0 reads each item when it is requested.
        ahead: number of items read ahead of the one that is yielded.
    """

    def tried(item: Item) -> tuple[Item, Result | Exception]:
        try:
            return item, read(item)
        except Exception as error:
            return item, error

    if workers == 0:
        yield from map(tried, items)
        return
    threads, rest = ThreadPoolExecutor(workers), iter(items)
    try:
        waiting = deque(threads.submit(tried, item) for item in islice(rest, 1 + ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(threads.submit(tried, item) for item in islice(rest, 1))
    finally:  # when stopped early, wait only for reads in progress
        threads.shutdown(cancel_futures=True)
