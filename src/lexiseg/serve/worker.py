"""The thread that computes: it takes batches of jobs from the queue, and is the only one to use the models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from lexiseg.data.images import Pixels, decode_image
from lexiseg.inference.pipeline import finish
from lexiseg.ops.progress import Progress, reporting
from lexiseg.serve.jobs import Job, Queue, StoppedError
from lexiseg.serve.models import Models

Observer = Callable[[str, int, Sequence[Job]], None]


class Worker(threading.Thread):
    """Carries out the jobs of a queue until that is closed.

    Args:
        queue: the jobs.
        models: the models.
        loaded: called when the default model is loaded, or with the reason why it could not be.
        observe: called with model and size of each batch, and its jobs, when it is done.
    """

    def __init__(
        self, queue: Queue, models: Models, loaded: Callable[[BaseException | None], object], observe: Observer
    ) -> None:
        super().__init__(name="lexiseg-worker", daemon=True)
        self._queue, self._models, self._loaded, self._observe = queue, models, loaded, observe

    def run(self) -> None:
        """Load the default model, then compute until the queue is closed and empty."""
        try:
            self._models.get(self._models.default)
        except BaseException as error:
            self._loaded(error)
            return
        self._loaded(None)
        while jobs := self._queue.take():
            self._compute(jobs)

    def _compute(self, jobs: Sequence[Job]) -> None:
        """Carry out a batch; if that fails, its jobs are tried one by one, so that each fails for its own reason."""
        try:
            self._segment(jobs)
        except BaseException as error:  # extensions in Rust raise BaseException
            if len(jobs) == 1:
                jobs[0].fail(error if isinstance(error, Exception) else RuntimeError(type(error).__name__))
                return
            for job in jobs:
                if not job.ended:
                    self._compute([job])

    def _segment(self, jobs: Sequence[Job]) -> None:
        call = jobs[0].call
        waiting = _entered(jobs, "model")
        loaded = self._models.get(call.model)
        pipeline = loaded.pipeline.with_options(dict(call.options), call.model) if call.options else loaded.pipeline
        pictures: list[Pixels] = []
        decoded: list[Job] = []
        for job in _entered(waiting, "decode"):
            try:
                pictures.append(decode_image(job.call.picture, "image"))
            except Exception as error:
                job.fail(error)
            else:
                decoded.append(job)
        if not decoded:
            return
        queries = [
            pipeline.query(
                job.call.vocabulary, task=job.call.task, threshold=job.call.threshold, background=job.call.background
            )
            for job in decoded
        ]
        alive = _entered(decoded, "names")
        with _interruptible(alive):
            text = (loaded.caching if call.builtin and call.background is None else loaded.pipeline).embed(
                queries[0].vocabulary
            )
        kept = {job: position for position, job in enumerate(decoded)}
        alive = _entered(alive, "masks")
        with _interruptible(alive):
            predictions = pipeline.predict_batch([pictures[kept[job]] for job in alive], text)
        for job, prediction in zip(alive, predictions, strict=True):
            try:
                job.enter("result")
                pixels, query = pictures[kept[job]], queries[kept[job]]
                job.finish(finish(pixels, prediction, text, query, keep_scores=job.call.keep_scores), len(alive))
            except Exception as error:
                job.fail(error)
        self._observe(call.model, len(alive), alive)


def _entered(jobs: Sequence[Job], stage: Any) -> list[Job]:
    """Let jobs enter a stage; those given up end, and if all have, so does the batch.

    Raises:
        StoppedError: no job is left.
    """
    left = []
    for job in jobs:
        try:
            job.enter(stage)
        except StoppedError as error:
            job.fail(error)
        else:
            left.append(job)
    if not left:
        raise StoppedError
    return left


@contextmanager
def _interruptible(jobs: Sequence[Job]) -> Iterator[None]:
    """End the computation in the block, before the next module of a network, once all jobs are given up; report its progress.

    Raises:
        StoppedError: they are.
    """
    thread = threading.get_ident()

    def check(_module: torch.nn.Module, _inputs: Any) -> None:
        if threading.get_ident() == thread and all(job.stopped for job in jobs):
            raise StoppedError

    def report(progress: Progress) -> None:
        for job in jobs:
            job.report(progress)

    handle = register_module_forward_pre_hook(check)
    try:
        with reporting(report):
            yield
    finally:
        handle.remove()
