"""Results in the forms that metrics take, and as files that other tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lexiseg.data.dataset import Dataset, Sample
from lexiseg.errors import DataError
from lexiseg.exports import coco, panoptic_png
from lexiseg.exports.labels import write_labels
from lexiseg.ops.files import write_json
from lexiseg.ops.names import below, same_on_some_disk
from lexiseg.ops.rle import encode_masks
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Instance, Instances, PanopticMap, PanopticSegment

ByTask = Mapping[str, Segmentation]


def measurable(found: Segmentation) -> Any:
    """A result as the metrics of its task take it: labels [H, W], a `PanopticMap`, or `Instances`."""
    if found.task == "semantic":
        return found.semantic
    if found.task == "panoptic":
        return PanopticMap(found.panoptic, tuple(PanopticSegment(segment.id, segment.label) for segment in found.segments))
    masks = encode_masks(torch.from_numpy(found.masks))
    return Instances(
        found.size,
        tuple(
            Instance(segment.label, counts, segment.area, segment.box, score=segment.score)
            for segment, counts in zip(found.segments, masks, strict=True)
        ),
    )


def refuse_shared_names(samples: Sequence[Sample]) -> None:
    """Raise DataError if the results of two samples would be one file where letters' case or form is not told apart."""
    known: dict[str, Sample] = {}
    for sample in samples:
        other = known.setdefault(same_on_some_disk(sample.key), sample)
        if other is not sample:
            raise DataError(
                f"{other.image} and {sample.image}: their predictions would be the same file on some disks; rename one of them"
            )


def write_chunk(folder: Path, dataset: Dataset, found: Sequence[tuple[Sample, ByTask]], start: int) -> None:
    """Write the results of some pictures: PNGs at once, JSON records as a fragment that `assemble` joins.

    ``semantic/KEY.png`` are label maps, ``panoptic/KEY.png`` COCO's coloured ids.

    Raises:
        DataError: a key is none that may name a file.
        OutputError: a file cannot be written.
    """
    records: dict[str, list[Any]] = {"images": [], "panoptic": [], "instance": []}
    for sample, by_task in found:
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
                records[task] += coco.instance_annotations(result.masks, result.segments, sample.image_id, dataset.category_ids)
        size = next(iter(by_task.values())).size
        records["images"].append(coco.image_record(sample.image_id, sample.image.name, size))
    write_json(_fragment(folder, start), records)


def assemble(folder: Path, dataset: Dataset, tasks: Sequence[str], starts: Sequence[int]) -> list[Path]:
    """Join the fragments into ``panoptic.json`` and ``instances.json`` (COCO's results format).

    Raises:
        OutputError: a file cannot be written.
    """
    parts = [json.loads(_fragment(folder, start).read_text(encoding="utf-8")) for start in starts]
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
