"""One command, killed again and again, each time in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests import processes
from tests.kills import contents
from tests.kills.commands import COMMANDS, OUTPUT, prepare

OPERATIONS = "operations.txt"  # how many file operations an undisturbed run needs; beside the output
LOG = "log.txt"
COLUMNS = ("kills", "too late", "results", "temporary", "half-written", "failed", "different", "litter", "seconds")
HEADER = f"{'command':<12} {'  '.join(COLUMNS)}"


@dataclass
class Tally:
    """How the kills of a command ended.

    Attributes:
        late: tries besides, at which the command had ended before; they are repeated in half the time.
        results: kills after which some results had been written or removed.
        temporary: kills after which temporary files were there.
        half: kills after which a file was not whole.
        failed: kills after which the command, started again, did not end well.
        different: kills after which its results were others in the end than those of an undisturbed run.
        litter: kills after which temporary files were there in the end.
        faults: of those, what was wrong.
    """

    command: str
    kills: int = 0
    late: int = 0
    results: int = 0
    temporary: int = 0
    half: int = 0
    failed: int = 0
    different: int = 0
    litter: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def line(self) -> str:
        """A row below `HEADER`."""
        counts = (self.kills, self.late, self.results, self.temporary, self.half, self.failed, self.different, self.litter)
        cells = [*map(str, counts), f"{self.seconds:.1f}"]
        return f"{self.command:<12} {'  '.join(f'{cell:>{len(name)}}' for name, cell in zip(COLUMNS, cells, strict=True))}"


def run(command: str, numbers: Iterable[int], seed: int, folder: Path) -> Tally:
    """Kill a command once for each number.

    Args:
        command: of `COMMANDS`.
        numbers: of the kills; a number and the seed make the moment: even ones a file operation, odd ones a time.
        seed: of all moments.
        folder: for the data, the undisturbed run, and the outputs of kills that show a fault.
    """
    tally, data, whole = Tally(command), folder / "data", folder / f"{command}-whole"
    started = time.perf_counter()
    if not data.exists():
        prepare(data)
    _begin(command, data, whole)
    seconds = time.perf_counter()
    if code := _carried_out(command, data, whole):
        raise RuntimeError(f"{command}, undisturbed, ends with {code}: {(whole / LOG).read_text()}")
    seconds = time.perf_counter() - seconds
    operations = int((whole / OPERATIONS).read_text())
    expected = contents.digests(whole / OUTPUT)
    if not expected or contents.damaged(whole / OUTPUT) or contents.temporary(whole / OUTPUT):
        raise RuntimeError(f"{command}, undisturbed: {contents.damaged(whole / OUTPUT)}, {contents.temporary(whole / OUTPUT)}")
    for number in numbers:
        random = np.random.default_rng([seed, number])
        place = folder / f"{command}-{number}"
        _begin(command, data, place)
        before = contents.dates(place / OUTPUT)
        if number % 2:
            after = random.uniform(0, seconds)
            while (code := _carried_out(command, data, place, after=after)) == 0:  # a machine is not always as fast
                after, tally.late = after / 2, tally.late + 1
                shutil.rmtree(place)
                _begin(command, data, place)
        else:
            code = _carried_out(command, data, place, operation=int(random.integers(operations)))
        faults = contents.damaged(place / OUTPUT)
        tally.kills += 1
        tally.results += contents.dates(place / OUTPUT) != before
        tally.temporary += bool(contents.temporary(place / OUTPUT))
        tally.half += bool(faults)
        if code != -signal.SIGKILL:
            faults.append(f"ended by itself with {code}: {(place / LOG).read_text()}")
        code = _carried_out(command, data, place)
        if code:
            tally.failed += 1
            faults.append(f"started again, it ended with {code}: {(place / LOG).read_text()}")
        found = contents.digests(place / OUTPUT) if not contents.damaged(place / OUTPUT) else {}
        if found != expected:
            tally.different += 1
            names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            faults.append(f"different: {', '.join(names)}")
        if left := contents.temporary(place / OUTPUT):
            tally.litter += 1
            faults.append(f"litter: {', '.join(map(str, left))}")
        if faults:
            tally.faults.append(f"{place}: {'; '.join(faults)}")
        else:
            shutil.rmtree(place)
    tally.seconds = time.perf_counter() - started
    return tally


def _begin(command: str, data: Path, place: Path) -> None:
    """A folder in which the command can be started."""
    former = place.parent / f"{command}-before"
    if COMMANDS[command].before is None:
        place.mkdir(parents=True)
    else:
        if not former.exists():
            former.mkdir(parents=True)
            if code := _carried_out(command, data, former, before=True):
                raise RuntimeError(f"what comes before {command} ends with {code}: {(former / LOG).read_text()}")
        shutil.copytree(former, place)


def _carried_out(
    command: str, data: Path, place: Path, *, before: bool = False, after: float | None = None, operation: int = -1
) -> int:
    """The exit code of a command, or of what is there before it.

    Args:
        command: of `COMMANDS`.
        data: see `prepare`.
        place: the working folder.
        before: carry out what is there before it.
        after: seconds until it is killed; None: it is not.
        operation: before which file operation it is killed; -1: before none.
    """
    process = processes.context().Process(target=_child, args=(command, str(data), str(place), before, operation))
    process.start()
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _child(command: str, data: str, place: str, before: bool, operation: int) -> None:
    import torch

    os.chdir(place)
    os.environ["LEXISEG_CACHE"] = str(OUTPUT / "cache")
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    counted = _killed_before(operation, Path(place) / OUTPUT)
    chosen = COMMANDS[command]
    carried_out = chosen.before if before else chosen.run
    assert carried_out is not None
    carried_out(Path(data))
    total = counted[0]
    Path(OPERATIONS).write_text(str(total))
    sys.stdout.flush()
    os._exit(0)


def _killed_before(operation: int, output: Path) -> list[int]:
    """Count the file operations in a folder, and kill this process before one of them."""
    counted = [0]

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event not in {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}:
            return
        if event == "open" and not int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR):
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike) or not Path(os.fsdecode(path)).absolute().is_relative_to(output):
            return
        if counted[0] == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        counted[0] += 1

    sys.addaudithook(look)
    return counted
