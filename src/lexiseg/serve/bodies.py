"""Bodies of requests: read within the limits, parsed, and checked.

Nothing in a body is taken as a path or an address: class lists are parsed from their text alone.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from lexiseg.errors import ImageError, UsageError
from lexiseg.exports.records import ResultRecord, record_of
from lexiseg.formats import needs_scores, parse_formats, result_files
from lexiseg.methods import model_named
from lexiseg.ops.memory import require_memory
from lexiseg.ops.pictures import opened_picture
from lexiseg.serve.jobs import Call
from lexiseg.serve.limits import Limits
from lexiseg.serve.models import ModelSpec, safe_options
from lexiseg.structures import Size, Task
from lexiseg.text.class_lists import entries_of_json, entries_of_lines, entries_of_string
from lexiseg.text.vocabulary import ClassList, Vocabulary, builtin_names

Format = Literal["rle", "polygons", "png", "multipart", "zip"]
MASK_PIXELS = 2_000_000_000  # of all masks together in a result that is exported
SCORE_BYTES = 6  # per class and pixel: float16 of the result, float32 while it is computed
PACKED_BYTES = 8  # further ones of scores in JSON: deflated, in base64, and as text
FIELDS = 20  # maximum fields of a form
STEM = "picture"  # of results of pictures without a name
_UNSAFE = re.compile(r"[^\w .()+-]")


class SegmentBody(BaseModel):
    """What to segment, in which classes, and the form of the answer."""

    model_config = ConfigDict(extra="forbid")

    classes: Annotated[
        str | list[str | dict[str, Any]] | None,
        Field(
            description="Class names: a string 'dog, puppy; grass | stuff' (or one class a line), a list of such classes, or a "
            'list of objects {"name", "synonyms", "thing"}. Give either classes or vocabulary.',
            examples=["dog, puppy; grass; sky"],
        ),
    ] = None
    vocabulary: Annotated[str | None, Field(description="A built-in list, see /v1/vocabularies.")] = None
    model: Annotated[str | None, Field(description="See /v1/models; default: the first.")] = None
    task: Annotated[Task | None, Field(description="Default: the first task of the model.")] = None
    threshold: Annotated[float, Field(ge=0, le=1, description="Minimum score.")] = 0.0
    background: Annotated[str | None, Field(description="An additional class that competes; its regions are removed.")] = None
    options: Annotated[
        dict[str, StrictFloat | StrictInt],
        Field(max_length=20, description="Options of the model that /v1/models lists, in 0..1."),
    ] = {}
    format: Annotated[
        Format,
        Field(
            description="rle, polygons: JSON with masks as COCO's compressed run lengths or polygons; png: the task's label "
            "map (semantic) or COCO panoptic PNG; multipart: multipart/mixed of JSON (rle) and PNG; zip: the files of `files`."
        ),
    ] = "rle"
    scores: Annotated[
        bool,
        Field(
            description="With the format rle: also the probability of each class at each pixel, as scores.shape [K, H, W] and "
            "scores.zlib, the base64 of their deflated little-endian float16."
        ),
    ] = False
    files: Annotated[
        str, Field(description="With the format zip: names of formats of `lexiseg segment --format`, separated by commas.")
    ] = "overlay,json,map"


class JsonBody(SegmentBody):
    """`SegmentBody` with the picture."""

    image: Annotated[str, Field(description="The picture's file in base64.", json_schema_extra={"contentEncoding": "base64"})]
    name: Annotated[str, Field(max_length=500, description="Name of the picture, for files in a zip.")] = STEM


@dataclass(frozen=True)
class Parsed:
    """A checked request: what to do, and the form of the answer.

    Attributes:
        call: what to do.
        format: form of the answer.
        files: names of formats, for a zip.
        stem: prefix of the files in a zip.
    """

    call: Call
    format: Format
    files: tuple[str, ...]
    stem: str


Body = TypeVar("Body", bound=BaseModel)


async def read_segment(request: Request, specs: Mapping[str, ModelSpec], limits: Limits) -> Parsed:
    """Read and check a request for a segmentation.

    Args:
        request: multipart/form-data with the file ``image``, or JSON (`JsonBody`).
        specs: models offered, the default first.
        limits: limits of the service.

    Raises:
        HTTPException: 413 for a picture that is too large, 415 for another content type, 422 for invalid content.
        UsageError, ImageError: invalid values, or a picture that cannot be read.
    """
    if _content_type(request) == "application/json":
        return await asyncio.to_thread(_parse_json, await read_json(request, JsonBody), specs, limits)
    picture, name, fields = await _form(request, limits)
    for key in ("classes", "options"):
        if fields.get(key, "").lstrip().startswith(("[", "{")):
            fields[key] = _json(fields[key], key)
    body = validated(SegmentBody, fields)
    return await asyncio.to_thread(parse, body, picture, name, specs, limits)


async def read_json(request: Request, model: type[Body]) -> Body:
    """Read the JSON of a request.

    Raises:
        HTTPException: 413 for a body that is too large, 415 for another content type, 422 for invalid content.
    """
    if _content_type(request) != "application/json":
        raise HTTPException(415, "send application/json")
    content = await request.body()
    return await asyncio.to_thread(lambda: validated(model, _json(content, "body")))


async def read_export(request: Request, limits: Limits) -> tuple[bytes, ResultRecord, tuple[str, ...]]:
    """Read a request for the files of a result: the picture, the result as /v1/segment answers it, and names of formats.

    Raises:
        HTTPException, UsageError, ImageError: as `read_segment`.
    """
    picture, name, fields = await _form(request, limits)
    if extra := sorted(fields.keys() - {"result", "files"}):
        raise HTTPException(422, f"unknown field {extra[0]!r:.60}; the fields are image, result and files")
    return await asyncio.to_thread(_parse_export, picture, name, fields, limits)


def _parse_export(
    picture: bytes, name: str, fields: Mapping[str, str], limits: Limits
) -> tuple[bytes, ResultRecord, tuple[str, ...]]:
    content = _json(fields.get("result", ""), "result")
    if not isinstance(content, dict) or not isinstance(content.get("segments"), list):
        raise HTTPException(422, "the field result must be the JSON that /v1/segment answers in the format rle")
    size, count = size_of_picture(picture, limits), len(content["segments"])
    if count * size[0] * size[1] > MASK_PIXELS:
        raise HTTPException(413, f"{count} masks of {size[1]} × {size[0]} pixels are too many to export; use the format zip")
    require_memory(2 * count * size[0] * size[1], "the masks")
    try:
        record = record_of({**content, "source": None}, stem_of(name))
    except UsageError as error:
        raise HTTPException(422, f"the field result is no result of /v1/segment: {str(error)[:200]}") from None
    if record.size not in (size, size[::-1]):
        raise HTTPException(
            422, f"the result is of {record.size[1]} × {record.size[0]} pixels, the picture has {size[1]} × {size[0]}"
        )
    files = parse_formats([fields.get("files", "overlay,json,map")])
    if needs_scores(files):
        raise HTTPException(422, "scores and confidence are not in a result; call /v1/segment with the format zip")
    _check_formats(record.task, files)
    return picture, record, files


def _parse_json(body: JsonBody, specs: Mapping[str, ModelSpec], limits: Limits) -> Parsed:
    try:
        picture = b64decode(body.image, validate=True)
    except (Base64Error, ValueError):
        raise HTTPException(422, "image is not base64; encode the bytes of the picture's file") from None
    return parse(body, picture, body.name, specs, limits)


def model_of(body: SegmentBody, specs: Mapping[str, ModelSpec]) -> str:
    """Return the name of the model of a request.

    Raises:
        HTTPException: 422, it is not offered.
    """
    model = body.model or next(iter(specs))
    if model not in specs:
        raise HTTPException(422, f"model {model!r:.60} is not offered here; there are {', '.join(specs)}")
    return model


def parse(body: SegmentBody, picture: bytes, name: str, specs: Mapping[str, ModelSpec], limits: Limits) -> Parsed:
    """Check a request whose fields are valid.

    Args:
        body: the fields.
        picture: the picture's file.
        name: its name.
        specs, limits: as for `read_segment`.

    Raises:
        HTTPException, UsageError, ImageError: as `read_segment`.
    """
    model = model_of(body, specs)
    tasks = model_named(model).tasks
    task = body.task or tasks[0]
    if task not in tasks:
        raise HTTPException(422, f"{model} does not do the task {task}; it does {', '.join(tasks)}")
    vocabulary, background = vocabulary_of(body), (body.background or "").strip() or None
    whole = vocabulary if background is None else vocabulary.with_background(background)
    if len(whole.all_names) > limits.names:
        raise HTTPException(413, f"{len(whole.all_names)} names are more than {limits.names}; name fewer classes or synonyms")
    files: tuple[str, ...] = parse_formats([body.files]) if body.format == "zip" else ()
    _check_formats(task, files)
    if body.format in ("png", "multipart") and task == "instance":
        raise HTTPException(422, "instances may overlap and have no label map; use the format rle, polygons or zip")
    if body.scores and body.format != "rle":
        raise HTTPException(422, f"scores are in the format rle, not in {body.format}; a zip has them by files=scores")
    size, keep_scores = size_of_picture(picture, limits), body.scores or needs_scores(files)
    if keep_scores:
        each = SCORE_BYTES + PACKED_BYTES * body.scores
        require_memory(each * len(whole) * size[0] * size[1], f"the scores of {len(whole)} classes")
    call = Call(
        model=model,
        options=_options(body.options, specs[model]),
        vocabulary=vocabulary,
        builtin=body.classes is None,
        task=task,
        threshold=body.threshold,
        background=background,
        picture=picture,
        size=size,
        keep_scores=keep_scores,
    )
    return Parsed(call, body.format, files, stem_of(name))


def vocabulary_of(body: SegmentBody) -> Vocabulary:
    """Return the classes of a request, without the background's.

    Raises:
        HTTPException: 422, none or two are given, or the list is unknown.
        UsageError: they are no classes.
    """
    if (body.classes is None) == (body.vocabulary is None):
        raise HTTPException(422, "give either classes, such as 'dog, puppy; grass', or vocabulary, a built-in list")
    if body.vocabulary is not None:
        if body.vocabulary not in builtin_names():
            raise HTTPException(422, f"no built-in list is called {body.vocabulary!r:.60}; /v1/vocabularies has their names")
        return Vocabulary.builtin(body.vocabulary)
    if not isinstance(body.classes, str):
        return ClassList.of(list(entries_of_json(json.dumps(body.classes), "classes"))).vocabulary
    if len(body.classes.strip().splitlines()) > 1:
        return ClassList.of(entries_of_lines(body.classes, "classes")).vocabulary
    return ClassList.of(entries_of_string(body.classes)).vocabulary


def _options(values: Mapping[str, float], spec: ModelSpec) -> tuple[tuple[str, float], ...]:
    safe = safe_options(spec.config())
    for name, value in values.items():
        if name not in safe:
            raise HTTPException(422, f"{spec.name} has no option {name!r:.60} for requests; there are {', '.join(safe)}")
        if not 0 <= value <= 1:
            raise HTTPException(422, f"option {name} must be a number in 0..1, not {value:.6g}")
    return tuple(sorted((name, float(value)) for name, value in values.items()))


def _check_formats(task: Task, files: Sequence[str]) -> None:
    """Raise UsageError if a format cannot hold the results of a task, or of a picture that is sent."""
    if "geotiff" in files:
        raise UsageError(
            "geotiff needs the file of the picture on this machine, with its georeference; lexiseg segment writes it"
        )
    result_files(Path(), STEM, task, files)


def size_of_picture(picture: bytes, limits: Limits) -> Size:
    """Return (height, width) of a picture by its header, as stored: EXIF may turn it.

    Raises:
        HTTPException: 413, too many bytes or pixels.
        ImageError: it is no picture.
    """
    if not picture:
        raise ImageError("image: is empty (0 bytes)")
    if len(picture) > limits.upload:
        raise HTTPException(413, f"a picture of {len(picture):,} bytes is more than {limits.upload:,}; scale it down first")
    with opened_picture(io.BytesIO(picture), "image", error=ImageError) as opened:
        wide, high = opened.size
    if wide * high > limits.pixels:
        raise HTTPException(413, f"{wide} × {high} pixels are more than {limits.pixels:,}; scale the picture down first")
    return high, wide


def stem_of(name: str) -> str:
    """Return the prefix of result files for a picture called ``name``: letters that every disk takes, and no folder."""
    plain = _UNSAFE.sub("_", name.replace("\\", "/").rpartition("/")[2]).strip(" .")
    return plain[:80].strip(" .") or STEM


async def _form(request: Request, limits: Limits) -> tuple[bytes, str, dict[str, str]]:
    """Read a form with the file ``image``. It stays in memory. Returns the file, its name, and the other fields."""
    if _content_type(request) != "multipart/form-data":
        raise HTTPException(415, "send multipart/form-data with the file image, or application/json")
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=FIELDS, max_part_size=limits.body)
    parser.spool_max_size = limits.body  # nothing of a picture is written to the disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(422, f"the form cannot be read: {error.message}") from None
    except (ValueError, KeyError) as error:  # of python-multipart, such as a boundary that is missing
        raise HTTPException(422, f"the form cannot be read: {type(error).__name__}") from None
    try:
        image, fields = form.get("image"), {}
        for key, value in form.multi_items():
            if key in fields:
                raise HTTPException(422, f"the field {key!r:.60} stands twice in the form")
            if isinstance(value, str) and value:  # forms send what is not filled in as an empty field
                fields[key] = value
        if not isinstance(image, UploadFile):
            raise HTTPException(422, "the form has no file image; send the picture as a file of that name")
        return await image.read(), image.filename or STEM, fields
    finally:
        await form.close()


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _json(content: str | bytes, what: str) -> Any:
    try:
        return json.loads(content)
    except RecursionError:
        raise HTTPException(422, f"the {what} is JSON nested too deep") from None
    except ValueError:
        raise HTTPException(422, f"the {what} is not JSON") from None


def validated(model: type[Body], values: Any) -> Body:
    """Return the values as a model.

    Raises:
        HTTPException: 422, one of them is invalid.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:60]
        raise HTTPException(422, f"{where or 'the body'}: {first['msg']}") from None
