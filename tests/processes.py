"""Commands in processes of their own, forked from a process in which Python, torch and open_clip are started once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

PRELOADED = ["tests.kills.commands", "open_clip"]


def context() -> ForkServerContext:
    """Where such processes come from; all tests of a process have one."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


class Command:
    """``lexiseg ARGUMENTS`` that has been started.

    Args:
        arguments: words of the command line.
    """

    def __init__(self, *arguments: str | Path) -> None:
        handle, name = tempfile.mkstemp(prefix="lexiseg-test-", suffix=".err")
        os.close(handle)
        self.errors = Path(name)
        self._process = context().Process(target=_run, args=([str(word) for word in arguments], name))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self) -> tuple[int | None, str]:
        """Wait for its end. Returns its exit code, and what it said on standard error."""
        self._process.join()
        said = self.errors.read_text(encoding="utf-8")
        self.errors.unlink()
        return self._process.exitcode, said


def _run(arguments: list[str], errors: str) -> None:
    import torch

    from lexiseg.cli import main

    for number, name in ((0, os.devnull), (1, os.devnull), (2, errors)):
        opened = os.open(name, os.O_RDWR)
        os.dup2(opened, number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", encoding="utf-8")  # noqa: SIM115
    torch.set_num_threads(1)
    code = main(arguments)
    sys.stderr.flush()
    os._exit(code)
