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
    from lexiseg.backbones.clip import load_clip
    from lexiseg.backbones.mask_generator import generate_masks
    from lexiseg.backbones.sam_loading import load_sam
    from lexiseg.client import Client
    from lexiseg.errors import ImageError, LexisegError, OutputError, RunError, ServiceError, UsageError, WeightsError
    from lexiseg.inference.pipeline import Pipeline, from_pretrained, load
    from lexiseg.inference.video import SegmentedFrame, VideoSegmentation
    from lexiseg.methods import list_models
    from lexiseg.methods.base import Segmenter
    from lexiseg.ops.allocator import keep_freed_memory
    from lexiseg.segmentation import Segmentation
    from lexiseg.structures import Geometry, ImageBatch, MaskPrediction, PixelPrediction, Segment, TextEmbeddings, Trace
    from lexiseg.text.embed import embed_vocabulary
    from lexiseg.text.vocabulary import Vocabulary

__version__ = "0.1.0"

_HOMES = {
    "Client": "client",
    "Geometry": "structures",
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
    "SegmentedFrame": "inference.video",
    "Segmenter": "methods.base",
    "ServiceError": "errors",
    "TextEmbeddings": "structures",
    "Trace": "structures",
    "UsageError": "errors",
    "VideoSegmentation": "inference.video",
    "Vocabulary": "text.vocabulary",
    "WeightsError": "errors",
    "embed_vocabulary": "text.embed",
    "from_pretrained": "inference.pipeline",
    "generate_masks": "backbones.mask_generator",
    "keep_freed_memory": "ops.allocator",
    "list_models": "methods",
    "load": "inference.pipeline",
    "load_clip": "backbones.clip",
    "load_sam": "backbones.sam_loading",
}

__all__ = [
    "Client",
    "Geometry",
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
    "SegmentedFrame",
    "Segmenter",
    "ServiceError",
    "TextEmbeddings",
    "Trace",
    "UsageError",
    "VideoSegmentation",
    "Vocabulary",
    "WeightsError",
    "embed_vocabulary",
    "from_pretrained",
    "generate_masks",
    "keep_freed_memory",
    "list_models",
    "load",
    "load_clip",
    "load_sam",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the command line answers ``--help`` without waiting for torch."""
    if name in _HOMES:
        return getattr(import_module(f"lexiseg.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lexiseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
