"""The service under load: batches, the bounded queue, clients that leave, time limits, and the end."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch

from lexiseg.data.images import decode_image
from lexiseg.errors import WeightsError
from lexiseg.inference.pipeline import Pipeline
from lexiseg.ops.rle import decode_counts, decompress
from lexiseg.serve import models as serve_models
from lexiseg.serve.jobs import Call, Job, Queue, StoppedError
from lexiseg.serve.limits import Limits
from lexiseg.serve.logs import LOGGER, JsonLines
from lexiseg.serve.models import Models, ModelSpec
from lexiseg.text.vocabulary import Vocabulary
from tests.laws.builders import tiny_sam_clip
from tests.serve.running import NAME, WORDS, Running, picture, running, until
from tests.serve.test_refusals import png

SIZES = ((48, 64), (64, 48), (60, 60))


def masks_of(content: dict) -> np.ndarray:
    size = content["height"], content["width"]
    rows = [decode_counts(decompress(row["segmentation"]["counts"]), size).numpy() for row in content["segments"]]
    return np.array(rows).reshape(-1, *size)


@pytest.fixture
def served() -> Iterator[Running]:
    with running(queue=12, batch=5) as service:
        yield service


def hold(served: Running, threads: ThreadPoolExecutor) -> object:
    """Hold the model in the batch of one request; returns the request's future."""
    served.segmenter.held = True
    first = threads.submit(served.segment, picture(99))
    until(lambda: served.segmenter.steps > 0)
    return first


def test_requests_together_are_answered_as_one_by_one(served: Running) -> None:
    pictures = [picture(seed, SIZES[seed % 3]) for seed in range(10)]
    with ThreadPoolExecutor(12) as threads:
        hold(served, threads)
        tasks = ["panoptic", "semantic"]
        answers = [threads.submit(served.segment, each, task=tasks[number % 2]) for number, each in enumerate(pictures)]
        other = threads.submit(served.segment, pictures[0], classes="cat; house")
        until(lambda: served.service.open == 12)
        served.segmenter.held = False
        contents = [answer.result().json() for answer in answers]
        assert other.result().json()["classes"] == ["cat", "house"]
    for number, (content, each) in enumerate(zip(contents, pictures, strict=True)):
        result = served.pipeline(decode_image(each), WORDS, task=tasks[number % 2])
        assert [row["label"] for row in content["segments"]] == [segment.label for segment in result.segments]
        assert np.mean(masks_of(content) != result.masks) < 1e-3
        scores = [segment.score for segment in result.segments]
        np.testing.assert_allclose([row["score"] for row in content["segments"]], scores, atol=1e-3)
    assert max(served.segmenter.batches) == 5
    assert len(served.segmenter.batches) < 12 + len(pictures)


def test_requests_beyond_the_queue_get_429_and_none_is_lost(served: Running) -> None:
    with ThreadPoolExecutor(40) as threads:
        first = hold(served, threads)
        answers = [threads.submit(served.segment, picture(seed)) for seed in range(30)]
        until(lambda: sum(answer.done() for answer in answers) == 30 - 11)
        with served.client() as client:
            assert client.get("/healthz").status_code == 200, "the loop stays responsive"
        served.segmenter.held = False
        codes = sorted(answer.result().status_code for answer in [first, *answers])
        assert codes == [200] * 12 + [429] * 19
        refusal = next(answer.result() for answer in answers if answer.result().status_code == 429)
        assert int(refusal.headers["retry-after"]) >= 1
    until(lambda: served.service.open == 0)


def raw_request(served: Running, seed: int = 0) -> socket.socket:
    """Send a request, and return the connection without waiting for the answer."""
    url = httpx.URL(served.url)
    body = httpx.Request("POST", url, files={"image": ("a.png", picture(seed))}, data={"classes": WORDS})
    content = body.read()
    head = f"POST /v1/segment HTTP/1.1\r\nhost: {url.host}:{url.port}\r\ncontent-length: {len(content)}\r\n"
    connection = socket.create_connection((url.host, url.port))
    connection.sendall(f"{head}content-type: {body.headers['content-type']}\r\n\r\n".encode() + content)
    return connection


