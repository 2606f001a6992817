"""``lexiseg serve`` as a process: it says where it listens, and ends by SIGTERM without losing an accepted request."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serve.running import NAME, PATIENCE, WORDS, client_of, picture, until

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = f"""
import sys
from lexiseg.cli import program
from lexiseg.inference.pipeline import Pipeline
from lexiseg.serve import models
from tests.serve.running import Held

models.load = lambda *_, **__: Pipeline(Held())
sys.argv[1:] = ["serve", "--model", "{NAME}", "--port", "0", "--queue", "30", "--batch", "2"]
sys.exit(program())
"""


def under_load(process: subprocess.Popen[str], line: str, reader: threading.Thread) -> list[int | str]:
    """Call a service with many requests, end it while it serves them, and return their statuses."""
    reader.start()
    match = re.fullmatch(rf"lexiseg serves {NAME} at (http://127\.0\.0\.1:\d+)/\n", line)
    assert match, line
    statuses: list[int | str] = []

    def call(number: int) -> None:
        try:
            files = {"image": ("a.png", picture(number))}
            with client_of(match[1]) as client:
                statuses.append(client.post("/v1/segment", files=files, data={"classes": WORDS}).status_code)
        except httpx.ConnectError:
            statuses.append("closed")

    def accepted() -> int:
        with client_of(match[1]) as client:
            return int(float(re.search(r"^lexiseg_requests_open (\S+)", client.get("/metrics").text, re.MULTILINE)[1]))

    with ThreadPoolExecutor(24) as threads:
        calls = [threads.submit(call, number) for number in range(24)]
        until(lambda: accepted() > 8)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        for each in [*calls, threads.submit(call, 99)]:
            each.result()
    assert process.wait(PATIENCE) == 0
    return statuses


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_sigterm_under_load_loses_no_accepted_request() -> None:
    command, lines = [sys.executable, "-c", SCRIPT], []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        reader = threading.Thread(target=lambda: lines.extend(process.stderr))
        try:
            statuses = under_load(process, process.stdout.readline(), reader)
        finally:
            process.kill()
            reader.join(PATIENCE)
    events = [json.loads(line) for line in lines if line.startswith("{")]
    draining = next(event for event in events if event["event"] == "draining")
    answered = [event["status"] for event in events[events.index(draining) :] if event.get("route") == "/v1/segment"]
    assert statuses.count(200) >= 9
    assert set(statuses) <= {200, 503, "closed"}, statuses
    assert answered.count(200) >= draining["open"] > 0, "what was accepted at the signal was answered"
