"""The command that scores the embedded models: which scenes it takes, and what it prints."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from lexiseg.errors import DataError
from lexiseg.training import score
from lexiseg.world import scenes
from tests.world.atlases import far_atlas


def test_far_styles_come_beside_the_two_usual_sets(tmp_path):
    atlas = str(far_atlas(tmp_path))
    usual, more = list(score.sets(2, 5)), list(score.sets(2, 5, [atlas]))
    assert [title for title, _ in usual] == ["trained styles", "new style"]
    assert [title for title, _ in more] == ["trained styles", "new style", "far, far"]
    for (_, chosen), split in zip(usual, ("val", "style"), strict=True):
        assert [(scene.image == same.image).all() for scene, same in zip(chosen, scenes(split, 2, seed=5), strict=True)] == [
            True
        ] * 2
    drawn = {segment.label for scene in more[2][1] for segment in scene.segments if segment.style == atlas}
    assert drawn
    assert drawn <= {3, 40, 200}
    assert {segment.style for scene in more[2][1] for segment in scene.segments} == {None, atlas}
    again = list(score.sets(3, 5, [atlas]))[2][1]
    assert (again[1].image == more[2][1][1].image).all(), "a scene is the same however many are asked for"


def test_an_atlas_that_does_not_fit_is_named_before_anything_is_scored(tmp_path):
    atlas = far_atlas(tmp_path)
    atlas.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=r"far\.json is missing"):
        next(score.sets(1, 5, [str(atlas)]))


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_a_row_of_every_set(tmp_path, monkeypatch, capsys, as_json):
    atlas = str(far_atlas(tmp_path))
    monkeypatch.setattr(score, "load", lambda name, **_: SimpleNamespace(segmenter=None, name=name))
    monkeypatch.setattr(score, "whole", lambda _, chosen, __: [("scenes", float(len(chosen)))])
    command = ["score", "--scenes", "2", "--model", "anything", "--far", atlas, *(["--json"] if as_json else [])]
    monkeypatch.setattr(sys, "argv", command)
    score.main()
    printed = capsys.readouterr().out
    rows = {"trained styles: scenes": 2.0, "new style: scenes": 2.0, "far, far: scenes": 2.0}
    if as_json:
        assert json.loads(printed)["scores"] == rows
    else:
        assert [line.split("  ")[1] for line in printed.splitlines()[1:]] == list(rows)
