"""The list of data sets, and what `lexiseg data` says of one."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lexiseg.cli import data as command
from lexiseg.cli.parser import build_parser
from lexiseg.data import catalogue
from lexiseg.data.catalogue import check, open_dataset, prepare, root_folder, row_named, rows
from lexiseg.data.row import Row
from lexiseg.errors import DataError, UsageError
from tests.data.miniatures import MINIATURES, picture, write_document
from tests.data.miniatures_prepared import BUILDERS

NAMES = [row.name for row in rows()]


def run(action: str, name: str | None = None, root: Path | None = None, *, as_json: bool = False) -> int:
    return command.run(argparse.Namespace(action=action, name=name, root=root, json=as_json))


@pytest.fixture
def miniature_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that expect the two pictures of a miniature."""
    small = tuple(replace(row, images=2) for row in rows())
    monkeypatch.setattr(catalogue, "rows", lambda: small)


def test_names_are_unique_and_can_be_typed() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for name in NAMES)


def test_every_row_is_read_from_a_miniature_in_some_test() -> None:
    assert sorted(NAMES) == sorted([*MINIATURES, *BUILDERS, "emoji-world"])


def test_every_command_it_names_can_be_typed(tmp_path: Path) -> None:
    MINIATURES["camvid-val"].build(tmp_path)
    small = replace(row_named("camvid-val"), images=2)
    for row in (small, row_named("cityscapes"), row_named("ade20k-150")):
        build_parser().parse_args(check(row, tmp_path).command.split()[1:])


def test_the_sets_of_the_five_papers_are_there() -> None:
    wanted = (
        "coco-panoptic coco-panoptic-train coco-stuff ade20k-150 ade20k-847 cityscapes mapillary-1.2 mapillary-2.0 bdd100k lvis"
    )
    assert set(wanted.split()) <= set(NAMES)
    assert len({row.name for row in rows() if row.group}) >= 22  # MESS
    assert {row.name for row in rows() if row.training} == {"coco-panoptic-train", "coco-stuff-train"}


@pytest.mark.parametrize("row", rows(), ids=NAMES)
def test_on_an_empty_folder_each_says_how_to_get_it(row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", row.name, tmp_path) == 1
    said = capsys.readouterr().out
    assert all(need in said for need in row.needs)
    assert all(line in said for line in row.get.splitlines())
    assert f"lexiseg data check {row.name} --root {tmp_path}" in said
    with pytest.raises(DataError, match=f"lexiseg data check {row.name}"):
        open_dataset(row.name, tmp_path)
    assert set(row.for_task) <= set(row.tasks)
    assert (row.prepare is None) == (not row.raw)


@pytest.mark.parametrize("name", MINIATURES)
@pytest.mark.usefixtures("miniature_sizes")
def test_what_is_complete_can_be_evaluated(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MINIATURES[name].build(tmp_path)
    row = row_named(name)
    if row.prepare is not None:
        report = check(row, tmp_path)
        assert (report.step, report.command) == ("prepare", f"lexiseg data prepare {name} --root {tmp_path}")
        assert run("prepare", name, tmp_path) == 0
    report = check(row, tmp_path)
    assert (report.step, report.problem, report.pictures) == ("ready", "", 2)
    assert report.tasks == row.tasks
    assert all(part.files for part in report.parts)
    capsys.readouterr()
    assert run("check", name, tmp_path, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["step"] == "ready"
    assert said["command"] == f"lexiseg evaluate --data {name} --root {tmp_path} --output {name}"
    assert {part["path"] for part in said["parts"]} >= set(row.needs)


@pytest.mark.usefixtures("miniature_sizes")
def test_a_task_whose_files_are_missing_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MINIATURES["coco-panoptic"].build(tmp_path)
    (tmp_path / "coco/annotations/instances_val2017.json").unlink()
    assert open_dataset("coco-panoptic", tmp_path).tasks == ("semantic", "panoptic")
    assert run("check", "coco-panoptic", tmp_path) == 1
    said = capsys.readouterr().out
    assert "missing  coco/annotations/instances_val2017.json  (for instance)" in said
    assert "can be measured now: semantic, panoptic, on 2 pictures" in said


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MINIATURES["camvid-val"].build(tmp_path)
    assert run("check", "camvid-val", tmp_path) == 1
    assert "wrong: only 2 of the split's 101 pictures are present" in capsys.readouterr().out
    next((tmp_path / "CamVid/valannot").iterdir()).unlink()
    assert check(row_named("camvid-val"), tmp_path).step == "repair"
    assert run("check", "camvid-val", tmp_path) == 1
    assert "wrong: 1 picture is without a label map" in capsys.readouterr().out


def test_preparing_what_needs_none_or_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs no preparation"):
        prepare(row_named("camvid-val"), tmp_path)
    with pytest.raises(DataError, match=r"ADEChallengeData2016/images/validation of ade20k-150's download is missing"):
        prepare(row_named("ade20k-150"), tmp_path)


def test_the_root_is_given_or_set_or_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert root_folder() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert root_folder() == tmp_path
    assert root_folder("other") == Path("other")
    MINIATURES["camvid-test"].build(tmp_path)
    assert len(open_dataset("camvid-test").samples) == 2


def test_an_unknown_name_is_answered_with_what_comes_close(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data set named 'cityscape'; did you mean cityscapes"):
        open_dataset("cityscape", tmp_path)
    with pytest.raises(UsageError, match="lexiseg data list"):
        row_named("qqqq")


def test_a_path_is_the_users_own(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    document = {"images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}], "annotations": [], "categories": []}
    write_document(tmp_path / "truth.json", {**document, "categories": [{"id": 1, "name": "dog"}]})
    assert open_dataset(tmp_path).vocabulary.names == ("dog",)
    assert open_dataset(str(tmp_path / "truth.json"), images=tmp_path / "images").tasks == ("instance",)
    with pytest.raises(UsageError, match="has fixed folders and classes"):
        open_dataset("camvid-val", tmp_path, vocabulary="camvid")


def test_the_list_has_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES
    assert run("list", as_json=True) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == NAMES
