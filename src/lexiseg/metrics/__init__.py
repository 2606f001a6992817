"""Streaming metrics: panoptic quality, average precision, mIoU and mask recall, exact under any split of the images."""

from lexiseg.metrics.base import Metric
from lexiseg.metrics.files import Score, score_instances, score_panoptic, score_semantic
from lexiseg.metrics.instance import AveragePrecision
from lexiseg.metrics.panoptic import PanopticQuality
from lexiseg.metrics.recall import MaskRecall
from lexiseg.metrics.seen import seen_classes, seen_groups
from lexiseg.metrics.semantic import SemanticScores

__all__ = [
    "AveragePrecision",
    "MaskRecall",
    "Metric",
    "PanopticQuality",
    "Score",
    "SemanticScores",
    "score_instances",
    "score_panoptic",
    "score_semantic",
    "seen_classes",
    "seen_groups",
]
