"""The result a user holds: what is where in one picture, and how to keep or show it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.exports import coco, labels, panoptic_png
from lexiseg.ops.files import write_json, write_png
from lexiseg.structures import Segment
from lexiseg.visualise.overlay import overlay

TASKS = ("panoptic", "semantic", "instance")


@dataclass(frozen=True)
class Segmentation:
    """Named regions of one image.

    Attributes:
        task: ``panoptic``, ``semantic`` or ``instance``.
        image: [H, W, 3] uint8 RGB, upright.
        names: the K class names asked for.
        things: which of them are things.
        segments: the regions found; for ``semantic`` one a class that occurs.
        masks: [N, H, W] bool, one a segment. Disjoint, except for ``instance``.
        source: the file the image came from, if any.
    """

    task: str
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
        """Map of segment ids [H, W], 0 where nothing is named; where instances overlap the better one is on top."""
        ids = np.zeros(self.size, np.int32)
        for segment, mask in zip(reversed(self.segments), self.masks[::-1], strict=True):
            ids[mask] = segment.id
        return ids

    @property
    def semantic(self) -> NDArray[np.int32]:
        """Map of class numbers [H, W], -1 where nothing is named."""
        table = np.full(len(self.segments) + 1, -1, np.int32)
        for segment in self.segments:
            table[segment.id] = segment.label
        return table[self.panoptic]

    @property
    def instances(self) -> tuple[tuple[Segment, NDArray[np.bool_]], ...]:
        """(segment, mask [H, W]) of every thing, best first."""
        pairs = zip(self.segments, self.masks, strict=True)
        return tuple(sorted((pair for pair in pairs if pair[0].thing), key=lambda pair: -pair[0].score))

    def overlay(self) -> Image.Image:
        """The picture with its regions tinted, outlined and named, and a legend below."""
        return overlay(self.image, self.segments, self.masks)

    def show(self) -> None:
        """Open the overlay in the system's picture viewer."""
        self.overlay().show()

    def document(self) -> dict[str, Any]:
        """What was found, as plain values (no masks)."""
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

    def save(self, folder: str | Path, stem: str | None = None) -> list[Path]:
        """Write the overlay and the masks into ``folder``; every file appears whole or not at all.

        ``STEM.overlay.png``, ``STEM.json`` (the segments, with their masks as COCO run lengths), and ``STEM.labels.png``
        (class numbers) or ``STEM.panoptic.png`` (COCO's colour-coded ids).

        Raises:
            OutputError: the folder or a file cannot be written.
        """
        folder = Path(folder)
        stem = stem or (Path(self.source).stem if self.source else "image")
        paths = [folder / f"{stem}.overlay.png", folder / f"{stem}.json"]
        write_png(paths[0], np.asarray(self.overlay()))
        annotations = coco.instance_annotations(self.masks, self.segments, image_id=0)
        rows = [
            {**row, "segmentation": found["segmentation"]}
            for row, found in zip(self.document()["segments"], annotations, strict=True)
        ]
        document = {**self.document(), "classes": list(self.names), "segments": rows}
        write_json(paths[1], document, indent=1)
        if self.task == "semantic":
            paths.append(folder / f"{stem}.labels.png")
            labels.write_labels(paths[-1], self.semantic, len(self.names))
        if self.task == "panoptic":
            paths.append(folder / f"{stem}.panoptic.png")
            panoptic_png.write_panoptic_png(paths[-1], self.panoptic)
        return paths
