"""The parity runner on the recorded numbers that come with the repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parity import __main__ as runner
from tests.parity.report import Row, max_difference

DATA = Path(__file__).parent / "data"
FOUND, UNKNOWN = runner.find_cases(DATA)


@pytest.mark.parametrize(("stem", "run"), FOUND, ids=[stem.name for stem, _ in FOUND])
def test_case(stem: Path, run: Callable[[Path], list[Row]]) -> None:
    rows = run(stem)
    assert rows
    assert [row for row in rows if not row.passed] == []


def test_every_recorded_file_has_a_case() -> None:
    assert UNKNOWN == []


def test_rows_beyond_tolerance_or_nan_fail() -> None:
    assert Row("case", "quantity", 1e-5, 1e-5).passed
    assert not Row("case", "quantity", 1.1e-5, 1e-5).passed
    assert not Row("case", "quantity", float("nan"), 1e-5).passed


def test_max_difference() -> None:
    reference = torch.tensor([1.0, float("inf"), float("nan")])
    assert max_difference(reference[:2] + 0.5, reference[:2]) == 0.5
    assert max_difference(reference[:2], reference[:1]) == float("inf")
    assert max_difference(reference[:0], reference[:0]) == 0
    assert max_difference(reference, reference, equal_nan=True) == 0
    assert not max_difference(reference, reference) <= 1e9
    assert not max_difference(torch.tensor([0.0]), torch.tensor([float("nan")]), equal_nan=True) <= 1e9


def test_runner_reports_failures_exceptions_and_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def good(path: Path) -> list[Row]:
        return [Row(path.name, "sum", 0.0, 0.0)]

    def bad(path: Path) -> list[Row]:
        return [Row(path.name, "sum", 2.0, 1.0)]

    def broken(path: Path) -> list[Row]:
        raise ValueError(f"nothing in {path.name}")

    monkeypatch.setattr(runner, "CASES", {"good*": good, "bad*": bad, "broken*": broken})
    assert runner.main([str(tmp_path)]) == 2
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "good_1.json").write_text(json.dumps({}), encoding="utf-8")
    save_file({"a": torch.zeros(1)}, tmp_path / "stranger.safetensors")
    assert runner.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "good_1" in printed
    assert "no case for: stranger.safetensors" in printed
    for name, message in (("bad_1", "FAIL"), ("broken_1", "ValueError: nothing in broken_1")):
        (tmp_path / f"{name}.json").write_text("{}", encoding="utf-8")
        assert runner.main([str(tmp_path)]) == 1
        assert message in capsys.readouterr().out
        (tmp_path / f"{name}.json").unlink()
