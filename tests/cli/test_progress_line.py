"""On a terminal a line says what is being done and how long it will take; elsewhere nothing is written."""

from __future__ import annotations

import io
import sys
import time

import pytest

from lexiseg.cli import progress_line
from lexiseg.cli.progress_line import ProgressLine
from lexiseg.inference.pipeline import load
from lexiseg.ops.progress import Progress
from lexiseg.world import scenes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_has_stage_amount_and_estimate() -> None:
    line, now = ProgressLine("2/9 a\nb.jpg"), time.monotonic()
    assert line.text(now + 2) == "2/9 a\\nb.jpg  2 s"
    line(Progress("encode"))
    assert line.text(now + 4) == "2/9 a\\nb.jpg  encode  4 s"
    line(Progress("points", 256, 1024))
    assert line.text(now + 10).startswith("2/9 a\\nb.jpg  points  256/1024  10 s  about 30 s left")
    assert "left" not in line.text(now + 1), "too early to tell"


def test_the_line_is_rewritten_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_line, "INTERVAL", 0.01)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressLine("a.jpg") as line:
        line(Progress("points", 1, 4))
        while terminal.getvalue().count("\r") < 3:
            time.sleep(0.001)
    assert "\r\x1b[Ka.jpg  points  1/4  0 s" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    monkeypatch.setattr(sys, "stderr", plain := io.StringIO())
    with ProgressLine("a.jpg"):
        time.sleep(0.02)
    assert plain.getvalue() == ""


def test_a_pipeline_reports_its_stages() -> None:
    seen: list[Progress] = []
    picture = next(scenes("val", 1, seed=4, size=64)).image
    load("sam_clip-tiny", device="cpu")(picture, "dog; grass", progress=seen.append)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["read", "names", "predict", "encode", "points", "name", "finish"]
    points = [(progress.done, progress.total) for progress in seen if progress.stage == "points"]
    assert points == [(0, 256), (128, 256)]
