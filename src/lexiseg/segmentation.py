"""Segmentation result of one picture, with methods to save and show it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.errors import OutputError
from lexiseg.exports import coco, labels, panoptic_png
from lexiseg.ops.files import write_json, write_png
from lexiseg.ops.names import below, is_file_of, result_name
from lexiseg.structures import Segment, Task
from lexiseg.visualise.lettering import preferring
from lexiseg.visualise.overlay import overlay

TASKS = ("panoptic", "semantic", "instance")
MAPS = {"semantic": ".labels.png", "panoptic": ".panoptic.png"}  # suffix of each task's map


@dataclass(frozen=True)
class Segmentation:
    """Named regions of one image.

    Attributes:
        task: ``panoptic``, ``semantic`` or ``instance``.
        image: [H, W, 3] uint8 RGB, upright.
        names: the K class names of the vocabulary.
        things: K flags, True for things.
        segments: the N predicted regions; for ``semantic`` one per class that occurs.
        masks: [N, H, W] bool, one per segment. Disjoint, except for ``instance``.
        source: the file of the image, if any.
    """

    task: Task
    image: NDArray[np.uint8] = field(repr=False)
    names: tuple[str, ...]
    things: tuple[bool, ...] = field(repr=False)
    segments: tuple[Segment, ...]
    masks: NDArray[np.bool_] = field(repr=False)
    source: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.image.shape[0]), int(self.image.shape[1])

    @property
    def panoptic(self) -> NDArray[np.int32]:
        """Map of segment ids [H, W], 0 for void; where instances overlap the one with the higher score is on top."""
        ids = np.zeros(self.size, np.int32)
        for segment, mask in zip(reversed(self.segments), self.masks[::-1], strict=True):
            ids[mask] = segment.id
        return ids

    @property
    def semantic(self) -> NDArray[np.int32]:
        """Map of labels [H, W], -1 for void."""
        table = np.full(len(self.segments) + 1, -1, np.int32)
        for segment in self.segments:
            table[segment.id] = segment.label
        return table[self.panoptic]

    @property
    def instances(self) -> tuple[tuple[Segment, NDArray[np.bool_]], ...]:
        """(segment, mask [H, W]) of each thing, highest score first."""
        pairs = zip(self.segments, self.masks, strict=True)
        return tuple(sorted((pair for pair in pairs if pair[0].thing), key=lambda pair: -pair[0].score))

    def overlay(self, font: str | Path | None = None) -> Image.Image:
        """Draw the picture with its regions tinted, outlined and named, and a legend below.

        Args:
            font: a font file (.ttf, .otf or .ttc) for the names. Letters it lacks are drawn in DejaVu Sans, which has Latin,
                Greek, Cyrillic and more, or else in a font installed on the machine. Letters that no font has are boxes,
                with one `UserWarning`.

        Raises:
            UsageError: the file is not a font.
        """
        with preferring(font):
            return overlay(self.image, self.segments, self.masks)

    def show(self) -> None:
        """Open the overlay in the system's picture viewer."""
        self.overlay().show()

    def document(self) -> dict[str, Any]:
        """Return the result as plain values, without masks."""
        height, width = self.size
        return {
            "source": self.source,
            "task": self.task,
            "height": height,
            "width": width,
            "void": round(float((self.panoptic == 0).mean()), 4),
            "segments": [
                {**asdict(segment), "score": round(segment.score, 4), "box": list(segment.box)} for segment in self.segments
            ],
        }

    def save(self, folder: str | Path, stem: str | None = None, *, font: str | Path | None = None) -> list[Path]:
        """Write the overlay and the masks into ``folder``; every file appears whole or not at all.

        ``STEM.overlay.png``, ``STEM.json`` (the segments, with their masks as COCO run lengths), and ``STEM.labels.png``
        (class numbers) or ``STEM.panoptic.png`` (COCO's colour-coded ids).

        Args:
            folder: created if missing.
            stem: prefix of the file names; None: `result_name` of the source, unique per picture, or ``image`` for a picture
                without a file.
            font: as for `overlay`.

        Returns:
            The files written.

        Raises:
            DataError: the stem is not the name of a file in the folder or below it.
            OutputError: the folder or a file cannot be written, or a file would overwrite the picture.
            UsageError: the font file is not a font.
        """
        stem = stem or (result_name(self.source) if self.source else "image")
        paths = result_files(Path(folder), stem, self.task)
        if self.source and (taken := [path for path in paths if is_file_of(path, self.source)]):
            raise OutputError(f"{taken[0]}: is the picture itself; choose another folder or another stem")
        write_png(paths[0], np.asarray(self.overlay(font)))
        annotations = coco.instance_annotations(self.masks, self.segments, image_id=0)
        rows = [
            {**row, "segmentation": annotation["segmentation"]}
            for row, annotation in zip(self.document()["segments"], annotations, strict=True)
        ]
        document = {**self.document(), "classes": list(self.names), "segments": rows}
        write_json(paths[1], document, indent=1)
        if self.task == "semantic":
            labels.write_labels(paths[2], self.semantic, len(self.names))
        if self.task == "panoptic":
            panoptic_png.write_panoptic_png(paths[2], self.panoptic)
        return paths


def result_files(folder: Path, stem: str, task: str) -> list[Path]:
    """Return the paths of one picture's result: overlay, segments, and, unless the task is "instance", the map.

    Raises:
        DataError: the stem is not the name of a file in the folder or below it.
    """
    endings = [".overlay.png", ".json", *([MAPS[task]] if task in MAPS else [])]
    return [below(folder, f"{stem}{ending}", f"results in {folder}") for ending in endings]
