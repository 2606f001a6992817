"""Evaluate a model on a data set, in chunks that can be resumed and distributed.

The images are divided into chunks of `CHUNK`, in the data set's order. The additive statistics of each chunk are written to a
file below ``parts``, and the result is computed from their sums. So an interrupted run resumes, several processes or machines
with a common folder divide the chunks, and the metrics do not depend on how the work was divided.
A chunk is evaluated again if its inputs have changed (`lexiseg.inference.fingerprint`), if an image failed, or if predictions
are to be saved and are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from lexiseg.data.corrupt import corrupt, parse
from lexiseg.data.dataset import Dataset, Sample
from lexiseg.data.images import Pixels, read_image
from lexiseg.errors import DataError, RunError, UsageError, explained
from lexiseg.inference import oracle, results
from lexiseg.inference.fingerprint import Inputs, digest, fingerprint
from lexiseg.inference.pipeline import Pipeline, as_segmentation, regions_of
from lexiseg.methods.base import NamesRegions, in_groups
from lexiseg.metrics.base import Metric
from lexiseg.metrics.instance import AveragePrecision
from lexiseg.metrics.panoptic import PanopticQuality
from lexiseg.metrics.recall import MaskRecall
from lexiseg.metrics.semantic import AbsentClasses, SemanticScores
from lexiseg.ops.ahead import read_ahead
from lexiseg.ops.files import write_atomically, write_json
from lexiseg.ops.rle import area_of_counts, encode_masks
from lexiseg.postprocess import Policy
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Instance, Instances, MaskPrediction, PixelPrediction, Task, TextEmbeddings, masks_of

CHUNK = 16  # images
LVIS_DETECTIONS = 300  # maximum number of instances per image with federated ground truth
FORGIVING, RECALL = "semantic, hypernyms forgiven", "mask recall"  # metrics besides those of the tasks
RECALLED = {"semantic": "regions of classes", "panoptic": "panoptic segments", "instance": "instances"}  # truths of the recall

Metrics = dict[str, Metric[Any, Any]]
Prediction = MaskPrediction | PixelPrediction


@dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation: all that metrics depend on besides weights and files.

    Attributes:
        model, data: names of model and data set.
        tasks: tasks to evaluate; each image is predicted once for all of them.
        limit: number of images, the first ones; None: all.
        oracle: "masks" or "labels", see `lexiseg.inference.oracle`; None: no oracle.
        corrupt: corruption such as "blur:3", see `lexiseg.data.corrupt`.
        threshold: minimum score of a labelled region or pixel.
        absent: which classes mIoU averages over, see `lexiseg.metrics.semantic.ABSENT_CLASSES`.
        recall: also compute the class-agnostic recall of all predicted masks, see `recall_truth`.
        groups: named sets of labels with separate metrics ("seen", "unseen").
        forgiven: for each label, the predicted labels that also count as correct; None: no such metric.
        names: source of the class names, if not the data set's own: a file, or "official".
        seen: source of the names of the training's classes, likewise.
        options: options of the model that may be changed after training.
        policy: post-processing.
        published: where the options published for the data set are, see `lexiseg.methods.base.Published`.
        given: options given by the user, which are not replaced by those published for the data set.
        exif: whether ground truth refers to the "upright" image or to the pixels as "stored", if the image has an EXIF
            orientation and the sizes do not tell.
    """

    model: str
    data: str
    tasks: tuple[Task, ...]
    limit: int | None = None
    oracle: str | None = None
    corrupt: str | None = None
    threshold: float = 0.0
    absent: AbsentClasses = "official"
    recall: bool = False
    groups: Mapping[str, frozenset[int]] | None = None
    forgiven: tuple[frozenset[int], ...] | None = None
    names: str | None = None
    seen: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    exif: Literal["upright", "stored"] = "upright"

    def document(self) -> dict[str, Any]:
        """The protocol as JSON values, with sets of labels as digests."""
        plain = {name: sorted(labels) for name, labels in (self.groups or {}).items()}
        forgiven = None if self.forgiven is None else digest([sorted(labels) for labels in self.forgiven])
        groups = {name: f"{len(labels)} classes, {digest(labels)}" for name, labels in plain.items()}
        lists = {name: list(getattr(self, name)) for name in ("tasks", "published", "given")}
        return {**asdict(self), **lists, "groups": groups, "forgiven": forgiven}


