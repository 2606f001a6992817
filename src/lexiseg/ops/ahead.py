"""Reading the next items while the last ones are worked on."""

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
    """Each item with what ``read`` makes of it, or with the exception that it raises, in the order of the items.

    Args:
        items: taken one by one, by the caller's thread, as there is need for them.
        read: called by threads, for several items at the same time.
        workers: threads; 0 reads an item when it is asked for.
        ahead: items beyond the one that is handed out that are read or being read.
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
    finally:  # whoever stops early waits for what is being read, and for nothing else
        threads.shutdown(cancel_futures=True)
