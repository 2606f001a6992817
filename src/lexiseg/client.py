"""Client of a running `lexiseg serve` (docs/serve.md): pictures are segmented there, with the results of the model there.

    client = lexiseg.Client("http://127.0.0.1:8765")
    result = client.segment("photo.jpg", ["dog, puppy", "grass", "sky"])

A picture's file is sent as it is, in JSON, and the answer is read as lines of JSON (NDJSON), which tell the stage. The last
line, the form ``rle``, has all of a `Segmentation` but the picture, which is here: masks as run lengths, scores with all their
digits, classes, and on demand the probabilities of pixels. So nothing is lost on the way.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import threading
import time
import zlib
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.data.images import Picture, Pixels, as_pixels, decode_image, read_file
from lexiseg.errors import ImageError, RunError, ServiceError, UsageError
from lexiseg.exports.records import ResultRecord, record_of
from lexiseg.ops.names import is_url
from lexiseg.ops.progress import Callback, Progress
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Task
from lexiseg.text.class_lists import read_text
from lexiseg.text.vocabulary import Classes, Vocabulary

TOKEN = "LEXISEG_TOKEN"  # the environment variable
SHORTEST = 16  # characters of a token
CONNECTING, EXTRA = 20.0, 30.0  # seconds to connect; seconds that an answer may take beyond the service's own limit
CONCURRENT = 8  # requests of a list of pictures at a time, the service's default batch
NDJSON = "application/x-ndjson"
_IMAGE = "image: "  # what the service calls the picture in messages about it


def read_token(file: str | Path | None = None) -> str | None:
    """Return the token in a file, or else in the environment variable `TOKEN`; None if there is none.

    Raises:
        UsageError: the file cannot be read, or the token is too short.
    """
    if file is None and not os.environ.get(TOKEN):
        return None
    return _checked_token(os.environ[TOKEN] if file is None else read_text(file, "token file"))


def _checked_token(text: str) -> str:
    token = text.strip()
    if len(token) < SHORTEST or not token.isascii() or len(token.split()) != 1:
        raise UsageError(
            f"the token must be a word of at least {SHORTEST} ASCII letters or digits, as 'openssl rand -hex 32' prints"
        )
    return token


class _BusyError(Exception):
    """All slots of the service are taken; ``seconds`` is when to call again."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class _Connections:
    """Open connections of a call, which another thread may end."""

    def __init__(self) -> None:
        self._open: set[socket.socket] = set()
        self._lock, self.ended = threading.Lock(), threading.Event()

    @contextmanager
    def open(self, connected: socket.socket) -> Iterator[None]:
        """Let `end` end this connection within the block."""
        with self._lock:
            self._open.add(connected)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connected)

    def end(self) -> None:
        """Let what waits for an answer, or to ask again, fail at once."""
        self.ended.set()
        with self._lock:
            for connected in self._open:
                with suppress(OSError):  # the other end has closed it
                    connected.shutdown(socket.SHUT_RDWR)


