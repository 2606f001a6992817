"""A manifest knows which pictures are finished, whatever has happened to it and to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lexiseg.exports.manifest import FILE, Manifest


@pytest.fixture
def picture(tmp_path: Path) -> str:
    (tmp_path / "photo.png").write_bytes(b"pixels")
    return str(tmp_path / "photo.png")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("a.json", "a.png"):
        (folder / name).touch()
    return [folder / "a.json", folder / "a.png"]


def test_what_has_been_added_is_finished_for_the_same_call(picture: str, files: list[Path]) -> None:
    folder = files[0].parent
    manifest = Manifest(folder, "call")
    assert not manifest.has(picture, files)
    manifest.add(picture, files)
    assert manifest.has(picture, files)
    assert Manifest(folder, "call").has(picture, files)
    assert not Manifest(folder, "another").has(picture, files)
    assert not Manifest(folder, "call").has(picture, files[:1])
    assert not Manifest(folder, "call").has("-", files)


def test_a_changed_picture_and_a_missing_file_are_not_finished(picture: str, files: list[Path]) -> None:
    manifest = Manifest(files[0].parent, "call")
    manifest.add(picture, files)
    stat = os.stat(picture)  # noqa: PTH116
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not manifest.has(picture, files)
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert manifest.has(picture, files)
    files[1].unlink()
    assert not manifest.has(picture, files)


def test_an_unfinished_line_is_dropped_and_the_last_line_holds(picture: str, files: list[Path]) -> None:
    folder = files[0].parent
    Manifest(folder, "first").add(picture, files)
    Manifest(folder, "second").add(picture, files)
    path = folder / FILE
    assert len(path.read_bytes().splitlines()) == 2
    with path.open("ab") as file:
        file.write(b'{"picture": "x"')
    manifest = Manifest(folder, "second")
    assert manifest.has(picture, files)
    assert len(path.read_bytes().splitlines()) == 1
    manifest.add(picture, files)
    assert len(path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"[]\n1\n", b'{"picture": 3}\n'])
def test_a_damaged_manifest_is_an_empty_one(picture: str, files: list[Path], content: bytes) -> None:
    (files[0].parent / FILE).write_bytes(content)
    manifest = Manifest(files[0].parent, "call")
    assert not manifest.has(picture, files)
    manifest.add(picture, files)
    assert Manifest(files[0].parent, "call").has(picture, files)
