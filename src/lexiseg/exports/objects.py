"""Results as objects of other libraries, which are imported when they are first needed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.structures import Segment


def to_supervision(masks: NDArray[np.bool_], segments: Sequence[Segment]) -> Any:
    """Return masks [N, H, W] and their segments as `supervision.Detections`.

    Raises:
        UsageError: supervision is not installed.
    """
    boxes = np.array([segment.box for segment in segments], np.float32).reshape(-1, 4)
    return _library("supervision").Detections(
        xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
        mask=masks,
        confidence=np.array([segment.score for segment in segments], np.float32),
        class_id=np.array([segment.label for segment in segments], int),
        data={
            "class_name": np.array([segment.name for segment in segments], str),
            "segment_id": np.array([segment.id for segment in segments], int),
        },
    )


def to_fiftyone(masks: NDArray[np.bool_], segments: Sequence[Segment]) -> Any:
    """Return masks [N, H, W] and their segments as `fiftyone.Detections`, each mask within its box.

    Raises:
        UsageError: fiftyone is not installed.
    """
    fiftyone = _library("fiftyone")
    height, width = masks.shape[1:]
    detections = []
    for segment, mask in zip(segments, masks, strict=True):
        left, top, wide, high = segment.box
        detections.append(
            fiftyone.Detection(
                label=segment.name,
                bounding_box=[left / width, top / height, wide / width, high / height],
                mask=mask[top : top + high, left : left + wide].copy(),
                confidence=segment.score,
                index=segment.id,
            )
        )
    return fiftyone.Detections(detections=detections)


def to_pandas(segments: Sequence[Segment]) -> Any:
    """Return segments as a `pandas.DataFrame`, a row each: id, label, name, thing, score, area, left, top, width, height.

    Raises:
        UsageError: pandas is not installed.
    """
    columns = ("id", "label", "name", "thing", "score", "area", "left", "top", "width", "height")
    rows = [(each.id, each.label, each.name, each.thing, each.score, each.area, *each.box) for each in segments]
    return _library("pandas").DataFrame(rows, columns=list(columns))


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} cannot be imported ({error}); install it: pip install {name}") from None
