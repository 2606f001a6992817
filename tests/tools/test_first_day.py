"""The tool that types the commands of a first day measures what it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.first_day import commands, screen, typed

SCRIPT = "printf 'Fetch them? [y/N] '; read answer; echo $answer; sleep 0.5; printf '\\r\\033[Kone\\r\\033[Ktwo\\n'; exit 3"


def test_a_command_on_a_terminal_is_answered_and_its_silence_measured(tmp_path: Path) -> None:
    row = typed(["sh", "-c", SCRIPT], tmp_path, dict(os.environ))
    assert row.status == 3
    assert row.lines == ["Fetch them? [y/N] y", "y", "two"]
    assert 0.5 <= row.silence <= row.wall
    assert row.cpu < row.wall


def test_silence_at_the_end_counts(tmp_path: Path) -> None:
    assert typed(["sh", "-c", "echo begun; exec >&- 2>&- <&-; sleep 0.3"], tmp_path, dict(os.environ)).silence >= 0.3


def test_of_a_line_that_is_rewritten_the_end_is_shown() -> None:
    assert screen(b"1 s\r\x1b[K2 s\r\x1b[Kdone\r\n\r\n\x1b[1mbold\x1b[0m\r\n") == ["done", "bold"]
    assert screen(b" 10%\r 90%\r\n") == [" 90%"]


@pytest.mark.parametrize("number", [1, 3])
def test_the_commands_are_those_of_the_pages(number: int, tmp_path: Path) -> None:
    photographs = [tmp_path / f"{letter}.jpg" for letter in "abc"[:number]]
    found = list(commands(photographs))
    assert [words[0] for words in found] == ["models", *["segment"] * number, "segment", "fetch", *["segment"] * 4, "figure"]
    assert all(not word.endswith("-tiny") and "world" not in word for words in found for word in words)
    assert [words[1] for words in found[1 : 1 + number]] == [str(path) for path in photographs]
