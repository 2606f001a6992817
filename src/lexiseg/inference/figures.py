"""Figures of the papers for a user's own images: results of several models, and their intermediate features.

comparison   CMPF, Fig. 4 to 8 and 12: an image, its ground truth if available, and the result of each model
attention    CMPF, Fig. 11: attention of the query of a class in the last layer of each model
clusters     CMPF, Fig. 9: k-means of the features of CLIP, the pixel decoder and SAM
prompts      CMPF, Fig. 10: SAM's mask probabilities for box prompts
points       SAM-MI, Fig. 9: probabilities of point prompts, SAM's masks, and the merged masks
pseudo       ESC-Net, Fig. 3: from the correlations of a class to its pseudo prompts, in each block
similarity   FOV-Seg, Fig. 6: similarity of CLIP's patches to a class, in each model
correlation  ESC-Net, Fig. 6: correlations of a class before each block, and the decoded probabilities
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.sam import SamFamily
from lexiseg.data.dataset import Truth
from lexiseg.data.images import Pixels
from lexiseg.errors import UsageError
from lexiseg.inference.oracle import true_regions
from lexiseg.inference.pipeline import Pipeline, as_segmentation, as_tensor, regions_of
from lexiseg.ops.masks import boxes_of_masks
from lexiseg.postprocess import Region
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Geometry, MaskPrediction, PixelPrediction, Size, Task, Trace, size_of
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.visualise.figures import boxed, clusters, dotted, heat, painted, sheet, stacked

CLUSTERS = 8
TRACED = {"clip": "CLIP", "pixels": "pixel decoder", "sam": "SAM"}


@dataclass(frozen=True)
class Subject:
    """An image to draw figures of.

    Attributes:
        name: caption.
        pixels: image [H, W, 3] uint8.
        vocabulary: classes to segment.
        truth: ground truth with the labels of the vocabulary, or None.
    """

    name: str
    pixels: Pixels
    vocabulary: Vocabulary
    truth: Truth | None = None

    @property
    def size(self) -> Size:
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])


Models = Mapping[str, Pipeline]


def comparison(models: Models, subjects: Sequence[Subject], task: Task, most: int) -> Image.Image:  # noqa: ARG001
    """One row per image: the image, its ground truth, and the result of each model."""
    with_truth = any(subject.truth is not None for subject in subjects)
    rows = []
    for subject in subjects:
        panels = [Image.fromarray(subject.pixels)]
        if with_truth:
            panels.append(_true(subject).overlay())
        panels += [_segmented(pipeline, subject, task).overlay() for pipeline in models.values()]
        rows.append((subject.name, panels))
    return sheet(["picture", *(["truth"] if with_truth else []), *models], rows)


def attention(models: Models, subjects: Sequence[Subject], task: Task, most: int) -> Image.Image:
    """One row per class: attention of its highest-scoring query in the last layer of each model.

    The classes are those of the ground truth or, without one, of the last model's result.
    """
    rows = []
    for subject in subjects:
        traces = [_traced(pipeline, subject) for pipeline in models.values()]
        for name, (prediction, trace) in zip(models, traces, strict=True):
            if not (isinstance(prediction, MaskPrediction) and any(key.startswith("attention.") for key in trace)):
                raise UsageError(f"{name} has no attention of queries to show; leave it out")
        last = list(models.values())[-1]
        for label in _labels(last, subject, task, traces[-1][0], most):
            panels = [Image.fromarray(subject.pixels)]
            for prediction, trace in traces:
                assert isinstance(prediction, MaskPrediction)
                query = int(prediction.per_class()[0, :, label].argmax())
                layer = max(int(key.split(".")[1]) for key in trace if key.startswith("attention."))
                weights = _over_picture(trace[f"attention.{layer}"][query : query + 1], trace, subject.size)[0]
                panels.append(heat(subject.pixels, weights / max(weights.max(), 1e-12)))
            rows.append((subject.vocabulary.names[label], panels))
    if not rows:
        raise UsageError("nothing was found in these pictures to show the attention of; ask for other classes")
    return sheet(["picture", *models], rows)


def clustered(models: Models, subjects: Sequence[Subject], task: Task, most: int) -> Image.Image:  # noqa: ARG001
    """One row per image: k-means of the features of each model."""
    rows, columns = [], ["picture"]
    for subject in subjects:
        panels = [Image.fromarray(subject.pixels)]
        columns = ["picture"]
        for name, pipeline in models.items():
            trace = _traced(pipeline, subject)[1]
            for key, title in TRACED.items():
                if key in trace:
                    labels = clusters(_without_padding(trace[key], trace).float().cpu().numpy(), CLUSTERS)
                    panels.append(painted(labels).resize(subject.pixels.shape[1::-1], Image.Resampling.NEAREST))
                    columns.append(f"{title}, {name}")
        rows.append((subject.name, panels))
    return sheet(columns, rows)


@torch.no_grad()
def prompts(models: Models, subjects: Sequence[Subject], task: Task, most: int) -> Image.Image:
    """One row per image and model: SAM's probabilities for boxes of things, of the ground truth or else of the result."""
    rows = []
    for subject in subjects:
        for name, pipeline in models.items():
            sam = pipeline.segmenter.parts().get("sam")
            if not isinstance(sam, SamFamily):
                raise UsageError(f"{name} has no SAM to prompt; leave it out")
            result = _true(subject) if subject.truth is not None else _segmented(pipeline, subject, task)
            chosen = [number for number, segment in enumerate(result.segments) if segment.thing][:most]
            if not chosen:
                continue
            boxes = boxes_of_masks(torch.from_numpy(np.asarray(result.masks)[chosen])).float()
            probabilities = _prompted(sam, subject, boxes.to(pipeline.device))
            panels = [boxed(subject.pixels, [(a, b, c, d) for a, b, c, d in boxes.tolist()])]
            panels += [heat(subject.pixels, probability) for probability in probabilities]
            rows.append((subject.name, panels))
    if not rows:
        raise UsageError("no thing was found in these pictures whose box could be a prompt; ask for other classes")
    return sheet(["boxes", *(f"box {number}" for number in range(1, max(len(panels) for _, panels in rows)))], rows)


