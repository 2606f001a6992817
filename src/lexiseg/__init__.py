"""lexiseg: segment any image by words.

import lexiseg
segment = lexiseg.load("sam_clip-tiny")
result = segment("photo.jpg", ["dog, puppy", "grass", "sky"])
result.segments; result.panoptic; result.save("out/"); result.show()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lexiseg.errors import ImageError, LexisegError, OutputError, RunError, UsageError, WeightsError
    from lexiseg.inference.pipeline import Pipeline, load
    from lexiseg.methods.base import Segmenter
    from lexiseg.segmentation import Segmentation
    from lexiseg.structures import ImageBatch, MaskPrediction, PixelPrediction, Segment, TextEmbeddings, Trace
    from lexiseg.text.embed import embed_vocabulary
    from lexiseg.text.vocabulary import Vocabulary

__version__ = "0.1.0"

_HOMES = {
    "ImageBatch": "structures",
    "ImageError": "errors",
    "LexisegError": "errors",
    "MaskPrediction": "structures",
    "OutputError": "errors",
    "Pipeline": "inference.pipeline",
    "PixelPrediction": "structures",
    "RunError": "errors",
    "Segment": "structures",
    "Segmentation": "segmentation",
    "Segmenter": "methods.base",
    "TextEmbeddings": "structures",
    "Trace": "structures",
    "UsageError": "errors",
    "Vocabulary": "text.vocabulary",
    "WeightsError": "errors",
    "embed_vocabulary": "text.embed",
    "load": "inference.pipeline",
}

__all__ = [
    "ImageBatch",
    "ImageError",
    "LexisegError",
    "MaskPrediction",
    "OutputError",
    "Pipeline",
    "PixelPrediction",
    "RunError",
    "Segment",
    "Segmentation",
    "Segmenter",
    "TextEmbeddings",
    "Trace",
    "UsageError",
    "Vocabulary",
    "WeightsError",
    "embed_vocabulary",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the command line answers ``--help`` without waiting for torch."""
    if name in _HOMES:
        return getattr(import_module(f"lexiseg.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lexiseg' has no attribute '{name}'")
