"""``lexiseg segment``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from lexiseg import __version__
from lexiseg.cli import undisturbed
from lexiseg.cli.progress_line import ProgressLine
from lexiseg.cli.streams import complain, one_line, printable, tell
from lexiseg.cli.videos import VIDEO_OPTIONS, are_videos, check_videos, segment_videos
from lexiseg.cli.weights import fetch, missing
from lexiseg.client import Client, read_token
from lexiseg.data import official_names
from lexiseg.data.images import find_images
from lexiseg.data.urls import fetch_picture
from lexiseg.errors import ServiceError, UsageError
from lexiseg.exports.manifest import Manifest
from lexiseg.formats import DEFAULT as DEFAULT_FORMATS
from lexiseg.formats import (
    VIDEO_FORMATS,
    folder_files,
    needs_scores,
    parse_formats,
    result_files,
    video_files,
    write_folder,
    write_result,
)
from lexiseg.inference.choice import choose_model
from lexiseg.inference.fingerprint import digest, state_of
from lexiseg.inference.pipeline import load
from lexiseg.inference.tiles import Tiling
from lexiseg.methods.shared import PREFIX
from lexiseg.ops.files import make_writable
from lexiseg.ops.names import is_url, located, result_name
from lexiseg.segmentation import Segmentation
from lexiseg.text.vocabulary import ClassList, Vocabulary
from lexiseg.visualise.lettering import notice, preferring

DEFAULT_OUTPUT = "lexiseg-output"
HUB = PREFIX.removesuffix(":")
OFFICIAL = "official"  # of --names and --seen: the lists that `lexiseg data names` fetches


def run(arguments: argparse.Namespace) -> int:
    """Segment every image; failures are reported and do not stop the others."""
    with preferring(arguments.font):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    prompts = {name: given for name, given in (("points", arguments.point), ("boxes", arguments.box)) if given is not None}
    arguments.task = arguments.task or ("instance" if prompts else "panoptic")
    files = find_images(arguments.pictures, urls=arguments.allow_url or arguments.allow_private_url)
    if prompts:
        _check_prompts(arguments, files)
    videos = are_videos(files)
    check_videos(arguments, files)
    names = {file: result_name(file) for file in files}
    vocabulary = Vocabulary.parse(arguments.classes) if arguments.vocabulary is None else Vocabulary.load(arguments.vocabulary)
    formats = parse_formats(arguments.format) if arguments.format else VIDEO_FORMATS if videos else DEFAULT_FORMATS
    printed_only = arguments.json and not arguments.format
    folder = Path(arguments.output) if arguments.output else None if printed_only else Path(DEFAULT_OUTPUT)
    outputs: dict[str, list[Path]] = {}
    if folder is not None:
        for file, name in names.items():
            by_format = video_files(folder, name, formats) if videos else {}
            outputs[file] = list(by_format.values()) or result_files(folder, name, arguments.task, formats)
        _spare_pictures(outputs, folder_files(folder, formats))
        make_writable(folder)
        tell_of_boxes(vocabulary.names)
    _check_tiles(arguments, () if folder is None else formats)
    engine = _local(arguments) if arguments.server is None else _remote(arguments)
    manifest = None
    if folder is not None and (videos or len(files) > 1):  # [decided] a single picture is segmented anew
        manifest = Manifest(folder, _call(arguments, engine, vocabulary, formats))
        if not arguments.overwrite:
            files = _unfinished(files, outputs, manifest, "videos" if videos else "pictures", as_json=arguments.json)
    if not files:
        return _finish(folder, formats, as_json=arguments.json)
    segment = engine.start()
    options = {name: getattr(arguments, name) for name in ("task", "threshold", "background")}
    if videos:
        segment_frame = partial(segment, classes=vocabulary, **options)
        by_file = {file: dict(zip(formats, outputs.get(file, ()), strict=False)) for file in files}
        return segment_videos(arguments, by_file, engine.model, segment_frame, manifest)
    keep_scores = folder is not None and needs_scores(formats)
    segment_batch = partial(segment, classes=vocabulary, keep_scores=keep_scores, **prompts, **options)
    order = {file: number for number, file in enumerate(files, start=1)}

    def segment_files(chosen: str | list[str]) -> Any:
        first = chosen if isinstance(chosen, str) else chosen[0]
        number = f"{order[first]}/{len(files)} " if len(files) > 1 else ""
        with _notes() if prompts else nullcontext(), ProgressLine(f"{number}{Path(first).name}") as line:
            return _segment_files(partial(segment_batch, progress=line), chosen, private=arguments.allow_private_url)

    failed, batch = 0, 1 if "-" in files else arguments.batch  # standard input cannot be read a second time
    batches = (files[start : start + batch] for start in range(0, len(files), batch))
    segmented = chain.from_iterable(_segmented(segment_files, chunk) for chunk in batches)
    for file, result in segmented:
        try:
            if isinstance(result, Exception):
                raise result
            written = [] if folder is None else write_result(result, folder, names[file], formats)
            if manifest is not None:
                manifest.add(file, written)
        except (UsageError, ServiceError):
            raise  # it would be raised for all images
        except Exception as error:
            tell(error, about=file, debug=arguments.debug)
            failed += 1
            continue
        if arguments.json:
            print(
                json.dumps({"model": engine.model, **result.document(), "files": [str(path) for path in written]}),
                flush=True,
            )
        else:
            print(table(result, written, arguments.threshold, arguments.background, prompted=bool(prompts)))
    _finish(folder, formats, as_json=arguments.json)
    if failed:
        complain(f"{failed} of {len(files)} pictures failed")
    return 1 if failed else 0


def _check_prompts(arguments: argparse.Namespace, files: Sequence[str]) -> None:
    """Check that the other options combine with points and boxes.

    Raises:
        UsageError: there are several pictures, or an option does not combine with them.
    """
    if len(files) != 1:
        raise UsageError(f"--point and --box are of one picture, and there are {len(files)}: give one")
    if arguments.task != "instance":
        raise UsageError(f"--point and --box have results of task instance, not {arguments.task}: leave out --task")
    if arguments.tile is not None:
        raise UsageError("--point and --box are not for tiles: leave out --tile, or cut out the part of the picture")
    if arguments.server is not None:
        raise UsageError("a service takes no points and boxes: leave out --server, or --point and --box")


@contextmanager
def _notes() -> Iterator[None]:
    """Print warnings as notes: prompts without a class."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        yield
    for warning in caught:
        print(f"note: {printable(str(warning.message))}", file=sys.stderr)


