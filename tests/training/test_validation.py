"""Data sets that are measured during a training do not get into each other's way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lexiseg.data.own import open_own
from lexiseg.ops.names import relative_name, same_on_some_disk
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training import validation
from lexiseg.training.dist import DistContext
from tests.data.miniatures import picture, write
from tests.laws.builders import BUILDERS


def test_no_two_data_sets_are_measured_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "own/images/1.png")
    write(tmp_path / "own/labels/1.png", torch.zeros(4, 6, dtype=torch.uint8).numpy())
    (tmp_path / "own/classes.txt").write_text("grass")
    names = ("a/b", "a-b", "a:b", "a_b", "A/B", "./a/b", "/a/b", "a/b/", "x" * 300, "x" * 301)
    folders: list[Path] = []

    def evaluate(*arguments: Any, **_: Any) -> None:
        folders.append(arguments[3])
        arguments[3].mkdir(parents=True)

    monkeypatch.setattr(validation, "open_dataset", lambda *_: open_own(tmp_path / "own"))
    monkeypatch.setattr(validation, "evaluate", evaluate)
    monkeypatch.setattr(validation, "collect", lambda *_: ({}, {}))
    dist = DistContext(0, 1, torch.device("cpu"))
    measure = validation.Validation(names, 1, Vocabulary.parse("grass"), tmp_path, None, dist)
    measure(next(iter(BUILDERS.values()))(), 5)
    relative = [folder.relative_to(tmp_path / "validation").as_posix() for folder in folders]
    assert len({same_on_some_disk(folder) for folder in relative}) == len(names)
    assert all("/" not in relative_name(folder, "its folder") for folder in relative)


def test_validation_data_that_is_not_there_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """COCO alone is enough to train on it; data that is there and damaged is an error as ever."""
    dist = DistContext(0, 1, torch.device("cpu"))
    measure = validation.Validation(("ade20k-150",), 1, Vocabulary.parse("grass"), tmp_path, tmp_path / "none", dist)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no validation on ade20k-150" in caplog.text
    assert "lexiseg data check ade20k-150" in caplog.text
    assert measure(next(iter(BUILDERS.values()))(), 5) == {}
