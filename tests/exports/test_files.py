"""Writing files: whole or not at all, and errors that name the path."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from lexiseg.errors import OutputError
from lexiseg.ops.files import write_atomically, write_json


def test_folders_are_made_and_files_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "result.bin"
    write_atomically(path, b"old")
    write_atomically(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_names_are_kept_as_typed(tmp_path: Path) -> None:
    write_json(tmp_path / "names.json", ["犬", "Straße"])
    assert "犬" in (tmp_path / "names.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "names.json").read_bytes()) == ["犬", "Straße"]


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.bin"
    path.write_bytes(b"old")

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OutputError, match=r"result\.bin: No space left on device"):
        write_atomically(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, data: bytes) -> int:
        self.touch()
        raise KeyboardInterrupt(len(data))

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "result.bin", b"new")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "result.bin", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match="cannot write .*" + place.name):
            write_atomically(place, b"data")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
