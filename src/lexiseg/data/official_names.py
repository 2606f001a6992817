"""Class lists of FC-CLIP's and FrozenSeg's official programs, fetched from the authors' repositories.

Which classes count as seen, and so α and β of the class ensemble, hangs on the synonyms in these lists. They are not part of
this package: `fetch` gets one of a fixed revision, and writes its ``id: name, synonym`` lines to ``$LEXISEG_CACHE/names``.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from lexiseg.errors import DataError, UsageError
from lexiseg.ops.files import write_atomically
from lexiseg.text.class_lists import entries_of_lines
from lexiseg.text.embed import cache_folder
from lexiseg.text.vocabulary import ClassList

SERVER = "https://raw.githubusercontent.com"
FCCLIP = "bytedance/fc-clip/2b0bbe213070d44da9182530fa2e826fef03f974/fcclip/data/datasets"
FROZENSEG = "chenxi52/FrozenSeg/647cf685f763d7b2cb6f8848ab369f0259c22516/frozenseg/data/datasets"
TRAINING = "coco-panoptic"  # the list of the classes that both programs are trained on
TIMEOUT, LARGEST = 30, 2**20  # seconds without an answer, and bytes


@dataclass(frozen=True)
class OfficialList:
    """One list.

    Attributes:
        file: its path on `SERVER`.
        classes: how many classes it has.
        read: the ``id: name, synonym`` lines of the file's text. Raises ValueError if it is not such a file.
    """

    file: str
    classes: int
    read: Callable[[str], str] = str

    @property
    def address(self) -> str:
        """Its URL."""
        return f"{SERVER}/{self.file}"


def _without_background(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("0:"))


def _of_program(name: str) -> Callable[[str], str]:
    """Reader of ``name = ["road", …]`` or ``[Label("road", …), …]`` in the text of a Python program, which is not run."""

    def read(text: str) -> str:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
                entries = node.value.elts if isinstance(node.value, ast.List) else []
                names = [ast.literal_eval(entry.args[0] if isinstance(entry, ast.Call) else entry) for entry in entries]
                return "\n".join(f"{number}: {word}" for number, word in enumerate(names))
        raise ValueError(f"it has no list called {name}")

    return read


def _fcclip(name: str) -> str:
    return f"{FCCLIP}/{name}_with_prompt_eng.txt"


LISTS: Mapping[str, OfficialList] = {
    "coco-panoptic": OfficialList(_fcclip("coco_panoptic"), 133),
    "coco-stuff": OfficialList(_fcclip("coco_stuff"), 171),
    "ade20k-150": OfficialList(_fcclip("ade20k_150"), 150),
    "ade20k-847": OfficialList(_fcclip("ade20k_847"), 847),
    "cityscapes": OfficialList(_fcclip("cityscapes"), 19),
    "mapillary-1.2": OfficialList(_fcclip("mapillary_vistas"), 65),
    "bdd100k": OfficialList(f"{FROZENSEG}/register_bdd100k_semseg.py", 19, _of_program("BDD_SEM")),
    "bdd100k-panoptic": OfficialList(f"{FROZENSEG}/register_bdd100k_panoseg.py", 40, _of_program("BDD_CATEGORIES")),
    "pascal-context-59": OfficialList(_fcclip("pascal_ctx_59"), 59),
    "pascal-context-459": OfficialList(_fcclip("pascal_ctx_459"), 459),
    "voc-20": OfficialList(_fcclip("pascal_voc_21"), 20, _without_background),
    "voc-21": OfficialList(_fcclip("pascal_voc_21"), 21),
    "lvis": OfficialList(_fcclip("lvis_1203"), 1203),
}


def path_of(dataset: str) -> Path:
    """Where the list of a data set lies once it has been fetched.

    Raises:
        UsageError: there is no official list of it, or no folder for caches.
    """
    name = dataset.removesuffix("-train")
    if name not in LISTS:
        raise UsageError(f"the official programs have no class list of {dataset}; they have {', '.join(LISTS)}")
    folder = cache_folder("names")
    if folder is None:
        raise UsageError("there is no folder for caches: set LEXISEG_CACHE")
    return folder / f"{name}.txt"


def load(dataset: str) -> ClassList:
    """Read the list of a data set where it lies.

    Raises:
        UsageError: it has not been fetched, or is damaged.
    """
    path = path_of(dataset)
    if not path.is_file():
        raise UsageError(f"the official class list of {dataset} is not on this machine; 'lexiseg data names {dataset}' gets it")
    return ClassList.from_file(path, unique=False)


def fetch(dataset: str) -> Path:
    """Fetch the list of a data set from the authors' repository. Returns where it lies; a list that is there is not fetched.

    Raises:
        UsageError: as `path_of`.
        DataError: it cannot be fetched, or is not the list.
        OutputError: it cannot be written.
    """
    path = path_of(dataset)
    if path.is_file():
        return path
    official = LISTS[path.stem]
    try:
        with urlopen(official.address, timeout=TIMEOUT) as answer:  # the scheme is that of `SERVER`
            text = official.read(answer.read(LARGEST).decode())
        classes = len(ClassList.of(entries_of_lines(text, official.address), official.address, unique=False).vocabulary)
    except (OSError, HTTPException, ValueError, SyntaxError, UsageError) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise DataError(
            f"cannot fetch {official.address} ({' '.join(str(error).split())}); try again, or get the file by other means and "
            "give it, --names FILE"
        ) from None
    if classes != official.classes:
        raise DataError(f"{official.address} has {classes} classes, not {official.classes}: it is not the list of {dataset}")
    write_atomically(path, f"# {official.address}\n{text.strip()}\n".encode())
    return path
