"""A short pass over each command, and that faults are seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills import contents
from tests.kills.commands import COMMANDS
from tests.kills.run import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands share the data."""
    return tmp_path_factory.mktemp("kills")


@pytest.mark.parametrize(("command", "number"), [(command, number) for number, command in enumerate(COMMANDS)])
def test_what_was_killed_goes_on_and_ends_as_if_it_had_not_been(command: str, number: int, folder: Path) -> None:
    tally = run(command, [number], 1, folder)
    assert tally.faults == []
    assert tally.kills == 1


WHOLE = {"a.json": b"{}", "a.txt": b"one\n", "a.csv": b"a,b\n1,2\n", "a.jsonl": b'{"step": 1}\n{"step"'}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", b'{"a"'),
        ("a.txt", b"one\ntw"),
        ("a.csv", b"a,b\n1\n"),
        ("a.jsonl", b'{"step"\n'),
        ("a.png", b"\x89PNG"),
        ("a.safetensors", b"\x08"),
        ("a.pt", b"PK"),
        ("a.unknown", b"x"),
    ],
)
def test_half_a_file_is_seen(tmp_path: Path, name: str, data: bytes) -> None:
    for whole, content in WHOLE.items():
        (tmp_path / whole).write_bytes(content)
    assert contents.damaged(tmp_path) == []
    (tmp_path / name).write_bytes(data)
    assert [fault.split(":")[0] for fault in contents.damaged(tmp_path)] == [name]


def test_other_results_and_litter_are_seen(tmp_path: Path) -> None:
    for folder, text in (("one", b"1\n"), ("two", b"2\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_bytes(text)
        (tmp_path / folder / "a.jsonl").write_bytes(b'{"loss": 1, "images_per_second": %b}\n' % text.strip())
    one, two = (contents.digests(tmp_path / folder) for folder in ("one", "two"))
    assert one["a.jsonl"] == two["a.jsonl"], "times are no results"
    assert one["a.txt"] != two["a.txt"]
    left = tmp_path / "one" / ".x.part"
    left.write_bytes(b"")
    assert contents.temporary(tmp_path / "one") == [left]
    assert contents.digests(tmp_path / "one") == one
