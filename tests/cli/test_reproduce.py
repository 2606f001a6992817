"""``lexiseg reproduce``: a small twin from end to end, and its errors."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import pytest

from lexiseg.cli import main
from lexiseg.inference.cost import measure
from lexiseg.ops.files import write_json


def contents(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix not in (".json", ".md")
    }


def test_a_twin_is_trained_measured_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "fov-seg", "IVa", "--tiny", "--rows", "none", "--seeds", "0", "--steps", "1", "--scenes", "1"]
    command += ["--device", "cpu", "--output", str(tmp_path), "--json"]
    assert main(command) == 0
    first = capsys.readouterr()
    document = json.loads(first.out)
    assert first.err.count("→ lexiseg train") == 1
    (row,) = document["rows"]
    assert 0 <= row["measured"]["val mIoU"]["mean"] <= 100
    assert row["published"] == {"ade20k-150 PQ": 24.6}
    assert (tmp_path / "fov-seg-tableIVa-tiny.md").is_file()
    before = contents(tmp_path)
    assert main(command) == 0
    again = capsys.readouterr()
    assert json.loads(again.out) == document
    assert "→ lexiseg" not in again.err
    assert contents(tmp_path) == before
    assert main([*command, "--steps", "2"]) == 2, "the folder holds another training"
    assert "steps" in capsys.readouterr().err


def test_what_is_complete_is_kept_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands are stand-ins here: the third evaluation is interrupted, and the same call goes on with it."""
    calls: list[str] = []

    def evaluate(arguments: argparse.Namespace) -> int:
        calls.append(arguments.output)
        if len(calls) == 3:
            raise KeyboardInterrupt
        document = {"command": shlex.join(["lexiseg", *arguments.typed]), "results": {"semantic": {"mIoU": 0.5, "groups": {}}}}
        write_json(Path(arguments.output) / "metrics.json", document)
        return 0

    def render(arguments: argparse.Namespace) -> int:
        write_json(Path(arguments.output) / "panoptic.json", {})
        return 0

    monkeypatch.setattr("lexiseg.cli.evaluate.run", evaluate)
    monkeypatch.setattr("lexiseg.cli.world.run", render)
    command = ["reproduce", "sam-mi", "figure8", "--tiny", "--rows", "sam_mi", "a0.3", "--output", str(tmp_path)]
    assert main(command) == 130
    assert "interrupted; finished results are kept" in capsys.readouterr().err
    table = tmp_path / "sam-mi-figure8-tiny.md"
    assert "| alpha_sma = 0.5 | ours |  | 50.00 |" in table.read_text(encoding="utf-8")
    assert "| alpha_sma = 0.3 | ours |" not in table.read_text(encoding="utf-8")
    assert main(command) == 0
    assert "| alpha_sma = 0.3 | ours |  | 50.00 (+0.00) |" in table.read_text(encoding="utf-8")
    names = [Path(output).relative_to(tmp_path / "figure8").as_posix() for output in calls]
    assert names == ["sam_mi/val-200", "sam_mi/style-200", "a0.3/val-200", "a0.3/val-200", "a0.3/style-200"]


def test_the_speed_of_a_network_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "sam_mi", "table6", "--tiny", "--scenes", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert main(command) == 0
    assert "| SAM-MI | paper | 47 | 39 | 41 | 37 | 32 |" in capsys.readouterr().out
    evaluated = tmp_path / "table6/sam_mi/val-1"
    speed = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))["speed"]
    assert speed["images"] == 1
    assert speed["FPS"] == pytest.approx(1 / speed["seconds"])
    assert 0 < speed["points"] < 1024
    assert "point prompts; network alone" in (evaluated / "report.md").read_text(encoding="utf-8")


def test_the_speed_of_a_model_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--describe", "catseg-tiny", "--speed", "--classes", "3", "--device", "cpu", "--json"]) == 0
    speed = json.loads(capsys.readouterr().out)["speed"]
    assert speed["classes"] == 3
    assert speed["seconds"] > 0
    assert speed["points"] is None
    assert main(["models", "--speed"]) == 2
    assert "--describe NAME --speed" in capsys.readouterr().err


def test_the_fastest_run_counts() -> None:
    calls: list[int] = []

    def work() -> int:
        calls.append(sum(range(400_000 if not calls else 10)))
        return len(calls)

    result, cost = measure(work, 3)
    _, slow = measure(lambda: sum(range(400_000)))
    assert result == 3
    assert 0 <= cost.cpu < slow.cpu


def test_nothing_is_run_when_asked_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    words = ["reproduce", "cmpf", "table1", "--root", str(tmp_path), "--output", str(output), "--dry-run"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "coco-panoptic-train" in shown
    assert f"lexiseg train fcclip-convnext-l seed=0 'validation=[]' --root {tmp_path} --device auto" in shown
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"]["cmpf"]["state"] == "needs data"
    assert document["commands"]["cmpf"][0].startswith("lexiseg evaluate --model cmpf-convnext-l --weights mask_sam=")
    assert not output.exists()


def test_the_list_has_all_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "list", "--root", str(tmp_path), "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) == 95
    assert {entry["paper"] for entry in entries} == {"cmpf", "frozenseg", "sam-mi", "esc-net", "fov-seg"}
    assert main(["reproduce", "list", "esc_net", "--root", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("esc-net: Effective SAM Combination")
    assert any(line.startswith("  table4     runnable       speed and size (2 of 2 rows; twin: 2)") for line in lines)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["cmpf", "table99"], 2, "no table 'table99' of cmpf; it has table1, table2"),
        (["cmpf"], 2, "name a table of cmpf, such as table1"),
        (["list", "nothing"], 2, "no paper 'nothing'"),
        (["cmpf", "table6", "--tiny", "--rows", "fi"], 2, "table6 of cmpf (--tiny) has no row 'fi'; it has sam, none"),
        (["cmpf", "figure2"], 2, "figure2 of cmpf cannot be reproduced: it is a drawing"),
        (["cmpf", "table8", "--tiny"], 2, "table8 of cmpf has no twin"),
        (["cmpf", "table1", "--rows", "cmpf"], 1, "no row of table1 of cmpf can be run here; cmpf needs data"),
        (["cmpf", "table1", "--weights", "x"], 2, "--weights x: write"),
    ],
)
def test_errors_are_one_line(
    words: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words, "--root", str(tmp_path), "--output", str(tmp_path / "out")]) == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"lexiseg: {message}")
