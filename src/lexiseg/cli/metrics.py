"""``lexiseg metrics``: score predictions written by any tool."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from typing import Any

from lexiseg import __version__
from lexiseg.cli.streams import complain, one_line
from lexiseg.errors import UsageError
from lexiseg.metrics import Score, score_instances, score_panoptic, score_semantic
from lexiseg.metrics.base import absence_in_words
from lexiseg.ops.files import write_json
from lexiseg.ops.label_table import LabelTable
from lexiseg.text.vocabulary import ClassList

LIBRARIES = ("hotcoco", "numpy")  # whose versions could affect the metrics


def run(arguments: argparse.Namespace) -> int:
    """Score files and print the metrics. Exit code 1 if images had to be left out."""
    score = _score(arguments)
    document = {
        "task": arguments.task,
        "predictions": str(arguments.predictions),
        "ground_truth": str(arguments.ground_truth),
        "versions": {"lexiseg": __version__, **{library: version(library) for library in LIBRARIES}},
        **score.document(),
    }
    if arguments.output:
        write_json(arguments.output, document, indent=1)
    if arguments.json:
        print(json.dumps(document, ensure_ascii=False))
    else:
        print("\n".join([table(document["result"]), *absence_in_words(document["absent"])]))
    for problem in score.problems:
        complain(problem)
    if score.problems:
        complain(f"{len(score.problems)} problems; what they concern is not in the numbers")
    return 1 if score.problems else 0


def table(result: dict[str, Any]) -> str:
    """Format metrics as a table, over all classes and then each group, with fractions in percent."""
    rows = {"all": result, **{one_line(group): numbers for group, numbers in result["groups"].items()}}
    columns = [name for name, value in result.items() if isinstance(value, float | None)]
    widest = max(len(name) for name in rows)
    lines = [f"{'':<{widest}}  {'  '.join(f'{name:>8}' for name in columns)}"]
    for name, numbers in rows.items():
        cells = [f"{'-' if numbers.get(column) is None else format(100 * numbers[column], '.3f'):>8}" for column in columns]
        lines.append(f"{name:<{widest}}  {'  '.join(cells)}")
    lines += [f"{name}: {value}" for name, value in result.items() if isinstance(value, int | str)]
    return "\n".join(lines)


def _score(arguments: argparse.Namespace) -> Score:
    files = (arguments.predictions, arguments.ground_truth)
    if arguments.task != "semantic":
        scorer = score_panoptic if arguments.task == "panoptic" else score_instances
        return scorer(*files, keep_going=arguments.keep_going)
    if arguments.vocabulary is None:
        raise UsageError("label maps do not say what their values mean: name the classes with --vocabulary")
    words = ClassList.load(arguments.vocabulary)
    table = LabelTable.of_ids(words.ids, words.void, ignored=arguments.ignore)
    return score_semantic(*files, words.vocabulary.names, table=table, keep_going=arguments.keep_going)
