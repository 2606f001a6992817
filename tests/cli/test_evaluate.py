"""``lexiseg evaluate`` writes below its output folder, whatever the data are called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lexiseg.cli import main
from lexiseg.ops.locks import LOCK
from lexiseg.ops.names import result_name


@pytest.fixture
def worlds(tmp_path: Path) -> list[Path]:
    """Two data sets of the same name in different folders."""
    first, second = tmp_path / "a/set", tmp_path / "b/set"
    assert main(["world", "render", "--count", "1", "--size", "64", "--output", str(first)]) == 0
    shutil.copytree(first, second)
    return [first, second]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


def test_several_data_sets_of_ones_own_have_a_folder_each_in_the_output(
    worlds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(worlds[0])
    before = [contents(world) for world in worlds]
    output = tmp_path / "out"
    data = [str(worlds[0]), "../../b/set"]
    options = ["--model", "fcclip-tiny", "--task", "semantic", "--output", str(output)]
    assert main(["evaluate", "--data", data[0], "--data", data[1], *options]) == 0
    assert [contents(world) for world in worlds] == before, "nothing is written beside the data"
    assert {path.parent.name for path in output.glob("*/metrics.json")} == {result_name(name) for name in data}


def test_pictures_named_by_an_absolute_path_stay_as_they_are(
    worlds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = worlds[0] / "panoptic.json"
    document = json.loads(source.read_text())
    for entry in document["images"]:
        entry["file_name"] = str(worlds[1] / "images" / entry["file_name"])
    source.write_text(json.dumps(document))
    before = contents(tmp_path)
    options = ["--model", "fcclip-tiny", "--save-predictions", "--output", str(tmp_path / "out")]
    assert main(["evaluate", "--data", str(worlds[0]), *options]) == 1
    assert f"{source}, images[0], id 0: the name" in capsys.readouterr().err
    assert contents(tmp_path) == before
