"""Lists of classes: files in every accepted form and command-line strings, as each command that takes one reads it."""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from lexiseg.cli import metrics, vocabulary
from lexiseg.data.own import open_own
from lexiseg.errors import LexisegError
from lexiseg.exports import write_classes
from lexiseg.metrics.seen import seen_groups
from lexiseg.text import Vocabulary, fill
from lexiseg.text.hygiene import Hypernyms, forgiving
from tests.data.miniatures import REGIONS, write
from tests.fuzz.mutations import mutated_bytes, mutated_json

SUFFIX = ".txt"
TEXTS = (
    "# four classes\ngrass, lawn | stuff\ndog, puppy\nsky\ncat | thing\n",
    "grass;lawn\r\ndog;puppy\r\nsky\r\ncat",
    "0: void\n1: dog, puppy\n2:sky\n3:grass,lawn | stuff\n",
    "0:invalid_class_id\n1:person,man\n3:grass\n2:invalid_class_id\n",
    "dog, puppy; grass, lawn | stuff; sky; cat;",
    "0: grass; 1: dog; 2: sky; 3: cat",
    "animal > dog, cat\ndog !> hot dog\n",
    "emoji-seen",
)
OBJECTS = [
    {"name": "grass", "synonyms": ["lawn"], "thing": False, "id": 0},
    {"name": "dog, puppy", "isthing": 1, "id": 1, "supercategory": "animal"},
    {"name": "sky", "isthing": 0, "id": 2},
    {"name": "cat", "id": 3},
]
DOCUMENTS = (
    ["grass, lawn | stuff", "dog;puppy", "sky", "cat"],
    ["0: grass", "1: dog", "2: sky", "3: void"],
    OBJECTS,
    {"images": [], "annotations": [], "categories": OBJECTS},
    {"void": 255, "classes": [{"label": n, "name": name, "thing": True} for n, name in enumerate(("a", "b", "c", "d"))]},
    {"0": "void", "1": "dog, puppy", "2": "sky", "3": "grass;lawn"},
)
PIECES = (
    "", ",", ";", "|", "| thing", "| stuff", "|x", ":", "#", "\n", "\r", "\t", "\0", "\x0c", "\x1b[31m", "\x85", "\u2028",
    "\u202e", "\ufeff", "\ud800", "\u0301", "\u200d", "犬", "é" * 300, "o" * 600, "very " * 70, "void", "invalid_class_id",
    "1:", "-1:", "07: ", "254:", "255:", "65535:", "65536:", "99999999999999999999:", "9" * 5000 + ":", "1.5:", "٣:", "[", "{",
    "[]", "{}", '"', "null", " > ", "!>", "dog", "DOG, sky", "/", "../x.txt", "x.json",
)  # fmt: skip
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


def prepare(folder: Path) -> None:
    """Label maps as a truth, as predictions, and as a user's own data set."""
    write(folder / "own/images/1.png", np.zeros((*REGIONS.shape, 3), np.uint8))
    for labels in ("own/labels", "found"):
        write(folder / labels / "1.png", REGIONS.astype(np.uint8))


def inputs(random: np.random.Generator) -> bytes:
    """A list with pieces put in or in place of others, or with other bytes, or a JSON document with other values."""
    if random.random() < 0.4:
        return mutated_json(DOCUMENTS[int(random.integers(len(DOCUMENTS)))], random)
    lists = (*TEXTS, *(json.dumps(document, indent=1) for document in DOCUMENTS))
    text = lists[int(random.integers(len(lists)))]
    if random.random() < 0.2:
        return mutated_bytes(text.encode(), random)
    for _ in range(int(random.integers(0, 3))):
        start = int(random.integers(len(text) + 1))
        end = start + int(random.integers(6)) if random.random() < 0.5 else start
        text = text[:start] + PIECES[int(random.integers(len(PIECES)))] + text[end:]
    return text.encode(errors="surrogatepass")


def attempt(path: Path) -> None:
    """Read it as each of the things it could be; it is refused if it can be none."""
    folder = path.parent
    shutil.copy(path, folder / "words.json")
    typed = path.read_bytes().decode(errors="surrogateescape")
    readings: tuple[Callable[[], object], ...] = (
        lambda: _shown(path),
        lambda: _shown(folder / "words.json"),
        lambda: vocabulary.run(argparse.Namespace(name="check", checked=str(path), hypernyms=None, json=False)),
        lambda: _used(Vocabulary.load(path)),
        lambda: _used(Vocabulary.parse(typed)),
        lambda: _used(Vocabulary.parse(typed.splitlines())),
        lambda: _used(Vocabulary.load(typed)),
        lambda: Vocabulary.parse("dog").with_background(typed),
        lambda: Hypernyms.from_file(path),
        lambda: _truths(folder / "own", path),
        lambda: _measured(folder, path),
    )
    refusals = []
    with redirect_stdout(io.StringIO()):
        for reading in readings:
            try:
                reading()
            except LexisegError as error:
                refusals.append(error)
    for error in refusals:
        assert "\n" not in str(error).replace(typed, ""), error
    if len(refusals) == len(readings):
        raise refusals[0]


def _shown(path: Path) -> None:
    """What `lexiseg vocabulary` prints has nothing that moves a cursor, and as JSON is the list again."""
    shown = io.StringIO()
    with redirect_stdout(shown):
        vocabulary.run(argparse.Namespace(name=str(path), checked=None, hypernyms=None, json=False))
        assert not CONTROLS.search(shown.getvalue())
        shown.seek(shown.truncate(0))
        vocabulary.run(argparse.Namespace(name=str(path), checked=None, hypernyms=None, json=True))
    again = path.parent / "again.json"
    again.write_text(shown.getvalue())
    assert Vocabulary.load(again) == Vocabulary.load(path)


def _used(words: Vocabulary) -> None:
    """What `segment` and `evaluate` do with the names: prompts, files beside results, groups of classes."""
    for name in words.all_names:
        fill("a photo of a {}.", name)
    seen_groups([entry.names for entry in words.classes], [("dog",)])
    forgiving(words, Hypernyms.builtin())


def _truths(folder: Path, path: Path) -> None:
    """The truths of a user's own data set (`evaluate`, `train`), and the list of its classes written again."""
    dataset = open_own(folder, vocabulary=path)
    write_classes(folder.parent / "written", dataset.vocabulary.names, dataset.vocabulary.things)
    for sample in dataset.samples:
        dataset.truth(sample, "semantic")


def _measured(folder: Path, path: Path) -> None:
    """`lexiseg metrics`, of the truth against itself."""
    options = {"json": True, "output": None, "keep_going": False, "ignore": None, "vocabulary": str(path)}
    maps = {"predictions": str(folder / "found"), "ground_truth": str(folder / "own/labels")}
    metrics.run(argparse.Namespace(task="semantic", **maps, **options))
