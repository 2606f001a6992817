"""Auto-annotation function of CVAT: cvat-cli runs it on the pictures of a task, and uploads what it returns.

    cvat-cli task auto-annotate 137 --function-module lexiseg.integrations.cvat -p "classes=str:dog, puppy; grass; sky"

Labels of the task are matched by name; a class's name is the first of its names. CVAT's SDK is imported by `create`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.client import Client
from lexiseg.errors import UsageError
from lexiseg.exports.cvat import encode_mask
from lexiseg.inference.pipeline import load
from lexiseg.ops.outlines import bounds, bridged
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Task
from lexiseg.text.vocabulary import Vocabulary

Shape = Literal["mask", "polygon", "rectangle"]


def create(
    classes: str,
    model: str | None = None,
    server: str | None = None,
    *,
    shape: str = "mask",
    task: str | None = None,
    threshold: float = 0.0,
    background: str | None = None,
    device: str = "auto",
) -> Function:
    """Return the function; cvat-cli's ``-p NAME=TYPE:VALUE`` gives the arguments.

    Args:
        classes: as for `Vocabulary.parse`: "dog, puppy; grass; sky", a built-in list, or a file.
        model: as for `lexiseg.load`, or one that the service offers.
        server: address of a `lexiseg serve` that computes, with its token in LEXISEG_TOKEN; None: this machine does.
        shape: shape of the annotations, "mask", "polygon" or "rectangle".
        task, background: as for `Pipeline`.
        threshold: minimum score in 0..1 where cvat-cli is called without ``--conf-threshold``.
        device: as for `lexiseg.load`.

    Raises:
        UsageError: CVAT's SDK is not installed, the shape is unknown, or as `lexiseg.load`, `Client` and `Vocabulary.parse`.
    """
    try:
        sdk = import_module("cvat_sdk.auto_annotation")
    except ImportError as error:
        raise UsageError(f"lexiseg.integrations.cvat needs cvat_sdk ({error}): pip install cvat-cli") from None
    if shape not in get_args(Shape):
        raise UsageError(f"unknown shape {shape!r}; CVAT gets {', '.join(get_args(Shape))}")
    vocabulary = Vocabulary.parse(classes)
    options: dict[str, Any] = {"task": cast(Task | None, task), "background": background}
    if server is None:
        segment: Callable[..., Segmentation] = load(model, device=device)
    else:
        segment = Client(server).segment
        options["model"] = model
    return Function(sdk, segment, vocabulary, cast(Shape, shape), threshold, options)


class Function:
    """A detection function, as ``cvat_sdk.auto_annotation`` defines it.

    Args:
        sdk: that module.
        segment: segments a picture, called as `Pipeline` is.
        vocabulary: the classes.
        shape: shape of the annotations.
        threshold: default of the context's.
        options: further arguments of ``segment``.

    Attributes:
        spec: the labels; the id of a label is that of its class.
    """

    def __init__(
        self,
        sdk: Any,
        segment: Callable[..., Segmentation],
        vocabulary: Vocabulary,
        shape: Shape,
        threshold: float,
        options: dict[str, Any],
    ) -> None:
        self._sdk, self._segment, self._vocabulary = sdk, segment, vocabulary
        self._shape, self._threshold, self._options = shape, threshold, options
        labels = [sdk.label_spec(name, label, type=shape) for label, name in enumerate(vocabulary.names)]
        self.spec = sdk.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Return the regions of a picture as annotations: a mask or rectangle per region, or a polygon per piece of it.

        Args:
            context: CVAT's: ``conf_threshold`` is the minimum score, with ``conv_mask_to_poly`` masks become polygons.
            image: the picture. [decided] It is turned by its EXIF data, as CVAT shows it.
        """
        threshold = self._threshold if context.conf_threshold is None else context.conf_threshold
        shape = "polygon" if self._shape == "mask" and context.conv_mask_to_poly else self._shape
        result = self._segment(image, self._vocabulary, threshold=threshold, **self._options)
        return [
            getattr(self._sdk, shape)(segment.label, points, score=segment.score)
            for segment, mask in zip(result.segments, result.masks, strict=True)
            if mask.any()
            for points in _points(mask, shape)
        ]


def _points(mask: NDArray[np.bool_], shape: Shape) -> list[list[float]]:
    """Points of the annotations of a mask [H, W], as CVAT counts them: corners of pixels, from 0 to W and H."""
    if shape == "mask":
        return [list(map(float, encode_mask(mask)))]
    if shape == "polygon":
        return [list(map(float, ring.ravel())) for ring in bridged(mask, "borders")]
    rows, columns = bounds(mask)
    return [[float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)]]
