"""Class probabilities of pixels as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lexiseg.ops.files import replacing, write_png

MOST = 65535  # grey value of probability 1


def write_scores(path: Path, scores: NDArray[np.float16], names: Sequence[str]) -> None:
    """Write probabilities [K, H, W] as a compressed NumPy archive with the arrays ``scores`` and ``names``.

    Raises:
        OutputError: if the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, scores=scores, names=np.array(names))


def write_confidence(path: Path, scores: NDArray[np.float16]) -> None:
    """Write the highest of the K probabilities [K, H, W] of each pixel as a PNG of 16 bits, 65535 for 1.

    Raises:
        OutputError: if the file cannot be written.
    """
    highest = scores.max(0).astype(np.float32)
    write_png(path, np.round(highest.clip(0, 1) * MOST).astype(np.uint16))
