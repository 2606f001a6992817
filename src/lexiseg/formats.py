"""Formats of results by name: what each writes for a picture, and what for a whole folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import OutputError, UsageError
from lexiseg.exports import coco, contact_sheet, cvat, label_studio, labels, panoptic_png, records, video, yolo
from lexiseg.exports.geojson import write_geojson
from lexiseg.exports.geotiff import write_geotiff
from lexiseg.exports.labelme import write_labelme
from lexiseg.exports.records import ResultRecord, read_records
from lexiseg.exports.scores import write_confidence, write_scores
from lexiseg.ops.files import write_json, write_png
from lexiseg.ops.locks import locked
from lexiseg.ops.names import below, is_file_of
from lexiseg.ops.rasters import require_rasterio
from lexiseg.structures import Task
from lexiseg.visualise.palette import class_colour

if TYPE_CHECKING:
    from lexiseg.segmentation import Segmentation

DEFAULT = ("overlay", "json", "map")
WAIT = 600.0  # seconds for another process that writes the files of the same folder
VIDEO_ENDINGS = {"json": video.LINES, "overlay": video.OVERLAY}  # of the files of a video's result
VIDEO_FORMATS = tuple(VIDEO_ENDINGS)
TASKS: tuple[Task, ...] = ("panoptic", "semantic", "instance")


@dataclass(frozen=True)
class Part:
    """File of one picture.

    Attributes:
        name: its path below the folder, with {} for the picture's stem.
        write: writes it, given its path, the result and its record.
    """

    name: str
    write: Callable[[Path, Segmentation, ResultRecord], None]


@dataclass(frozen=True)
class Format:
    """Format of results.

    Attributes:
        summary: what it is.
        parts: the files of a picture (keys of `PARTS`), by task; a task that is missing cannot be written so.
        shared: the files of the folder, by their paths below it, with what writes each from the records of all results.
        needs_scores: whether the result has to have `Segmentation.scores`.
    """

    summary: str
    parts: Mapping[Task, tuple[str, ...]]
    shared: Mapping[str, Callable[[Path, Sequence[ResultRecord]], None]] = field(default_factory=dict)
    needs_scores: bool = False


def _overlay(path: Path, result: Segmentation, _: ResultRecord) -> None:
    write_png(path, np.asarray(result.overlay()))


def _json(path: Path, result: Segmentation, record: ResultRecord) -> None:
    write_json(path, records.document(record, result.void), indent=1)


def _palette(path: Path, result: Segmentation, _: ResultRecord) -> None:
    labels.write_labels(path, result.semantic, len(result.names), _class_colours(len(result.names)))


def _labels_geotiff(path: Path, result: Segmentation, _: ResultRecord) -> None:
    count = len(result.names)
    values = labels.label_values(result.semantic, count)
    write_geotiff(path, values, labels.void_value(count), dict(enumerate(result.names)), result.source, _class_colours(count))


def _panoptic_geotiff(path: Path, result: Segmentation, _: ResultRecord) -> None:
    names = {segment.id: segment.name for segment in result.segments}
    write_geotiff(path, result.panoptic.astype(np.uint32), 0, names, result.source)


def _class_colours(count: int) -> NDArray[np.uint8]:
    return np.array([class_colour(label) for label in range(count)], np.uint8)


def _scores(path: Path, result: Segmentation, _: ResultRecord) -> None:
    assert result.scores is not None  # checked by `write_parts`
    write_scores(path, result.scores, result.names)


def _confidence(path: Path, result: Segmentation, _: ResultRecord) -> None:
    assert result.scores is not None  # checked by `write_parts`
    write_confidence(path, result.scores)


PARTS = {  # in the order in which they are listed; "json", from which the folder's files are made, is written last
    "overlay": Part(f"{{}}{contact_sheet.OVERLAY}", _overlay),
    "json": Part(f"{{}}{records.ENDING}", _json),
    "labels": Part("{}.labels.png", lambda path, result, _: labels.write_labels(path, result.semantic, len(result.names))),
    "panoptic": Part(
        f"{{}}{panoptic_png.ENDING}", lambda path, result, _: panoptic_png.write_panoptic_png(path, result.panoptic)
    ),
    "palette": Part("{}.palette.png", _palette),
    "scores": Part("{}.scores.npz", _scores),
    "confidence": Part("{}.confidence.png", _confidence),
    "labelme": Part("{}.labelme.json", lambda path, result, record: write_labelme(path, record, np.asarray(result.image))),
    "geojson": Part("{}.geojson", lambda path, _, record: write_geojson(path, record)),
    "labels-geotiff": Part("{}.labels.tif", _labels_geotiff),
    "panoptic-geotiff": Part("{}.panoptic.tif", _panoptic_geotiff),
    "yolo": Part(f"yolo/{yolo.PICTURE}", lambda path, result, _: write_png(path, np.asarray(result.image))),
}


def _all(*parts: str) -> dict[Task, tuple[str, ...]]:
    return dict.fromkeys(TASKS, parts)


FORMATS = {
    "overlay": Format("the picture with its regions tinted, outlined and named", _all("overlay")),
    "json": Format("segments with their masks as run lengths", _all("json")),
    "map": Format(
        "the task's label map or panoptic PNG; of instances none",
        {"semantic": ("labels",), "panoptic": ("panoptic",), "instance": ()},
    ),
    "palette": Format("label map, coloured up to 255 classes", _all("palette")),
    "scores": Format("probabilities of all classes, NumPy", _all("scores"), needs_scores=True),
    "confidence": Format("probability of the best class, PNG of 16 bits", _all("confidence"), needs_scores=True),
    "coco": Format("COCO instances, run lengths", _all("json"), {"coco.json": coco.write_folder}),
    "coco-polygons": Format("COCO instances, polygons", _all("json"), {"coco-polygons.json": coco.write_folder_of_polygons}),
    "coco-panoptic": Format(
        "COCO panoptic",
        {"panoptic": ("json", "panoptic"), "semantic": ("json", "panoptic")},
        {"coco-panoptic.json": panoptic_png.write_folder},
    ),
    "yolo": Format("data set for YOLO's segmentation", _all("json", "yolo"), {"yolo/data.yaml": yolo.write_folder}),
    "labelme": Format("LabelMe", _all("labelme")),
    "label-studio": Format(
        "tasks and labelling interface of Label Studio",
        _all("json"),
        {"label-studio.json": label_studio.write_folder, "label-studio.xml": label_studio.write_interface},
    ),
    "cvat": Format("CVAT for images 1.1", _all("json"), {"cvat.xml": cvat.write_folder}),
    "geojson": Format("GeoJSON, in degrees if the picture has a georeference, else in pixels", _all("geojson")),
    "geotiff": Format(
        "the task's label map or map of segment ids with the picture's georeference",
        {"semantic": ("labels-geotiff",), "panoptic": ("panoptic-geotiff",)},
    ),
    "html": Format("contact sheet of the folder", _all("overlay", "json"), {"contact-sheet.html": contact_sheet.write_folder}),
}


def parse_formats(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of formats, each once; items may hold several between commas.

    Raises:
        UsageError: a name is unknown, or there is none, or a format needs a library that is not installed.
    """
    formats = tuple(dict.fromkeys(name.strip() for item in names for name in item.split(",") if name.strip()))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        what = f"unknown format '{unknown[0]}'" if unknown else "no format"
        raise UsageError(f"{what}; there are {', '.join(FORMATS)}")
    if "geotiff" in formats:
        require_rasterio("--format geotiff")
    return formats


