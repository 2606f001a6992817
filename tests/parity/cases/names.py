"""Names: prompts, synonyms, and which classes count as seen."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from lexiseg.data import official_names
from lexiseg.data.sets.pascal import context_table
from lexiseg.metrics.seen import seen_classes
from lexiseg.text.templates import fill, resolve_templates
from lexiseg.text.vocabulary import Vocabulary
from tests.parity.report import Row, load_case

# Official data sets: our list of their classes, and for how many of these it is answered otherwise whether COCO has them. The
# rule is not at fault: applied to the official lists, it gives every recorded flag. But our lists, and so their synonyms, are
# our own. Not here: LVIS and Mapillary, whose names come with their files; and instance data sets, where the official program
# compares with COCO's things only.
LISTS = {
    "openvocab_ade20k_panoptic_*": ("ade150", 22),
    "openvocab_ade20k_full_sem_seg_*": ("ade847", 36),
    "openvocab_cityscapes_fine_panoptic_*": ("cityscapes", 1),
    "openvocab_coco_2017_*_panoptic_with_sem_seg": ("coco", 0),
    "openvocab_coco_2017_train_stuff_sem_seg": ("coco-stuff-171", 13),
    "openvocab_pascal_ctx459_sem_seg_*": ("pascal-context-459", 15),
    "openvocab_pascal_ctx59_sem_seg_*": ("pascal-context-59", 7),
    "openvocab_pascal20_sem_seg_*": ("voc20", 0),
    "openvocab_pascal21_sem_seg_*": ("voc21", 0),
    "bdd10k_40_panoptic_val": ("bdd100k-40", 2),
    "bdd10k_val_sem_seg": ("cityscapes", 3),
}


OFFICIAL = {  # data set of the catalogue: of the official program
    "ade20k-150": "openvocab_ade20k_panoptic_val",
    "ade20k-847": "openvocab_ade20k_full_sem_seg_val",
    "bdd100k": "bdd10k_val_sem_seg",
    "bdd100k-panoptic": "bdd10k_40_panoptic_val",
    "cityscapes": "openvocab_cityscapes_fine_panoptic_val",
    "coco-panoptic": "openvocab_coco_2017_val_panoptic_with_sem_seg",
    "coco-stuff": "openvocab_coco_2017_train_stuff_sem_seg",
    "pascal-context-459": "openvocab_pascal_ctx459_sem_seg_val",
    "pascal-context-59": "openvocab_pascal_ctx59_sem_seg_val",
    "voc-20": "openvocab_pascal20_sem_seg_val",
    "voc-21": "openvocab_pascal21_sem_seg_val",
}


def prompt_expansion(path: Path) -> list[Row]:
    """Classes written as strings: their names, whether they are seen, and the prompts of all names."""
    _, document = load_case(path)
    test, train = (Vocabulary.parse(document[split]) for split in ("test", "train"))
    seen = seen_classes([entry.names for entry in test.classes], [entry.names for entry in train.classes])
    prompts = [fill(template, name) for name in test.all_names for template in resolve_templates("vild14")]
    return [
        Row(
            path.name,
            "names of each class",
            _different([len(entry.names) for entry in test.classes], document["num_templates"]),
            0,
        ),
        Row(path.name, "seen", _different(seen.astype(int).tolist(), document["category_overlapping_mask"]), 0),
        Row(path.name, "prompts", _different(prompts, document["templated_names"]), 0),
    ]


def dataset_overlap(path: Path) -> list[Row]:
    """The official data sets whose classes we list: how many there are, which are things, and which were seen on COCO."""
    _, document = load_case(path)
    coco = [entry.names for entry in Vocabulary.builtin("coco").classes]
    rows = []
    for (pattern, (name, allowed)), (official, recorded) in product(LISTS.items(), document.items()):
        if not fnmatchcase(official, pattern):
            continue
        vocabulary = Vocabulary.builtin(name)
        if name == "pascal-context-59":  # theirs are in the order of the label maps
            vocabulary = vocabulary.select(list(context_table(vocabulary).labels.values()))
        things = [label for label, thing in enumerate(vocabulary.things) if thing]
        seen = seen_classes([entry.names for entry in vocabulary.classes], coco).astype(int).tolist()
        rows.append(Row(path.name, f"{official}: classes", abs(len(vocabulary) - recorded["num_classes"]), 0))
        if recorded["thing_contiguous"]:  # theirs of semantic data sets has none
            rows.append(Row(path.name, f"{official}: things", _different(things, sorted(recorded["thing_contiguous"])), 0))
        flags = recorded["category_overlapping_mask"]
        rows.append(Row(path.name, f"{official}: seen, by our own lists", _different(seen, flags), allowed))
    return [*rows, *_by_official_lists(path.name, document)]


def _by_official_lists(case: str, document: dict[str, Any]) -> list[Row]:
    """The flags by the official lists, those of them that `lexiseg data names` has fetched to this machine."""
    if not official_names.path_of(official_names.TRAINING).is_file():
        return []
    training = official_names.load(official_names.TRAINING).vocabulary.class_names
    rows = []
    for name, official in OFFICIAL.items():
        if official_names.path_of(name).is_file():
            seen = seen_classes(official_names.load(name).vocabulary.class_names, training).astype(int).tolist()
            flags = document[official]["category_overlapping_mask"]
            rows.append(Row(case, f"{official}: seen, by the official lists", _different(seen, flags), 0))
    return rows


def _different(ours: list[Any], reference: list[Any]) -> float:
    """How many entries differ."""
    return float("inf") if len(ours) != len(reference) else float(sum(a != b for a, b in zip(ours, reference, strict=True)))


CASES: dict[str, Callable[[Path], list[Row]]] = {"05_prompt_expansion": prompt_expansion, "05_dataset_overlap": dataset_overlap}