def test_a_client_that_leaves_frees_its_slot_within_a_second(served: Running) -> None:
    served.segmenter.held = True
    computed = raw_request(served)
    until(lambda: served.segmenter.steps > 0)
    waiting = raw_request(served, 1)
    until(lambda: served.service.open == 2)
    waiting.close()
    assert until(lambda: served.service.open == 1) < 1
    computed.close()
    assert until(lambda: served.service.open == 0) < 1
    until(lambda: len(served.service._queue) == 0)
    steps = served.segmenter.steps
    time.sleep(0.1)
    assert served.segmenter.steps <= steps + 1, "the computation ends, too"
    assert len(served.segmenter.batches) == 1, "the one that waited was never begun"
    served.segmenter.held = False
    assert served.segment(picture()).status_code == 200
    with served.client() as client:
        assert "lexiseg_clients_left_total 2.0" in client.get("/metrics").text


def test_a_client_of_events_that_leaves_frees_its_slot(served: Running) -> None:
    served.segmenter.held = True
    files, headers = {"image": ("a.png", picture())}, {"accept": "application/x-ndjson"}
    with (
        served.client() as client,
        client.stream("POST", "/v1/segment", files=files, data={"classes": WORDS}, headers=headers) as answer,
    ):
        lines = answer.iter_lines()
        while json.loads(next(lines)).get("stage") != "masks":
            pass
    assert until(lambda: served.service.open == 0) < 1
    served.segmenter.held = False
    assert served.segment(picture()).status_code == 200


def test_a_request_that_takes_too_long_is_ended() -> None:
    with running(seconds=1.0) as served:
        assert served.segment(picture()).status_code == 200  # and a warm-up
        served.segmenter.held = True
        answer = served.segment(picture())
        assert answer.status_code == 504, answer.text
        assert "1 seconds" in answer.json()["detail"]
        served.segmenter.held = False
        assert served.segment(picture()).status_code == 200


