"""The end of the process: at once, but with all that was said, the right exit code, and everybody's last wishes."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys
import lexiseg.cli

class Lasting:
    def __del__(self):
        print("taken apart")

def command(arguments=None):
    atexit.register(print, "last wish")
    sys.stdout.write("result without an end of line ")
    {ending}

lasting = Lasting()
lasting.itself = lasting
lexiseg.cli.main = command
sys.exit(lexiseg.cli.program())
"""


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("return 0", 0, "result without an end of line last wish\n"),
        ("return 130", 130, "result without an end of line last wish\n"),
        ("sys.exit(2)", 2, "result without an end of line last wish\ntaken apart\n"),  # argparse: the usual end
    ],
)
def test_the_process_ends_without_taking_objects_apart(ending: str, code: int, said: str):
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(ending=ending)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")
