"""On a terminal a line says what is being done and how long it will take; elsewhere nothing is written."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lexiseg import cli
from lexiseg.backbones.sources import Source
from lexiseg.cli import progress_line
from lexiseg.cli.progress_line import ProgressLine
from lexiseg.cli.weights import fetch
from lexiseg.inference.pipeline import load
from lexiseg.methods import MODELS
from lexiseg.ops.progress import Progress, report
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


def test_libraries_that_take_long_to_load_are_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do when they were just installed, or the disk is slow: nothing is said before a command is read."""
    monkeypatch.setattr(progress_line, "INTERVAL", 0.01)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def import_module(name: str) -> SimpleNamespace:
        while terminal.getvalue().count("loading libraries") < 2:
            time.sleep(0.001)
        return SimpleNamespace(run=lambda _: len(name))

    monkeypatch.setattr(cli, "import_module", import_module)
    assert cli.main(["models"]) == len("lexiseg.cli.models")
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_a_pipeline_reports_its_stages() -> None:
    seen: list[Progress] = []
    picture = next(scenes("val", 1, seed=4, size=64)).image
    load("sam_clip-tiny", device="cpu")(picture, "dog; grass", progress=seen.append)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["read", "names", "predict", "encode", "points", "name", "finish"]
    points = [(progress.done, progress.total) for progress in seen if progress.stage == "points"]
    assert points == [(0, 256), (128, 256)]


def test_a_line_is_there_until_the_transfer_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_line, "INTERVAL", 0.01)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    class Slow(Source):
        def fetch(self) -> Path:
            while terminal.getvalue().count("fetching clip  0 s") < 2:
                time.sleep(0.001)
            report("transfer")
            assert terminal.getvalue().endswith("\r\x1b[K")
            before = len(terminal.getvalue())
            time.sleep(0.05)
            assert len(terminal.getvalue()) == before, "the bar has the line to itself"
            return Path("weights.pt")

    fetch(MODELS["sam_clip-mobile"], {"clip": Slow("weights.pt", "MIT")}, yes=True, ask=True)
    assert terminal.getvalue().startswith("sam_clip-mobile needs")
