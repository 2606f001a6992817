"""RefCOCO and RefCOCO+ (UNC splits): each sample is a picture with one expression that refers to one of its things.

A sample's own vocabulary is the expression and "background"; its semantic truth has label 0 in the referred region and 1
elsewhere, so that the score of label 0 over all samples is the overall IoU. Its instance truth is the referred region. There
is a sample per sentence: a picture occurs once for each of its expressions.

The expressions are in a pickle of lists, dicts, strings and numbers; the unpickler refuses a file that names any class or
function.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lexiseg.data.dataset import Dataset, Sample, Truth
from lexiseg.data.readers import InstanceRecord, read_instances
from lexiseg.data.row import Row
from lexiseg.errors import DataError
from lexiseg.ops.coco import read_coco
from lexiseg.ops.label_table import LabelTable
from lexiseg.ops.names import below, relative_name
from lexiseg.ops.rle import decode_counts
from lexiseg.structures import Instances
from lexiseg.text.vocabulary import ClassName, Vocabulary

PICTURES = "coco/train2014"  # all three splits are of COCO's training pictures of 2014
REFERRED, BACKGROUND = 0, 1
REST = ClassName("background", thing=False)


def open_refcoco(root: Path, *, name: str, folder: str, split: str) -> Dataset:
    """Open a split, with one sample per expression.

    Args:
        root: the user's root.
        name: the row's name.
        folder: ``refcoco`` or ``refcoco+``.
        split: ``val``, ``testA`` (people) or ``testB`` (other things).

    Raises:
        DataError: if files are missing or damaged, or an expression refers to a missing annotation.
    """
    source, expressions = root / folder / "instances.json", root / folder / "refs(unc).p"
    references = read_plain_pickle(expressions)
    document = read_coco(source, panoptic=False)
    images = {entry["id"]: entry for entry in document.images}
    annotations = {entry["id"]: entry for entries in document.annotations.values() for entry in entries}
    samples = []
    try:
        for reference in references:
            if reference["split"] != split:
                continue
            image, region = images[reference["image_id"]], annotations[reference["ann_id"]]
            fault = document.faults.get(image["id"])
            record = InstanceRecord((region,), (image["height"], image["width"]), source, fault=fault)
            picture = below(root / PICTURES, image["file_name"], f"{source}, image {image['id']}")
            for sentence in reference["sentences"]:
                vocabulary = Vocabulary((ClassName(sentence["sent"]), REST))
                number = sentence["sent_id"]
                key = relative_name(str(number), f"{expressions}, a sentence of image {image['id']}")
                samples.append(Sample(key, picture, number, {"semantic": record, "instance": record}, vocabulary))
    except (KeyError, TypeError) as error:
        raise DataError(f"{expressions}: lacks {error} or {source} does; are both of the same archive?") from None
    if not samples:
        raise DataError(f"{expressions}: holds no expression of the split '{split}'; fetch it again")
    if missing := [str(sample.image) for sample in samples if not sample.image.is_file()]:
        raise DataError(f"{len(missing)} samples lack their picture, such as {missing[0]}; unpack train2014.zip of COCO again")
    table = LabelTable({entry["id"]: REFERRED for entry in document.categories})
    readers: dict[str, Callable[[Sample], Truth]] = {
        "semantic": partial(read_referred, table=table),
        "instance": partial(read_instances, table=table),
    }
    return Dataset(name, Vocabulary((ClassName("referred region"), REST)), tuple(samples), readers, (REFERRED, BACKGROUND))


def read_referred(sample: Sample, *, table: LabelTable) -> NDArray[np.int32]:
    """Read labels [H, W]: 0 in the referred region, 1 elsewhere.

    Raises:
        DataError: as `lexiseg.data.readers.read_instances`.
    """
    truth: Instances = read_instances(sample, table=table)
    (region,) = truth.things
    inside = decode_counts(region.counts, truth.size).numpy()
    return np.where(inside, REFERRED, BACKGROUND).astype(np.int32)


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler of lists, dicts, strings and numbers only: anything that runs code needs a name, and all are refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not plain data")


def read_plain_pickle(path: Path) -> list[dict[str, Any]]:
    """Read a list of dicts from a pickle of plain data; refuse anything else without loading it.

    Raises:
        DataError: if the file is missing or damaged, holds more than plain data, or is not a list of dicts.
    """
    try:
        with path.open("rb") as file:
            document = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `lexiseg data check` says how to get it") from None
    except (  # raised by the unpickler on damaged data
        pickle.UnpicklingError,
        OSError,
        EOFError,
        ValueError,
        IndexError,
        KeyError,
        AttributeError,
        TypeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise DataError(f"{path}: is damaged or not the data set's ({error}); fetch it again") from None
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        raise DataError(f"{path}: is not a list of expressions; fetch it again")
    return document


def _row(name: str, title: str, folder: str, split: str, expressions: int) -> Row:
    return Row(
        name=name,
        title=f"{title} {split} (UNC), a sample an expression",
        tasks=("semantic", "instance"),
        needs=(f"{folder}/refs(unc).p", f"{folder}/instances.json", f"{PICTURES}/*.jpg"),
        get=f"{folder}.zip of the REFER data (https://github.com/lichengunc/refer names the archives), unpacked in the root:"
        f" it makes {folder}/refs(unc).p and {folder}/instances.json. And train2014.zip from https://cocodataset.org"
        f" (Download), unpacked in coco: it makes {PICTURES}.",
        open=partial(open_refcoco, name=name, folder=folder, split=split),
        images=expressions,
    )


ROWS: tuple[Row, ...] = (
    _row("refcoco-val", "RefCOCO", "refcoco", "val", 10834),
    _row("refcoco-testa", "RefCOCO", "refcoco", "testA", 5657),
    _row("refcoco-testb", "RefCOCO", "refcoco", "testB", 5095),
    _row("refcoco-plus-val", "RefCOCO+", "refcoco+", "val", 10758),
    _row("refcoco-plus-testa", "RefCOCO+", "refcoco+", "testA", 5726),
    _row("refcoco-plus-testb", "RefCOCO+", "refcoco+", "testB", 4889),
)
