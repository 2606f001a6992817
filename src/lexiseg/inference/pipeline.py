"""Load a model by name, and segment images by class names."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lexiseg import postprocess
from lexiseg.backbones.hub import OWNED
from lexiseg.data.images import Picture, Pixels, as_pixels
from lexiseg.data.rasters import Raster, as_windows
from lexiseg.data.video import Excerpt, Video
from lexiseg.errors import RunError, UsageError, WeightsError
from lexiseg.inference import sharing
from lexiseg.inference.choice import check_takes_prompts, model_here
from lexiseg.inference.merging import merge_tiles
from lexiseg.inference.tiles import Tiling
from lexiseg.inference.tracks import GAP, IOU, Tracking
from lexiseg.inference.video import VideoSegmentation
from lexiseg.methods import MODELS
from lexiseg.methods.base import NamesRegions, Segmenter, check_runtime
from lexiseg.methods.prompts import Prompt, TakesPrompts, parse_prompts
from lexiseg.methods.shared import PREFIX, model_of_card
from lexiseg.methods.weights import read_card
from lexiseg.metrics.seen import seen_classes
from lexiseg.ops.files import path_exists
from lexiseg.ops.masks import areas_of_masks, boxes_of_masks
from lexiseg.ops.options import readings, with_value
from lexiseg.ops.packed import PackedMasks
from lexiseg.ops.progress import Callback, report, reporting
from lexiseg.postprocess import Policy, Region
from lexiseg.segmentation import Segmentation
from lexiseg.structures import ImageBatch, MaskPrediction, PixelPrediction, Segment, Task, TextEmbeddings, Trace
from lexiseg.text.templates import resolve_templates
from lexiseg.text.vocabulary import Classes, Vocabulary

REMEMBERED = 4  # vocabularies whose embeddings a pipeline caches
_EMBEDDING = RLock()  # global, because some tokenizers are not thread-safe and a Pipeline must stay copyable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Box = tuple[int, int, int, int]
_Words = tuple[Vocabulary, tuple[str, ...]]  # vocabulary and prompt templates


def load(
    name: str | None = None,
    *,
    weights: str | Path | Mapping[str, str | Path] | None = None,
    device: str | torch.device = "auto",
    dtype: str = "float32",
    seen: Classes | None = None,
    **options: Any,
) -> Pipeline:
    """Load a model.

    Args:
        name: name of the model, as in `lexiseg models`; ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``, a model that
            `Pipeline.push_to_hub` has written; "best" or "fast", see `lexiseg.inference.choice`; None: the best for photographs
            whose weights are on this machine. Weights that are not are downloaded.
        weights: local files in place of the published ones, by part ("clip", "sam"); or only the trained weights, as an
            official checkpoint or a folder in lexiseg's format.
        device: device; "auto" uses a GPU if available.
        dtype: "float32", or "bfloat16" / "float16" for automatic mixed precision.
        seen: class names of the training, in place of those stored with the weights; they define which classes are seen.
        options: options of the model's config (`lexiseg models --describe NAME` lists them), such as ``alpha=0.3``; nested
            ones as ``**{"generator.pred_iou_threshold": 0.8}``.

    Raises:
        UsageError: no or an unknown model, part, device, dtype or option, or an invalid value.
        WeightsError: weights are missing and cannot be downloaded, damaged, or belong to another model.
    """
    model = model_here(name)
    if isinstance(weights, str | Path):
        if model.source is None:
            names = ", ".join(model.weight_names)
            raise UsageError(f"nothing of {model.name} is trained: give weights of its parts as {{part: file}}, of {names}")
        weights = {model.method.key: weights}
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'; there are {', '.join(DTYPES)}")
    resolved = resolve_device(device)
    segmenter = model.load({part: str(path) for part, path in (weights or {}).items()}, options)
    if seen is not None:
        segmenter.training_classes = Vocabulary.parse(seen).class_names
    return Pipeline(segmenter.eval().to(resolved), device=resolved, dtype=DTYPES[dtype], cache="default")


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    weights: Mapping[str, str | Path] | None = None,
    **arguments: Any,
) -> Pipeline:
    """Load a model from a folder or from the Hugging Face hub.

    Args:
        source: a folder that `Pipeline.save_pretrained`, a training or ``lexiseg convert`` has written, or its
            ``model.safetensors``; else the repository of a model on the hub, ``OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``, or
            the name of a model. A folder of that name comes first.
        revision: branch, tag or commit of the repository.
        weights: local files in place of the published ones, by part.
        arguments: further ones of `load`: device, dtype, seen, and options.

    Raises:
        UsageError: as `load`; or the source is neither on this machine nor a name; or a revision of a folder.
        WeightsError: as `load`; or the folder has no weights with a card, or they are of an unknown model.
    """
    name = str(source)
    if path_exists(Path(source)):
        if revision is not None:
            raise UsageError(f"{source} is on this machine and has no revisions; omit revision, or write hf:OWNER/NAME")
        card = read_card(source)
        if card is None or not card.get("model"):
            raise WeightsError(
                f"{source} has no card, so lexiseg has not written it; for a checkpoint of the authors, "
                "lexiseg.load(NAME, weights=FILE)"
            )
        model = model_of_card(card, name, MODELS)
        return load(model.name, weights={**(weights or {}), model.method.key: source}, **arguments)
    if "/" in name and not name.startswith(PREFIX):
        if not OWNED.fullmatch(name.partition("@")[0]):
            raise UsageError(f"{name} is not on this machine; give a folder, or a repository of the hub as OWNER/NAME")
        name = f"{PREFIX}{name}"
    return load(name if revision is None else f"{name}@{revision}", weights=weights, **arguments)


def resolve_device(device: str | torch.device) -> torch.device:
    """Resolve "auto" or the name of a device, and check that the device works.

    Raises:
        UsageError: the device does not work on this machine.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device '{device}' does not work here ({str(error).splitlines()[0]}); use --device cpu") from None
    return resolved