@dataclass(frozen=True)
class Shard:
    """The chunks of one of several processes: every ``count``-th, from the ``index``-th.

    Attributes:
        index: index of the process.
        count: number of processes.
    """

    index: int = 0
    count: int = 1


def evaluate(
    pipeline: Pipeline,
    dataset: Dataset,
    protocol: Protocol,
    folder: Path,
    *,
    shard: Shard = Shard(),
    keep_going: bool = False,
    keep_predictions: bool = False,
    progress: bool = False,
    batch: int = 1,
    workers: int = 0,
) -> None:
    """Evaluate the chunks of this shard that are missing in ``folder`` or outdated; `collect` computes the metrics.

    Args:
        pipeline: model.
        dataset: data set to evaluate on.
        protocol: settings of the evaluation.
        folder: folder of this evaluation alone.
        shard: chunks of this process.
        keep_going: record images that fail for any reason and continue, instead of raising an error.
        keep_predictions: write predictions below ``folder/predictions``, in COCO's formats and as label maps.
        progress: show a progress bar on stderr, if that is a terminal.
        batch: images of a chunk to predict together; results are equal up to rounding.
        workers: threads that read images and ground truth ahead.

    Raises:
        UsageError: model or data set lacks a task, or the folder holds an evaluation by another protocol.
        RunError: an image failed and ``keep_going`` is False; DataError and ImageError for damaged files. Finished chunks
            are kept, and the same call resumes after them.
        DataError: the predictions of two images would be the same file, with ``keep_predictions``.
    """
    for task in protocol.tasks:
        for owner, known in ((protocol.model, pipeline.segmenter.tasks), (protocol.data, dataset.tasks)):
            if task not in known:
                raise UsageError(f"{owner} has no task '{task}'; it has {', '.join(known)}")
    samples = _samples(dataset, protocol)
    if keep_predictions:
        results.refuse_shared_names(samples)
    document = {**protocol.document(), **fingerprint(pipeline, samples)}
    _claim(folder, document)
    inputs = Inputs(pipeline, dataset, document)
    chunks = range(0, len(samples), CHUNK)[shard.index :: shard.count]
    pictures = sum(len(samples[start : start + CHUNK]) for start in chunks)
    bar = tqdm(total=pictures, desc=protocol.data, unit="picture", disable=None if progress else True)

    def jobs() -> Iterator[_Job]:
        """Yield the images of the chunks to evaluate."""
        for start in chunks:
            chunk = samples[start : start + CHUNK]
            state = inputs.of(chunk)  # before reading, so that files changed meanwhile are read again by the next run
            kept = _is_current(_part(folder, start), state, range(start, start + len(chunk)), new_metrics(dataset, protocol))
            if kept and (not keep_predictions or results.is_kept(folder / "predictions", start, state)):
                bar.update(len(chunk))
            else:
                yield from (_Job(start, state, number, sample) for number, sample in enumerate(chunk, start))

    def read(job: _Job) -> Read:
        return read_sample(dataset, protocol, job.sample)

    with bar, closing(read_ahead(jobs(), read, workers=workers, ahead=batch + workers)) as pairs:
        for (start, state), given in groupby(pairs, key=lambda pair: (pair[0].start, pair[0].state)):
            chunk = samples[start : start + CHUNK]
            metrics, failed = new_metrics(dataset, protocol), {}
            predicted: list[tuple[Sample, results.ByTask]] = []
            for sample, measured in _measured(pipeline, dataset, protocol, given, batch):
                if isinstance(measured, UsageError):
                    raise measured  # it would be raised for all images
                if isinstance(measured, Exception):
                    if not keep_going:
                        raise _about(sample, measured) from measured
                    failed[sample.key] = explained(measured)
                else:
                    image_metrics, result = measured
                    for name, metric in metrics.items():
                        metric.merge(image_metrics[name])
                    predicted.append((sample, result))
                bar.update()
            if keep_predictions:
                results.write_chunk(folder / "predictions", dataset, chunk, predicted, start, state)
            _write_part(_part(folder, start), metrics, failed, state)


