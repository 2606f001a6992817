"""Benchmarks that compare results, too: both orders of operations must still agree, and the script must still run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_both_orders_of_operations_agree():
    command = [sys.executable, "benchmarks/methods.py", "--tiny", "--repeat", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "results identical" in done.stdout + done.stderr
