"""Names out of data stay below their folder; names of results are each picture's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lexiseg.errors import DataError
from lexiseg.ops.names import below, located, relative_name, result_name, same_on_some_disk


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("/etc/passwd", "absolute"),
        ("\\\\server\\share\\a.jpg", "absolute"),
        (".//etc/passwd", "absolute"),
        ("../a.jpg", r"'\.\.'"),
        ("a/../../b.jpg", r"'\.\.'"),
        ("a\\..\\..\\b.jpg", r"'\.\.'"),
        ("a/.. /b.jpg", r"'\.\.'"),
        ("...", r"'\.\.'"),
        ("C:/a.jpg", "drive"),
        ("C:a.jpg", "drive"),
        ("a/d:\\b.jpg", "drive"),
        ("a\0.jpg", "control"),
        ("a\n.jpg", "control"),
        ("", "empty"),
        (".", "empty"),
        ("a//b.jpg", "empty"),
        ("a/", "empty"),
        ("NUL", "Windows"),
        ("a/aux.jpg", "Windows"),
        ("x" * 241, "longer"),
        ("ä" * 121, "longer"),
        ("/".join(["x" * 200] * 6), "longer"),
        ("\ud800.jpg", "Unicode"),
        (None, "None"),
        (7, "7"),
        (["a"], "name of a file"),
    ],
)
def test_a_name_that_leaves_its_folder_or_is_none_is_refused(name: object, word: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^truth\.json, image 3: .*{word}"):
        relative_name(name, "truth.json, image 3")
    with pytest.raises(DataError, match=word):
        below(tmp_path, name, "truth.json, image 3")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "a.jpg"),
        ("./val/a.jpg", "val/a.jpg"),
        ("val\\a.jpg", "val/a.jpg"),
        (".hidden..jpg", ".hidden..jpg"),
        ("2026-01-01T10:00:00.jpg", "2026-01-01T10:00:00.jpg"),
        ("Straße 日本.png", "Straße 日本.png"),
        ("console/null.png", "console/null.png"),
        ("\udce9.jpg", "\udce9.jpg"),  # how Python writes a byte of a name that is not UTF-8
        ("x" * 240, "x" * 240),
    ],
)
def test_names_as_data_sets_have_them_are_kept(name: str, expected: str, tmp_path: Path) -> None:
    assert relative_name(name, "x") == expected
    assert below(tmp_path, name, "x") == tmp_path / expected


@given(some.lists(some.sampled_from(["..", ".", "a", "", "/", "\\", "C:", " ", "x.jpg", "\0"]), max_size=8).map("".join))
def test_no_name_leaves_its_folder(name: str) -> None:
    try:
        found = below(Path("/data/images"), name, "x")
    except DataError:
        return
    assert Path(os.path.normpath(found)).parts[:3] == ("/", "data", "images")
    assert len(Path(os.path.normpath(found)).parts) > 3


def test_two_pictures_never_have_one_result() -> None:
    pictures = [
        "photo.jpg",
        "photo.png",
        "photo-1.jpg",
        "Photo.jpg",
        "a/photo.jpg",
        "b/photo.jpg",
        "caf\u00e9.jpg",
        "cafe\u0301.jpg",
        "caf\udce9.jpg",
        "caf\udce8.jpg",
        "a:b.jpg",
        "a?b.jpg",
        "stdin",
        "-",
        *("x" * 230 + f"{number}.jpg" for number in range(3)),
        *("写" * 70 + f"{number}.jpg" for number in range(3)),
    ]
    names = [result_name(picture) for picture in pictures]
    assert len({same_on_some_disk(name) for name in names}) == len(pictures)
    for picture, name in zip(pictures, names, strict=True):
        assert relative_name(f"{name}.panoptic.png", picture) == f"{name}.panoptic.png", "one part, on any file system"
        assert len(f"{name}.panoptic.png".encode()) < 143  # what encrypted folders (eCryptfs) bear


def test_the_result_of_a_picture_has_one_name_from_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    spellings = ["photo.jpg", "./photo.jpg", tmp_path / "real/photo.jpg", "../link/photo.jpg", "../real/../link/photo.jpg"]
    assert len({result_name(spelling) for spelling in spellings}) == 1
    assert {located(spelling) for spelling in spellings} == {Path(os.path.realpath(tmp_path)) / "real/photo.jpg"}
    assert result_name("photo.jpg").startswith("photo.jpg-")
