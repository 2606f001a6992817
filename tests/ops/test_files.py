"""Files: which are found, and what is written of names that are not in UTF-8."""

from __future__ import annotations

import json
from pathlib import Path

from lexiseg.ops.files import find_files, write_json


def test_files_are_found_in_sub_folders_whatever_their_case_unless_hidden(tmp_path: Path) -> None:
    names = (
        "b.png",
        "a.PNG",
        "x/y/c.Png",
        "d.png.txt",
        "e.jpg",
        "._b.png",
        ".git/f.png",
        "x/.cache/y/g.png",
        "folder.png/h.jpg",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(tmp_path, ".png") == [tmp_path / name for name in ("a.PNG", "b.png", "x/y/c.Png")]
    assert find_files(tmp_path, (".JPG", ".txt")) == [tmp_path / name for name in ("d.png.txt", "e.jpg", "folder.png/h.jpg")]
    assert find_files(tmp_path / "x/.cache", ".png") == [tmp_path / "x/.cache/y/g.png"], "a hidden folder may be named itself"
    assert find_files(tmp_path / "nowhere", ".png") == []


def test_a_name_that_is_not_utf_8_comes_back_from_json(tmp_path: Path) -> None:
    document = {"source": "caf\udce9 \\u00e9.jpg", "name": "Straße"}
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert "Straße" in text
    assert json.loads(text) == document
