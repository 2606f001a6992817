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

    Attributes:
        printed: its standard output, once it has ended.
    """

    def __init__(self, *arguments: str | Path) -> None:
        self.printed = b""
        self._folder = tempfile.TemporaryDirectory(prefix="lexiseg-test-")
        self._process = context().Process(target=_run, args=([str(word) for word in arguments], self._folder.name))
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
        self.printed, said = (Path(self._folder.name, name).read_bytes() for name in ("out", "err"))
        self._folder.cleanup()
        return self._process.exitcode, said.decode("utf-8")


def _run(arguments: list[str], folder: str) -> None:
    import torch

    from lexiseg.cli import main

    for number, name in ((0, os.devnull), (1, f"{folder}/out"), (2, f"{folder}/err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", encoding="utf-8")  # noqa: SIM115
    torch.set_num_threads(1)
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
