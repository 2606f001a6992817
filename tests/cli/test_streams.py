"""Standard streams that are closed, full, or know few signs: no traceback, nothing lost, and the exit code says so."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.cli import main
from lexiseg.cli.streams import one_line, printable
from lexiseg.inference.pipeline import Pipeline
from tests.inference.test_evaluation import Colours

FULL = Path("/dev/full")
LOST = "the printed results are incomplete"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line in which LEXISEG is the program."""
    line = line.replace("LEXISEG", f"'{sys.executable}' -m lexiseg")
    setting = "".join(f"export {name}={value}; " for name, value in environment.items())
    return subprocess.run(["bash", "-c", setting + line], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (
            "LEXISEG vocabulary coco > /dev/full",
            1,
            f"lexiseg: standard output cannot be written (No space left on device); {LOST}",
        ),
        ("LEXISEG --help > /dev/full", 1, f"lexiseg: standard output cannot be written (No space left on device); {LOST}"),
        ("LEXISEG vocabulary coco >&-", 1, f"lexiseg: standard output cannot be written (Bad file descriptor); {LOST}"),
        ("LEXISEG vocabulary no-such-list 2>/dev/full", 2, ""),
        ("LEXISEG vocabulary no-such-list >&- 2>&- <&-", 2, ""),
        ("LEXISEG vocabulary coco | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_streams_that_take_nothing(line: str, code: int, said: str) -> None:
    done = shell(line)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


def test_signs_that_a_stream_does_not_know_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("caf\u00e9 \u00d7 2\nsky\n", encoding="utf-8")
    done = shell(f"LEXISEG vocabulary '{tmp_path}/words.txt'", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "caf\\xe9 \\xd7 2 | thing\nsky | stuff\n"


def test_a_name_with_control_characters_is_refused_without_being_obeyed(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("sky\x1b[31m\n", encoding="utf-8")
    done = shell(f"LEXISEG vocabulary '{tmp_path}/words.txt'", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert "control character" in done.stderr
    assert "\x1b" not in done.stderr


class Full(io.StringIO):
    """Has no space."""

    def write(self, _: str) -> int:
        raise OSError(28, "No space left on device")


class Ascii(io.StringIO):
    """As a console of few signs that is no file of Python's."""

    def write(self, text: str) -> int:
        text.encode("ascii")
        return super().write(text)


@pytest.mark.parametrize("stream", [None, Full(), Ascii()])
def test_results_are_written_whatever_becomes_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream: io.StringIO | None
) -> None:
    monkeypatch.setattr("lexiseg.cli.segment.load", lambda *_, **__: Pipeline(Colours()))
    monkeypatch.setattr("sys.stdout", stream)
    files = [tmp_path / f"{name}.png" for name in ("a", "b", "c")]
    for file in files:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)).save(file)
    options = ["--classes", "red; green; blue", "--model", "fcclip-tiny", "--output", str(tmp_path / "out")]
    code = main(["segment", *map(str, files), *options])
    assert sys.stdout is stream
    assert len(list((tmp_path / "out").glob("*.json"))) == len(files)
    assert code == (0 if isinstance(stream, Ascii) else 1)
    assert (LOST in capsys.readouterr().err) == (code == 1)
    if isinstance(stream, Ascii):
        assert r"8 \xd7 9" in stream.getvalue()


def test_what_is_escaped_is_right_in_json() -> None:
    text = "a\x9b\u2028\x7f\u202e\u00e9 \U0001f600\n"
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text
    assert printable("plain \u00e9\tline\n") == "plain \u00e9\tline\n"
    assert one_line("two\n\tlines\r") == r"two\n\tlines\u000d"
