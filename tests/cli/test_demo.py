"""``make demo``: names that are there are found, a name that is not there is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lexiseg import demo
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.world import scenes, world_classes


def test_it_names_what_is_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    assert demo.main() == 0
    scene = next(scenes("val", 1, seed=demo.SEED, size=demo.SIDE))
    there = {world_classes()[segment.label].name for segment in scene.segments}
    typed = [set(names) for names in Vocabulary.parse(demo.CLASSES).class_names]
    *named, absent = typed
    assert sorted(len(names & there) for names in named) == [1] * len(there), "every name of the scene, with its synonyms"
    assert absent == {"elephant"}
    for model in demo.MODELS.values():
        document = json.loads((tmp_path / f"{model}.json").read_text(encoding="utf-8"))
        named = {segment["name"] for segment in document["segments"]}
        assert {"gravel", "battery", "scorpion"} <= named
        assert "elephant" not in named
    assert (tmp_path / "demo.webp").stat().st_size > 10_000
    assert "Your own photograph" in capsys.readouterr().out
