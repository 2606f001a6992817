"""Export results in standard formats: COCO instances, COCO panoptic, label maps."""

from lexiseg.exports.coco import categories, image_record, instance_annotations, write_ground_truth, write_predictions
from lexiseg.exports.labels import read_labels, write_classes, write_labels
from lexiseg.exports.panoptic_png import (
    ids_to_colours,
    panoptic_annotation,
    read_panoptic_png,
    segments_info,
    write_panoptic_json,
    write_panoptic_png,
)

__all__ = [
    "categories",
    "ids_to_colours",
    "image_record",
    "instance_annotations",
    "panoptic_annotation",
    "read_labels",
    "read_panoptic_png",
    "segments_info",
    "write_classes",
    "write_ground_truth",
    "write_labels",
    "write_panoptic_json",
    "write_panoptic_png",
    "write_predictions",
]