def _finish(folder: Path | None, formats: Sequence[str], *, as_json: bool) -> int:
    """Write the files that all results of a folder have in common. Returns 0."""
    for path in [] if folder is None else write_folder(folder, formats):
        print(one_line(f"→ {path}"), file=sys.stderr if as_json else sys.stdout)
    return 0


@dataclass(frozen=True)
class Engine:
    """What segments the pictures.

    Attributes:
        model: name of the model.
        identity: what its results depend on besides the call: weights, training classes.
        start: makes it ready; returns a function with the arguments of `Pipeline.__call__`.
    """

    model: str
    identity: Sequence[Any]
    start: Callable[[], Callable[..., Any]]


def _local(arguments: argparse.Namespace) -> Engine:
    """A model on this machine; local weights count by name, size and date."""
    if arguments.token_file is not None:
        raise UsageError("--token-file is of a service: give its address with --server")
    weights, options = weights_by_part(arguments.weights), options_by_name(arguments.set)
    if weights and arguments.model is None:
        raise UsageError("--weights are of a model: name it with --model")
    model = choose_model(arguments.model, arguments.task, prompts=bool(arguments.point or arguments.box))
    seen = None if arguments.seen is None else training_list(arguments.seen)

    def start() -> Callable[..., Any]:
        fetch(model, missing(model, weights), yes=arguments.yes, ask=arguments.model is None)
        with undisturbed(), ProgressLine(f"loading {model.name}"):
            pipeline = load(model.name, weights=weights, device=arguments.device, dtype=arguments.dtype, seen=seen, **options)
        return partial(pipeline, tile=arguments.tile, overlap=arguments.overlap)

    return Engine(model.name, [model.identity, {part: (path, state_of(path)) for part, path in weights.items()}, seen], start)


