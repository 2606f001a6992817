"""A short pass over each area, and that a traceback is seen and its input kept."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lexiseg.errors import DataError
from tests.fuzz.run import AREAS, run


@pytest.mark.parametrize("area", AREAS)
def test_no_input_ends_in_a_traceback(area: str, tmp_path: Path) -> None:
    tally = run(area, range(60), 0, tmp_path)
    assert tally.faults == {}
    assert tally.results, "some inputs have to be read"
    assert tally.refused, "and some to be refused"


def test_a_traceback_is_counted_and_its_input_kept(tmp_path: Path) -> None:
    area = ModuleType("tests.fuzz.pretended")

    def attempt(path: Path) -> None:
        if path.read_bytes() < b"U":
            raise DataError("as it should be")
        if path.read_bytes() < b"\xaa":
            raise KeyError("as it should not")

    area.SUFFIX, area.prepare, area.attempt = ".bin", Path.exists, attempt  # type: ignore[attr-defined]
    area.inputs = lambda random: random.integers(0, 256, 1).astype(np.uint8).tobytes()  # type: ignore[attr-defined]
    tally = run(area, range(60), 5, tmp_path)
    assert tally.results + tally.refused + tally.tracebacks == 60
    assert min(tally.results, tally.refused, tally.tracebacks) > 0
    (kept,) = tally.faults.values()
    number = int(kept[0].stem.rpartition("-")[2])
    assert area.inputs(np.random.default_rng([5, number])) == kept[0].read_bytes()
    assert str(tally.tracebacks) in tally.line()
