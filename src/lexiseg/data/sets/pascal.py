"""PASCAL VOC 2012 and PASCAL Context, in the protocols of open-vocabulary papers.

VOC's own label maps (0 background, 1..20 things, 255 void) are read in three ways:

    voc-20    the twenty things; the background is ignored
    voc-20b   the twenty things and one class for the rest, with the 39 other names of PASCAL Context
    voc-21    the twenty things and the background as a class

PASCAL Context annotates the pictures of VOC 2010 with 459 classes (a MATLAB file per picture) or the 59 frequent ones (one
JSON of run lengths). Both are converted to label maps, in the same folders as CAT-Seg's preparation.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from lexiseg.data.dataset import Dataset
from lexiseg.data.prepare import Work, carry_out, read_names, refuse_unfinished, write_picture
from lexiseg.data.readers import pair_samples, semantic_dataset
from lexiseg.data.row import Row
from lexiseg.errors import DataError, UsageError
from lexiseg.ops.coco import read_json
from lexiseg.ops.label_table import LabelTable
from lexiseg.ops.names import below, relative_name
from lexiseg.ops.rle import decode_counts, decompress
from lexiseg.text.vocabulary import ClassName, Vocabulary

VOC, CONTEXT = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
VOC_LIST, CONTEXT_LIST = f"{VOC}/ImageSets/Segmentation/val.txt", f"{CONTEXT}/ImageSets/Main/val.txt"
MERGED = f"{CONTEXT}/trainval_merged.json"
TRUTHS_59, TRUTHS_459 = (f"{CONTEXT}/annotations_detectron2/{name}" for name in ("pc59_val", "pc459_val"))
VOID_8, VOID_16 = 255, 65535

# Numbers of the 59 frequent classes among the 459, in the order of the prepared maps (alphabetical).
# fmt: off
FREQUENT = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159, 162, 187,
    189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420,
    424, 427, 440, 445, 454, 458,
)
# fmt: on


# --- VOC --------------------------------------------------------------------------------------------------------------


def open_voc(root: Path, *, name: str) -> Dataset:
    """Open the validation pictures of VOC 2012 in one of the three ways above.

    Raises:
        DataError: if files are missing.
    """
    vocabulary, table = {
        "voc-20": (Vocabulary.builtin("voc20"), LabelTable.counted(20, first=1, ignored=[0, VOID_8])),
        "voc-20b": (voc_with_rest(), LabelTable({0: 20, **{raw: raw - 1 for raw in range(1, 21)}}, frozenset({VOID_8}))),
        "voc-21": (Vocabulary.builtin("voc21"), LabelTable.counted(21, ignored=[VOID_8])),
    }[name]
    samples = pair_samples(
        root / VOC / "JPEGImages", root / VOC / "SegmentationClass", image_ending=".jpg", names=read_names(root / VOC_LIST)
    )
    return semantic_dataset(name, vocabulary, samples, table)


def voc_with_rest() -> Vocabulary:
    """Return the twenty classes and one with the 39 names PASCAL Context adds: the protocol "PAS-20b" of OVSeg and CAT-Seg.

    There a model chooses among 59 names, and each of the 39 counts as background. Here a class is scored by its best name,
    which is the same; "background" is not among the names, and the class is shown by its first name.
    """
    first, *others = (entry.name for entry in Vocabulary.builtin("pascal-context-59").classes[20:])
    return Vocabulary((*Vocabulary.builtin("voc20").classes, ClassName(first, tuple(others), thing=False)))


# --- Context ----------------------------------------------------------------------------------------------------------


def open_context(root: Path, *, name: str) -> Dataset:
    """Open the validation pictures of PASCAL Context with 59 or 459 classes.

    Raises:
        DataError: if files are missing or the preparation was interrupted.
    """
    truths, ending = (root / TRUTHS_59, ".png") if name == "pascal-context-59" else (root / TRUTHS_459, ".tif")
    refuse_unfinished(name, truths)
    samples = pair_samples(
        root / CONTEXT / "JPEGImages",
        truths,
        image_ending=".jpg",
        truth_ending=ending,
        names=read_names(root / CONTEXT_LIST),
    )
    vocabulary = Vocabulary.builtin(name)
    return semantic_dataset(name, vocabulary, samples, context_table(vocabulary))


def context_table(vocabulary: Vocabulary) -> LabelTable:
    """Return the table from values of the prepared maps to labels; our list of 59 has VOC's twenty first, the maps do not."""
    if len(vocabulary) == 459:
        return LabelTable.counted(459, ignored=[459, VOID_16])  # 459 may be void in CAT-Seg's preparation
    alphabetical = sorted(range(59), key=lambda label: vocabulary.names[label].replace(" ", ""))
    return LabelTable(dict(enumerate(alphabetical)), frozenset({VOID_8}))