def _remote(arguments: argparse.Namespace) -> Engine:
    """A model of the service at ``--server``."""
    local: dict[str, Any] = {
        "weights": [],
        "seen": None,
        "device": "auto",
        "dtype": "float32",
        "tile": None,
        "overlap": None,
    }  # defaults of what is fixed where the model is
    for name, default in local.items():
        if getattr(arguments, name) != default:
            raise UsageError(f"--{name} is of a model on this machine; leave it out, or leave out --server")
    options = {}
    for name, value in options_by_name(arguments.set).items():
        try:
            options[name] = float(value)
        except ValueError:
            raise UsageError(f"--set {name}={value}: a service takes numbers in 0..1; leave it out, or --server") from None
    client = Client(arguments.server, token=read_token(arguments.token_file))
    name = choose_model(arguments.model, arguments.task).name if arguments.model in ("fast", "best") else arguments.model
    row = client.model(name)
    return Engine(row["name"], ["service", row["digest"]], lambda: partial(client.segment, model=row["name"], options=options))


def _check_tiles(arguments: argparse.Namespace, formats: Sequence[str]) -> None:
    """Check the size of tiles before a model is loaded, and that the other options combine with them.

    Raises:
        UsageError: a size is invalid, or an option does not combine with tiles.
    """
    if Tiling.of(arguments.tile, arguments.overlap) is None:
        return
    if arguments.batch > 1:
        raise UsageError("--batch is of whole pictures, and --tile cuts each into tiles: leave one of them out")
    if needs_scores(formats):
        raise UsageError("formats scores and confidence hold all of a picture: leave out --tile, or choose other formats")


def _call(arguments: argparse.Namespace, engine: Engine, vocabulary: Vocabulary, formats: Sequence[str]) -> str:
    """Digest of everything but the pictures that results depend on."""
    names = ("task", "threshold", "background", "dtype", "font", "set", "tile", "overlap", *VIDEO_OPTIONS)
    values = {name: getattr(arguments, name) for name in names}
    return digest([__version__, engine.model, engine.identity, vocabulary, values, sorted(formats)])


def _unfinished(files: list[str], outputs: dict[str, list[Path]], manifest: Manifest, what: str, *, as_json: bool) -> list[str]:
    """The pictures or videos (``what``) whose results an earlier call has not written, with a note about the others."""
    finished = [file for file in files if manifest.has(file, outputs[file])]
    if finished:
        print(
            f"note: {len(finished)} of {len(files)} {what} are finished by an earlier call with these options; --overwrite "
            "segments them again",
            file=sys.stderr,
        )
    if as_json:
        for file in finished:
            print(json.dumps({"source": file, "skipped": True, "files": [str(path) for path in outputs[file]]}), flush=True)
    return [file for file in files if file not in set(finished)]


def _segment_files(segment: Callable[[Any], Any], files: str | list[str], *, private: bool) -> Any:
    """Segment a file, or several as a list; those at addresses are fetched."""
    if isinstance(files, list):
        pictures = [fetch_picture(file, private=private) if is_url(file) else file for file in files]
        return [replace(result, source=file) for file, result in zip(files, segment(pictures), strict=True)]
    return replace(segment(fetch_picture(files, private=private)), source=files) if is_url(files) else segment(files)


def _segmented(segment: Callable[[Any], Any], files: Sequence[str]) -> Iterable[tuple[str, Segmentation | Exception]]:
    """Each image with its segmentation or its error; if a batch fails, its images are tried one by one."""
    try:
        segmentations = segment(list(files)) if len(files) > 1 else [segment(files[0])]
    except Exception as error:
        if len(files) == 1:
            return [(files[0], error)]
        return chain.from_iterable(_segmented(segment, [file]) for file in files)
    return zip(files, segmentations, strict=True)


def tell_of_boxes(names: Iterable[str]) -> None:
    """Print a note if some letters of names will be drawn as boxes, for want of a font."""
    if text := notice(names):
        print(f"note: {printable(text)}", file=sys.stderr)


