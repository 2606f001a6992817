"""``lexiseg evaluate``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import distributed

from lexiseg.cli.segment import OFFICIAL, options_by_name, training_list, weights_by_part
from lexiseg.cli.streams import ReaderLeftError, complain, tell
from lexiseg.data import catalogue, official_names
from lexiseg.data.corrupt import parse
from lexiseg.data.dataset import Dataset
from lexiseg.data.images import read_image
from lexiseg.errors import UsageError
from lexiseg.inference import report, results
from lexiseg.inference.cost import speed
from lexiseg.inference.evaluation import CHUNK, Protocol, Shard, collect, evaluate, policy_of
from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.methods.base import runtime_options
from lexiseg.metrics.seen import seen_groups
from lexiseg.ops.files import write_atomically, write_json
from lexiseg.ops.locks import locked
from lexiseg.ops.names import result_name
from lexiseg.text.hygiene import Hypernyms, forgiving
from lexiseg.text.vocabulary import ClassList, Vocabulary


def run(arguments: argparse.Namespace) -> int:
    """Evaluate on each data set; the processes of torchrun divide the images."""
    names = expanded(arguments.data)
    if arguments.corrupt is not None:
        parse(arguments.corrupt)
    shard = _shard()
    with locked(arguments.output) if shard.index == 0 else nullcontext():
        return _run(names, shard, arguments)


def _run(names: Sequence[str], shard: Shard, arguments: argparse.Namespace) -> int:
    pipeline = load(
        arguments.model,
        weights=weights_by_part(arguments.weights),
        device=_device(arguments.device),
        dtype=arguments.dtype,
        seen=None if arguments.seen is None else training_list(arguments.seen),
        **options_by_name(arguments.set),
    )
    reports, failed, several = [], 0, len(names) > 1
    for name in names:
        folder = Path(arguments.output) / (_folder_name(name) if several else "")
        try:
            with locked(folder) if several and shard.index == 0 else nullcontext():
                done = _evaluated(name, folder, pipeline, shard, arguments)
        except (UsageError, ReaderLeftError):
            raise
        except Exception as error:
            if not arguments.keep_going or shard.count > 1:  # the other processes would wait at the barrier
                raise
            tell(error, about=name, debug=arguments.debug)
            failed += 1
        else:
            reports += done
    if failed and several:
        complain(f"{failed} of {len(names)} data sets failed; they are in no mean")
    if len(reports) > 1:
        rows = report.summary(reports, _groups(), {row.name: row.part_of for row in catalogue.rows() if row.part_of})
        write_json(Path(arguments.output) / "summary.json", rows, indent=1)
        write_atomically(
            Path(arguments.output) / "summary.md", "\n".join([*report.table(rows), ""]).encode(errors="backslashreplace")
        )
        if not arguments.json:
            print("\n".join(report.table(rows)))
    if shard.count > 1:
        distributed.destroy_process_group()
    return 1 if failed or any(entry["failed"] for entry in reports) else 0


def _evaluated(
    name: str, folder: Path, pipeline: Pipeline, shard: Shard, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Evaluate on a data set. Returns its report on rank 0, nothing on other ranks."""
    dataset, pipeline = _dataset(name, arguments), pipeline.on(name)
    protocol = _protocol(name, dataset, pipeline, arguments)
    evaluate(
        pipeline,
        dataset,
        protocol,
        folder,
        shard=shard,
        keep_going=arguments.keep_going,
        keep_predictions=arguments.save_predictions,
        progress=shard.index == 0,
        batch=arguments.batch,
        workers=arguments.workers,
    )
    if shard.count > 1:
        distributed.barrier()
    if shard.index > 0:
        return []
    measured = None if arguments.speed is None else _speed(dataset, protocol, pipeline, arguments.speed)
    return [_reported(dataset, protocol, folder, measured, arguments)]


def _speed(dataset: Dataset, protocol: Protocol, pipeline: Pipeline, images: int) -> dict[str, Any]:
    """Measure the network on the first images."""
    samples = dataset.samples[: protocol.limit][:images]
    text = pipeline.embed(samples[0].vocabulary or dataset.vocabulary)
    return speed(pipeline, [read_image(sample.image) for sample in samples], text)


def expanded(names: Sequence[str]) -> list[str]:
    """Expand patterns such as ``mess-*`` to the matching names of the catalogue, without duplicates.

    Raises:
        UsageError: a pattern matches no data set.
    """
    known = [row.name for row in catalogue.rows()]
    unique: dict[str, None] = {}
    for name in names:
        matches = [entry for entry in known if fnmatch(entry, name)] if "*" in name else [name]
        if not matches:
            raise UsageError(f"no data set matches '{name}'; 'lexiseg data list' lists them all")
        unique.update(dict.fromkeys(matches))
    return list(unique)


