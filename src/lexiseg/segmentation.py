"""Segmentation result of one picture, with methods to save and show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg import formats as known
from lexiseg.errors import UsageError
from lexiseg.exports import hover, objects, records
from lexiseg.ops.names import result_name
from lexiseg.ops.outlines import Ring, polygons_of_mask
from lexiseg.ops.packed import Masks, painted
from lexiseg.structures import PixelWindows, Segment, Task
from lexiseg.visualise.display import display
from lexiseg.visualise.figures import as_webp
from lexiseg.visualise.lettering import preferring
from lexiseg.visualise.overlay import colours_of, overlay, tinted

SHOWN = 800  # pixels of the longer side of a picture in a notebook


@dataclass(frozen=True)
class Segmentation:
    """Named regions of one image.

    Attributes:
        task: ``panoptic``, ``semantic`` or ``instance``.
        image: [H, W, 3] uint8 RGB, upright; of a tiled TIFF a `lexiseg.data.rasters.Raster`, which NumPy reads as such.
        names: the K class names of the vocabulary.
        things: K flags, True for things.
        segments: the N predicted regions; for ``semantic`` one per class that occurs.
        masks: [N, H, W] bool, one per segment. Disjoint, except for ``instance``. Of a tiled picture `PackedMasks`, which NumPy
            reads as such.
        source: the file of the image, if any.
        scores: [K, H, W] float16, the probability of each class at each pixel, if the model was called with ``keep_scores``.
    """

    task: Task
    image: NDArray[np.uint8] | PixelWindows = field(repr=False)
    names: tuple[str, ...]
    things: tuple[bool, ...] = field(repr=False)
    segments: tuple[Segment, ...]
    masks: Masks = field(repr=False)
    source: str | None = None
    scores: NDArray[np.float16] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, record: records.ResultRecord, image: NDArray[np.uint8]) -> Segmentation:
        """Return the result of a record.

        Args:
            record: the result, its masks as run lengths.
            image: its picture [H, W, 3] uint8, upright.

        Raises:
            UsageError: the picture is not of the record's size.
        """
        if image.shape[:2] != record.size:
            raise UsageError("the result is not of this picture: their sizes differ")
        masks = np.stack(list(record.masks())) if record.counts else np.zeros((0, *record.size), np.bool_)
        return cls(record.task, image, record.names, record.things, record.segments, masks, record.source)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.image.shape[0]), int(self.image.shape[1])

    @property
    def panoptic(self) -> NDArray[np.int32]:
        """Map of segment ids [H, W], 0 for void; where instances overlap the first is on top."""
        return painted(self.size, self.masks, [segment.id for segment in self.segments])

    @property
    def semantic(self) -> NDArray[np.int32]:
        """Map of labels [H, W], -1 for void."""
        table = np.full(max((segment.id for segment in self.segments), default=0) + 1, -1, np.int32)
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
            return overlay(np.asarray(self.image), self.segments, self.masks)

    def show(self) -> None:
        """Show the result: in a notebook with names under the pointer, else the overlay in the system's picture viewer.

        Without a screen the overlay is written to a temporary file, whose path is printed.
        """
        display(self, self.overlay)

    def to_pil(self) -> Image.Image:
        """Draw the picture with its regions tinted and outlined, at its size, without names and legend."""
        return tinted(np.asarray(self.image), self.segments, self.masks)

    def _repr_html_(self) -> str:
        """The result in a notebook: picture, regions with their names under the pointer, and a legend; self-contained."""
        picture = self.to_pil()
        picture.thumbnail((SHOWN, SHOWN))
        return hover.result_view(
            as_webp(picture), (picture.height, picture.width), self.masks, self.segments, colours_of(self.segments), self._title
        )

    @property
    def _title(self) -> str:
        height, width = self.size
        source = f"{self.source}, " if self.source else ""
        return f"{source}{width} × {height}, {self.task}"

    @property
    def void(self) -> float:
        """Fraction of the pixels in no region, to four digits."""
        return round(float((self.panoptic == 0).mean()), 4)

    def polygons(self) -> list[list[list[Ring]]]:
        """Outlines of the N segments: of each its polygons, of a polygon its exterior and then its holes, [corners, 2] x and y.

        They run along the borders of pixels, from (0, 0) to (W, H), and are exact: a pixel is in the mask if its centre is
        inside.
        """
        return [polygons_of_mask(mask) for mask in self.masks]

    def to_supervision(self) -> Any:
        """Return the segments as `supervision.Detections`, with masks, scores, labels and names.

        Raises:
            UsageError: supervision is not installed.
        """
        return objects.to_supervision(np.asarray(self.masks), self.segments)

    def to_fiftyone(self) -> Any:
        """Return the segments as `fiftyone.Detections`, with instance masks and scores.

        Raises:
            UsageError: fiftyone is not installed.
        """
        return objects.to_fiftyone(np.asarray(self.masks), self.segments)

    def to_pandas(self) -> Any:
        """Return the segments as a `pandas.DataFrame`, a row each.

        Raises:
            UsageError: pandas is not installed.
        """
        return objects.to_pandas(self.segments)

    def record(self, stem: str) -> records.ResultRecord:
        """Return the result with its masks as run lengths; ``stem`` is the prefix of its files."""
        return records.encoded(stem, self.source, self.task, self.size, self.names, self.things, self.segments, self.masks)

    def document(self) -> dict[str, Any]:
        """Return the result as plain values, without masks."""
        return records.summary(self.source, self.task, self.size, self.void, self.segments)

    def save(
        self,
        folder: str | Path,
        stem: str | None = None,
        *,
        formats: Sequence[str] = known.DEFAULT,
        font: str | Path | None = None,
    ) -> list[Path]:
        """Write the result into ``folder``; every file appears whole or not at all.

        By default ``STEM.overlay.png``, ``STEM.json`` (the segments, with their masks as COCO run lengths), and
        ``STEM.labels.png`` (class numbers) or ``STEM.panoptic.png`` (COCO's colour-coded ids). Files of whole folders, as of
        the format "coco", are written anew by each call, with all results in the folder. For many pictures call
        `lexiseg.formats.write_result` for each and `lexiseg.formats.write_folder` once.

        Args:
            folder: created if missing.
            stem: prefix of the file names; None: `result_name` of the source, unique per picture, or ``image`` for a picture
                without a file.
            formats: names of `lexiseg.formats.FORMATS`.
            font: as for `overlay`.

        Returns:
            The files written.

        Raises:
            DataError: the stem is not the name of a file in the folder or below it.
            OutputError: the folder or a file cannot be written, or a file would overwrite the picture.
            UsageError: the font file is not a font, a format is unknown, or it cannot hold the result.
        """
        stem = stem or (result_name(self.source) if self.source else "image")
        names = known.parse_formats(formats)
        with preferring(font):
            written = known.write_result(self, Path(folder), stem, names)
        return written + known.write_folder(Path(folder), names)