class Client:
    """Segments pictures by a running `lexiseg serve`. Thread-safe; proxies of the environment are not used.

    Args:
        url: address of the service, "http://127.0.0.1:8765"; https needs a proxy in front of the service.
        token: the service's token, sent to this address only; None: that in the environment variable LEXISEG_TOKEN, if any.
        patience: seconds to ask again while all slots of the service are taken (429).

    Raises:
        UsageError: the address is none, or the token is too short.
    """

    def __init__(self, url: str, *, token: str | None = None, patience: float = 600.0) -> None:
        self.url, self.patience = url.rstrip("/"), patience
        try:
            parts = urlsplit(self.url)
            self._port = parts.port
        except ValueError:  # a port that is no number
            parts, self._port = urlsplit(""), None
        if "@" in parts.netloc:
            raise UsageError(f"the address of a service has no password in it; set {TOKEN}, or give --token-file FILE")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"{url[:80]!r} is not the address of a service; write it as http://127.0.0.1:8765")
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._path = parts.hostname, parts.path
        self._token = read_token() if token is None else _checked_token(token)

    @cached_property
    def offer(self) -> Mapping[str, Any]:
        """What ``GET /v1/models`` answers: ``models``, the default first, ``limits`` and ``version``; called once.

        Raises:
            ServiceError: the service cannot be reached, or refuses.
        """
        calls = _Connections()
        with self._answer(calls, "GET", "/v1/models", None, CONNECTING + EXTRA) as answer:
            content = self._json(answer.read())
        if not content.get("models") or "limits" not in content:
            raise ServiceError(f"{self.url} is no 'lexiseg serve' of this version; check the address")
        return content

    def model(self, name: str | None = None) -> Mapping[str, Any]:
        """Return the row of ``offer`` of a model; None: the service's default.

        Raises:
            UsageError: the service does not offer it.
            ServiceError: as `offer`.
        """
        rows = {row["name"]: row for row in self.offer["models"]}
        if name is not None and name not in rows:
            raise UsageError(f"{self.url} does not offer the model {name!r:.60}; it has {', '.join(rows)}")
        return rows[name or next(iter(rows))]

    @overload
    def segment(
        self,
        picture: Picture,
        classes: Classes,
        *,
        model: str | None = None,
        task: Task | None = None,
        threshold: float = 0.0,
        background: str | None = None,
        options: Mapping[str, float] | None = None,
        keep_scores: bool = False,
        progress: Callback | None = None,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        picture: list[Any] | tuple[Any, ...],
        classes: Classes,
        *,
        model: str | None = None,
        task: Task | None = None,
        threshold: float = 0.0,
        background: str | None = None,
        options: Mapping[str, float] | None = None,
        keep_scores: bool = False,
        progress: Callback | None = None,
    ) -> list[Segmentation]: ...

    def segment(
        self,
        picture: Picture | list[Any] | tuple[Any, ...],
        classes: Classes,
        *,
        model: str | None = None,
        task: Task | None = None,
        threshold: float = 0.0,
        background: str | None = None,
        options: Mapping[str, float] | None = None,
        keep_scores: bool = False,
        progress: Callback | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment one or several pictures by class names, as `Pipeline` does.

        [decided] Files and bytes are sent unchanged, other pictures as PNG: a JPEG stays small, and the service decodes it as
        this machine would.

        Args:
            picture: as for `Pipeline`; several are requested at the same time, and the service may compute them together.
            classes: as for `Pipeline`. They are parsed here: names of files and lists mean those of this machine.
            model: a model that the service offers; None: its default.
            task, threshold, background, keep_scores: as for `Pipeline`.
            options: options of the model that the service allows, numbers in 0..1, see `offer`.
            progress: called with a `lexiseg.ops.progress.Progress` at each stage of the service; with several pictures, of the
                first.

        Raises:
            UsageError: as `Pipeline`, or an option or model is not offered.
            ImageError: a picture cannot be read, or has more bytes or pixels than the service takes.
            ServiceError: the service cannot be reached, refuses the token, does not answer, or is about to end.
            RunError: it has not finished in time, has no memory for the picture, or is busy for longer than ``patience``.
        """
        vocabulary, calls = Vocabulary.parse(classes), _Connections()
        body = {
            "classes": [{"name": each.name, "synonyms": each.synonyms, "thing": each.thing} for each in vocabulary.classes],
            "model": model,
            "task": task,
            "threshold": threshold,
            "background": background,
            "options": dict(options or {}),
            "scores": keep_scores,
        }
        whole = vocabulary if background is None else vocabulary.with_background(background)
        limits: Mapping[str, Any] = self.offer["limits"]
        if not isinstance(picture, list | tuple):
            return self._segment(calls, picture, body, whole, limits, progress)
        with ThreadPoolExecutor(CONCURRENT) as threads:
            pending = [
                threads.submit(self._segment, calls, each, body, whole, limits, progress if number == 0 else None)
                for number, each in enumerate(picture)
            ]
            try:
                return [each.result() for each in pending]
            except BaseException:
                for each in pending:
                    each.cancel()
                calls.end()
                raise

    def _segment(
        self,
        calls: _Connections,
        picture: Picture,
        body: Mapping[str, Any],
        vocabulary: Vocabulary,
        limits: Mapping[str, Any],
        progress: Callback | None,
    ) -> Segmentation:
        """Segment a picture; ``vocabulary`` is what the answer has to be of."""
        data, pixels, name = _opened(picture)
        height, width = pixels.shape[:2]
        for count, what, option in ((len(data), "bytes", "--max-upload"), (height * width, "pixels", "--max-pixels")):
            if count > limits[what]:
                raise ImageError(
                    f"{name}: {count:,} {what} are more than the {limits[what]:,} that {self.url} takes; scale the picture "
                    f"down, or start the service with a larger {option}"
                )
        content = json.dumps({**body, "image": b64encode(data).decode()}).encode()
        result = self._until_free(calls, content, name, limits["seconds"], progress)
        try:
            record = record_of({**result, "source": None}, "")
            segmentation = Segmentation.of(record, pixels)
            scores = _unpacked(result["scores"], (len(vocabulary), height, width)) if body["scores"] else None
        except (UsageError, KeyError, TypeError, ValueError, zlib.error) as error:
            raise ServiceError(f"{name}: {self.url} answers no result of this picture ({error}); check its version") from None
        self._check(record, vocabulary)
        return replace(segmentation, scores=scores, source=str(picture) if isinstance(picture, str | Path) else None)

    def _check(self, record: ResultRecord, vocabulary: Vocabulary) -> None:
        if (record.names, record.things) != (vocabulary.names, vocabulary.things):
            raise UsageError(
                f"{self.url} reads the classes as {'; '.join(record.names)[:200]}; write names without ',', ';' and '|'"
            )

    def _until_free(
        self, calls: _Connections, content: bytes, name: str, seconds: float, progress: Callback | None
    ) -> Mapping[str, Any]:
        """Ask for a result, again while all slots are taken."""
        until = time.monotonic() + self.patience
        while True:
            try:
                return self._result(calls, content, name, seconds, progress)
            except _BusyError as busy:
                left = until - time.monotonic()
                if left <= 0:
                    raise RunError(
                        f"{name}: {self.url} is busy since {self.patience:.0f} seconds; try again later, or start it "
                        "with a larger --queue"
                    ) from None
                if progress is not None:
                    progress(Progress("waiting"))
                if calls.ended.wait(min(busy.seconds, left)):
                    raise ServiceError(f"{self.url}: the call was ended") from None

    def _result(
        self, calls: _Connections, content: bytes, name: str, seconds: float, progress: Callback | None
    ) -> Mapping[str, Any]:
        """Ask for a result once, and report its stages."""
        with self._answer(calls, "POST", "/v1/segment", content, seconds + EXTRA, name) as answer:
            for line in answer:
                event = self._json(line)
                if event.get("stage") == "done":
                    result: Mapping[str, Any] = event["result"]
                    return result
                if event.get("stage") == "failed":
                    raise self._failure(event["status"], event["detail"], name)
                if progress is not None:
                    step = (
                        Progress(event["step"], event["done"], event["total"]) if "step" in event else Progress(event["stage"])
                    )
                    progress(step)
        raise self._ended()

    def _ended(self) -> ServiceError:
        return ServiceError(f"{self.url} has ended before its answer; start it again: the same call continues")

    @contextmanager
    def _answer(
        self, calls: _Connections, method: str, path: str, content: bytes | None, seconds: float, name: str = ""
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; yields the answer if its status is 200.

        Args:
            calls: the connections of the call.
            method, path, content: the request, its content JSON.
            seconds: time without a byte of the answer until it is given up.
            name: the picture, for messages.
        """
        headers = {"Accept": NDJSON, "User-Agent": "lexiseg", "Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = self._connection(self._host, self._port, timeout=CONNECTING)
        answering = False
        try:
            connection.connect()
            connection.sock.settimeout(seconds)
            with calls.open(connection.sock):
                if calls.ended.is_set():
                    raise ServiceError(f"{self.url}: the call was ended")
                with suppress(BrokenPipeError, ConnectionResetError):  # it may refuse before it has read all, and says why
                    connection.request(method, self._path + path, content, headers)
                with closing(connection.getresponse()) as answer:
                    if answer.status != http.client.OK:
                        raise self._refusal(answer, name)
                    answering = True
                    yield answer
        except TimeoutError:
            raise ServiceError(
                f"{self.url} does not answer; look at its log, or start it again: the same call continues"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            if answering:
                raise self._ended() from None
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ServiceError(
                f"{self.url} cannot be reached ({reason}); start it with 'lexiseg serve', or check the address"
            ) from None
        finally:
            connection.close()

    def _json(self, content: bytes) -> Mapping[str, Any]:
        try:
            values = json.loads(content)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ServiceError(f"{self.url} answers no JSON: it is no 'lexiseg serve', or was interrupted; check the address")
        return values

    def _refusal(self, answer: http.client.HTTPResponse, name: str) -> Exception:
        """What an answer with another status than 200 means."""
        status, again = answer.status, answer.getheader("Retry-After")
        if status == http.client.TOO_MANY_REQUESTS:
            return _BusyError(float(again) if again is not None and again.isdecimal() else 1.0)
        if 300 <= status < 400:
            return ServiceError(
                f"{self.url} leads to {answer.getheader('Location', 'another address')[:200]}; give that address"
            )
        if status == http.client.UNAUTHORIZED:
            which = "a token" if self._token is None else "another token"
            return ServiceError(f"{self.url} needs {which}: set {TOKEN}, or give --token-file FILE")
        try:
            detail = json.loads(answer.read())["detail"]
        except (ValueError, TypeError, KeyError):
            return ServiceError(f"{self.url} answers {status}: it is no 'lexiseg serve', or behind a proxy; check the address")
        if again is not None or status in (http.client.FORBIDDEN, http.client.NOT_FOUND):
            return ServiceError(f"{self.url}: {detail}")
        return self._failure(status, str(detail), name)

    def _failure(self, status: int, detail: str, name: str) -> Exception:
        """The error of a picture that was not segmented."""
        if detail.startswith(_IMAGE):
            return ImageError(f"{name}: {detail.removeprefix(_IMAGE)}")
        if status == http.client.UNPROCESSABLE_ENTITY:
            return UsageError(f"{self.url}: {detail}")
        if status in (http.client.GATEWAY_TIMEOUT, http.client.REQUEST_TIMEOUT):
            detail += "; scale the picture down, or start the service with a longer --timeout"
        return RunError(f"{name}: {self.url}: {detail}")


def _opened(picture: Picture) -> tuple[bytes, Pixels, str]:
    """The file to send, the pixels, and the name in messages of a picture."""
    name = "the picture"
    if isinstance(picture, str | Path) and not is_url(str(picture)):
        data, name = read_file(picture)
    elif isinstance(picture, bytes):
        data = picture
    else:
        pixels, buffer = as_pixels(picture), io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue(), pixels, name
    return data, decode_image(data, name), name


def _unpacked(packed: Mapping[str, Any], shape: tuple[int, int, int]) -> NDArray[np.float16]:
    """Probabilities as the service packs them; no more of them are inflated than the shape has.

    Raises:
        ValueError: they are not of this shape, or damaged.
    """
    size = 2 * shape[0] * shape[1] * shape[2]
    try:
        values = zlib.decompressobj().decompress(b64decode(packed["zlib"], validate=True), size + 1)
    except Base64Error:
        raise ValueError("its scores are not base64") from None
    if tuple(packed["shape"]) != shape or len(values) != size:
        raise ValueError("its scores are of another size")
    return np.frombuffer(values, "<f2").reshape(shape).astype(np.float16)