def points(models: Models, subjects: Sequence[Subject], task: Task, most: int) -> Image.Image:  # noqa: ARG001
    """One row per image and model: probability of point prompts (yellow: highest), SAM's masks, and the merged masks."""
    rows = []
    for subject in subjects:
        for name, pipeline in models.items():
            trace = _traced(pipeline, subject)[1]
            if "probabilities" not in trace:
                raise UsageError(f"{name} does not predict point prompts for SAM; leave it out")
            probability = _over_picture(trace["probabilities"], trace, subject.size)[0]
            panels = [Image.fromarray(subject.pixels), heat(subject.pixels, probability / max(probability.max(), 1e-12))]
            for key in ("sam_masks", "masks"):
                masks = painted(stacked(trace[key].cpu().numpy() > 0.5))
                panels.append(masks.resize(subject.pixels.shape[1::-1], Image.Resampling.NEAREST))
            rows.append((subject.name if len(models) == 1 else f"{subject.name}, {name}", panels))
    return sheet(["picture", "where SAM is asked", "SAM's masks", "put together"], rows)


def pseudo(models: Models, subjects: Sequence[Subject], task: Task, most: int) -> Image.Image:
    """One row per class and block: correlations, probabilities, binary mask, regions, and the pseudo points."""
    rows = []
    for subject, caption, trace, label, _ in _classes(models, subjects, task, most):
        for block in _blocks(trace):
            correlation, probability, regions = (
                trace[f"{name}_{block}"][label] for name in ("correlation", "probability", "regions")
            )
            ids = regions.cpu().numpy().round().astype(np.int64)
            cells = [painted(values) for values in ((ids > 0).astype(np.int64), ids)]
            maps = [image.resize(subject.pixels.shape[1::-1], Image.Resampling.NEAREST) for image in cells]
            peaks = [_peak(probability, regions == region, subject.size) for region in range(1, int(ids.max(initial=0)) + 1)]
            heats = [heat(subject.pixels, _normalised(values, subject.size)) for values in (correlation, probability)]
            rows.append((f"{caption}, block {block}", [*heats, *maps, dotted(subject.pixels, peaks)]))
    return _sheet_of_classes(["correlation", "probability", "binary mask", "regions", "pseudo points"], rows)