@dataclass(frozen=True)
class Query:
    """What to segment in an image, see `Pipeline.query`.

    Attributes:
        vocabulary: the classes, with the background's.
        task: task that the model supports.
        policy: post-processing.
    """

    vocabulary: Vocabulary
    task: Task
    policy: Policy


class Pipeline:
    """A segmenter with image reading, cached text embeddings and post-processing. Thread-safe.

    Args:
        segmenter: segmenter in evaluation mode, on ``device``.
        device: device of the segmenter.
        dtype: dtype of automatic mixed precision; float32 disables it.
        cache: folder for text embeddings; "default": the user's cache, None: no cache.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        cache: str | Path | None = None,
    ) -> None:
        self.segmenter, self.device, self.dtype, self.cache = segmenter, torch.device(device), dtype, cache
        # Most recent vocabulary first. Read once per call and replaced as a whole, which keeps it thread-safe.
        self._texts: tuple[tuple[_Words, TextEmbeddings], ...] = ()

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None, **arguments: Any) -> Pipeline:
        """Load a model from a folder or from the Hugging Face hub, see `lexiseg.from_pretrained`."""
        return from_pretrained(source, revision=revision, **arguments)

    def save_pretrained(self, folder: str | Path, *, all_parts: bool = False, licence: str | None = None) -> Path:
        """Save the model for `from_pretrained`: ``model.safetensors``, ``card.json``, and a model card, ``README.md``.

        The frozen backbones are not saved: the card names the published weights that loading fetches.

        Args:
            folder: created if it does not exist.
            all_parts: also save the frozen backbones, so that loading needs no other files. Their licences then apply, too.
            licence: licence of the weights, such as "Apache-2.0"; None: that in the card of the weights.

        Returns:
            The folder.

        Raises:
            UsageError: nothing of the model is trained, or the pipeline was not made by `load`.
            OutputError: the folder cannot be written.
        """
        return sharing.save(self.segmenter, folder, all_parts=all_parts, licence=licence)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        all_parts: bool = False,
        licence: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the model to the Hugging Face hub, as `save_pretrained` writes it; ``hf:OWNER/NAME`` is then its name.

        Args:
            repo_id: repository, ``OWNER/NAME``; created if it does not exist.
            token: token with write access; None: that of ``hf auth login`` or HF_TOKEN.
            private: whether a new repository is private; None: as is the default of its owner.
            all_parts, licence: see `save_pretrained`.
            commit_message: message of the commit.

        Returns:
            The address of the commit.

        Raises:
            UsageError: as `save_pretrained`; or there is no token, or ``repo_id`` is not the name of a repository.
            OutputError: the hub refuses the upload, or cannot be reached.
        """
        return sharing.push(
            self.segmenter,
            repo_id,
            token=token,
            private=private,
            all_parts=all_parts,
            licence=licence,
            message=commit_message,
        )

    def on(self, data: str) -> Pipeline:
        """The pipeline with the options published for a data set, see `Segmenter.on`; itself if there are none."""
        segmenter = self.segmenter.on(data)
        if segmenter is self.segmenter:
            return self
        return self._like(segmenter)

    def with_options(self, options: Mapping[str, Any], owner: str = "the model") -> Pipeline:
        """The pipeline with other values of options that may be changed after training; the parameters are shared.

        Args:
            options: values by (dotted) name, as for `load`.
            owner: name of the model in messages.

        Raises:
            UsageError: an unknown option, one that the weights fix, or an invalid value.
        """
        check_runtime(self.segmenter.config, options, owner)
        changed = copy(self.segmenter)  # shallow: modules and parameters are shared
        for name, value in options.items():
            changed.config = with_value(changed.config, name, *readings(value), owner=owner)
        return self._like(changed)

    def _like(self, segmenter: Segmenter) -> Pipeline:
        return Pipeline(segmenter, device=self.device, dtype=self.dtype, cache=self.cache)

    @overload
    def __call__(
        self,
        picture: Picture,
        classes: Classes,
        *,
        task: Task | None = None,
        threshold: float = 0.0,
        background: str | None = None,
        points: Sequence[Any] | None = None,
        boxes: Sequence[Any] | None = None,
        keep_scores: bool = False,
        progress: bool | Callback = False,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Segmentation: ...

    @overload
    def __call__(
        self,
        picture: list[Any] | tuple[Any, ...],
        classes: Classes,
        *,
        task: Task | None = None,
        threshold: float = 0.0,
        background: str | None = None,
        points: Sequence[Any] | None = None,
        boxes: Sequence[Any] | None = None,
        keep_scores: bool = False,
        progress: bool | Callback = False,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> list[Segmentation]: ...

    def __call__(
        self,
        picture: Picture | list[Any] | tuple[Any, ...],
        classes: Classes,
        *,
        task: Task | None = None,
        threshold: float = 0.0,
        background: str | None = None,
        points: Sequence[Any] | None = None,
        boxes: Sequence[Any] | None = None,
        keep_scores: bool = False,
        progress: bool | Callback = False,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment one or several images by class names.

        Args:
            picture: a path, the bytes of a file, an open binary file, a PIL image, an array [H, W, 3] or a tensor [3, H, W]
                (uint8, or floating point in 0..1), see `lexiseg.data.images.as_pixels`; or a list of them of any sizes,
                processed as one batch.
            classes: class names as accepted by `Vocabulary.parse`: ``["dog, puppy", "grass"]``, ``"dog, puppy; grass"``, a
                dict, a file, or a built-in list.
            task: "panoptic", "semantic" or "instance"; default: the first task of the method.
            threshold: minimum score in 0..1; regions and pixels below it get no class.
            background: an additional class that competes with the others; its regions are removed.
            points: segment what is at these points alone, (x, y) each, in pixels of the upright image; a list of points instead
                of one is several points of one object. Only for methods that are `TakesPrompts`, and a single image.
            boxes: segment what is in these boxes alone, (left, top, right, bottom) in pixels. Each point and each box is a
                prompt of its own: the result, of task "instance", has one segment per prompt, points first, whose id is the
                number of the prompt; masks may overlap. A prompt that is void, or whose mask is empty, has no segment: a
                `UserWarning` names it, and the ids of the others remain.
            keep_scores: also keep the probability of each class at each pixel, 2 bytes each (`Segmentation.scores`).
            progress: show a progress bar while many names are embedded; or a function that is called with a
                `lexiseg.ops.progress.Progress` at each stage: read, names, predict (encode, points, name), finish; or tiles.
            tile: cut pictures that are larger than this into tiles of so many pixels a side, and merge their results
                (`lexiseg.inference.merging`), one tile at a time; a TIFF file is then read by windows (`lexiseg.data.rasters`).
                The result's masks are unpacked, and the image of a TIFF is read, when they are used.
            overlap: least overlap of neighbouring tiles in pixels, at most half of ``tile``; None: an eighth of it.

        Returns:
            The segmentation; for a list, a list in the same order.

        Raises:
            UsageError: no class, an invalid name, a task the model does not support, a threshold outside 0..1, an invalid
                size of tiles, or tiles with ``keep_scores``; points or boxes that are not in the image, or of several images,
                of another task, of tiles, or of a model that takes none.
            ImageError: an image cannot be read.
        """
        prompted = points is not None or boxes is not None
        if prompted:
            check_takes_prompts(type(self.segmenter))
            if isinstance(picture, list | tuple):
                raise UsageError("points and boxes are of one image: give it alone, not in a list")
            if task not in (None, "instance"):
                raise UsageError(f"points and boxes have results of task 'instance', not '{task}'; leave task out")
            if tile is not None:
                raise UsageError("points and boxes are not for tiles: leave out tile, or cut out the part of the image")
            task = "instance"
        query = self.query(classes, task=task, threshold=threshold, background=background)
        tiling = Tiling.of(tile, overlap)
        if tiling is not None and keep_scores:
            raise UsageError("probabilities of all classes are not kept of tiles: leave out tile, or keep_scores")
        pictures = picture if isinstance(picture, list | tuple) else [picture]
        with reporting(progress if callable(progress) else None):
            report("read")
            pixels = [as_pixels(source) if tiling is None else as_windows(source) for source in pictures]
            prompts = parse_prompts(points, boxes, (pixels[0].shape[0], pixels[0].shape[1])) if prompted else []
            report("names")
            text = self.embed(query.vocabulary, progress=progress is True)
            segmented: Iterable[Segmentation]
            if prompted:
                segmented = [self._prompted(np.asarray(pixels[0]), prompts, text, query, keep_scores)]
            elif tiling is None:
                segmented = self._whole([np.asarray(image) for image in pixels], text, query, keep_scores)
            else:
                segmented = (self._tiled(image, text, query, tiling) for image in pixels)
            results = [
                replace(result, source=str(source)) if isinstance(source, str | Path) else result
                for source, result in zip(pictures, segmented, strict=True)
            ]
        return results if pictures is picture else results[0]

    def video(
        self,
        path: str | Path,
        classes: Classes,
        *,
        task: Task | None = None,
        threshold: float = 0.0,
        background: str | None = None,
        tile: int | None = None,
        overlap: int | None = None,
        every: int = 1,
        start: float = 0.0,
        end: float | None = None,
        track_iou: float = IOU,
        track_gap: int = GAP,
    ) -> VideoSegmentation:
        """Segment a video by class names, a frame at a time, when the result is iterated over or saved.

        Args:
            path: the file.
            classes, task, threshold, background, tile, overlap: as in `__call__`.
            every: N, to segment every Nth frame.
            start, end: seconds, of the part to segment; the frame at ``end`` is not in it. None: all of the rest.
            track_iou: least IoU of the masks of a thing in two frames, see `lexiseg.inference.tracks`.
            track_gap: frames for which a thing may be missing and still be the same.

        Raises:
            UsageError: as `__call__`; an invalid option, or PyAV is not installed.
            ImageError: the file is missing, not a video, or too large.
        """
        self.query(classes, task=task, threshold=threshold, background=background)
        Tiling.of(tile, overlap)
        tracking, video = Tracking(track_iou, track_gap), Video(path, Excerpt(every, start, end))
        options: dict[str, Any] = {"task": task, "threshold": threshold, "background": background}
        segment = partial(self, classes=Vocabulary.parse(classes), tile=tile, overlap=overlap, **options)
        return VideoSegmentation(video, segment, tracking)

    def _whole(
        self, pictures: Sequence[Pixels], text: TextEmbeddings, query: Query, keep_scores: bool
    ) -> Iterator[Segmentation]:
        """Segment pictures [H, W, 3] as a batch."""
        report("predict")
        for number, (pixels, prediction) in enumerate(zip(pictures, self.predict_batch(pictures, text), strict=True)):
            report("finish", number, len(pictures))
            yield finish(pixels, prediction, text, query, keep_scores=keep_scores)

    def _prompted(
        self, pixels: Pixels, prompts: Sequence[Prompt], text: TextEmbeddings, query: Query, keep_scores: bool
    ) -> Segmentation:
        """Segment what prompts point at in a picture [H, W, 3]; the ids of the segments are the numbers of the prompts."""
        assert isinstance(self.segmenter, TakesPrompts)
        report("predict")
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            prediction = self.segmenter.predict_prompts(as_tensor(pixels, self.device), prompts, text)
        report("finish", 0, 1)
        regions: dict[int, Region] = {}
        for number, region in enumerate(postprocess.of_each_mask(prediction, query.policy), start=1):
            if region is None:
                warnings.warn(f"prompt {number}, {prompts[number - 1]}, has no class and no segment", stacklevel=3)
            else:
                regions[number] = region
        result = as_segmentation(query.task, pixels, query.vocabulary, list(regions.values()))
        segments = tuple(replace(segment, id=number) for segment, number in zip(result.segments, regions, strict=True))
        scores = next(postprocess.semantic_maps(prediction)).numpy() if keep_scores else None
        return replace(result, segments=segments, scores=scores)

    def _tiled(self, pixels: Pixels | Raster, text: TextEmbeddings, query: Query, tiling: Tiling) -> Segmentation:
        """Segment a picture in tiles, or whole if it is a single tile."""
        grid = tiling.grid((pixels.shape[0], pixels.shape[1]))
        if len(grid) == 1:
            return next(self._whole([np.asarray(pixels)], text, query, False))
        merged = merge_tiles(
            grid,
            lambda rows, columns: self.predict(pixels[rows, columns], text),
            lambda prediction: regions_of(prediction, text, query.task, query.policy),
            query.task,
            query.vocabulary.things,
            query.policy,
        )
        segments = described(query.vocabulary, [(region.label, region.score, region.area, region.box) for region in merged])
        masks = PackedMasks(grid.size, [region.pieces for region in merged])
        return Segmentation(query.task, pixels, query.vocabulary.names, tuple(query.vocabulary.things), segments, masks)

    def query(
        self, classes: Classes, *, task: Task | None = None, threshold: float = 0.0, background: str | None = None
    ) -> Query:
        """Check the arguments of a call.

        Args:
            classes, task, threshold, background: as in `__call__`.

        Raises:
            UsageError: as `__call__`.
        """
        task = task or self.segmenter.tasks[0]
        if task not in self.segmenter.tasks:
            raise UsageError(f"unknown task '{task}' for this model; it does {', '.join(self.segmenter.tasks)}")
        vocabulary = Vocabulary.parse(classes)
        if background is not None:
            vocabulary = vocabulary.with_background(background)
            hidden = frozenset({vocabulary.label(background.split(",")[0].split("|")[0])})
        else:
            hidden = frozenset()
        return Query(vocabulary, task, replace(self.segmenter.policy, threshold=threshold, background=hidden))

    def embed(self, vocabulary: Vocabulary, *, progress: bool = False) -> TextEmbeddings:
        """Embed a vocabulary on the model's device; the last `REMEMBERED` vocabularies are cached."""
        words = vocabulary, resolve_templates(self.segmenter.config.templates)
        text = self._cached(words)
        if text is None:
            with _EMBEDDING:
                text = self._cached(words) or self._embed(vocabulary, progress)  # another thread may have been faster
        self._texts = ((words, text), *(pair for pair in self._texts if pair[0] != words))[:REMEMBERED]
        return text

    def _cached(self, words: _Words) -> TextEmbeddings | None:
        return next((text for known, text in self._texts if known == words), None)

    def _embed(self, vocabulary: Vocabulary, progress: bool) -> TextEmbeddings:
        segmenter = self.segmenter
        text = segmenter.embed_text(vocabulary, cache=self.cache, progress=progress)
        if segmenter.training_classes is not None:
            seen = seen_classes(vocabulary.class_names, segmenter.training_classes)
            text = replace(text, seen=torch.from_numpy(seen))
        return text.to(self.device)

    def predict(self, pixels: Pixels, text: TextEmbeddings, trace: Trace | None = None) -> MaskPrediction | PixelPrediction:
        """Predict one image [H, W, 3] uint8, without post-processing."""
        return self._predict([pixels], text, trace)

    def predict_batch(self, pictures: Sequence[Pixels], text: TextEmbeddings) -> Sequence[MaskPrediction | PixelPrediction]:
        """Predict images [H, W, 3] of any sizes, one prediction each; images of equal network size are batched."""
        return self._predict(pictures, text).split() if pictures else []

    @torch.no_grad()
    def _predict(
        self, pictures: Sequence[Pixels], text: TextEmbeddings, trace: Trace | None = None
    ) -> MaskPrediction | PixelPrediction:
        images = ImageBatch.of([as_tensor(pixels, self.device) for pixels in pictures])
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.segmenter(images, text, trace=trace)

    def name_regions(self, pixels: Pixels, regions: Tensor, text: TextEmbeddings) -> MaskPrediction:
        """Classify given regions [R, H, W] bool of an image; only for methods that are `NamesRegions`."""
        assert isinstance(self.segmenter, NamesRegions)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.segmenter.name_regions(as_tensor(pixels, self.device), regions.to(self.device), text)


def as_tensor(pixels: Pixels, device: torch.device) -> Tensor:
    """Convert an image [H, W, 3] uint8 to a float tensor [3, H, W] in 0..1."""
    return torch.from_numpy(pixels).permute(2, 0, 1).to(device).float().div_(255)


def finish(
    pixels: Pixels,
    prediction: MaskPrediction | PixelPrediction,
    text: TextEmbeddings,
    query: Query,
    *,
    keep_scores: bool = False,
) -> Segmentation:
    """Post-process the prediction of one image [H, W, 3] uint8.

    Raises:
        RunError: a score is not finite.
    """
    regions = regions_of(prediction, text, query.task, query.policy)
    result = as_segmentation(query.task, pixels, query.vocabulary, regions)
    if keep_scores:
        result = replace(result, scores=next(postprocess.semantic_maps(prediction)).numpy())
    return result


@torch.no_grad()
def regions_of(prediction: MaskPrediction | PixelPrediction, text: TextEmbeddings, task: Task, policy: Policy) -> list[Region]:
    """Post-process the prediction of a single image into regions; for "semantic", one region per class."""
    if task == "semantic":
        score, label = next(postprocess.semantic_best(prediction))
        return postprocess.class_regions(score, postprocess.label_map(score, label, policy))
    if task == "panoptic":
        return postprocess.panoptic(prediction, text, policy)[0][1]
    return postprocess.instances(prediction, text, policy)[0]


def as_segmentation(task: Task, pixels: Pixels, vocabulary: Vocabulary, regions: Sequence[Region]) -> Segmentation:
    """Build a `Segmentation` from regions.

    Raises:
        RunError: a score is not finite.
    """
    size = pixels.shape[:2]
    stacked = torch.stack([region.mask for region in regions]) if regions else torch.zeros((0, *size), dtype=torch.bool)
    measured = zip(regions, areas_of_masks(stacked).tolist(), _coco_boxes(stacked), strict=True)
    segments = described(vocabulary, [(region.label, region.score, area, box) for region, area, box in measured])
    return Segmentation(task, pixels, vocabulary.names, tuple(vocabulary.things), segments, stacked.cpu().numpy())


def described(vocabulary: Vocabulary, regions: Sequence[tuple[int, float, int, Box]]) -> tuple[Segment, ...]:
    """Segments of regions, numbered from 1.

    Args:
        vocabulary: the classes.
        regions: label, score, area in pixels, and box (left, top, width, height) of each.

    Raises:
        RunError: a score is not finite.
    """
    segments = tuple(
        Segment(number, label, vocabulary.names[label], vocabulary.things[label], score, area, box)
        for number, (label, score, area, box) in enumerate(regions, start=1)
    )
    for segment in segments:
        if not np.isfinite(segment.score):
            raise RunError(f"the score of '{segment.name}' is not a finite number; check the weights, or try --dtype float32")
    return segments


def _coco_boxes(masks: Tensor) -> list[Box]:
    """Boxes (left, top, width, height) of masks [N, H, W]."""
    return [
        (left, top, right - left + 1, bottom - top + 1) for left, top, right, bottom in boxes_of_masks(masks).long().tolist()
    ]
