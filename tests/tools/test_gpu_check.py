"""The check for a lent GPU runs on the CPU, too, so that no minute there is lost to a slip of the pen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_stage_comes_to_its_end(tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    command = ["sh", "tools/gpu_check.sh", "--tiny", "--minutes", "15"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))["stages"]
    assert list(stages) == ["environment", "tests", "parity", "waits", "full", "training"]
    assert {name: stage["tail"] for name, stage in stages.items() if stage["state"] != "done"} == {}
    assert [row for stage in stages.values() for row in stage["rows"] if "error" in row] == []
    assert stages["tests"]["rows"] == [{"test": "all", "why": {"passed": 16, "status": 0}}]
    parity = stages["parity"]["rows"]
    assert [row["precision"] for row in parity] == ["float32", "float32 with TF32", "bfloat16", "float16"]
    assert all(row["finite"] and row["semantic"] > 0.9 for row in parity)
    assert parity[0]["scores"] == 0
    assert [row["compiled"] for row in stages["full"]["rows"]] == [False, True]
    report = (tmp_path / "gpu_check.md").read_text(encoding="utf-8")
    assert all(f"## {name}: done" in report for name in stages)
