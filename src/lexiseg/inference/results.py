"""Convert results for the metrics, and write predictions in the formats of other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lexiseg.data.dataset import Dataset, Sample
from lexiseg.errors import DataError
from lexiseg.exports import coco, panoptic_png
from lexiseg.exports.labels import write_labels
from lexiseg.ops.files import removed, write_json
from lexiseg.ops.names import below, same_on_some_disk
from lexiseg.ops.rle import encode_masks
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Instance, Instances, PanopticMap, PanopticSegment

ByTask = Mapping[str, Segmentation]


def measurable(result: Segmentation) -> Any:
    """Convert a result for the metrics of its task: labels [H, W], a `PanopticMap`, or `Instances`."""
    if result.task == "semantic":
        return result.semantic
    if result.task == "panoptic":
        return PanopticMap(result.panoptic, tuple(PanopticSegment(segment.id, segment.label) for segment in result.segments))
    masks = encode_masks(torch.from_numpy(np.asarray(result.masks)))
    return Instances(
        result.size,
        tuple(
            Instance(segment.label, counts, segment.area, segment.box, score=segment.score)
            for segment, counts in zip(result.segments, masks, strict=True)
        ),
    )


def refuse_shared_names(samples: Sequence[Sample]) -> None:
    """Raise DataError if the predictions of two samples would be the same file on case- or form-insensitive disks."""
    known: dict[str, Sample] = {}
    for sample in samples:
        other = known.setdefault(same_on_some_disk(sample.key), sample)
        if other is not sample:
            raise DataError(
                f"{other.image} and {sample.image}: their predictions would be the same file on some disks; rename one of them"
            )


def write_chunk(
    folder: Path,
    dataset: Dataset,
    samples: Sequence[Sample],
    predicted: Sequence[tuple[Sample, ByTask]],
    start: int,
    inputs: str = "",
) -> None:
    """Write the results of a chunk of images: PNGs, and JSON records as a fragment that `assemble` joins.

    ``semantic/KEY.png`` are label maps, ``panoptic/KEY.png`` segment ids in COCO's colours.

    Args:
        folder: folder of all predictions.
        dataset: data set with the category ids.
        samples: images of the chunk; files of an earlier run for those without a result are removed.
        predicted: samples with their results by task.
        start: index of the first image.
        inputs: digest of the inputs, for `is_kept`.

    Raises:
        DataError: a key is not a valid file name.
        OutputError: a file cannot be written.
    """
    removed(_fragment(folder, start))  # written last, it marks the chunk as complete
    with_result = {id(sample) for sample, _ in predicted}
    for sample in samples:
        if id(sample) not in with_result:
            for task in ("semantic", "panoptic"):
                removed(below(folder / task, f"{sample.key}.png", f"{sample.image}, its key"))
    records: dict[str, Any] = {"images": [], "panoptic": [], "instance": [], "inputs": inputs}
    for sample, by_task in predicted:
        for task, result in by_task.items():
            name = f"{sample.key}.png"
            path = below(folder / task, name, f"{sample.image}, its key")
            if task == "semantic":
                write_labels(path, result.semantic, len(result.names))
            elif task == "panoptic":
                panoptic_png.write_panoptic_png(path, result.panoptic)
                records[task].append(
                    panoptic_png.panoptic_annotation(sample.image_id, name, result.segments, dataset.category_ids)
                )
            else:
                records[task] += coco.instance_annotations(
                    np.asarray(result.masks), result.segments, sample.image_id, dataset.category_ids
                )
        size = next(iter(by_task.values())).size
        records["images"].append(coco.image_record(sample.image_id, sample.image.name, size))
    write_json(_fragment(folder, start), records)


def is_kept(folder: Path, start: int, inputs: str) -> bool:
    """Whether `write_chunk` has completed this chunk with the same ``inputs``."""
    try:
        return _read_fragment(_fragment(folder, start))["inputs"] == inputs
    except DataError:
        return False


def assemble(folder: Path, dataset: Dataset, tasks: Sequence[str], starts: Sequence[int]) -> list[Path]:
    """Join the fragments into ``panoptic.json`` and ``instances.json`` in COCO's results format.

    Raises:
        DataError: a fragment is missing or damaged.
        OutputError: a file cannot be written.
    """
    parts = [_read_fragment(_fragment(folder, start)) for start in starts]
    written = []
    if "panoptic" in tasks:
        written.append(folder / "panoptic.json")
        panoptic_png.write_panoptic_json(
            written[-1],
            [image for part in parts for image in part["images"]],
            [record for part in parts for record in part["panoptic"]],
            coco.categories(dataset.vocabulary.names, dataset.vocabulary.things, dataset.category_ids),
        )
    if "instance" in tasks:
        written.append(folder / "instances.json")
        coco.write_predictions(written[-1], [record for part in parts for record in part["instance"]])
    return written


def _fragment(folder: Path, start: int) -> Path:
    return folder / "parts" / f"{start:07d}.json"


def _read_fragment(path: Path) -> dict[str, Any]:
    """Read a fragment of `write_chunk`.

    Raises:
        DataError: the file is missing, damaged, or not a fragment.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run the same command again with --save-predictions") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run the same command again") from None
    lists = ("images", "panoptic", "instance")
    if (
        not isinstance(document, dict)
        or not all(isinstance(document.get(key), list) for key in lists)
        or "inputs" not in document
    ):
        raise DataError(f"{path} is not a list of predictions; delete it and run the same command again")
    return document
