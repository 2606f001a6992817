"""Evaluate a model on a data set: chunk after chunk, so that nothing is lost, nothing is held, and every count is exact.

The pictures are cut into chunks of `CHUNK`, in the data set's order. What a chunk measured is a file of its own below
``parts``; the result adds these files up. So a run that was killed goes on where it was, several processes (or machines
that share a folder) take turns at the chunks, and the numbers are the same to the last bit however the work was split.
With its sums a chunk keeps a digest of what they were measured of (`lexiseg.inference.fingerprint`). Where that has changed,
where a picture failed, or where predictions are asked for that are not there, the chunk is measured again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
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
from lexiseg.postprocess import Placing, Policy, resized
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Instance, Instances, MaskPrediction, PixelPrediction, Task, TextEmbeddings

CHUNK = 16  # pictures; what a crash can cost
LVIS_DETECTIONS = 300  # instances an image may have where the truth is federated
FORGIVING, RECALL = "semantic, hypernyms forgiven", "mask recall"  # metrics that are no task of their own

Metrics = dict[str, Metric[Any, Any]]
Prediction = MaskPrediction | PixelPrediction


@dataclass(frozen=True)
class Protocol:
    """All that a number depends on, besides the weights and the files of the data set.

    Attributes:
        model, data: by name.
        tasks: what is measured; each picture is predicted once for all of them.
        limit: only the first pictures; None: all.
        oracle: "masks" or "labels", see `lexiseg.inference.oracle`.
        corrupt: "blur:3" and the like, see `lexiseg.data.corrupt`.
        threshold: least score of a region or pixel that gets a name.
        absent: which classes mIoU is a mean over, see `lexiseg.metrics.semantic.ABSENT_CLASSES`.
        recall: measure the recall of all predicted masks, too, whatever they are called.
        groups: names for sets of labels with numbers of their own ("seen", "unseen").
        forgiven: for each label the labels that a result may have there without being wrong; None: no such score.
        exif: what truths are drawn on where a picture has an EXIF orientation and sizes do not tell: the picture held
            "upright", or its pixels as they are "stored".
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
    exif: Literal["upright", "stored"] = "upright"

    def document(self) -> dict[str, Any]:
        """The protocol for JSON, sets of labels as digests."""
        plain = {name: sorted(labels) for name, labels in (self.groups or {}).items()}
        forgiven = None if self.forgiven is None else digest([sorted(labels) for labels in self.forgiven])
        groups = {name: f"{len(labels)} classes, {digest(labels)}" for name, labels in plain.items()}
        return {**asdict(self), "tasks": list(self.tasks), "groups": groups, "forgiven": forgiven}


@dataclass(frozen=True)
class Shard:
    """Share of the chunks for one of several processes: every ``count``-th chunk, from the ``index``-th.

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
    """Measure all chunks of this shard that are not in ``folder`` yet, or no longer true; `collect` makes the numbers of them.

    Args:
        pipeline: the model.
        dataset: what it is measured on.
        protocol: what is measured, and how.
        folder: of this evaluation alone.
        shard: of the chunks, if several processes work.
        keep_going: note pictures and truths that cannot be read or measured, whatever the reason, and leave them out; else
            they are an error.
        keep_predictions: write what was found below ``folder/predictions``, in COCO's formats and as label maps.
        progress: show a bar on stderr, if that is a terminal.
        batch: pictures of a chunk that are predicted together; the results are the same, but for rounding.
        workers: threads that read the next pictures and truths meanwhile.

    Raises:
        UsageError: a task that model or data set does not have, or a folder with an evaluation of another protocol.
        RunError: what went wrong with a picture, unless ``keep_going``: DataError and ImageError for damaged files. It names
            the picture. The chunks before are kept: the same call goes on there.
        DataError: two pictures whose predictions would be the same file, if these are kept.
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
        """The pictures of the chunks that are to be measured."""
        for start in chunks:
            chunk = samples[start : start + CHUNK]
            state = inputs.of(chunk)  # before the files are read: one that changes meanwhile is measured again the next time
            kept = _is_true(_part(folder, start), state, range(start, start + len(chunk)), new_metrics(dataset, protocol))
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
            found: list[tuple[Sample, results.ByTask]] = []
            for sample, measured in _measured(pipeline, dataset, protocol, given, batch):
                if isinstance(measured, UsageError):
                    raise measured  # not the picture's fault: all others would fail by it
                if isinstance(measured, Exception):  # one picture's failure, be it a mistake of ours, is no other's
                    if not keep_going:
                        raise _about(sample, measured) from measured
                    failed[sample.key] = explained(measured)
                else:
                    one, result = measured
                    for name, metric in metrics.items():
                        metric.merge(one[name])
                    found.append((sample, result))
                bar.update()
            if keep_predictions:
                results.write_chunk(folder / "predictions", dataset, chunk, found, start, state)
            _write_part(_part(folder, start), metrics, failed, state)


