"""The routes: the page, the REST service, and what operators read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lexiseg import __version__
from lexiseg.methods import model_named
from lexiseg.ops.progress import Progress
from lexiseg.serve import answers
from lexiseg.serve import label_studio as label_studio_backend
from lexiseg.serve.bodies import JsonBody, Parsed, SegmentBody, read_export, read_segment
from lexiseg.serve.failures import ERRORS, LEFT, Reason, accepted, as_http, in_time, responses
from lexiseg.serve.guard import FIELDS, LOOPBACK, Guard
from lexiseg.serve.jobs import Done
from lexiseg.serve.label_studio import Pictures
from lexiseg.serve.metrics import CONTENT_TYPE
from lexiseg.serve.models import safe_options
from lexiseg.serve.service import LeftError, Service, Slot
from lexiseg.text.vocabulary import Vocabulary, builtin_names
from lexiseg.world import scenes, world_classes

NDJSON = "application/x-ndjson"
SCENE_SIDE, SEEDS = 384, 10_000  # pixels of an example, and number of examples
PAGE: Mapping[str, tuple[str, str]] = {  # path: file in assets/page, content type
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    **{
        f"/page/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("page", "chips", "masks", "viewer", "api")
    },
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEALTH = ("/healthz", "/readyz")
Seed = Annotated[int, Path(ge=0, lt=SEEDS, description="Seed of the scene")]
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def create_app(
    service: Service, *, token: str | None = None, any_host: bool = False, label_studio: Pictures | None = None
) -> FastAPI:
    """Build the application.

    Args:
        service: carries out the requests; started with the application and stopped with it.
        token: bearer token that requests must have, if any.
        any_host: whether the service may be called by any host name; else, without a token, by those of loopback only.
        label_studio: where the pictures of Label Studio's tasks come from; None: its requests are not answered.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.drain()
        await service.stop()

    app = FastAPI(title="lexiseg", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(
        Guard,
        token=token,
        names=None if any_host or token is not None else LOOPBACK,
        public=frozenset([*PAGE, *HEALTH]),
        basic=frozenset() if label_studio is None else label_studio_backend.PATHS,
        body=service.limits.body,
        metrics=service.metrics,
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _left)
    _add_page(app)
    _add_listings(app, service)
    _add_segment(app, service)
    if label_studio is not None:
        app.include_router(label_studio_backend.router(service, label_studio))
    return app


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"}, 422)


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=LEFT)


def _add_page(app: FastAPI) -> None:
    folder = files("lexiseg") / "assets" / "page"
    for path, (name, kind) in PAGE.items():
        app.add_api_route(path, _constant((folder / name).read_bytes(), kind), methods=["GET", "HEAD"], include_in_schema=False)


