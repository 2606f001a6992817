"""Benchmarks that compare results, too: both orders of operations must still agree, and the script must still run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import batches, classes, end_to_end, fiser, methods, nearest, paired, prompts, prompts_matter, tiles
from lexiseg.data.images import PIXEL_BYTES

ROOT = Path(__file__).resolve().parents[2]


def test_the_predictor_of_fiser_is_trained_alone(tmp_path, capsys):
    fiser.main(["--output", str(tmp_path), "--rows", "defaults", "image", "--steps", "1", "--batches", "1", "1", "--json"])
    rows = json.loads(capsys.readouterr().out)
    (training,), (image,) = rows["defaults"], rows["candidates: T"]
    assert training["chance"] == pytest.approx(5.743, abs=1e-3)
    assert image["chance"] < training["chance"]
    assert all(0 < row["FiSeR loss"] < 20 for row in (training, image))


def test_both_orders_of_operations_agree(capsys):
    assert methods.main(["--tiny", "--repeat", "1"]) == 0
    assert "results identical" in capsys.readouterr().out


def test_pictures_together_give_what_they_give_one_by_one(monkeypatch, capsys):
    monkeypatch.setattr(batches, "PICTURES", 4)  # of three sizes, so two go together
    assert batches.main(["--repeat", "1", "--json", "--model", "catseg-tiny", "--model", "fcclip-tiny"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows] == ["catseg-tiny", "fcclip-tiny"]
    assert all(row["apart"] < 1e-4 and row["ratio"]["cpu"] > 0 for row in rows)


def test_stages_of_a_picture_are_measured(tmp_path, capsys):
    end_to_end.noise(tmp_path / "noise.png")
    Image.open(tmp_path / "noise.png").resize((90, 60)).save(tmp_path / "small.png")
    given = ["--model", "sam_clip-tiny", "--picture", str(tmp_path / "small.png"), "--device", "cpu"]
    assert end_to_end.main([*given, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert list(rows) == ["start", "read", "names", "predict", "encode", "points", "name", "finish", "save"]
    assert all(cpu >= system >= 0 and wall > 0 for cpu, system, wall, _ in rows.values())


def test_every_way_to_ask_sam_is_measured(capsys):
    prompts.main(["--scenes", "1", "--looks", "1", "--json"])
    rows = {row["point_sampling"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == ["grid", "random", "chance", "top"]
    assert rows["grid"]["points"] == 1024 > 5 * rows["chance"]["points"] > 0
    assert all(row["put_together"] >= 0 and 0 <= row["mIoU"] <= 1 for row in rows.values())


def test_prompts_are_exchanged_on_the_same_scenes(capsys):
    prompts_matter.main(["--scenes", "2", "--probe", "1", "--json"])
    document = json.loads(capsys.readouterr().out)
    rows = {row["change"]: row for row in document["rows"]}
    assert list(rows) == ["own", "shuffled", "noise", "removed"]
    assert rows["own"]["difference"] == rows["own"]["low"] == rows["own"]["high"] == 0
    assert all(row["low"] <= row["difference"] <= row["high"] for row in rows.values())
    assert rows["shuffled"]["difference"] < 0
    assert all(0 < precision <= 1 for precision in document["probe"].values())


def test_masks_are_exchanged_on_the_same_scenes(capsys):
    prompts_matter.main(["--model", "sam_mi-tiny", "--scenes", "1", "--json"])
    rows = {row["change"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == ["none", "own", "shifted", "true", "displaced"]
    assert rows["none"]["difference"] == 0
    assert len({row["mIoU"] for row in rows.values()}) > 1


def test_models_are_compared_on_the_same_scenes(capsys):
    paired.main(["maskclip-tiny", "fovseg-tiny", "--scenes", "2", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["model"], row["metric"]) for row in rows] == [
        (model, metric) for model in ("maskclip-tiny", "fovseg-tiny") for metric in ("mIoU", "PQ")
    ]
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in rows[:2])
    for first, row in zip(rows[:2], rows[2:], strict=True):
        assert row["difference"] == pytest.approx(row["value"] - first["value"])
        assert row["low"] <= row["difference"] <= row["high"]
        assert 0 < row["value"] < 1


def test_the_classes_in_a_scene_are_ranked(capsys):
    nearest.main(["--scenes", "2", "--miou", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [row["ranking"] for row in document["recall"]] == ["cost", "sum of probabilities", "probability"]
    for row in document["recall"]:
        recall = [row[str(m)] for m in nearest.TOP]
        assert 0 < recall[-1] <= 1
        assert recall == sorted(recall)
    assert document["mIoU"]["truth"] > max(document["mIoU"]["cost"], document["mIoU"]["probability"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say how much memory a process had at its most")
def test_a_pixel_takes_no_more_memory_than_is_said():
    command = [sys.executable, "benchmarks/memory.py", "--models", "fcclip-tiny", "--megapixels", "1", "4", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)["rows"]
    grown = {stage: large["MB"][stage] - small["MB"][stage] for stage in small["MB"]}
    more = large["megapixels"] - small["megapixels"]
    assert more == pytest.approx(3, rel=0.01)
    assert grown["predict"] > 12 * more, "the picture alone is 3 bytes a pixel, in 32 bits 12"
    assert max(grown[stage] for stage in ("read", "predict", "post-process")) <= PIXEL_BYTES * more


def test_tiles_give_the_whole_result_where_context_does_not_matter(capsys):
    assert tiles.main(["--model", "colours", "--size", "300", "200", "--tile", "64", "--overlap", "8", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert list(rows) == ["panoptic", "semantic", "instance"]
    for row in rows.values():
        assert row["equal"]
        assert row["same"] == 1
        assert row["broken"][0] > row["broken"][1] == 0
        assert row["segments"] == row["whole segments"] > 20


def test_a_tile_alone_is_what_it_is_in_the_picture(capsys):
    given = ["--model", "catseg-tiny", "--size", "300", "200", "--tile", "160", "--overlap", "32", "--task", "semantic"]
    assert tiles.main(given) == 0
    (row,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("semantic"))
    assert row[4] == "1.0000"


def test_classes_in_parts_decode_the_same():
    whole, parts = (classes.measured("escnet-tiny", 20, at_once) for at_once in (0, 3))
    assert (whole["classes"], whole["at_once"], parts["at_once"]) == (20, 0, 3)
    assert whole["check"] == pytest.approx(parts["check"], rel=1e-4)
