"""The table of a sheet: means over seeds, their spread, differences paired by seed, and the published numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lexiseg.reproduce import plan, report
from lexiseg.reproduce.plan import Missing, Run, Settings
from lexiseg.reproduce.tables import Column, Sheet, sheet_named


def results(path: Path, **numbers: Any) -> None:
    """A stand-in for the report of `lexiseg evaluate`."""
    path.mkdir(parents=True)
    document = {"results": {"panoptic": {"PQ": None, "groups": {}}, "semantic": {"groups": {"unseen": {"mIoU": 0.5}}}}}
    document["results"]["semantic"].update(numbers)
    (path / "metrics.json").write_text(json.dumps(document), encoding="utf-8")


def measured(sheet: Sheet, settings: Settings, values: dict[str, list[float]]) -> list[Run]:
    """The runs of some rows, whose mIoU of the first data set is given by seed."""
    runs = list(plan.runs(sheet, [sheet.row(name) for name in values], settings))
    for run in runs:
        for step in run.steps:
            if step.words[0] == "evaluate":
                number = values[run.row.name][run.seed or 0]
                results(step.result, mIoU=number)
    return runs


def test_means_spreads_and_differences_of_the_same_seeds(tmp_path: Path) -> None:
    sheet = sheet_named("cmpf", "table6", tiny=True)
    settings = Settings(tmp_path, seeds=(0, 1), scenes=7, steps=5)
    runs = measured(sheet, settings, {"sam": [0.9], "none": [0.1, 0.3], "qi": [0.2, 0.4]})
    rows = [sheet.row(name) for name in ("sam", "none", "qi")]
    document = report.document(sheet, rows, runs, {row.name: Missing() for row in rows}, settings)
    cells = {row["name"]: row["measured"]["val mIoU"] for row in document["rows"]}
    assert document["base"] == "none"
    assert cells["none"]["mean"] == pytest.approx(20)
    assert cells["none"]["std"] == pytest.approx(14.142, abs=1e-3)
    assert cells["qi"]["difference"] == {"mean": pytest.approx(10), "std": pytest.approx(0, abs=1e-9)}
    assert "difference" not in cells["none"], "the row that the others are compared with"
    assert "difference" not in cells["sam"], "it has no seeds"
    assert "val PQ" not in document["rows"][0]["measured"], "no segment was right or wrong"
    lines = report.markdown(document).splitlines()
    start = "| Query Injector | ours |  | 30.00 ± 14.14 (+10.00 ± 0.00) | 50.00 ± 0.00 (+0.00 ± 0.00) |"
    assert any(line.startswith(start) for line in lines)
    assert "What each module adds. seeds 0, 1; 5 steps; 7 pictures of each data set." in lines
    assert "| Query Injector | paper | 18.1 | 14.2 | 25.7 | 16.5 | 33.6 |" in lines
    widths = {line.count("|") for line in lines if line.startswith("|") and ("ours" in line or "val PQ" in line)}
    assert widths == {len(sheet.columns) + 3}


def test_published_numbers_stand_below_ours_and_what_is_missing_is_told(tmp_path: Path) -> None:
    sheet = sheet_named("esc-net", "table1")
    settings = Settings(tmp_path, weights={"escnet-vit-l14": "mine"})
    runs = measured(sheet, settings, {"escnet": [0.25]})
    lacking = {row.name: Missing() if row.name == "escnet" else Missing(weights=("x",)) for row in sheet.rows}
    document = report.document(sheet, sheet.rows, runs, lacking, settings)
    lines = report.markdown(document).splitlines()
    ours = lines.index("| ESC-Net, ViT-L/14 | ours | 25.00 | 25.00 | 25.00 | 25.00 | 25.00 | 25.00 |")
    assert lines[ours + 1] == "| ESC-Net, ViT-L/14 | paper | 18.1 | 27 | 41.8 | 65.6 | 98.3 | 86.3 |"
    assert "| SED, ConvNeXt-L | paper | 13.9 | 22.6 | 35.2 | 60.6 | 96.1 |  |" in lines
    assert "* CAT-Seg, ViT-L/14: needs weights: weights x" in lines
    written = report.write(tmp_path, document)
    assert [path.name for path in written] == ["esc-net-table1.json", "esc-net-table1.md"]
    assert json.loads(written[0].read_text(encoding="utf-8")) == document


def test_the_mean_of_mess_counts_the_parts_of_a_set_as_one(tmp_path: Path) -> None:
    sheet = sheet_named("sam-mi", "table11")
    settings = Settings(tmp_path, weights={"sam_mi-vit-b16": "mine"})
    (run,) = plan.runs(sheet, [sheet.row("sam_mi")], settings)
    names = plan.expanded("mess")
    assert len(names) == 25
    for name in names:
        results(plan.evaluation(run.folder, name, settings), mIoU=1.0 if name.startswith("mess-paxray") else 0.0)
    assert report.measured(sheet, run, settings)[Column("mess", "mIoU")] == pytest.approx(100 / 22)


def test_costs_have_the_units_of_the_papers(tmp_path: Path) -> None:
    sheet = sheet_named("cmpf", "table9")
    settings = Settings(tmp_path, weights={"cmpf-convnext-l": "mine"})
    (run,) = plan.runs(sheet, [sheet.row("cmpf")], settings)
    counts = {"total": 5e6, "trainable": 2e6, "frozen": 3e6, "by_part": {"sam": 1e6}}
    counts["by_tower"] = {"clip": {"image tower": 1e6, "text tower": 9e6}, "sam": {"image encoder": 2e6}}  # type: ignore[assignment]
    speed = {"seconds": 0.25, "FPS": 4.0, "memory_MiB": 1000, "points": None}
    run.folder.mkdir(parents=True)
    described = {"parameters": counts, "flops": {"total": 4e9}, "speed": speed}
    (run.folder / "model.json").write_text(json.dumps(described), encoding="utf-8")
    assert report.measured(sheet, run, settings) == {
        Column("-", "parameters-frozen"): 3.0,
        Column("-", "parameters-trainable"): 2.0,
    }
    wanted = {"GFLOPs": 2.0, "seconds": 0.25, "latency": 250.0, "memory": 1.048576, "parameters": 5.0, "parameters-sam": 1.0}
    assert {metric: report._of_model(run.folder / "model.json", metric) for metric in wanted} == wanted