def _folder_name(name: str) -> str:
    """Name of the output folder of a data set, given by a name of the catalogue or a path."""
    return name if name in {row.name for row in catalogue.rows()} else result_name(name)


def _groups() -> dict[str, str]:
    """Domain of each data set of MESS, the only collection with scores per group."""
    return {row.name: row.group for row in catalogue.rows() if row.group}


def _dataset(name: str, arguments: argparse.Namespace) -> Dataset:
    dataset = catalogue.open_dataset(
        name, arguments.root, images=arguments.images, labels=arguments.labels, vocabulary=arguments.classes
    )
    if arguments.names is None:
        return dataset
    official = arguments.names == OFFICIAL
    return renamed(dataset, official_names.load(name) if official else ClassList.load(arguments.names, unique=False))


def renamed(dataset: Dataset, names: ClassList) -> Dataset:
    """A data set whose classes have other names, those of a list in its order.

    A list whose entries have ids, as the official ones, is in their order, which is that of the data set's own ids.

    Raises:
        UsageError: the list has another number of classes.
    """
    if len(names.vocabulary) != len(dataset.vocabulary):
        raise UsageError(
            f"--names has {len(names.vocabulary)} classes, {dataset.name} {len(dataset.vocabulary)}: write one line per class, "
            "in the order of the data set"
        )
    labels = range(len(dataset.vocabulary))
    order = sorted(labels, key=dataset.category_ids.__getitem__) if names.numbered else list(labels)
    entries = (names.vocabulary.classes[number] for number in sorted(labels, key=names.ids.__getitem__))
    of_label = dict(zip(order, entries, strict=True))
    classes = tuple(replace(of_label[label], thing=dataset.vocabulary.things[label]) for label in labels)
    return replace(dataset, vocabulary=Vocabulary(classes))


def _protocol(name: str, dataset: Dataset, pipeline: Pipeline, arguments: argparse.Namespace) -> Protocol:
    tasks = tuple(arguments.task or [task for task in dataset.tasks if task in pipeline.segmenter.tasks])
    if not tasks:
        raise UsageError(
            f"{arguments.model} does {', '.join(pipeline.segmenter.tasks)}; {name} has only {', '.join(dataset.tasks)}"
        )
    groups = None
    if arguments.seen is not None:
        groups = seen_groups(dataset.vocabulary.class_names, training_list(arguments.seen).class_names)
    forgiven = None
    if arguments.forgive_hypernyms:
        forgiven = forgiving(dataset.vocabulary, Hypernyms.builtin())
    return Protocol(
        model=arguments.model,
        data=name,
        tasks=tasks,
        limit=arguments.limit,
        oracle=arguments.oracle,
        corrupt=arguments.corrupt,
        threshold=arguments.threshold,
        absent=arguments.absent or ("mess" if _groups().get(name) else "official"),
        recall=arguments.recall,
        groups=groups,
        forgiven=forgiven,
        names=arguments.names,
        seen=arguments.seen,
        options=runtime_options(pipeline.segmenter.config),
        policy=policy_of(pipeline, dataset, arguments.threshold).document(),
        published=tuple(entry.source for entry in pipeline.segmenter.published_for(name) if entry.options),
        given=tuple(arguments.set),
        exif=arguments.exif,
    )


def _reported(
    dataset: Dataset, protocol: Protocol, folder: Path, measured: dict[str, Any] | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    metrics, failed = collect(dataset, protocol, folder)
    command = shlex.join(["lexiseg", *arguments.typed])
    document = report.document(protocol, metrics, failed, dataset, command=command, speed=measured)
    written = report.write(folder, document, metrics, dataset)
    if arguments.save_predictions:
        starts = range(0, len(dataset.samples[: protocol.limit]), CHUNK)
        written += results.assemble(folder / "predictions", dataset, protocol.tasks, starts)
    if arguments.json:
        print(json.dumps(document), flush=True)
    else:
        print(report.markdown(document))
        print("\n".join(f"→ {path}" for path in written))
    for key, reason in failed.items():
        complain(f"{key}: {reason}")
    if failed:
        complain(f"{len(failed)} of {len(dataset.samples[: protocol.limit])} pictures failed; they are not in the numbers")
    return document


def _shard() -> Shard:
    """Shard of this process, from torchrun's environment variables; joins the process group if there is one."""
    shard = Shard(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if shard.count > 1:
        distributed.init_process_group("gloo")
    return shard


def _device(name: str) -> str:
    """Resolve "cuda" to the GPU of the local rank."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if name == "cuda" and local is not None else name
