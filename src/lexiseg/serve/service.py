"""The service behind the routes: slots for requests, the queue, the worker, and the models."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from fastapi import HTTPException
from starlette.types import Message

from lexiseg.serve.jobs import Call, Done, Event, Job, Queue, StoppedError
from lexiseg.serve.limits import Limits
from lexiseg.serve.metrics import Metrics
from lexiseg.serve.models import Models
from lexiseg.serve.worker import Worker

JOINED = 5.0  # seconds to wait for the end of the worker


class LeftError(Exception):
    """The client has closed the connection."""


class Slot:
    """Room for a request that was accepted. Leave it once; further calls do nothing."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        """Make room for another request."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class Service:
    """Accepts requests up to a limit, and carries them out. Its methods belong to the event loop.

    Args:
        models: the models offered.
        limits: the limits.

    Attributes:
        metrics: the counters.
        draining: whether it refuses requests because it is about to end.
        failure: why the default model could not be loaded, if so.
    """

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models, self.limits, self.metrics = models, limits, Metrics()
        self.draining = False
        self._queue = Queue(limits)
        self.failure: BaseException | None = None
        self._loaded, loop = asyncio.Event(), asyncio.get_running_loop()
        self._worker = Worker(
            self._queue, models, lambda failure: loop.call_soon_threadsafe(self._set_loaded, failure), self.metrics.observe
        )
        self._open = 0
        self._seconds = 1.0  # of a request, running mean
        self._idle = asyncio.Event()
        self._idle.set()
        self.metrics.open.set_function(lambda: self._open)
        self.metrics.queued.set_function(lambda: len(self._queue))
        self.metrics.models.set_function(lambda: len(models.names_loaded))

    @property
    def ready(self) -> bool:
        """Whether it can serve requests now."""
        return self._loaded.is_set() and self.failure is None and not self.draining

    @property
    def open(self) -> int:
        """Number of requests accepted and not answered."""
        return self._open

    def start(self) -> None:
        """Start the worker, which loads the default model first."""
        self._worker.start()

    async def loaded(self) -> None:
        """Wait until the default model is loaded, or could not be."""
        await self._loaded.wait()

    def _set_loaded(self, failure: BaseException | None) -> None:
        self.failure = failure
        self._loaded.set()

    async def drain(self) -> None:
        """Refuse further requests, and wait until the accepted ones are answered."""
        self.draining = True
        await self._idle.wait()

    async def stop(self) -> None:
        """End the worker when it is idle. It is a daemon: a model that it loads just now is not waited for."""
        self._queue.close()
        await asyncio.to_thread(self._worker.join, JOINED)

    def slot(self) -> Slot:
        """Accept a request.

        Raises:
            HTTPException: 429, all slots are taken; 503, the service is about to end.
        """
        wait = {"retry-after": str(max(1, math.ceil(self._seconds * self._open / self.limits.batch)))}
        if self.failure is not None:
            raise HTTPException(503, "the default model cannot be loaded; the log of the service says why")
        if self.draining:
            raise HTTPException(503, "the service is about to end; call it again later", wait)
        if self._open >= self.limits.queue:
            raise HTTPException(429, f"{self._open} requests are being served already; try again later", wait)
        self._open += 1
        self._idle.clear()
        began = time.monotonic()

        def leave() -> None:
            self._open -= 1
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
            if self._open == 0:
                self._idle.set()

        return Slot(leave)

    async def run(
        self, call: Call, deadline: float, receive: Callable[[], Awaitable[Message]]
    ) -> AsyncGenerator[Event | tuple[str, int], None]:
        """Carry out a call: yields ("queued", jobs before it), its stages, and then its `Done`.

        Args:
            call: what to do.
            deadline: time, by `time.monotonic`, at which it is given up.
            receive: the ASGI channel of the request, whose body was read; tells that the client has left.

        Raises:
            LeftError: the client has left.
            StoppedError: the deadline has passed.
            Exception: what ended the job.
        """
        job = Job(call, deadline)
        left = asyncio.create_task(_left(receive))
        try:
            yield "queued", self._queue.put(job)
            while True:
                event = asyncio.create_task(job.event())
                timeout = max(0.0, deadline - time.monotonic())
                await asyncio.wait({event, left}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if not event.done():
                    event.cancel()
                    raise LeftError if left.done() else StoppedError
                result = event.result()
                if isinstance(result, BaseException):
                    raise result
                yield result
                if isinstance(result, Done):
                    return
        finally:
            job.stop()
            self._queue.drop(job)
            left.cancel()

    async def result(self, call: Call, deadline: float, receive: Callable[[], Awaitable[Message]]) -> Done:
        """Carry out a call. Arguments and exceptions are those of `run`."""
        async with aclosing(self.run(call, deadline, receive)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return event
        raise AssertionError("a job ends with its result")


async def _left(receive: Callable[[], Awaitable[Message]]) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
