"""Results in the forms that the service answers."""

from __future__ import annotations

import io
import json
import secrets
import zipfile
import zlib
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.data.images import decode_image
from lexiseg.exports import coco, records
from lexiseg.exports.records import ResultRecord
from lexiseg.formats import write_folder, write_result
from lexiseg.segmentation import Segmentation

JSON, PNG, ZIP = "application/json", "image/png", "application/zip"


def document(result: Segmentation, model: str, *, polygons: bool = False) -> dict[str, Any]:
    """Return a result as JSON values: as in its JSON file (docs/formats.md), with the model, and scores with all digits.

    If the result has `Segmentation.scores`, they are in the field ``scores``, see `packed`.

    Args:
        result: the result.
        model: name of the model.
        polygons: masks as COCO's polygons instead of run lengths.
    """
    content = records.document(result.record(""), result.void)
    for row, segment, mask in zip(content["segments"], result.segments, result.masks, strict=True):
        row["score"] = segment.score
        if polygons:
            row["segmentation"] = coco.polygons(mask)
    del content["source"]
    return {"model": model, **content, **({} if result.scores is None else {"scores": packed(result.scores)})}


def packed(scores: NDArray[np.float16]) -> dict[str, Any]:
    """Return probabilities [K, H, W] as JSON values: the shape, and the little-endian values, deflated, in base64."""
    values = zlib.compress(np.ascontiguousarray(scores, "<f2").tobytes(), 1)
    return {"shape": list(scores.shape), "zlib": b64encode(values).decode()}


def label_map(result: Segmentation) -> bytes:
    """Return the PNG that the format ``map`` writes: a label map, or COCO's panoptic PNG."""
    (content,) = _written(result, "map", ["map"]).values()
    return content


def mixed(parts: Sequence[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Return the content type and body of multipart/mixed; ``parts`` are content types and contents."""
    boundary = secrets.token_hex(16)
    body = b"".join(
        b"--%s\r\nContent-Type: %s\r\n\r\n%s\r\n" % (boundary.encode(), kind.encode(), part) for kind, part in parts
    )
    return f"multipart/mixed; boundary={boundary}", body + b"--%s--\r\n" % boundary.encode()


def archive(result: Segmentation, stem: str, formats: Sequence[str]) -> bytes:
    """Return a zip of the files that `lexiseg segment --format` writes for a picture called ``stem``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in _written(result, stem, formats).items():
            compressed = name.endswith((".png", ".npz"))
            target.writestr(name, content, zipfile.ZIP_STORED if compressed else zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def exported(picture: bytes, record: ResultRecord, formats: Sequence[str]) -> bytes:
    """Return a zip of the files of a result that was answered before.

    Raises:
        UsageError: the picture is not of its size.
    """
    return archive(Segmentation.of(record, decode_image(picture, "image")), record.stem, formats)


def _written(result: Segmentation, stem: str, formats: Sequence[str]) -> dict[str, bytes]:
    """Write the files of a result to a temporary folder; returns their contents by name."""
    with TemporaryDirectory(prefix="lexiseg-") as name:
        folder = Path(name)
        paths = [*write_result(result, folder, stem, formats), *write_folder(folder, formats)]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in dict.fromkeys(paths)}


def encode_json(content: Any) -> bytes:
    """Encode JSON values compactly, in UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")