def collect(dataset: Dataset, protocol: Protocol, folder: Path) -> tuple[Metrics, dict[str, str]]:
    """Compute the metrics over all chunks. Also returns the failed images, with the reason.

    Raises:
        DataError: a chunk is damaged or missing, if another process has not finished.
    """
    total = new_metrics(dataset, protocol)
    failed: dict[str, str] = {}
    for start in range(0, len(_samples(dataset, protocol)), CHUNK):
        part = _read_part(_part(folder, start), total)
        failed.update(part.failed)
        for name, metric in total.items():
            metric.merge(part.metrics[name])
    return total, failed


def new_metrics(dataset: Dataset, protocol: Protocol) -> Metrics:
    """Create the empty metrics of a protocol."""
    classes, groups = len(dataset.vocabulary), {**dataset.groups, **(protocol.groups or {})}
    metrics: Metrics = {}
    if "semantic" in protocol.tasks:
        metrics["semantic"] = SemanticScores(classes, groups, protocol.absent)
        if protocol.forgiven is not None:
            metrics[FORGIVING] = SemanticScores(classes, groups, protocol.absent)
    if "panoptic" in protocol.tasks:
        metrics["panoptic"] = PanopticQuality(classes, dataset.vocabulary.things, groups)
    if "instance" in protocol.tasks:
        metrics["instance"] = AveragePrecision(classes, groups, federated=dataset.federated)
    if protocol.recall:
        metrics[f"{RECALL}, {RECALLED[recall_truth(dataset, protocol)]}"] = MaskRecall(classes, groups)
    return metrics


@dataclass(frozen=True)
class _Job:
    """An image to evaluate.

    Attributes:
        start: index of the first image of its chunk.
        state: digest of the chunk's inputs.
        number: index of the image.
        sample: its sample.
    """

    start: int
    state: str
    number: int
    sample: Sample


@dataclass(frozen=True)
class Read:
    """The image [H, W, 3] of a sample, and its ground truth by task."""

    sample: Sample
    pixels: Pixels
    truths: Mapping[str, Any]


def read_sample(dataset: Dataset, protocol: Protocol, sample: Sample) -> Read:
    """Read the image and the ground truth of a sample."""
    needed = set(protocol.tasks) if protocol.oracle is None else {*protocol.tasks, best_truth(dataset)}
    truths = {task: dataset.truth(sample, task) for task in dataset.tasks if task in needed}
    return Read(sample, _picture(sample, protocol), truths)


def _measured(
    pipeline: Pipeline, dataset: Dataset, protocol: Protocol, given: Iterable[tuple[_Job, Read | Exception]], batch: int
) -> Iterator[tuple[Sample, tuple[Metrics, results.ByTask] | Exception]]:
    """Yield each sample with its metrics and results, or with the error in reading, predicting or measuring it."""
    remaining = iter(given)
    while pairs := list(islice(remaining, batch)):
        readable = [read for _, read in pairs if isinstance(read, Read)]
        predictions = iter(_predicted(pipeline, dataset, protocol, readable))
        for job, read in pairs:
            if isinstance(read, Exception):
                yield job.sample, read
            elif isinstance(prediction := next(predictions), Exception):
                yield job.sample, prediction
            else:
                try:
                    measured = measure(pipeline, dataset, protocol, read, prediction, job.number)
                except Exception as error:
                    yield job.sample, error
                else:
                    yield job.sample, measured


def _predicted(
    pipeline: Pipeline, dataset: Dataset, protocol: Protocol, read: Sequence[Read]
) -> Sequence[Prediction | Exception]:
    """Predict images, or return the error of each; images whose batch fails are predicted one by one."""

    def predict(group: Sequence[Read]) -> Sequence[Prediction]:
        text = pipeline.embed(group[0].sample.vocabulary or dataset.vocabulary)
        truths = [entry.truths.get(best_truth(dataset)) for entry in group]
        return _predictions(pipeline, [entry.pixels for entry in group], text, protocol.oracle, truths)

    try:
        return in_groups(read, lambda entry: entry.sample.vocabulary, predict)
    except Exception as error:
        if len(read) == 1:
            return [error]
        return [prediction for entry in read for prediction in _predicted(pipeline, dataset, protocol, [entry])]


