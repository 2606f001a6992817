"""Label Studio's machine learning backend: `lexiseg serve --label-studio` answers its requests for predictions.

Label Studio calls GET /health, POST /setup and /validate with the project's labelling interface, POST /predict with tasks, and
POST /webhook when something has happened. The interface (XML) says what to segment: the labels of its BrushLabels,
PolygonLabels and RectangleLabels are the classes.

    predicted_values="dog, puppy"     of a Label: the names that are searched for, in place of its value
    model_score_threshold="0.3"       of a control: minimum score; model_background, model_task, model_name likewise

The picture is in the task as a ``data:`` URI, or at the Label Studio whose address was given when the service was started. No
other address is opened: neither one in a task, nor ``hostname`` of a request; ``access_token`` of a request is not read.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast, get_args
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from xml.parsers import expat

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from lexiseg.data.urls import fetch
from lexiseg.errors import ImageError, UsageError
from lexiseg.exports.label_studio import Kind, region, shapes
from lexiseg.inference.fingerprint import digest
from lexiseg.segmentation import Segmentation
from lexiseg.serve.answers import JSON, encode_json
from lexiseg.serve.bodies import STEM, SegmentBody, model_of, parse, read_json, validated, vocabulary_of
from lexiseg.serve.failures import accepted, as_http, in_time
from lexiseg.serve.guard import FIELDS
from lexiseg.serve.service import Service

KEY = "LABEL_STUDIO_API_KEY"  # the environment variable, as for Label Studio's own backends
PATHS = frozenset(["/health", "/setup", "/validate", "/predict", "/webhook"])
FOLDERS = ("/data/", "/storage-data/")  # of Label Studio: uploads and local files
OPTIONS = {  # attributes of a control, and the fields of a request that they are
    "model_name": "model",
    "model_task": "task",
    "model_score_threshold": "threshold",
    "model_background": "background",
}
LONGEST = 1_000_000  # characters of an interface
TASKS = 1_000  # of a request
TOKEN_BYTES = 100_000  # maximum answer with a token
T = TypeVar("T")


class SetupBody(BaseModel):
    """Request of /setup; its other fields are not read."""

    interface: Annotated[str, Field(alias="schema", max_length=LONGEST)]


class ValidateBody(BaseModel):
    """Request of /validate."""

    config: Annotated[str, Field(max_length=LONGEST)]


class PredictBody(BaseModel):
    """Request of /predict; its other fields are not read."""

    label_config: Annotated[str, Field(max_length=LONGEST)]
    tasks: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=TASKS)]


@dataclass(frozen=True)
class Label:
    """Label of an interface.

    Attributes:
        names: its class, "dog, puppy".
        shown: what stands for it in results: its alias, or else its value.
        kind: kind of its control.
        control: name of its control.
    """

    names: str
    shown: str
    kind: Kind
    control: str


@dataclass(frozen=True)
class Interface:
    """What an interface says about segmentation.

    Attributes:
        picture: name of the picture's tag.
        field: field of a task's data that has the picture.
        labels: the labels.
        options: further fields of a request, by name.
    """

    picture: str
    field: str
    labels: tuple[Label, ...]
    options: Mapping[str, str]

    @property
    def body(self) -> SegmentBody:
        """The request for a segmentation.

        Raises:
            HTTPException: 422, the value of an option is invalid.
        """
        return validated(SegmentBody, {"classes": [label.names for label in self.labels], **self.options})


def read_interface(text: str) -> Interface:
    """Read a project's labelling interface. [decided] Of several pictures it is about that of the first control; a label that
    two controls have belongs to the first.

    Args:
        text: the XML. A document type, and with it any entity, is refused.

    Raises:
        HTTPException: 422, it is no XML, or has no labels for regions of a picture.
        UsageError: a label is not a class.
    """
    reader = _Reader()
    parser = expat.ParserCreate("utf-8")
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        raise HTTPException(422, f"the labelling interface is no XML: {error}") from None
    if not reader.labels:
        raise HTTPException(422, "the labelling interface has no BrushLabels, PolygonLabels or RectangleLabels with labels")
    source = reader.pictures.get(reader.picture, "")
    if not source.startswith("$"):
        raise HTTPException(
            422, f"the labelling interface has no Image called {reader.picture!r:.60} with a value such as $image"
        )
    interface = Interface(reader.picture, source[1:], tuple(reader.labels.values()), reader.options)
    if len(vocabulary_of(interface.body)) != len(interface.labels):
        raise HTTPException(422, "a label is called void, which is no class; leave it out: what no label fits can be left open")
    return interface


class _Reader:
    """Collects labels while an interface is parsed.

    Attributes:
        labels: by what stands for them in results.
        picture: name of the picture that the first control is for.
        pictures: values of the tags Image, by name.
        options: values of `OPTIONS`, by field; of several controls the first decides.
    """

    def __init__(self) -> None:
        self.labels: dict[str, Label] = {}
        self.picture = ""
        self.pictures: dict[str, str] = {}
        self.options: dict[str, str] = {}
        self._controls: list[tuple[Kind, str] | None] = [None]  # that of each open tag

    def refuse(self, *_: object) -> None:
        raise HTTPException(422, "the labelling interface has a document type (<!DOCTYPE …>); delete it")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        kind, control = tag.lower(), self._controls[-1]
        if kind == "image":
            self.pictures[attributes.get("name", "")] = attributes.get("value", "")
        elif kind in get_args(Kind):
            control = self._control(cast(Kind, kind), attributes)
        elif kind == "label" and control is not None:
            self._label(*control, attributes)
        self._controls.append(control)

    def end(self, _tag: str) -> None:
        self._controls.pop()

    def _control(self, kind: Kind, attributes: Mapping[str, str]) -> tuple[Kind, str] | None:
        """A control, or None if it is for another picture than the first."""
        name, picture = attributes.get("name", ""), attributes.get("toName", "").split(",")[0].strip()
        self.picture = self.picture or picture
        if not name or picture != self.picture:
            return None
        for attribute, field in OPTIONS.items():
            if attribute in attributes:
                self.options.setdefault(field, attributes[attribute])
        return kind, name

    def _label(self, kind: Kind, control: str, attributes: Mapping[str, str]) -> None:
        value = attributes.get("value", "")
        shown = attributes.get("alias") or value
        self.labels.setdefault(shown, Label(attributes.get("predicted_values") or value, shown, kind, control))


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of tasks come from.

    Attributes:
        url: address of the Label Studio, the only one that is opened; None: pictures have to be in the tasks.
        key: its token.
    """

    url: str | None = None
    key: str = ""

    @classmethod
    def of(cls, url: str | None, key: str | None) -> Pictures:
        """Check an address and its token.

        Raises:
            UsageError: the address is none, or the token is missing.
        """
        if url is None:
            return cls()
        try:
            parts = urlsplit(url)
            valid = (
                parts.scheme in ("http", "https")
                and parts.hostname
                and not (parts.query or parts.fragment or "@" in parts.netloc)
            )
        except ValueError:
            valid = False
        if not valid:
            raise UsageError(f"--label-studio-url {url[:80]!r} is no address; write it as http://127.0.0.1:8080")
        if not key:
            raise UsageError(
                f"--label-studio-url needs a token of that Label Studio: set {KEY} (Account & Settings, Access Token)"
            )
        return cls(url.rstrip("/"), key.strip())

    def authorise(self) -> dict[str, str]:
        """Return the headers of requests to Label Studio: with the token itself, or for a personal access token (three parts
        between dots) with the short-lived one that it is exchanged for.

        Raises:
            ImageError: it is not exchanged.
        """
        if self.url is None:
            return {}
        if self.key.count(".") != 2:
            return {"Authorization": f"Token {self.key}"}
        address, content = f"{self.url}/api/token/refresh/", json.dumps({"refresh": self.key}).encode()
        headers = {"Content-Type": "application/json"}
        answer = self._opened(address, headers, TOKEN_BYTES, content)
        try:
            return {"Authorization": f"Bearer {json.loads(answer)['access']}"}
        except (ValueError, TypeError, KeyError):
            raise ImageError(f"image: {address} answers no token; check --label-studio-url and {KEY}") from None

    def read(self, value: object, headers: Mapping[str, str], largest: int) -> bytes:
        """Return the file of a task's picture.

        Args:
            value: what the task has: a ``data:`` URI in base64, or an address of Label Studio.
            headers: as `authorise` returns them.
            largest: maximum bytes.

        Raises:
            ImageError: it is neither, or cannot be fetched.
        """
        if not isinstance(value, str):
            raise ImageError("image: the task has no picture in the field that the interface names")
        head, _, content = value.partition(",")
        if head.startswith("data:"):
            try:
                if not head.endswith(";base64"):
                    raise ValueError(head)
                return b64decode(content, validate=True)
            except ValueError:
                raise ImageError("image: the data: URI of the task is not base64") from None
        return self._opened(self.address(value), headers, largest)

    def address(self, value: str) -> str:
        """Return the address of a file at Label Studio.

        Args:
            value: its path, or the whole address.

        Raises:
            ImageError: it is not there, or not in `FOLDERS`.
        """
        if self.url is None:
            raise ImageError(
                "image: the task has an address, and this service was started without --label-studio-url; put pictures into "
                "tasks as data: URIs, or give it"
            )
        base = urlsplit(self.url)
        try:
            parts = urlsplit(value)
        except ValueError:
            parts = urlsplit("//")
        path = parts.path.removeprefix(base.path)
        elsewhere = (parts.scheme or parts.netloc) and (parts.scheme, parts.netloc.lower()) != (
            base.scheme,
            base.netloc.lower(),
        )
        if elsewhere or not path.startswith(FOLDERS) or not {"..", "."}.isdisjoint(unquote(path).split("/")):
            raise ImageError(
                f"image: {value[:200]} is no file of {self.url} (under {' or '.join(FOLDERS)}); other addresses are not opened"
            )
        return urlunsplit((base.scheme, base.netloc, base.path + _quoted(path), _quoted(parts.query), ""))

    def _opened(self, address: str, headers: Mapping[str, str], largest: int, content: bytes | None = None) -> bytes:
        try:
            return fetch(address, private=True, redirects=False, largest=largest, headers=headers, content=content)
        except ImageError as error:
            raise ImageError(f"image: {error}; is {KEY} a token of this Label Studio?") from None