def collect(dataset: Dataset, protocol: Protocol, folder: Path) -> tuple[Metrics, dict[str, str]]:
    """The metrics over all chunks, and the pictures that could not be read with the reason.

    Raises:
        DataError: a chunk is missing (another process has not finished), or damaged.
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
    """Empty metrics for what the protocol asks for."""
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
        metrics[RECALL] = MaskRecall(classes, groups)
    return metrics


@dataclass(frozen=True)
class _Job:
    """A picture to be measured: the number of its chunk's first, the digest of that chunk, its own number, and its sample."""

    start: int
    state: str
    number: int
    sample: Sample


@dataclass(frozen=True)
class Read:
    """What the files of a sample hold: its picture [H, W, 3], and by task the truths that are needed."""

    sample: Sample
    pixels: Pixels
    truths: Mapping[str, Any]


def read_sample(dataset: Dataset, protocol: Protocol, sample: Sample) -> Read:
    """Read a picture and its truths."""
    needed = set(protocol.tasks) if protocol.oracle is None else {*protocol.tasks, best_truth(dataset)}
    truths = {task: dataset.truth(sample, task) for task in dataset.tasks if task in needed}
    return Read(sample, _picture(sample, protocol), truths)


def _measured(
    pipeline: Pipeline, dataset: Dataset, protocol: Protocol, given: Iterable[tuple[_Job, Read | Exception]], batch: int
) -> Iterator[tuple[Sample, tuple[Metrics, results.ByTask] | Exception]]:
    """Each picture with its sums and results, or with what went wrong with it, be it read already; ``batch`` at a time."""
    rest = iter(given)
    while some := list(islice(rest, batch)):
        read = [one for _, one in some if isinstance(one, Read)]
        predictions = iter(_predicted(pipeline, dataset, protocol, read))
        for job, one in some:
            if isinstance(one, Exception):
                yield job.sample, one
            elif isinstance(prediction := next(predictions), Exception):
                yield job.sample, prediction
            else:
                try:
                    measured = measure(pipeline, dataset, protocol, one, prediction, job.number)
                except Exception as error:
                    yield job.sample, error
                else:
                    yield job.sample, measured


def _predicted(
    pipeline: Pipeline, dataset: Dataset, protocol: Protocol, read: Sequence[Read]
) -> Sequence[Prediction | Exception]:
    """What the method says of each picture, or why nothing; where it fails for several together, they are tried one by one."""

    def together(some: Sequence[Read]) -> Sequence[Prediction]:
        text = pipeline.embed(some[0].sample.vocabulary or dataset.vocabulary)
        truths = [one.truths.get(best_truth(dataset)) for one in some]
        return _predictions(pipeline, [one.pixels for one in some], text, protocol.oracle, truths)

    try:
        return in_groups(read, lambda one: one.sample.vocabulary, together)
    except Exception as error:
        if len(read) == 1:
            return [error]
        return [prediction for one in read for prediction in _predicted(pipeline, dataset, protocol, [one])]


def measure(
    pipeline: Pipeline, dataset: Dataset, protocol: Protocol, read: Read, prediction: Prediction, number: int
) -> tuple[Metrics, results.ByTask]:
    """Measure what is predicted of one picture, the ``number``-th: it counts for all its tasks, or an error for none."""
    sample, pixels, truths = read.sample, read.pixels, read.truths
    vocabulary = sample.vocabulary or dataset.vocabulary
    text = pipeline.embed(vocabulary)
    policy = Policy(
        threshold=protocol.threshold,
        overlap=pipeline.segmenter.config.overlap_threshold,
        detections=LVIS_DETECTIONS if dataset.federated else Policy.detections,
    )
    found: dict[str, Segmentation] = {
        task: as_segmentation(task, pixels, vocabulary, regions_of(prediction, text, task, policy)) for task in protocol.tasks
    }
    metrics = new_metrics(dataset, protocol)
    for name, metric in metrics.items():
        if name == RECALL:
            metric.update(number, next(iter(truths.values())), all_masks(prediction), sample.key)
        elif name == FORGIVING:
            assert protocol.forgiven is not None
            forgiven = forgive(truths["semantic"], found["semantic"].semantic, protocol.forgiven)
            metric.update(number, truths["semantic"], forgiven, sample.key)
        else:
            metric.update(number, truths[name], results.measurable(found[name]), sample.key)
    return metrics, found