def measure(
    pipeline: Pipeline, dataset: Dataset, protocol: Protocol, read: Read, prediction: Prediction, number: int
) -> tuple[Metrics, results.ByTask]:
    """Compute the metrics and results of one image; an error in one task discards the image for all tasks.

    Args:
        pipeline: model.
        dataset: data set of the image.
        protocol: settings of the evaluation.
        read: the image and its ground truth.
        prediction: prediction of the image.
        number: index of the image.
    """
    sample, pixels, truths = read.sample, read.pixels, read.truths
    vocabulary = sample.vocabulary or dataset.vocabulary
    text = pipeline.embed(vocabulary)
    policy = policy_of(pipeline, dataset, protocol.threshold)
    segmentations: dict[str, Segmentation] = {
        task: as_segmentation(task, pixels, vocabulary, regions_of(prediction, text, task, policy)) for task in protocol.tasks
    }
    metrics = new_metrics(dataset, protocol)
    for name, metric in metrics.items():
        if isinstance(metric, MaskRecall):
            metric.update(number, truths[recall_truth(dataset, protocol)], all_masks(prediction), sample.key)
        elif name == FORGIVING:
            assert protocol.forgiven is not None
            forgiven = forgive(truths["semantic"], segmentations["semantic"].semantic, protocol.forgiven)
            metric.update(number, truths["semantic"], forgiven, sample.key)
        else:
            metric.update(number, truths[name], results.measurable(segmentations[name]), sample.key)
    return metrics, segmentations


def policy_of(pipeline: Pipeline, dataset: Dataset, threshold: float) -> Policy:
    """Post-processing of a model on a data set, with the caller's minimum score of a region or pixel."""
    policy = replace(pipeline.segmenter.policy, threshold=threshold)
    return replace(policy, detections=LVIS_DETECTIONS) if dataset.federated else policy


def _predictions(
    pipeline: Pipeline, pictures: Sequence[Pixels], text: TextEmbeddings, kind: str | None, truths: Sequence[Any]
) -> Sequence[Prediction]:
    """Predict images, with the oracle ``kind`` applied."""
    if kind == "masks" and isinstance(pipeline.segmenter, NamesRegions):
        regions = [oracle.true_regions(truth)[0] for truth in truths]
        return [pipeline.name_regions(pixels, masks, text) for pixels, masks in zip(pictures, regions, strict=True)]
    predictions = pipeline.predict_batch(pictures, text)
    if kind is None:
        return predictions
    return [oracle.apply(kind, prediction, truth) for prediction, truth in zip(predictions, truths, strict=True)]


def recall_truth(dataset: Dataset, protocol: Protocol) -> str:
    """The task whose true regions the recall is over: of the evaluated ones the first of `RECALLED`.

    The official recall is that of the regions of classes in semantic truths.
    """
    return next(task for task in RECALLED if task in dataset.tasks and task in protocol.tasks)


def best_truth(dataset: Dataset) -> str:
    """The task whose ground truth is the most detailed."""
    return next(task for task in ("panoptic", "instance", "semantic") if task in dataset.tasks)


def _picture(sample: Sample, protocol: Protocol) -> Pixels:
    pixels = read_image(sample.image)
    return pixels if protocol.corrupt is None else corrupt(pixels, *parse(protocol.corrupt), sample.key)


def forgive(truth: NDArray[np.int32], predicted: NDArray[np.int32], forgiven: Sequence[frozenset[int]]) -> NDArray[np.int32]:
    """The predicted labels [H, W], replaced by the true ones where ``forgiven`` accepts them."""
    allowed = np.zeros((len(forgiven) + 1, len(forgiven) + 1), bool)  # the last row and column are for label -1
    for label, labels in enumerate(forgiven):
        allowed[label, list(labels)] = True
    return np.where(allowed[truth, predicted], truth, predicted).astype(np.int32)