def table(
    result: Segmentation,
    written: list[Path],
    threshold: float = 0.0,
    background: str | None = None,
    *,
    prompted: bool = False,
) -> str:
    """Format the segments of an image as a table, largest first, with the paths of its files.

    Args:
        result: segmentation of the image.
        written: its files.
        threshold, background: options of the call, for advice if there are no segments.
        prompted: segments are of prompts, and listed by their numbers.
    """
    height, width = result.size
    lines = [f"{one_line(result.source or 'picture')}  {width} × {height}  {result.task}"]
    if not result.segments:
        lines.append(f"  nothing found: {_advice(result, threshold, background, prompted=prompted)}")
    else:
        names = {segment.id: f"{segment.id} " * prompted + one_line(segment.name) for segment in result.segments}
        longest = max(map(len, names.values()))
        lines.append(f"  {'name':<{longest}}  kind   score   area  box (left, top, width, height)")
        for segment in result.segments if prompted else sorted(result.segments, key=lambda segment: -segment.area):
            kind, fraction = "thing" if segment.thing else "stuff", segment.area / (height * width)
            name, box = names[segment.id], ", ".join(map(str, segment.box))
            lines.append(f"  {name:<{longest}}  {kind}  {segment.score:5.2f}  {fraction:5.1%}  {box}")
    return "\n".join([*lines, *(f"  → {one_line(str(path))}" for path in written)])


def _advice(result: Segmentation, threshold: float, background: str | None, *, prompted: bool) -> str:
    """Advice for a result without segments."""
    steps = ["lower --threshold"] if threshold > 0 else []
    if background is not None:
        steps.append(f"leave out --background {one_line(background)}")
    if result.task == "instance" and not prompted and not any(result.things):
        steps.append("none of the names is a thing, and instances are things: write 'NAME | thing', or leave out --task")
    else:
        steps.append("name more of what is in the picture")
    return ", or ".join(steps)


def weights_by_part(pairs: list[str]) -> dict[str, str]:
    """Parse the values of ``--weights``."""
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--weights {pair}: write PART=FILE, for example clip=ViT-B-16.safetensors")
    return dict(pair.split("=", 1) for pair in pairs)


def options_by_name(pairs: list[str]) -> dict[str, str]:
    """Parse the values of ``--set``."""
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--set {pair}: write OPTION=VALUE, for example alpha=0.3")
    return dict(pair.split("=", 1) for pair in pairs)


def parse_model(spec: str) -> tuple[str, str, dict[str, str], dict[str, str]]:
    """Parse ``[TITLE:]NAME[,PART=FILE][,OPTION=VALUE]…``. Returns title, name, weights by part and options.

    Raises:
        UsageError: the model is unknown, or a part of the text is not PART=FILE or OPTION=VALUE.
    """
    head, *pairs = spec.split(",")
    title, _, name = head.rpartition(":")
    if title == HUB or title.endswith(f":{HUB}"):
        title, name = title.removesuffix(HUB).removesuffix(":"), f"{PREFIX}{name}"
    model = choose_model(name, "panoptic")
    parts = model.weight_names
    weights = weights_by_part([pair for pair in pairs if pair.split("=")[0] in parts])
    options = options_by_name([pair for pair in pairs if pair.split("=")[0] not in parts])
    return title or name, model.name, weights, options


def training_list(name: str) -> Vocabulary:
    """The classes of ``--seen``: a built-in list, a file, or those that the official programs are trained on."""
    if name == OFFICIAL:
        return official_names.load(official_names.TRAINING).vocabulary
    return ClassList.load(name, unique=False).vocabulary


def _spare_pictures(outputs: dict[str, list[Path]], shared: list[Path]) -> None:
    """Check that no result would overwrite an input.

    Args:
        outputs: the results of each picture or video.
        shared: results of all of them together.

    Raises:
        UsageError: a result would overwrite an input.
    """
    inputs = {
        path: file
        for file in outputs
        if file != "-" and not is_url(file)
        for path in (Path(os.path.realpath(file)), located(file))
    }
    for file, results in outputs.items():
        for path in [*results, *shared]:
            if taken := inputs.get(located(path)):
                raise UsageError(
                    f"{taken} is a result of {file} and would be overwritten; leave it out, or choose another --output"
                )
