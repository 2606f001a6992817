"""Measuring results: panoptic quality, average precision, mIoU, recall of masks; streamed, and exact under any split."""

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