def _quoted(part: str) -> str:
    """Escape what an address must not have; what is escaped stays so."""
    return quote(part, safe="/%?=&+~!$'()*,;:@")


def prediction(result: Segmentation, interface: Interface, version: str) -> dict[str, Any]:
    """Return a result as Label Studio's prediction; its score is the mean of the regions' scores, 0 if there are none.

    Regions of a background class are not in a result, and each other class is a label.
    """
    regions: list[dict[str, Any]] = []
    for segment, mask in zip(result.segments, result.masks, strict=True):
        label = interface.labels[segment.label]
        for shape in shapes(label.kind, mask) if mask.any() else ():
            number = len(regions) + 1
            regions.append(
                region(number, label.kind, shape, label.control, interface.picture, result.size, label.shown, segment.score)
            )
    score = sum(segment.score for segment in result.segments) / max(1, len(result.segments))
    return {"result": regions, "score": score, "model_version": version}


def router(service: Service, pictures: Pictures) -> APIRouter:
    """Return the routes.

    Args:
        service: carries out the requests.
        pictures: where pictures come from.
    """
    routes, models, limits = APIRouter(include_in_schema=False), service.models, service.limits

    def version(interface: Interface) -> str:
        """What a prediction depends on besides the picture, so that Label Studio asks anew after a change of it."""
        model = model_of(interface.body, models.specs)
        return f"{model}-{digest([models.digests[model], interface])}"

    @routes.get("/health")  # not public: by a 401 here Label Studio knows that its password is wrong
    async def health() -> dict[str, str]:
        if not service.ready:
            raise HTTPException(503, f"{models.default} is not loaded, or the service is about to end")
        return {"status": "UP"}

    @routes.post("/setup")
    async def setup(request: Request) -> dict[str, str]:
        with accepted(service, request.scope) as deadline:
            body = await in_time(read_json(request, SetupBody), deadline)
            return {"model_version": version(await asyncio.to_thread(read_interface, body.interface))}

    @routes.post("/validate")
    async def validate(request: Request) -> dict[str, str]:
        with accepted(service, request.scope) as deadline:
            body = await in_time(read_json(request, ValidateBody), deadline)
            version(await asyncio.to_thread(read_interface, body.config))
            return {"status": "ok"}

    @routes.post("/webhook")
    async def webhook() -> JSONResponse:
        return JSONResponse({"status": "ignored"}, 201)

    @routes.post("/predict")
    async def predict(request: Request) -> Response:
        with accepted(service, request.scope) as deadline:
            body = await in_time(read_json(request, PredictBody), deadline)
            interface = await asyncio.to_thread(read_interface, body.label_config)
            shown = version(interface)
            request.scope[FIELDS] |= {"classes": len(interface.labels), "pictures": len(body.tasks)}
            headers = await asyncio.to_thread(pictures.authorise)

            results: list[dict[str, Any]] = []
            for first in range(0, len(body.tasks), limits.batch):  # what may be computed together
                group = body.tasks[first : first + limits.batch]
                results += await _together([predicted(task, interface, shown, headers, deadline, request) for task in group])
            errors = [result["error"] for result in results if "error" in result]
            request.scope[FIELDS]["failed"] = len(errors)
            if len(errors) == len(results):
                raise HTTPException(422, errors[0])
            content = {"results": results, "model_version": shown}
            return Response(await asyncio.to_thread(encode_json, content), media_type=JSON)

    async def predicted(
        task: Mapping[str, Any],
        interface: Interface,
        shown: str,
        headers: Mapping[str, str],
        deadline: float,
        request: Request,
    ) -> dict[str, Any]:
        """The prediction of a task, or why there is none: Label Studio logs it, stores nothing, and may ask again."""
        data = task.get("data")
        value = data.get(interface.field) if isinstance(data, dict) else None
        try:
            picture = await asyncio.to_thread(pictures.read, value, headers, limits.upload)
            call = (await asyncio.to_thread(parse, interface.body, picture, STEM, models.specs, limits)).call
            done = await service.result(call, deadline, request.receive)
        except (HTTPException, ImageError, UsageError) as error:
            return {"error": as_http(error, service, request.scope).detail}
        return await asyncio.to_thread(prediction, done.segmentation, interface, shown)

    return routes


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await several; if one fails, the others end."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