def _predictions(
    pipeline: Pipeline, pictures: Sequence[Pixels], text: TextEmbeddings, kind: str | None, truths: Sequence[Any]
) -> Sequence[Prediction]:
    """What the method says of pictures, half of it made true if an oracle is asked."""
    if kind == "masks" and isinstance(pipeline.segmenter, NamesRegions):
        regions = [oracle.true_regions(truth)[0] for truth in truths]
        return [pipeline.name_regions(pixels, some, text) for pixels, some in zip(pictures, regions, strict=True)]
    predictions = pipeline.predict_batch(pictures, text)
    if kind is None:
        return predictions
    return [oracle.apply(kind, prediction, truth) for prediction, truth in zip(predictions, truths, strict=True)]


def best_truth(dataset: Dataset) -> str:
    """The task whose truth says most of a picture's regions."""
    return next(task for task in ("panoptic", "instance", "semantic") if task in dataset.tasks)


def _picture(sample: Sample, protocol: Protocol) -> Pixels:
    pixels = read_image(sample.image)
    return pixels if protocol.corrupt is None else corrupt(pixels, *parse(protocol.corrupt), sample.key)


def forgive(truth: NDArray[np.int32], found: NDArray[np.int32], forgiven: Sequence[frozenset[int]]) -> NDArray[np.int32]:
    """The result [H, W] with the true label wherever the found one is forgiven there."""
    allowed = np.zeros((len(forgiven) + 1, len(forgiven) + 1), bool)  # the last row and column are for label -1
    for label, labels in enumerate(forgiven):
        allowed[label, list(labels)] = True
    return np.where(allowed[truth, found], truth, found).astype(np.int32)


def all_masks(prediction: MaskPrediction | PixelPrediction) -> Instances:
    """Every predicted mask of a prediction of one image, whatever its class.

    Raises:
        UsageError: the method predicts pixels and has no masks.
    """
    if isinstance(prediction, PixelPrediction):
        raise UsageError("the recall of masks needs a method that predicts masks; this one predicts pixels")
    masks = resized(prediction.masks[0], Placing.of(prediction, 0)) > 0
    if prediction.valid is not None:
        masks = masks[prediction.valid[0]]
    counts = encode_masks(masks)
    return Instances(prediction.sizes[0], tuple(Instance(0, runs, area_of_counts(runs), (0, 0, 0, 0)) for runs in counts))


def _about(sample: Sample, error: Exception) -> RunError:
    """What went wrong with a picture, as an error that names the picture, too."""
    kind, said = type(error) if isinstance(error, RunError) else RunError, explained(error)
    return kind(said if str(sample.image) in said else f"{sample.image}: {said}")


def _samples(dataset: Dataset, protocol: Protocol) -> Sequence[Sample]:
    if not dataset.samples:
        raise DataError(f"{dataset.name} has no pictures")
    samples = dataset.samples[: protocol.limit]
    return samples if protocol.exif == "upright" else [replace(sample, stored=True) for sample in samples]


def _part(folder: Path, start: int) -> Path:
    return folder / "parts" / f"{start:07d}.safetensors"


@dataclass(frozen=True)
class _Part:
    """What is kept of a chunk: its sums, the pictures that failed with the reason, and the digest of what was measured."""

    metrics: Metrics
    failed: dict[str, str]
    inputs: str


def _write_part(path: Path, metrics: Metrics, failed: Mapping[str, str], inputs: str) -> None:
    arrays = {f"{name}/{key}": array for name, metric in metrics.items() for key, array in metric.state().items()}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomically(path, save(contiguous, metadata={"failed": json.dumps(failed), "inputs": inputs}))


def _read_part(path: Path, empty: Metrics) -> _Part:
    """What is kept of a chunk, in metrics like those that are ``empty``.

    Raises:
        DataError: the file is missing, damaged, or none of ours.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            state, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        failed = json.loads(about["failed"])
        if not isinstance(failed, dict) or not all(isinstance(reason, str) for reason in failed.values()):
            raise DataError("its list of failures is none")
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
    ) as error:  # it may hold anything
        raise DataError(f"{path} is damaged ({error}); delete it and run the same command again") from None


def _is_true(path: Path, inputs: str, numbers: range, empty: Metrics) -> bool:
    """Whether all pictures of a chunk were measured, as they are now."""
    try:
        part = _read_part(path, empty)
    except DataError:
        return False
    whole = all(metric.images == frozenset(numbers) for metric in part.metrics.values())
    return part.inputs == inputs and not part.failed and whole


def _claim(folder: Path, document: Mapping[str, Any]) -> None:
    """Make the folder that of this evaluation, or refuse one of another."""
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
            f"{path} does not say what was evaluated here ({error}); choose another --output, or delete that file to begin anew"
        ) from None
    if differing := sorted(key for key in {*known, *document} if known.get(key) != document.get(key)):
        key = differing[0]
        raise UsageError(
            f"{folder} holds an evaluation with another {key} ({known.get(key)}, now {document.get(key)}); "
            "choose another --output, or delete that folder"
        )
