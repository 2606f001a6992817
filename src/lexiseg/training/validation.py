"""Validation during training, by the protocols of `lexiseg evaluate`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from lexiseg.data.catalogue import lacks, open_dataset
from lexiseg.data.dataset import Dataset
from lexiseg.data.own import open_panoptic
from lexiseg.errors import DataError
from lexiseg.inference.evaluation import Protocol, Shard, collect, evaluate
from lexiseg.inference.pipeline import Pipeline
from lexiseg.inference.report import HEADLINES
from lexiseg.methods.base import Segmenter
from lexiseg.metrics.seen import seen_groups
from lexiseg.ops.names import file_name
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.dist import DistContext
from lexiseg.training.examples import WORLD, world_parts
from lexiseg.training.scenes import write_scenes

_log = logging.getLogger(__name__)
SEED = 20_000  # of validation scenes, apart from the seeds of trainings


class Validation:
    """Evaluates a segmenter on the data sets of a recipe's ``validation``.

    Args:
        names: ``validation`` of a `Recipe`.
        limit: images per data set.
        vocabulary: vocabulary of the training, whose classes count as seen.
        folder: folder of the training, where rendered scenes are kept.
        root: folder of the catalogue's data sets.
        dist: processes among which the images are divided.
    """

    def __init__(
        self, names: tuple[str, ...], limit: int, vocabulary: Vocabulary, folder: Path, root: Path | None, dist: DistContext
    ) -> None:
        self.limit, self.folder, self.dist = limit, folder, dist
        self.training = [entry.names for entry in vocabulary.classes]
        opened = ((name, self._open(name, root)) for name in names)
        self.datasets = {name: dataset for name, dataset in opened if dataset is not None}

    def __call__(self, segmenter: Segmenter, step: int) -> dict[str, float]:
        """Headline metrics as "data set/metric", also over seen and unseen classes; equal in all processes."""
        numbers: dict[str, float] = {}
        pipeline = Pipeline(segmenter, device=self.dist.device, cache=None if segmenter.tunes_text else "default")
        for name, dataset in self.datasets.items():
            tasks = tuple(task for task in dataset.tasks if task in segmenter.tasks and task != "instance")
            groups = seen_groups([entry.names for entry in dataset.vocabulary.classes], self.training)
            protocol = Protocol(f"step {step}", name, tasks, limit=self.limit, groups=groups)
            folder = self.folder / "validation" / f"{file_name(name, name)}-{step}"
            shard = Shard(self.dist.rank, self.dist.world_size)
            if self.dist.is_main:  # results left by an interrupted training, whose weights may differ on a GPU
                shutil.rmtree(folder, ignore_errors=True)
            self.dist.barrier()
            evaluate(pipeline.on(name), dataset, protocol, folder, shard=shard, progress=self.dist.is_main)
            self.dist.barrier()
            metrics, failed = collect(dataset, protocol, folder)
            self.dist.barrier()
            if self.dist.is_main:
                shutil.rmtree(folder)
            if failed:
                raise DataError(f"{name}: {next(iter(failed.values()))}")
            for task, metric in metrics.items():
                number, result = HEADLINES[task][0], metric.result()
                numbers[f"{name}/{number}"] = result[number]
                numbers |= {f"{name}/{number} {group}": own[number] for group, own in result["groups"].items()}
        return {key: value for key, value in numbers.items() if value is not None}

    def _open(self, name: str, root: Path | None) -> Dataset | None:
        """Open a data set; None, with a warning, if it is not on this machine."""
        if not name.startswith(WORLD):
            if lacking := lacks(name, root):
                if self.dist.is_main:
                    _log.warning("no validation on %s: %s", name, lacking)
                return None
            return open_dataset(name, root)
        split, side = world_parts(name)
        folder = self.folder / "scenes" / f"{split}-{side}-{self.limit}"
        if self.dist.is_main and not (folder / "panoptic.json").is_file():
            write_scenes(folder, split, self.limit, size=side, seed=SEED, progress=False)
        self.dist.barrier()
        return open_panoptic(folder / "panoptic.json", folder / "images", name=name)