def prepare_context_59(root: Path) -> None:
    """Write label maps of the 59 classes from the JSON of run lengths; where masks overlap the later one counts.

    Raises:
        DataError: if a file is missing or damaged.
    """
    source, truths = root / MERGED, root / TRUTHS_59
    document = read_json(source)
    try:
        sizes = {
            entry["image_id"]: (
                relative_name(entry["file_name"], f"{source}, image {entry['image_id']}"),
                (entry["height"], entry["width"]),
            )
            for entry in document["images"]
            if entry["phase"] == "val"
        }
        masks: dict[Any, list[Mapping[str, Any]]] = {image: [] for image in sizes}
        for entry in document["annos_segmentation"]:
            if entry["image_id"] in masks:
                masks[entry["image_id"]].append(entry)
    except (KeyError, TypeError) as error:
        raise DataError(f"{source}: is not the JSON of PASCAL Context ({error!r}); fetch it again") from None
    work = [
        Work(done := below(truths, f"{Path(file).stem}.png", str(source)), partial(_write_59, done, masks[image], size, source))
        for image, (file, size) in sizes.items()
    ]
    carry_out("pascal-context-59", truths, work)


def _write_59(path: Path, masks: Sequence[Mapping[str, Any]], size: tuple[int, int], source: Path) -> None:
    labels = np.full(size, VOID_8, np.uint8)
    label_of = {raw: label for label, raw in enumerate(FREQUENT)}
    for entry in masks:
        try:
            inside = decode_counts(decompress(entry["segmentation"]["counts"]), size).numpy()
            labels[inside] = label_of.get(entry["category_id"], VOID_8)
        except (UsageError, KeyError, TypeError) as error:
            raise DataError(f"{source}: annotation {entry.get('id')} of {path.stem} cannot be read ({error})") from None
    write_picture(path, labels)


def prepare_context_459(root: Path) -> None:
    """Write 16-bit label maps of the 459 classes from the MATLAB files; 0 becomes void.

    Raises:
        DataError: if a file is missing or damaged.
    """
    truths = root / TRUTHS_459
    work = [
        Work(
            done := below(truths, f"{name}.tif", str(root / CONTEXT_LIST)),
            partial(_write_459, done, root / CONTEXT / "trainval" / f"{name}.mat"),
        )
        for name in read_names(root / CONTEXT_LIST)
    ]
    carry_out("pascal-context-459", truths, work)


def _write_459(path: Path, source: Path) -> None:
    write_picture(path, read_label_matrix(source) - np.uint16(1))  # 0 wraps to 65535, the void


def read_label_matrix(path: Path) -> NDArray[np.uint16]:
    """Read the matrix "LabelMap" [H, W] of a MATLAB file.

    Raises:
        DataError: if the file is missing or damaged, or has no such matrix.
    """
    try:
        matrix = loadmat(path, variable_names=["LabelMap"])["LabelMap"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `lexiseg data check` says how to get it") from None
    except KeyError:
        raise DataError(f"{path}: has no matrix 'LabelMap'; is it one of PASCAL Context's trainval.tar.gz?") from None
    except (MatReadError, OSError, ValueError, TypeError, IndexError, NotImplementedError, zlib.error) as error:
        raise DataError(f"{path}: is not a readable MATLAB file ({error}); fetch it again") from None
    if matrix.ndim != 2 or matrix.dtype.kind != "u":
        raise DataError(f"{path}: 'LabelMap' is {matrix.dtype} of shape {matrix.shape}, expected class numbers [H, W]")
    return np.asarray(matrix, np.uint16)


# --- the catalogue's rows ---------------------------------------------------------------------------------------------

_GET_VOC = (
    "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (no registration), unpacked in the"
    f" root: it makes {VOC}."
)
_GET_2010 = (
    "VOCtrainval_03-May-2010.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ (no registration), unpacked in the"
    f" root: it makes {CONTEXT}."
)
_NEEDS_VOC = (f"{VOC}/JPEGImages/*.jpg", f"{VOC}/SegmentationClass/*.png", VOC_LIST)
_NEEDS_2010 = (f"{CONTEXT}/JPEGImages/*.jpg", CONTEXT_LIST)

ROWS: tuple[Row, ...] = (
    *(
        Row(
            name, f"PASCAL VOC 2012 val, {what}", ("semantic",), _NEEDS_VOC, _GET_VOC, partial(open_voc, name=name), images=1449
        )
        for name, what in (
            ("voc-20", "20 things"),
            ("voc-20b", "20 things and the rest as one class"),
            ("voc-21", "20 things and the background"),
        )
    ),
    Row(
        name="pascal-context-59",
        title="PASCAL Context val, 59 frequent classes",
        tasks=("semantic",),
        needs=(*_NEEDS_2010, f"{TRUTHS_59}/*.png"),
        get=f"{_GET_2010} And trainval_merged.json, the annotations of the Detail API"
        f" (https://github.com/zhanghang1989/detail-api says where), put into {CONTEXT}.",
        open=partial(open_context, name="pascal-context-59"),
        raw=(*_NEEDS_2010, MERGED),
        prepare=prepare_context_59,
        images=5105,
    ),
    Row(
        name="pascal-context-459",
        title="PASCAL Context val, all 459 classes",
        tasks=("semantic",),
        needs=(*_NEEDS_2010, f"{TRUTHS_459}/*.tif"),
        get=f"{_GET_2010} And trainval.tar.gz from https://www.cs.stanford.edu/~roozbeh/pascal-context/, unpacked in"
        f" {CONTEXT}: it makes {CONTEXT}/trainval with a .mat file a picture.",
        open=partial(open_context, name="pascal-context-459"),
        raw=(*_NEEDS_2010, f"{CONTEXT}/trainval/*.mat"),
        prepare=prepare_context_459,
        images=5105,
    ),
)
