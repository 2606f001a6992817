"""Label Studio's brush, read by the description of its run lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def brush_pixels(stream: list[int]) -> NDArray[np.int64]:
    """Values of Label Studio's run lengths, bit by bit."""
    bits = iter("".join(f"{byte:08b}" for byte in stream))

    def number(count: int) -> int:
        return int("".join(next(bits) for _ in range(count)), 2)

    values, total, width = [], number(32), number(5) + 1
    lengths = [number(4) + 1 for _ in range(4)]
    while len(values) < total:
        is_run = number(1)
        length = number(lengths[number(2)]) + 1
        values += [number(width)] * length if is_run else [number(width) for _ in range(length)]
    return np.array(values)