def _constant(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def serve() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return serve


def _add_listings(app: FastAPI, service: Service) -> None:
    models, limits = service.models, service.limits

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether requests are accepted", responses={503: ERRORS[503]})
    async def readyz() -> dict[str, str]:
        if service.failure is not None:
            raise HTTPException(503, f"{models.default} cannot be loaded; the log of the service says why")
        if not service.ready:
            raise HTTPException(503, "the service is about to end" if service.draining else f"{models.default} is being loaded")
        return {"status": "ready"}

    @app.get("/metrics", summary="Metrics in Prometheus' text format", response_class=Response, responses=responses(401, 403))
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get(
        "/v1/models", summary="The models, their tasks and options; the first is the default", responses=responses(401, 403)
    )
    async def list_models() -> dict[str, Any]:
        loaded = models.names_loaded
        rows = []
        for name, spec in models.specs.items():
            variant = model_named(name)
            options = [
                {"name": option.name, "default": option.default, "minimum": 0, "maximum": 1, "about": option.about}
                for option in safe_options(spec.config()).values()
            ]
            rows.append(
                {
                    "name": name,
                    "summary": variant.summary,
                    "tasks": variant.tasks,
                    "licences": sorted({source.licence for source in variant.sources.values()}),
                    "loaded": name in loaded,
                    "digest": models.digests[name],
                    "options": options,
                }
            )
        return {
            "version": __version__,
            "models": rows,
            "limits": {"bytes": limits.upload, "pixels": limits.pixels, "names": limits.names, "seconds": limits.seconds},
        }

    @app.get("/v1/vocabularies", summary="The built-in lists of classes", responses=responses(401, 403))
    async def list_vocabularies() -> list[dict[str, Any]]:
        lists = {name: Vocabulary.builtin(name) for name in builtin_names()}
        return [{"name": name, "classes": len(words), "things": sum(words.things)} for name, words in lists.items()]

    @app.get(
        "/v1/vocabularies/{name}", summary="The classes of a list", responses={404: {"model": Reason}, **responses(401, 403)}
    )
    async def vocabulary(name: str) -> list[dict[str, Any]]:
        if name not in builtin_names():
            raise HTTPException(404, f"no built-in list is called {name!r:.60}; /v1/vocabularies has their names")
        words = Vocabulary.builtin(name)
        return [{"name": row.name, "synonyms": row.synonyms, "thing": row.thing} for row in words.classes]

    drawing = asyncio.Semaphore(1)

    @app.get(
        "/v1/examples/{seed}.png",
        summary="An example: a scene of the emoji world",
        response_class=Response,
        responses={200: {"content": {answers.PNG: _BINARY}}, **responses(401, 403, 422)},
    )
    async def example_picture(seed: Seed) -> Response:
        async with drawing:
            return Response((await asyncio.to_thread(_example, seed))[0], media_type=answers.PNG)

    @app.get("/v1/examples/{seed}", summary="What is in an example", responses=responses(401, 403, 422))
    async def example(seed: Seed) -> dict[str, Any]:
        async with drawing:
            return {"seed": seed, "classes": (await asyncio.to_thread(_example, seed))[1]}


@lru_cache(maxsize=16)
def _example(seed: int) -> tuple[bytes, list[dict[str, Any]]]:
    """A scene that no training draws, as a PNG, and its classes."""
    scene, buffer = next(scenes("val", 1, seed=seed, size=SCENE_SIDE)), BytesIO()
    Image.fromarray(scene.image).save(buffer, "PNG")
    labels = dict.fromkeys(segment.label for segment in scene.segments)
    classes = [world_classes()[label] for label in labels]
    return buffer.getvalue(), [{"name": entry.name, "synonyms": [], "thing": entry.thing} for entry in classes]


def _add_segment(app: FastAPI, service: Service) -> None:
    limits = service.limits
    multipart = SegmentBody.model_json_schema()
    multipart["properties"] = {
        **multipart["properties"],
        "image": {"type": "string", "format": "binary", "description": "The picture's file."},
    }
    multipart["required"] = ["image"]
    document = {"schema": {"type": "object", "required": ["model", "task", "height", "width", "segments", "classes", "things"]}}
    answered: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "The result, in the form of `format`",
            "content": {
                answers.JSON: document, NDJSON: _BINARY, answers.PNG: _BINARY, "multipart/mixed": _BINARY, answers.ZIP: _BINARY
            },
        }
    }  # fmt: skip

    @app.post(
        "/v1/segment",
        summary="Segment a picture by words",
        description=f"With `Accept: {NDJSON}` the answer is a line of JSON per stage, and in the last one the result or the "
        "reason of the failure; formats rle and polygons only.",
        response_class=Response,
        responses={**answered, **ERRORS},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": JsonBody.model_json_schema()},
                    "multipart/form-data": {"schema": multipart},
                },
            }
        },
    )
    async def segment(request: Request) -> Response:
        slot, handed_over = service.slot(), False
        try:
            deadline = time.monotonic() + limits.seconds
            parsed = await in_time(read_segment(request, service.models.specs, limits), deadline)
            call = parsed.call
            request.scope[FIELDS] |= {
                "model": call.model,
                "task": call.task,
                "classes": len(call.vocabulary),
                "pixels": call.size,
                "format": parsed.format,
            }
            if NDJSON in request.headers.get("accept", "") and parsed.format in ("rle", "polygons"):
                handed_over = True
                return _Events(service, slot, parsed, deadline)
            done = await service.result(call, deadline, request.receive)
            request.scope[FIELDS] |= done.cost
            kind, content = await asyncio.to_thread(_encoded, done, parsed)
            return Response(content, media_type=kind)
        except Exception as error:
            raise as_http(error, service, request.scope) from None
        finally:
            if not handed_over:
                slot.leave()

    @app.post(
        "/v1/export",
        summary="Convert a result to the formats of `lexiseg segment --format`, without computing it again",
        response_class=Response,
        responses={200: {"content": {answers.ZIP: _BINARY}}, **ERRORS},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "required": ["image", "result"],
                            "additionalProperties": False,
                            "properties": {
                                "image": {"type": "string", "format": "binary", "description": "The picture's file."},
                                "result": {"type": "string", "description": "The JSON of /v1/segment in the format rle."},
                                "files": {"type": "string", "description": "Names of formats, separated by commas."},
                            },
                        }
                    }
                },
            }
        },
    )
    async def export(request: Request) -> Response:
        with accepted(service, request.scope) as deadline:
            picture, record, formats = await in_time(read_export(request, limits), deadline)
            content = await asyncio.to_thread(answers.exported, picture, record, formats)
            return Response(content, media_type=answers.ZIP)