def all_masks(prediction: MaskPrediction | PixelPrediction) -> Instances:
    """All masks of the prediction of a single image, as instances of class 0.

    Raises:
        UsageError: the method predicts pixels and has no masks.
    """
    predicted = masks_of(prediction)
    if predicted is None:
        raise UsageError("the recall of masks needs a method that predicts masks; this one predicts pixels")
    geometry = predicted.geometries[0]
    masks = geometry.upsample(predicted.masks[0]) > 0
    if predicted.valid is not None:
        masks = masks[predicted.valid[0]]
    counts = encode_masks(masks)
    return Instances(geometry.size, tuple(Instance(0, runs, area_of_counts(runs), (0, 0, 0, 0)) for runs in counts))


def _about(sample: Sample, error: Exception) -> RunError:
    """Turn the error of an image into a RunError that names the image."""
    kind, message = type(error) if isinstance(error, RunError) else RunError, explained(error)
    return kind(message if str(sample.image) in message else f"{sample.image}: {message}")


def _samples(dataset: Dataset, protocol: Protocol) -> Sequence[Sample]:
    if not dataset.samples:
        raise DataError(f"{dataset.name} has no pictures")
    samples = dataset.samples[: protocol.limit]
    return samples if protocol.exif == "upright" else [replace(sample, stored=True) for sample in samples]


def _part(folder: Path, start: int) -> Path:
    return folder / "parts" / f"{start:07d}.safetensors"


@dataclass(frozen=True)
class _Part:
    """Stored result of a chunk.

    Attributes:
        metrics: their sums.
        failed: failed images with the reason.
        inputs: digest of the inputs.
    """

    metrics: Metrics
    failed: dict[str, str]
    inputs: str


def _write_part(path: Path, metrics: Metrics, failed: Mapping[str, str], inputs: str) -> None:
    arrays = {f"{name}/{key}": array for name, metric in metrics.items() for key, array in metric.state().items()}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomically(path, save(contiguous, metadata={"failed": json.dumps(failed), "inputs": inputs}))


def _read_part(path: Path, empty: Metrics) -> _Part:
    """Read the stored result of a chunk into metrics like ``empty``.

    Raises:
        DataError: the file is missing, damaged, or not a chunk.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            state, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        failed = json.loads(about["failed"])
        if not isinstance(failed, dict) or not all(isinstance(reason, str) for reason in failed.values()):
            raise DataError("its list of failures is invalid")
        metrics: Metrics = {}
        for name, metric in empty.items():
            own = {key.removeprefix(f"{name}/"): value for key, value in state.items() if key.startswith(f"{name}/")}
            metrics[name] = metric.from_state(own)
        return _Part(metrics, failed, about["inputs"])
    except FileNotFoundError:
        raise DataError(f"{path} is missing: run the same command again to measure the rest") from None
    except (
        DataError,
        OSError,
        SafetensorError,
        RecursionError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # the file may hold anything
        raise DataError(f"{path} is damaged ({error}); delete it and run the same command again") from None


def _is_current(path: Path, inputs: str, numbers: range, empty: Metrics) -> bool:
    """Whether all images of a chunk were evaluated with the same inputs."""
    try:
        part = _read_part(path, empty)
    except DataError:
        return False
    complete = all(metric.images == frozenset(numbers) for metric in part.metrics.values())
    return part.inputs == inputs and not part.failed and complete


def _claim(folder: Path, document: Mapping[str, Any]) -> None:
    """Write the protocol into a new folder, or check that the folder holds the same one.

    Raises:
        UsageError: the folder holds another evaluation.
    """
    path = folder / "protocol.json"
    if not path.exists():
        write_json(path, document, indent=1)
        return
    try:
        known = json.loads(path.read_bytes())
        if not isinstance(known, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a protocol of an evaluation ({error}); choose another --output, or delete that file to begin anew"
        ) from None
    if differing := sorted(key for key in {*known, *document} if known.get(key) != document.get(key)):
        key = differing[0]
        raise UsageError(
            f"{folder} holds an evaluation with another {key} ({known.get(key)}, now {document.get(key)}); "
            "choose another --output, or delete that folder"
        )
