"""A service in a thread of its own, on a free port of loopback, with a model of random weights that can be held."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import httpx
import numpy as np
import uvicorn
from PIL import Image
from torch import Tensor, nn

from lexiseg.inference.pipeline import Pipeline
from lexiseg.methods.base import Segmenter
from lexiseg.serve import models as serve_models
from lexiseg.serve.app import create_app
from lexiseg.serve.label_studio import Pictures
from lexiseg.serve.limits import Limits
from lexiseg.serve.models import Models, ModelSpec
from lexiseg.serve.server import configured
from lexiseg.serve.service import Service
from lexiseg.structures import ImageBatch, MaskPrediction, PixelPrediction, TextEmbeddings, Trace
from tests.laws.builders import tiny_fcclip

NAME = "fcclip-tiny"  # the name under which the model is offered
WORDS = "dog, puppy; grass; sky | stuff; red thing"
PATIENCE = 300.0  # seconds for anything, on a busy machine


class Step(nn.Module):
    """A moment of a network's time."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01)
        return x


class Held(Segmenter):
    """A small FC-CLIP; while it is held, it computes on and on, a module at a time."""

    tasks = ("panoptic", "semantic", "instance")

    def __init__(self) -> None:
        segmenter = tiny_fcclip("convnext")
        super().__init__(replace(segmenter.config, overlap_threshold=0.0))  # or none of its masks would be a segment
        self.inner, self.clip, self.step = segmenter, segmenter.clip, Step()
        self.held, self.steps, self.batches = False, 0, []

    def parts(self) -> Mapping[str, nn.Module]:
        return {"inner": self.inner}

    def forward(
        self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None
    ) -> MaskPrediction | PixelPrediction:
        self.batches.append(len(images))
        while self.held:
            self.steps += 1
            self.step(images.pixels)
        self.inner.config = self.config
        return self.inner(images, text, trace=trace)


@dataclass
class Running:
    """A service that runs.

    Attributes:
        url: its address.
        service: it; for its numbers only, since it belongs to another thread.
        segmenter: its model.
        pipeline: the same model, to compare with.
    """

    url: str
    service: Service
    segmenter: Held
    pipeline: Pipeline
    headers: dict[str, str] = field(default_factory=dict)

    def client(self) -> httpx.Client:
        return client_of(self.url, self.headers)

    def segment(self, picture: bytes, **fields: str) -> httpx.Response:
        with self.client() as client:
            return client.post("/v1/segment", files={"image": ("a.png", picture)}, data={"classes": WORDS, **fields})


def client_of(url: str, headers: Mapping[str, str] | None = None) -> httpx.Client:
    """A client of a service on loopback. It reads no certificates of authorities, which takes 50 ms a client."""
    return httpx.Client(base_url=url, headers=headers, timeout=PATIENCE, trust_env=False, verify=False)


@contextmanager
def running(
    *,
    token: str | None = None,
    loader: Callable[..., Pipeline] | None = None,
    offered: tuple[str, ...] = (NAME,),
    label_studio: Pictures | None = None,
    **limits: Any,
) -> Iterator[Running]:
    """Serve the model `Held` under all names ``offered``, or what ``loader`` loads."""
    segmenter, started = Held(), threading.Event()
    pipeline = Pipeline(segmenter)
    state: dict[str, Any] = {}

    async def main() -> None:
        service = Service(
            Models([ModelSpec(name) for name in offered], device="cpu", dtype="float32", memory=10**9), Limits(**limits)
        )
        config = configured(create_app(service, token=token, label_studio=label_studio))
        config.port = 0
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        await service.loaded()
        port = server.servers[0].sockets[0].getsockname()[1]
        state.update(server=server, service=service, url=f"http://127.0.0.1:{port}")
        started.set()
        await task

    def serve() -> None:
        try:
            asyncio.run(main())
        except Exception as error:
            state["error"] = error
        finally:
            started.set()

    with mock.patch.object(serve_models, "load", loader or (lambda *_, **__: pipeline)):
        thread = threading.Thread(target=serve)
        thread.start()
        assert started.wait(PATIENCE)
        assert "url" in state, state
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        try:
            yield Running(state["url"], state["service"], segmenter, Pipeline(segmenter), headers)
        finally:
            segmenter.held = False
            state["server"].should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


def picture(seed: int = 0, size: tuple[int, int] = (48, 64), kind: str = "PNG") -> bytes:
    """A picture of blobs of colour, (height, width) ``size``."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> float:
    """Wait for a condition; returns the seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.005)
    return time.monotonic() - began