def test_a_body_that_does_not_arrive_is_refused() -> None:
    with (
        running(seconds=0.3) as served,
        socket.create_connection((httpx.URL(served.url).host, httpx.URL(served.url).port)) as slow,
    ):
        slow.sendall(
            b"POST /v1/segment HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
        until(lambda: served.service.open == 0)


def test_a_bad_picture_does_not_fail_the_others_of_its_batch(served: Running) -> None:
    with ThreadPoolExecutor(4) as threads:
        hold(served, threads)
        answers = [threads.submit(served.segment, content) for content in (picture(1), png(64, 48, bytes(9)), picture(2))]
        until(lambda: served.service.open == 4)
        served.segmenter.held = False
        assert [answer.result().status_code for answer in answers] == [200, 422, 200]


def test_a_batch_that_fails_is_tried_one_by_one(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = served.segmenter.inner.forward

    def fails(images, text, **options):
        if len(images) > 1:
            raise RuntimeError("CUDA out of memory")
        if images.sizes[0] == (60, 60):
            raise ZeroDivisionError("dog")
        return forward(images, text, **options)

    monkeypatch.setattr(served.segmenter.inner, "forward", fails)
    with ThreadPoolExecutor(4) as threads:
        hold(served, threads)
        answers = [threads.submit(served.segment, picture(seed, size)) for seed, size in enumerate(SIZES)]
        until(lambda: served.service.open == 4)
        served.segmenter.held = False
        assert [answer.result().status_code for answer in answers] == [200, 200, 500]
        assert "dog" not in answers[2].result().text


def test_while_it_ends_it_answers_what_was_accepted_and_refuses_the_rest(served: Running) -> None:
    with ThreadPoolExecutor(4) as threads, served.client() as client:
        accepted = [hold(served, threads), *(threads.submit(served.segment, picture(seed)) for seed in range(3))]
        until(lambda: served.service.open == 4)
        served.service.draining = True
        assert served.segment(picture()).status_code == client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        served.segmenter.held = False
        assert [answer.result().status_code for answer in accepted] == [200] * 4


def test_a_default_model_that_cannot_be_loaded_is_reported() -> None:
    def loader(*_: object, **__: object) -> Pipeline:
        raise WeightsError("/secret/path is damaged")

    with running(loader=loader) as served, served.client() as client:
        for answer in (client.get("/readyz"), served.segment(picture())):
            assert answer.status_code == 503
            assert "secret" not in answer.text


def test_logs_have_no_names_and_no_contents(served: Running) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        with served.client() as client:
            client.post("/v1/segment?secret=1", files={"image": ("secret.png", picture())}, data={"classes": "secret"})
            client.post("/v1/segment", files={"image": ("secret.png", b"secret")}, data={"classes": "secret"})
            client.get("/v1/vocabularies/secret")
            client.get("/secret")
        until(lambda: stream.getvalue().count("\n") == 4)  # a line is written after its answer
    finally:
        LOGGER.removeHandler(handler)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["status"] for line in lines] == [200, 422, 404, 404]
    assert lines[0]["pixels"] == [48, 64]
    assert lines[0]["classes"] == 1
    assert "secret" not in stream.getvalue()


# --- parts --------------------------------------------------------------------------------------------------------------


def job(size: tuple[int, int] = (10, 10), classes: str = "dog", seconds: float = 60) -> Job:
    call = Call(NAME, (), Vocabulary.parse(classes), False, "panoptic", 0.0, None, b"", size)
    return Job(call, time.monotonic() + seconds)


def test_a_batch_is_of_one_kind_and_bounded() -> None:
    async def check() -> None:
        queue = Queue(Limits(batch=3, batch_pixels=600))
        jobs = [job(), job(classes="cat"), job((10, 20)), job((40, 10)), job(), job(), job(), job()]
        assert [queue.put(each) for each in jobs] == list(range(8))
        assert queue.take() == [jobs[0], jobs[2], jobs[4]], "(40, 10) would pad the others"
        queue.drop(jobs[3])
        assert queue.take() == [jobs[1]]
        queue.close()
        assert queue.take() == [jobs[5], jobs[6], jobs[7]]
        assert queue.take() == []

    asyncio.run(check())


def test_a_job_given_up_or_late_does_not_enter_a_stage() -> None:
    async def check() -> None:
        given_up, late = job(), job(seconds=-1)
        given_up.enter("model")
        given_up.stop()
        for each in (given_up, late):
            with pytest.raises(StoppedError):
                each.enter("decode")
        late.fail(StoppedError())
        late.fail(ValueError())
        assert isinstance(await late.event(), StoppedError)

    asyncio.run(check())


def test_the_model_not_used_for_the_longest_time_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(name: str, **_: object) -> Pipeline:
        loads.append(name)
        return Pipeline(tiny_sam_clip("vit"))

    monkeypatch.setattr(serve_models, "load", load)
    names = ["sam_clip-tiny", "fcclip-tiny", "cmpf-tiny"]
    size = Models([ModelSpec(names[0])], device="cpu", dtype="float32", memory=1).get(names[0]).nbytes
    saved = sum(tensor.numel() * tensor.element_size() for tensor in tiny_sam_clip("vit").state_dict().values())
    assert saved <= size < 1.1 * saved  # buffers that are not saved are in memory, too
    models = Models([ModelSpec(name) for name in names], device="cpu", dtype="float32", memory=2 * size + 1)
    for name in (names[0], names[1], names[0], names[2], names[0]):
        models.get(name)
    assert models.names_loaded == (names[2], names[0])
    assert loads[1:] == names


def test_many_requests_from_many_threads_at_once() -> None:
    with running(queue=100) as served:
        expected = [len(served.pipeline(decode_image(picture(seed)), WORDS).segments) for seed in range(4)]
        with ThreadPoolExecutor(40) as threads:
            answers = list(threads.map(lambda number: served.segment(picture(number % 4)), range(40)))
        assert [len(answer.json()["segments"]) for answer in answers] == [expected[number % 4] for number in range(40)]
        assert threading.active_count() < 40
        assert torch.get_num_threads() >= 1