def correlation(models: Models, subjects: Sequence[Subject], task: Task, most: int) -> Image.Image:
    """One row per class and model: its correlations before each block, and its final probabilities."""
    rows, blocks = [], 0
    for subject, caption, trace, label, prediction in _classes(models, subjects, task, most):
        names = [f"correlation_{block}" for block in _blocks(trace)]
        blocks = max(blocks, len(names))
        maps = [_normalised(trace[name][label], subject.size) for name in names]
        last = prediction.geometries[0].upsample(prediction.probabilities[0, label : label + 1])[0]
        panels = [heat(subject.pixels, values) for values in [*maps, last.cpu().numpy()]]
        rows.append((caption, [Image.fromarray(subject.pixels), *panels]))
    return _sheet_of_classes(["picture", *(f"before block {n}" for n in range(1, blocks + 1)), "decoded"], rows)


def similarity(models: Models, subjects: Sequence[Subject], task: Task, most: int) -> Image.Image:
    """One row per class: cosine similarity of CLIP's patches to the class in each model, scaled to its range.

    The classes are those of the ground truth or, without one, of the last model's result.
    """
    rows = []
    for subject in subjects:
        traced = {name: (pipeline, *_traced(pipeline, subject)) for name, pipeline in models.items()}
        text = {name: pipeline.embed(subject.vocabulary) for name, pipeline in models.items()}
        for name, (_, _, trace) in traced.items():
            if "clip" not in trace or len(trace["clip"]) != text[name].vectors.shape[1]:
                raise UsageError(f"{name} has no patch embeddings to compare with classes; leave it out")
        pipeline, prediction, _ = list(traced.values())[-1]
        for label in _labels(pipeline, subject, task, prediction, most):
            panels = [Image.fromarray(subject.pixels)]
            for name, (_, _, trace) in traced.items():
                patches = functional.normalize(trace["clip"].float(), dim=0)
                cosine = torch.einsum("dhw,d->hw", patches, text[name].mean()[label].float())
                upsampled = _over_picture(cosine[None], trace, subject.size)[0]
                panels.append(heat(subject.pixels, _normalised(torch.from_numpy(upsampled), subject.size)))
            rows.append((subject.vocabulary.names[label], panels))
    return _sheet_of_classes(["picture", *models], rows)


FIGURES: dict[str, Callable[[Models, Sequence[Subject], Task, int], Image.Image]] = {
    "comparison": comparison,
    "attention": attention,
    "clusters": clustered,
    "prompts": prompts,
    "points": points,
    "pseudo": pseudo,
    "correlation": correlation,
    "similarity": similarity,
}


def _traced(pipeline: Pipeline, subject: Subject) -> tuple[MaskPrediction | PixelPrediction, Trace]:
    trace = Trace()
    return pipeline.predict(subject.pixels, pipeline.embed(subject.vocabulary), trace), trace


def _labels(
    pipeline: Pipeline, subject: Subject, task: Task, prediction: MaskPrediction | PixelPrediction, most: int
) -> list[int]:
    """Labels of the ground truth or, without one, of the model's result."""
    result = _segmented(pipeline, subject, task, prediction) if subject.truth is None else _true(subject)
    return list(dict.fromkeys(segment.label for segment in result.segments))[:most]


Row = tuple[Subject, str, Trace, int, PixelPrediction]


