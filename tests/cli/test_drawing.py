"""What ``segment`` and ``figure`` draw and print: in which font, with what notice, and what to do where nothing was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.cli import main
from lexiseg.cli.segment import table
from lexiseg.ops.names import result_name
from lexiseg.segmentation import Segmentation
from lexiseg.visualise import lettering
from lexiseg.visualise.lettering import BASE
from lexiseg.world import scenes

NOBODYS = "\ue000"  # for private use: no font has it


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(next(scenes("val", 1, seed=4, size=128)).image).save(path)
    return path


@pytest.fixture
def commands(picture: Path, tmp_path: Path) -> dict[str, list[str]]:
    given = [str(picture), "--classes", f"dog; grass {NOBODYS}; sky"]
    return {
        "segment": ["segment", *given, "--model", "sam_clip-tiny", "--output", str(tmp_path / "out")],
        "figure": ["figure", "comparison", *given, "--model", "fcclip-tiny", "--output", str(tmp_path / "out.png")],
    }


@pytest.mark.parametrize("command", ["segment", "figure"])
def test_letters_that_no_font_has_are_a_note(
    command: str, commands: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lettering, "_noticed", set())
    assert main(commands[command]) == 0
    assert capsys.readouterr().err.count(f"note: no font here has {NOBODYS};") == 1


@pytest.mark.parametrize("command", ["segment", "figure"])
def test_what_is_no_font_is_refused_before_the_work(
    command: str, commands: dict[str, list[str]], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*commands[command], "--font", str(picture)]) == 2
    assert "scene.png: is not a usable font" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_names_are_written_in_the_font_given(
    commands: dict[str, list[str]], picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = tmp_path / "out" / f"{result_name(picture)}.overlay.png"
    shown = []
    monkeypatch.setattr(lettering, "_noticed", {NOBODYS})
    real = lettering._opened
    monkeypatch.setattr(lettering, "_opened", lambda path, size: shown.append(path) or real(path, size))
    copy = tmp_path / "mine.ttf"
    copy.write_bytes(Path(BASE).read_bytes())
    assert main([*commands["segment"], "--font", str(copy)]) == 0
    assert drawn.is_file()
    assert set(shown) - {BASE} == {str(copy)}


@pytest.mark.parametrize(
    ("task", "things", "threshold", "background", "told", "untold"),
    [
        ("panoptic", True, 0.0, None, ["name more"], ["--threshold", "--background", "a thing"]),
        ("panoptic", True, 0.3, None, ["lower --threshold", "name more"], ["--background"]),
        ("semantic", False, 0.0, "rest", ["leave out --background rest"], ["--threshold", "a thing"]),
        ("instance", False, 0.0, None, ["none of the names is a thing"], ["--threshold", "name more"]),
        ("instance", True, 1.0, "rest", ["lower --threshold", "--background rest", "name more"], ["a thing"]),
    ],
)
def test_where_nothing_was_found_only_what_can_help_is_said(
    task: str, things: bool, threshold: float, background: str | None, told: list[str], untold: list[str]
) -> None:
    empty = Segmentation(task, np.zeros((8, 9, 3), np.uint8), ("dog",), (things,), (), np.zeros((0, 8, 9), bool))
    printed = table(empty, [], threshold, background)
    assert all(words in printed for words in ["nothing found:", *told])
    assert not any(words in printed for words in untold)


def test_the_command_says_nothing_of_a_threshold_of_0(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "segment",
        str(picture),
        "--classes",
        "grass | stuff; sky | stuff",
        "--task",
        "instance",
        "--model",
        "sam_clip-tiny",
    ]
    for more, told in (([], False), (["--threshold", "0.9"], True)):
        assert main([*arguments, "--output", str(tmp_path), *more]) == 0
        out = capsys.readouterr().out
        assert "nothing found" in out
        assert ("--threshold" in out) == told