def _document(done: Done, parsed: Parsed) -> dict[str, Any]:
    content = answers.document(done.segmentation, parsed.call.model, polygons=parsed.format == "polygons")
    return {**content, "seconds": done.cost["stages"]}


def _encoded(done: Done, parsed: Parsed) -> tuple[str, bytes]:
    """Content type and content of an answer."""
    if parsed.format == "png":
        return answers.PNG, answers.label_map(done.segmentation)
    if parsed.format == "zip":
        return answers.ZIP, answers.archive(done.segmentation, parsed.stem, parsed.files)
    content = answers.encode_json(_document(done, parsed))
    if parsed.format == "multipart":
        return answers.mixed([(answers.JSON, content), (answers.PNG, answers.label_map(done.segmentation))])
    return answers.JSON, content


class _Events(Response):
    """Answer with a line of JSON per stage. It leaves the slot when it ends, or when the client has left."""

    def __init__(self, service: Service, slot: Slot, parsed: Parsed, deadline: float) -> None:
        super().__init__(media_type=NDJSON)
        self._service, self._slot, self._parsed, self._deadline = service, slot, parsed, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def line(content: Any, *, more: bool = True) -> None:
            body = answers.encode_json(content) + b"\n"
            await send({"type": "http.response.body", "body": body, "more_body": more})

        headers = [(b"content-type", NDJSON.encode()), (b"x-accel-buffering", b"no")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async with aclosing(self._service.run(self._parsed.call, self._deadline, receive)) as events:
                async for event in events:
                    if isinstance(event, tuple):
                        await line({"stage": event[0], "before": event[1]})
                    elif isinstance(event, Done):
                        scope[FIELDS] |= event.cost
                        await line({"stage": "encode"})
                        result = await asyncio.to_thread(_document, event, self._parsed)
                        await line({"stage": "done", "result": result}, more=False)
                    elif isinstance(event, Progress):
                        await line({"step": event.stage, "done": event.done, "total": event.total})
                    else:
                        await line({"stage": event})
        except Exception as error:
            reason = as_http(error, self._service, scope)
            scope[FIELDS]["outcome"] = reason.status_code
            if not isinstance(error, LeftError):
                await line({"stage": "failed", "status": reason.status_code, "detail": reason.detail}, more=False)
        finally:
            self._slot.leave()