def _classes(models: Models, subjects: Sequence[Subject], task: Task, most: int) -> Iterator[Row]:
    """Yield (image, caption, trace, label, prediction) for each class of each image and model."""
    for subject in subjects:
        for name, pipeline in models.items():
            prediction, trace = _traced(pipeline, subject)
            if not (isinstance(prediction, PixelPrediction) and _blocks(trace)):
                raise UsageError(f"{name} has no correlation blocks to show; leave it out")
            for label in _labels(pipeline, subject, task, prediction, most):
                caption = subject.vocabulary.names[label] + ("" if len(models) == 1 else f", {name}")
                yield subject, caption, trace, label, prediction


def _blocks(trace: Trace) -> range:
    """Numbers of the blocks in a trace, from 1."""
    return range(1, 1 + sum(name.startswith("correlation_") for name in trace))


def _sheet_of_classes(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    if not rows:
        raise UsageError("nothing was found in these pictures to show the correlations of; ask for other classes")
    return sheet(columns, rows)


def _normalised(values: Tensor, size: Size) -> NDArray[np.float32]:
    """Scale a map [h, w] to 0..1 and resize it to the image."""
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low).clamp(min=1e-12)
    return functional.interpolate(scaled[None, None].float(), size, mode="bilinear")[0, 0].cpu().numpy()


def _peak(values: Tensor, region: Tensor, size: Size) -> tuple[float, float]:
    """Centre (x, y) of the highest cell of a region, in pixels of the image; ``values`` and ``region`` are [h, w]."""
    row, column = divmod(int(values.masked_fill(~region, -torch.inf).argmax()), values.shape[1])
    return (column + 0.5) / values.shape[1] * size[1], (row + 0.5) / values.shape[0] * size[0]


def _segmented(
    pipeline: Pipeline, subject: Subject, task: Task, prediction: MaskPrediction | PixelPrediction | None = None
) -> Segmentation:
    """Segment an image with a model, or post-process the given prediction."""
    text, policy = pipeline.embed(subject.vocabulary), pipeline.segmenter.policy
    regions = regions_of(prediction or pipeline.predict(subject.pixels, text), text, task, policy)
    return as_segmentation(task, subject.pixels, subject.vocabulary, regions)


def _true(subject: Subject) -> Segmentation:
    """The ground truth as a `Segmentation`, largest regions first."""
    assert subject.truth is not None
    masks, labels = true_regions(subject.truth)
    order = masks.flatten(1).sum(1).argsort(descending=True, stable=True).tolist()
    regions = [Region(mask=masks[number], label=int(labels[number]), score=1.0) for number in order]
    return as_segmentation("panoptic", subject.pixels, subject.vocabulary, regions)


def _without_padding(maps: Tensor, trace: Trace) -> Tensor:
    """Crop the padding from maps [N, h, w] of a trace."""
    if trace.geometry is None:
        return maps
    height, width = (max(1, round(cells)) for cells in trace.geometry.cells(size_of(maps)))
    return maps[:, :height, :width]


def _over_picture(maps: Tensor, trace: Trace, size: Size) -> NDArray[np.float32]:
    """Upsample maps [N, h, w] of a trace to the image, [N, H, W]."""
    geometry = trace.geometry or Geometry.unresized(size)
    return geometry.one_step().upsample(maps).cpu().numpy()


def _prompted(sam: SamFamily, subject: Subject, boxes: Tensor) -> Iterator[NDArray[np.float32]]:
    """Yield the probabilities [H, W] of SAM's mask with the highest predicted IoU for each box [N, 4]."""
    embedding, skips = sam.encode_with_skips(sam.preprocess(as_tensor(subject.pixels, boxes.device)))
    corners = sam.scale_points(boxes.reshape(-1, 2, 2), subject.size).flatten(1)
    logits, pred_iou = sam.decode(embedding, boxes=corners, skips=skips)
    best = logits[torch.arange(len(logits)), pred_iou.argmax(1)]
    yield from sam.geometry(subject.size).upsample(best).sigmoid().cpu().numpy()
