"""All parity cases: a pattern on the file stem, and the function that compares us with such a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.parity.cases import (
    catseg,
    clip,
    ensembles,
    fovseg,
    losses,
    mask2former,
    mask_decoder,
    maskclip,
    methods,
    metrics,
    names,
    sam,
    sam_mi,
)
from tests.parity.report import Row

CASES: dict[str, Callable[[Path], list[Row]]] = {
    **sam.CASES,
    **clip.CASES,
    **catseg.CASES,
    **ensembles.CASES,
    **fovseg.CASES,
    **losses.CASES,
    **metrics.CASES,
    **mask2former.CASES,
    **mask_decoder.CASES,
    **maskclip.CASES,
    **methods.CASES,
    **names.CASES,
    **sam_mi.CASES,
}
