"""A folder that one process works in is refused to others while it lives, and no longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lexiseg.errors import OutputError
from lexiseg.ops.locks import LOCK, locked

HOLDER = """
import os, sys, time
from lexiseg.ops.locks import locked
with locked(sys.argv[1]):
    if sys.argv[2] == "forks" and os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["alone", *(["forks"] if hasattr(os, "fork") else [])])
def test_a_lock_ends_with_its_process_and_not_before(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), kind], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            for _ in range(2):  # the first attempt takes nothing away from the second
                with (
                    pytest.raises(OutputError, match=rf"^{folder} is in use by process {holder.pid} on .+; wait"),
                    locked(folder),
                ):
                    pass
        finally:
            holder.kill()
            holder.stdout.close()
    with locked(folder):
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_within_a_process_it_holds_too_and_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):  # noqa: PT012
        with pytest.raises(OutputError, match="is in use by process"), locked(tmp_path):
            pass
        raise KeyError
    with locked(tmp_path):
        pass


def test_other_folders_are_free(tmp_path: Path) -> None:
    with locked(tmp_path), locked(tmp_path / "a"), locked(tmp_path / "b"):
        pass


@pytest.mark.parametrize("written", [b"", b"\xff" * 1000, b"\n\n", b"process 1\x1b[31m on a\nand more"])
def test_what_a_lock_file_says_of_others_is_not_trusted(tmp_path: Path, written: bytes) -> None:
    with locked(tmp_path):
        (tmp_path / LOCK).write_bytes(written)
        with pytest.raises(OutputError, match=r"is in use by .+; wait for its end") as caught, locked(tmp_path):
            pass
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300
