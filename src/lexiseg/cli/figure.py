"""``lexiseg figure``."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np

from lexiseg.cli import undisturbed
from lexiseg.cli.progress_line import ProgressLine
from lexiseg.cli.segment import parse_model, tell_of_boxes
from lexiseg.data import catalogue
from lexiseg.data.images import find_images, read_image
from lexiseg.errors import UsageError
from lexiseg.inference.evaluation import best_truth
from lexiseg.inference.figures import FIGURES, Subject
from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.ops.files import write_atomically, write_png
from lexiseg.ops.names import is_file_of
from lexiseg.ops.progress import reporting
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.visualise.figures import as_webp
from lexiseg.visualise.lettering import preferring


def run(arguments: argparse.Namespace) -> int:
    """Draw a figure of some images or of the first images of a data set."""
    path = Path(arguments.output)
    if path.suffix.lower() not in {".png", ".webp"}:
        raise UsageError(f"--output {path}: a figure is a PNG or a WebP, so its name ends in .png or .webp")
    with preferring(arguments.font):
        subjects = _subjects(arguments)
        with undisturbed(), ProgressLine("loading models"):
            models = dict(_model(spec, arguments.device) for spec in arguments.model or ["cmpf-tiny"])
        tell_of_boxes([*models, *(name for subject in subjects for name in (subject.name, *subject.vocabulary.names))])
        with ProgressLine(path.name) as line, reporting(line):
            figure = FIGURES[arguments.kind](models, subjects, arguments.task, arguments.most)
    if path.suffix.lower() == ".png":
        write_png(path, np.asarray(figure))
    else:
        write_atomically(path, as_webp(figure))
    print(f"{path}  {figure.width} × {figure.height}")
    return 0


def _model(spec: str, device: str) -> tuple[str, Pipeline]:
    """Load a model from ``[TITLE:]NAME[,PART=FILE][,OPTION=VALUE]…``. Returns its title and pipeline."""
    title, name, weights, options = parse_model(spec)
    return title, load(name, weights=weights, device=device, **options)


def _subjects(arguments: argparse.Namespace) -> list[Subject]:
    if bool(arguments.pictures) == bool(arguments.data):
        raise UsageError("name either pictures or, with --data, a data set")
    if arguments.pictures:
        if arguments.classes is None and arguments.vocabulary is None:
            raise UsageError("pictures need --classes or --vocabulary: the names to look for")
        words = Vocabulary.load(arguments.vocabulary) if arguments.classes is None else Vocabulary.parse(arguments.classes)
        files = find_images(arguments.pictures)
        if taken := [file for file in files if file != "-" and is_file_of(arguments.output, file)]:
            raise UsageError(f"--output {arguments.output} is the picture {taken[0]} and would overwrite it; choose another")
        return [Subject(Path(file).stem, read_image(file), words) for file in files]
    dataset = catalogue.open_dataset(arguments.data, arguments.root)
    task = best_truth(dataset)
    return [
        Subject(sample.key, read_image(sample.image), sample.vocabulary or dataset.vocabulary, dataset.truth(sample, task))
        for sample in islice(dataset.samples, arguments.skip, arguments.skip + arguments.limit)
    ]
