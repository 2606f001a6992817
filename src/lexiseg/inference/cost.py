"""Cost of a model: seconds and memory of its network, measured by one function on any device.

`measure` times any work. `speed` times the network of a pipeline on images, without reading and post-processing: the columns
FPS, latency, seconds and memory of the papers' tables. Operations are counted by `lexiseg.methods.flops`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch

from lexiseg.data.images import Pixels
from lexiseg.inference.pipeline import Pipeline
from lexiseg.methods.sam_mi.model import SamMi
from lexiseg.structures import TextEmbeddings, Trace

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Cost of some work.

    Attributes:
        cpu: seconds of the processor.
        wall: seconds of the clock, until the device has finished.
        memory: MiB. On a GPU, the most that was allocated, what the model holds included; elsewhere the growth of the process
            (Linux only, else NaN).
    """

    cpu: float
    wall: float
    memory: float


def measure(work: Callable[[], T], repeat: int = 1, *, device: torch.device | str = "cpu") -> tuple[T, Cost]:
    """Return the result of some work, and its cost: of the fastest run, and the most memory of all runs.

    Args:
        work: called ``repeat`` times.
        repeat: number of runs.
        device: device of the work, which is waited for.
    """
    costs: list[Cost] = []
    cuda = torch.device(device).type == "cuda"
    while True:
        if cuda:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        before = 0.0 if cuda else _peak(anew=True)
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        if cuda:
            torch.cuda.synchronize(device)
        seconds = time.process_time() - cpu, time.perf_counter() - wall
        memory = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else _peak() - before
        costs.append(Cost(*seconds, memory))
        if len(costs) >= repeat:
            best = min(costs, key=lambda cost: cost.wall if cuda else cost.cpu)
            return result, Cost(best.cpu, best.wall, max(cost.memory for cost in costs))
        del result  # the next run would need memory beside it


def speed(pipeline: Pipeline, images: Sequence[Pixels], text: TextEmbeddings) -> dict[str, Any]:
    """Measure the network of a pipeline on images, one at a time; a first run on the first image is not counted.

    Args:
        pipeline: model on its device.
        images: at least one.
        text: embeddings of the classes.

    Returns:
        ``seconds`` per image (mean of the clock), ``FPS``, ``memory_MiB`` (`Cost.memory`, None if unknown), ``points`` per
        image (point prompts of SAM-MI, else None), ``images``, ``device`` and ``threads``.
    """
    pipeline.predict(images[0], text)
    device = pipeline.device
    costs = [measure(lambda image=image: pipeline.predict(image, text), device=device)[1] for image in images]  # type: ignore[misc]
    seconds, memory = fmean(cost.wall for cost in costs), max(cost.memory for cost in costs)
    segmenter = pipeline.segmenter
    return {
        "seconds": seconds,
        "FPS": 1 / seconds,
        "memory_MiB": None if np.isnan(memory) else memory,
        "points": fmean(_points(pipeline, image, text) for image in images) if isinstance(segmenter, SamMi) else None,
        "images": len(images),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def num_points(segmenter: SamMi, trace: Trace) -> float:
    """Number of point prompts of SAM-MI for the image of a trace; the expected number if they are sampled."""
    if segmenter.config.point_sampling == "grid":
        return segmenter.prompter.side**2
    if segmenter.config.point_sampling == "random":
        return segmenter.config.num_random_points
    return float(trace["probabilities"].sum())


def _points(pipeline: Pipeline, image: Pixels, text: TextEmbeddings) -> float:
    trace = Trace()
    pipeline.predict(image, text, trace)
    assert isinstance(pipeline.segmenter, SamMi)
    return num_points(pipeline.segmenter, trace)


def _peak(*, anew: bool = False) -> float:
    """Most memory of the process since the last call with ``anew``, in MiB; with it, its present memory. NaN if unknown."""
    if not STATUS.exists():
        return float("nan")
    if anew:
        FORGET.write_text("5", encoding="ascii")  # the kernel forgets the peak
    peak = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text(encoding="ascii"))
    return int(peak[1]) / 1024 if peak else float("nan")