def needs_scores(formats: Iterable[str]) -> bool:
    """Return whether one of the formats needs `Segmentation.scores`."""
    return any(FORMATS[name].needs_scores for name in formats)


def _parts(formats: Iterable[str], task: Task) -> list[str]:
    """Keys of the parts of all formats, in the order of `PARTS`.

    Raises:
        UsageError: a format cannot hold the task's results.
    """
    chosen: set[str] = set()
    for name in formats:
        if task not in FORMATS[name].parts:
            allowed = ", ".join(FORMATS[name].parts)
            raise UsageError(f"format {name} cannot hold results of --task {task}, which may overlap; it holds {allowed}")
        chosen.update(FORMATS[name].parts[task])
    return [key for key in PARTS if key in chosen]


def result_files(folder: Path, stem: str, task: Task, formats: Sequence[str] = DEFAULT) -> list[Path]:
    """Return the paths of one picture's result.

    Raises:
        DataError: the stem is not the name of a file in the folder or below it.
        UsageError: a format cannot hold the task's results.
    """
    return [below(folder, PARTS[key].name.format(stem), f"results in {folder}") for key in _parts(formats, task)]


def folder_files(folder: Path, formats: Sequence[str] = DEFAULT) -> list[Path]:
    """Return the paths of the files that all results of a folder have in common."""
    return [folder / name for each in formats for name in FORMATS[each].shared]


def video_files(folder: Path, stem: str, formats: Iterable[str] = VIDEO_FORMATS) -> dict[str, Path]:
    """Return the paths of a video's result by format.

    Raises:
        DataError: the stem is not the name of a file in the folder or below it.
        UsageError: a format is not one of videos.
    """
    names = tuple(formats)
    if unfit := [name for name in names if name not in VIDEO_FORMATS]:
        raise UsageError(f"format {unfit[0]} is of pictures; results of videos have {' and '.join(sorted(VIDEO_FORMATS))}")
    return {name: below(folder, f"{stem}{VIDEO_ENDINGS[name]}", f"results in {folder}") for name in names}


def write_result(result: Segmentation, folder: Path, stem: str, formats: Sequence[str] = DEFAULT) -> list[Path]:
    """Write the files of one picture, and return their paths.

    Raises:
        DataError: the stem is not the name of a file in the folder or below it.
        OutputError: a file cannot be written, or would overwrite the picture.
        UsageError: a format cannot hold the result.
    """
    keys, paths = _parts(formats, result.task), result_files(folder, stem, result.task, formats)
    if result.source and (taken := [path for path in paths if is_file_of(path, result.source)]):
        raise OutputError(f"{taken[0]}: is the picture itself; choose another folder or another stem")
    if needs_scores(formats) and result.scores is None:
        raise UsageError("the result has no scores; call the model with keep_scores=True")
    record = result.record(stem)
    for key, path in sorted(zip(keys, paths, strict=True), key=lambda pair: pair[0] == "json"):
        PARTS[key].write(path, result, record)
    return paths


def write_folder(folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the files that all results of a folder have in common, from their JSON files, and return their paths.

    One process at a time writes them, so that each sees what the others before it have written.

    Raises:
        DataError: the JSON of a result is damaged.
        OutputError: a file cannot be written.
    """
    shared = {name: write for each in formats for name, write in FORMATS[each].shared.items()}
    if shared:
        with locked(folder, WAIT):
            results = read_records(folder)
            for name, write in shared.items():
                write(folder / name, results)
    return [folder / name for name in shared]
