"""Progress reaches the callback of the thread that asked for it, and nobody else."""

from __future__ import annotations

import threading

import pytest

from lexiseg.ops.progress import Progress, report, reporting


def test_reports_reach_the_callback_within_the_block() -> None:
    seen: list[Progress] = []
    report("before")
    with reporting(seen.append):
        report("points", 3, 10)
        with reporting(None):
            report("encode")
        with pytest.raises(ZeroDivisionError), reporting(lambda _: 1 / 0):
            report("names")
        thread = threading.Thread(target=report, args=("elsewhere",))
        thread.start()
        thread.join()
    report("after")
    assert seen == [Progress("points", 3, 10), Progress("encode")]
