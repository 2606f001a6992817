"""The service under load: throughput with batches and without, wrong, lost and refused answers, and memory.

``python benchmarks/serve.py [--requests 2000] [--concurrency 200] [--model fcclip-tiny,shortest_edge=128]`` starts
``lexiseg serve`` on this machine with ``--batch 1``, then with ``--batch 8``, and sends each the same requests, so many at a
time. Each answer is compared with that of the same picture alone: as many segments, labels equal, masks equal but for a
thousandth of the pixels, scores within 1e-3. The third service has a queue of a quarter of the requests that come at a time.
The resident memory is that of the service's process after a tenth of the requests, and at the end; its seconds of the processor
for an answer do not depend on what else the machine does. The exit status is 1 if an answer is lost or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from lexiseg.ops.rle import decode_counts, decompress
from lexiseg.world import scenes

PICTURES, SIDE, CLASSES = 8, 128, "emoji"
TOLERANCE = 1e-3  # of scores, and of the pixels of masks
SECONDS = 600  # for a request, on a busy machine


def pictures() -> list[bytes]:
    """Scenes as PNG."""
    encoded = []
    for scene in scenes("val", PICTURES, seed=777, size=SIDE):
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


@contextmanager
def served(model: str, batch: int, queue: int) -> Iterator[tuple[str, int]]:
    """Start the service; yields its address and process id."""
    command = [sys.executable, "-m", "lexiseg", "serve", "--model", model, "--port", "0", "--device", "cpu"]
    command += ["--batch", str(batch), "--queue", str(queue), "--timeout", str(SECONDS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1], process.pid
        finally:
            process.terminate()


def memory(process: int) -> float:
    """Resident memory of a process in MB; NaN on systems other than Linux."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1000


def processor(process: int) -> float:
    """Seconds of the processor that a process has used; NaN on systems other than Linux."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers are equal up to rounding."""
    size = one["height"], one["width"]
    rows = list(zip(one["segments"], other["segments"], strict=False))
    return len(one["segments"]) == len(other["segments"]) and all(
        first["label"] == second["label"]
        and abs(first["score"] - second["score"]) <= TOLERANCE
        and np.mean(_mask(first, size) != _mask(second, size)) <= TOLERANCE
        for first, second in rows
    )


def _mask(row: dict[str, Any], size: tuple[int, int]) -> Any:
    return decode_counts(decompress(row["segmentation"]["counts"]), size).numpy()


async def call(client: httpx.AsyncClient, picture: bytes) -> tuple[int, dict[str, Any], float]:
    """Status, content and seconds of a request."""
    began = time.perf_counter()
    answer = await client.post("v1/segment", files={"image": ("a.png", picture)}, data={"vocabulary": CLASSES})
    return answer.status_code, answer.json(), time.perf_counter() - began


async def flood(address: str, process: int, given: list[bytes], requests: int, concurrency: int) -> dict[str, Any]:
    """Send requests, ``concurrency`` at a time."""
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=address, timeout=SECONDS, limits=limits, trust_env=False) as client:
        alone = [(await call(client, picture))[1] for picture in given]
        room, statuses, seconds, wrong, early = asyncio.Semaphore(concurrency), Counter(), [], 0, float("nan")

        async def send(number: int) -> None:
            nonlocal wrong, early
            try:
                async with room:
                    status, content, took = await call(client, given[number % len(given)])
            except httpx.HTTPError:
                return  # lost
            statuses[status] += 1
            if status == 200:
                seconds.append(took)
                wrong += not same(content, alone[number % len(given)])
            if statuses.total() == max(1, requests // 10):
                early = memory(process)

        began, used = time.perf_counter(), processor(process)
        await asyncio.gather(*(send(number) for number in range(requests)))
        wall, used = time.perf_counter() - began, processor(process) - used
    return {
        "requests": requests,
        "concurrency": concurrency,
        "statuses": dict(statuses),
        "lost": requests - statuses.total(),
        "wrong": wrong,
        "per_second": statuses[200] / wall,
        "cpu": used / max(1, statuses[200]),
        "median": statistics.median(seconds),
        "p95": float(np.quantile(seconds, 0.95)),
        "MB": [early, memory(process)],
    }


def main() -> int:
    """Measure, print, and say by the exit status whether every answer came and was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fcclip-tiny,shortest_edge=128", help="as for 'lexiseg serve'")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    given, rows = pictures(), []
    plan = [("one by one", 1, arguments.concurrency), ("batches of up to 8", 8, arguments.concurrency)]
    plan.append(("a queue of a quarter", 8, max(1, arguments.concurrency // 4)))
    if not arguments.json:
        print(f"{arguments.model}, {SIDE} × {SIDE} pixels, list {CLASSES}, {arguments.concurrency} requests at a time")
        columns = ("requests", "200", "429", "lost", "wrong", "per s", "CPU s each", "median s", "p95 s", "MB at 10 %", "MB")
        print(f"{'':<20}{''.join(f'{column:>11}' for column in columns)}")
    for name, batch, queue in plan:
        with served(arguments.model, batch, queue) as (address, process):
            row = asyncio.run(flood(address, process, given, arguments.requests, arguments.concurrency))
        rows.append({"name": name, "batch": batch, "queue": queue, **row})
        if not arguments.json:
            counts = [row["requests"], *(row["statuses"].get(status, 0) for status in (200, 429)), row["lost"], row["wrong"]]
            numbers = [f"{value:.2f}" for value in (row["per_second"], row["cpu"], row["median"], row["p95"])]
            cells = [*map(str, counts), *numbers, *(f"{value:.0f}" for value in row["MB"])]
            print(f"{name:<20}{''.join(f'{cell:>11}' for cell in cells)}", flush=True)
    wall, cpu = rows[1]["per_second"] / rows[0]["per_second"], rows[0]["cpu"] / rows[1]["cpu"]
    if arguments.json:
        print(json.dumps({"rows": rows, "ratio": {"wall": wall, "cpu": cpu}}))
    else:
        print(f"batches answer {wall:.2f} times as many a second, and {cpu:.2f} times as many a second of the processor")
    complete = all(row["lost"] == row["wrong"] == 0 and row["statuses"].keys() <= {200, 429} for row in rows)
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
