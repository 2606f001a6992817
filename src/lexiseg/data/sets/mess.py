"""MESS, the multi-domain evaluation of semantic segmentation: 22 data sets of five domains (Blumenstiel et al., NeurIPS 2023).

Rows are called ``mess-<set>``, in the group of their domain; the class names are the lists ``mess-<set>``, those that the
benchmark gives to a model (its main table; not the data sets' own names where the two differ). PAXRay's four regions overlap,
so it is four rows of two classes, whose mean is the score of the set. `Dataset.groups` has the classes of interest, on which
the benchmark reports a second mean.

Paths and contents are those of the benchmark's own preparation, whose output can be used as it is; the preparations below
write the same from each set's download. 255 is ignored everywhere, also as padding of tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from lexiseg.data.dataset import Dataset
from lexiseg.data.prepare import (
    Work,
    carry_out,
    labels_of_colours,
    labels_of_values,
    raw_files,
    read_lines,
    read_names,
    refuse_unfinished,
    same_size,
    tiles,
    write_picture,
)
from lexiseg.data.readers import pair_samples, read_colours, semantic_dataset
from lexiseg.data.row import Row
from lexiseg.errors import DataError
from lexiseg.ops.coco import read_json
from lexiseg.ops.names import below, relative_name
from lexiseg.ops.pictures import read_values
from lexiseg.text.vocabulary import Vocabulary

Labels = NDArray[np.uint8]

VOID = 255
IMAGES, TRUTHS = "images_detectron2", "annotations_detectron2"  # the benchmark's names of prepared folders


@dataclass(frozen=True)
class Layout:
    """Folders, below the root, and suffixes of a set's pictures and label maps.

    Attributes:
        images, truths: the two folders.
        image_ending, truth_ending: as in `lexiseg.data.readers.pair_samples`.
        background: the labels that are not of interest.
        some: skip pictures without a label map; otherwise they are an error.
    """

    images: str
    truths: str
    image_ending: str = ".png"
    truth_ending: str = ".png"
    background: tuple[int, ...] = (0,)
    some: bool = False


@dataclass(frozen=True)
class Piece:
    """One raw picture.

    Attributes:
        key: its name when prepared, without suffix; a valid `relative_name`.
        picture: its file; None if the raw picture is used as it is.
        truth: the file of its truth, or the first of them.
        labels: reads the truth.
    """

    key: str
    picture: Path | None
    truth: Path
    labels: Callable[[], Labels]

    def __post_init__(self) -> None:
        relative_name(self.key, f"{self.truth}, its picture")


def open_mess(root: Path, *, name: str, layout: Layout) -> Dataset:
    """Open a set of the benchmark.

    Raises:
        DataError: if files are missing or the preparation was interrupted.
    """
    images, truths = root / layout.images, root / layout.truths
    refuse_unfinished(name, truths)
    names = None
    if layout.some:
        keys = [path.name.removesuffix(layout.truth_ending) for path in raw_files(truths, f"*{layout.truth_ending}")]
        names = [key for key in keys if (images / f"{key}{layout.image_ending}").is_file()]
    samples = pair_samples(images, truths, image_ending=layout.image_ending, truth_ending=layout.truth_ending, names=names)
    vocabulary = Vocabulary.builtin(name)
    of_interest = frozenset(range(len(vocabulary))) - frozenset(layout.background)
    return replace(semantic_dataset(name, vocabulary, samples), groups={"of interest": of_interest})


def prepare_mess(
    root: Path,
    *,
    name: str,
    layout: Layout,
    raw: tuple[str, ...],
    pieces: Callable[[Path], Iterator[Piece]],
    tiled: bool = False,
) -> None:
    """Write the pictures and label maps of one set.

    Args:
        root: the user's root.
        name: the row's name.
        layout: the folders to write to.
        raw: globs of the raw files, checked first.
        pieces: yields the raw pictures below the root.
        tiled: cut them into tiles, numbered row by row, padded with black and void at the edge.

    Raises:
        DataError: if a file is missing or damaged.
    """
    for pattern in raw:
        raw_files(root, pattern)
    write, first = (_write_tiles, "_0") if tiled else (_write_whole, "")
    truths = root / layout.truths
    work = [
        Work(below(truths, f"{piece.key}{first}{layout.truth_ending}", name), partial(write, piece, root, layout))
        for piece in pieces(root)
    ]
    carry_out(name, truths, work)


def _write_whole(piece: Piece, root: Path, layout: Layout) -> None:
    labels = piece.labels()
    if piece.picture is not None:
        picture = read_colours(piece.picture)
        same_size(picture, labels, piece.truth)
        write_picture(below(root / layout.images, f"{piece.key}{layout.image_ending}", str(piece.truth)), picture)
    write_picture(below(root / layout.truths, f"{piece.key}{layout.truth_ending}", str(piece.truth)), labels)


def _write_tiles(piece: Piece, root: Path, layout: Layout) -> None:
    assert piece.picture is not None
    picture, labels = read_colours(piece.picture), piece.labels()
    same_size(picture, labels, piece.truth)
    pairs = list(enumerate(zip(tiles(picture, 0), tiles(labels, VOID), strict=True)))
    for number, (part, part_labels) in reversed(pairs):  # number 0, which marks the piece as done, comes last
        write_picture(below(root / layout.images, f"{piece.key}_{number}{layout.image_ending}", str(piece.truth)), part)
        write_picture(below(root / layout.truths, f"{piece.key}_{number}{layout.truth_ending}", str(piece.truth)), part_labels)


# --- truths of several sets -------------------------------------------------------------------------------------------


def _values(path: Path) -> Labels:
    values = read_values(path)
    if values.max() > VOID:
        raise DataError(f"{path}: has the number {values.max()}; a label map of this set has 8 bits; fetch it again")
    return values.astype(np.uint8)


def _white(path: Path) -> Labels:
    """Read a mask of any number of channels: 1 where it is white, else 0."""
    return np.where(read_colours(path)[..., 0] == 255, 1, 0).astype(np.uint8)


def _mapped(path: Path, table: dict[int, int]) -> Labels:
    return labels_of_values(read_values(path), table, path)


def _coloured(path: Path, table: dict[tuple[int, int, int], int]) -> Labels:
    return labels_of_colours(read_colours(path), table, path)


# --- general ----------------------------------------------------------------------------------------------------------

BDD100K = Layout("bdd100k/images/10k/val", f"bdd100k/{TRUTHS}/val", ".jpg", background=())
BDD100K_RAW = "bdd100k/labels/sem_seg/colormaps/val/*.png"


def _bdd100k(root: Path) -> Iterator[Piece]:
    for path in raw_files(root, BDD100K_RAW):
        yield Piece(path.stem, None, path, partial(_values, path))  # the palette indices are the labels


DARK_ZURICH = Layout(
    "Dark_Zurich/rgb_anon/val/night/GOPR0356", f"Dark_Zurich/{TRUTHS}/val", "_rgb_anon.png", "_gt_labelIds.png"
)
DARK_ZURICH_RAW = "Dark_Zurich/gt/val/night/GOPR0356/*_gt_labelIds.png"
CITYSCAPES_IDS = (0, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # in the order of the labels


def _dark_zurich(root: Path) -> Iterator[Piece]:
    for path in raw_files(root, DARK_ZURICH_RAW):
        yield Piece(path.name.removesuffix("_gt_labelIds.png"), None, path, partial(_dark_zurich_labels, path))


def _dark_zurich_labels(path: Path) -> Labels:
    """Map Cityscapes' ids to labels; pixels invalid in the second map are void."""
    values = read_values(path)
    second = path.with_name(path.name.replace("labelIds", "invGray"))
    invalid = read_values(second)
    same_size(values, invalid, second)
    table = {raw: label for label, raw in enumerate(CITYSCAPES_IDS)} | {VOID: VOID}
    return labels_of_values(np.where(invalid == 255, VOID, values), table, path)


MHP_V1 = Layout(f"LV-MHP-v1/{IMAGES}/test", f"LV-MHP-v1/{TRUTHS}/test", ".jpg")
MHP_V1_RAW = ("LV-MHP-v1/test_list.txt", "LV-MHP-v1/images/*.jpg", "LV-MHP-v1/annotations/*.png")


def _mhp_v1(root: Path) -> Iterator[Piece]:
    folder = root / "LV-MHP-v1"
    for file in read_names(folder / "test_list.txt"):
        key = Path(file).stem
        persons = raw_files(folder, f"annotations/{key}_*.png")
        yield Piece(key, folder / "images" / file, persons[0], partial(_mhp_v1_labels, persons))


def _mhp_v1_labels(persons: list[Path]) -> Labels:
    """Merge the maps of all persons; where they overlap the larger label counts."""
    labels = _values(persons[0])
    for path in persons[1:]:
        other = _values(path)
        same_size(labels, other, path)
        labels = np.maximum(labels, other)
    return labels


def prepare_mhp_v1(root: Path) -> None:
    """Prepare MHP v1, with truncated pictures: as in the benchmark their missing ends are grey.

    Raises:
        DataError: as `prepare_mess`.
    """
    with _allow_truncated():
        prepare_mess(root, name="mess-mhp-v1", layout=MHP_V1, raw=MHP_V1_RAW, pieces=_mhp_v1)


@contextmanager
def _allow_truncated() -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


FOODSEG103 = Layout("FoodSeg103/Images/img_dir/test", "FoodSeg103/Images/ann_dir/test", ".jpg", some=True)

ATLANTIS = Layout(f"atlantis/{IMAGES}/test", f"atlantis/{TRUTHS}/test", ".jpg", background=())
ATLANTIS_RAW = ("atlantis/images/test/*/*.jpg", "atlantis/masks/test/*/*.png")


def _atlantis(root: Path) -> Iterator[Piece]:
    table = {0: VOID} | {raw: raw - 1 for raw in range(1, 57)}
    for path in raw_files(root, ATLANTIS_RAW[0]):
        truth = root / "atlantis/masks/test" / path.parent.name / f"{path.stem}.png"
        yield Piece(path.stem, path, truth, partial(_mapped, truth, table))


DRAM = Layout(f"DRAM_processed/{IMAGES}/test", f"DRAM_processed/{TRUTHS}/test", ".jpg", background=(11,))
DRAM_RAW = ("DRAM_processed/test/**/*.jpg", "DRAM_processed/labels/**/*.png")
DRAM_IN_VOC = (3, 4, 5, 8, 9, 10, 12, 13, 15, 16, 17)  # VOC's ids of the labels 0..10; VOC's other classes are label 11


def _dram(root: Path) -> Iterator[Piece]:
    table = dict.fromkeys(range(21), 11) | {raw: label for label, raw in enumerate(DRAM_IN_VOC)} | {VOID: VOID}
    pictures = root / "DRAM_processed/test"
    for path in raw_files(root, DRAM_RAW[0]):
        truth = (root / "DRAM_processed/labels" / path.relative_to(pictures)).with_suffix(".png")
        yield Piece(f"{path.parent.name}_{path.stem}", path, truth, partial(_mapped, truth, table))  # <artist>_<picture>


# --- earth monitoring -------------------------------------------------------------------------------------------------

ISAID = Layout(f"isaid/{IMAGES}/val", f"isaid/{TRUTHS}/val")
ISAID_RAW = ("isaid/val/images/*.png", "isaid/raw_val/images/*.png")
ISAID_COLOURS = (
    (0, 0, 0),
    (0, 0, 63),
    (0, 63, 63),
    (0, 63, 0),
    (0, 63, 127),
    (0, 63, 191),
    (0, 63, 255),
    (0, 127, 63),
    (0, 127, 127),
    (0, 0, 127),
    (0, 0, 191),
    (0, 0, 255),
    (0, 191, 127),
    (0, 127, 191),
    (0, 127, 255),
    (0, 100, 155),
)


def _isaid(root: Path) -> Iterator[Piece]:
    table = {colour: label for label, colour in enumerate(ISAID_COLOURS)}
    for path in raw_files(root, ISAID_RAW[1]):
        key = path.name.split("_")[0]
        yield Piece(key, root / f"isaid/val/images/{key}.png", path, partial(_coloured, path, table))


ISPRS_POTSDAM = Layout(f"ISPRS_Potsdam/{IMAGES}/test/irrg", f"ISPRS_Potsdam/{TRUTHS}/test", background=(5,))
ISPRS_POTSDAM_RAW = ("ISPRS_Potsdam/3_Ortho_IRRG/*_IRRG.tif", "ISPRS_Potsdam/Labels/*_label.tif")
ISPRS_POTSDAM_TEST = (
    "2_13",
    "2_14",
    "3_13",
    "3_14",
    "4_13",
    "4_14",
    "4_15",
    "5_13",
    "5_14",
    "5_15",
    "6_13",
    "6_14",
    "6_15",
    "7_13",
)
ISPRS_POTSDAM_COLOURS = {
    (255, 255, 255): 0,
    (0, 0, 255): 1,
    (0, 255, 255): 2,
    (0, 255, 0): 3,
    (255, 255, 0): 4,
    (255, 0, 0): 5,
    (0, 0, 0): 0,  # not a class; may come from rounding, read as in the benchmark
    (255, 0, 255): VOID,
}


def _isprs_potsdam(root: Path) -> Iterator[Piece]:
    folder = root / "ISPRS_Potsdam"
    for area in ISPRS_POTSDAM_TEST:
        key = f"top_potsdam_{area}"
        truth = folder / f"Labels/{key}_label.tif"
        yield Piece(key, folder / f"3_Ortho_IRRG/{key}_IRRG.tif", truth, partial(_isprs_potsdam_labels, truth))


def _isprs_potsdam_labels(path: Path) -> Labels:
    """Read labels with each channel rounded to 0 or 255, since some of the maps have shades."""
    rounded = np.where(read_colours(path) > 128, 255, 0).astype(np.uint8)
    return labels_of_colours(rounded, ISPRS_POTSDAM_COLOURS, path)


WORLDFLOODS = Layout(f"WorldFloods/{IMAGES}/test/irrg", f"WorldFloods/{TRUTHS}/test", background=(0, 2))

FLOODNET = Layout(
    f"FloodNet-Supervised_v1.0/{IMAGES}/test",
    f"FloodNet-Supervised_v1.0/{TRUTHS}/test",
    ".jpg",
    background=(0, 2, 4, 5, 6, 7, 8, 9),  # flooded buildings and roads are of interest
)
FLOODNET_RAW = tuple(f"FloodNet-Supervised_v1.0/test/{files}" for files in ("test-org-img/*.jpg", "test-label-img/*_lab.png"))


def _floodnet(root: Path) -> Iterator[Piece]:
    for path in raw_files(root, FLOODNET_RAW[0]):
        truth = path.parents[1] / f"test-label-img/{path.stem}_lab.png"
        yield Piece(path.stem, path, truth, partial(_values, truth))


UAVID = Layout(f"uavid_v1.5/{IMAGES}/val", f"uavid_v1.5/{TRUTHS}/val")
UAVID_RAW = ("uavid_v1.5/uavid_val/*/Images/*.png", "uavid_v1.5/uavid_val/*/Labels/*.png")
UAVID_COLOURS = (
    (0, 0, 0),
    (128, 0, 0),
    (128, 64, 128),
    (0, 128, 0),
    (128, 128, 0),
    (64, 0, 128),
    (192, 0, 192),
    (64, 64, 0),
)


def _uavid(root: Path) -> Iterator[Piece]:
    table = {colour: label for label, colour in enumerate(UAVID_COLOURS)}
    for path in raw_files(root, UAVID_RAW[0]):
        sequence = path.parents[1]
        truth = sequence / "Labels" / path.name
        yield Piece(f"{sequence.name}_{path.stem}", path, truth, partial(_coloured, truth, table))


# --- medical sciences -------------------------------------------------------------------------------------------------

KVASIR = Layout(f"kvasir-instrument/{IMAGES}/test", f"kvasir-instrument/{TRUTHS}/test")
KVASIR_RAW = tuple(f"kvasir-instrument/{files}" for files in ("test.txt", "images/*.jpg", "masks/*.png"))


def _kvasir(root: Path) -> Iterator[Piece]:
    folder = root / "kvasir-instrument"
    for key in read_names(folder / "test.txt"):
        truth = folder / f"masks/{key}.png"
        yield Piece(key, folder / f"images/{key}.jpg", truth, partial(_white, truth))


CHASE_DB1 = Layout(f"CHASEDB1/{IMAGES}/test", f"CHASEDB1/{TRUTHS}/test", ".jpg")
CHASE_DB1_RAW = ("CHASEDB1/*.jpg", "CHASEDB1/*_1stHO.png")
CHASE_DB1_TRAINING = 8  # pictures, the first by name, that are for training


def _chase_db1(root: Path) -> Iterator[Piece]:
    for path in raw_files(root, CHASE_DB1_RAW[0])[CHASE_DB1_TRAINING:]:
        truth = path.with_name(f"{path.stem}_1stHO.png")  # of the first human observer
        yield Piece(path.stem, path, truth, partial(_inside, truth))


def _inside(path: Path) -> Labels:
    return np.where(read_values(path) > 0, 1, 0).astype(np.uint8)


CRYONUSEG = Layout(f"CryoNuSeg/{IMAGES}", f"CryoNuSeg/{TRUTHS}")
_BIOLOGIST = "Annotator 1 (biologist second round of manual marks up)"
CRYONUSEG_RAW = ("CryoNuSeg/tissue images/*.tif", f"CryoNuSeg/{_BIOLOGIST}/{_BIOLOGIST}/mask binary/*.png")


def _cryonuseg(root: Path) -> Iterator[Piece]:
    for path in raw_files(root, CRYONUSEG_RAW[0]):
        truth = (root / CRYONUSEG_RAW[1]).with_name(f"{path.stem}.png")
        yield Piece(path.stem, path, truth, partial(_white, truth))


PAXRAY_CHANNELS = {"lungs": 0, "mediastinum": 10, "bones": 24, "diaphragm": 163}  # of the 166 regions of its arrays
PAXRAY = {
    region: Layout(f"paxray_dataset/{IMAGES}/test", f"paxray_dataset/{TRUTHS}/test/{region}") for region in PAXRAY_CHANNELS
}
PAXRAY_RAW = tuple(f"paxray_dataset/{files}" for files in ("paxray.json", "images/*.png", "labels/*.npy"))


def _paxray(root: Path, *, region: str) -> Iterator[Piece]:
    source = root / PAXRAY_RAW[0]
    try:
        entries = [
            tuple(relative_name(entry[field], f"{source}, test, entry {number}") for field in ("image", "target"))
            for number, entry in enumerate(read_json(source)["test"], start=1)
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{source}: is not PAXRay's list of pictures ({error!r}); fetch it again") from None
    for image, target in entries:
        key, truth = image.removeprefix("images/").removesuffix(".png"), root / "paxray_dataset" / target
        channel = PAXRAY_CHANNELS[region]
        yield Piece(key, root / "paxray_dataset" / image, truth, partial(_paxray_labels, truth, channel))


def _paxray_labels(path: Path, channel: int) -> Labels:
    """Read the mask (1) of a region from an array [166, H, W]; reads only that part of the file."""
    try:
        return np.where(np.load(path, mmap_mode="r", allow_pickle=False)[channel] > 0, 1, 0).astype(np.uint8)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `lexiseg data check` says how to get it") from None
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"{path}: is no array of regions ({error}); fetch it again") from None


# --- engineering ------------------------------------------------------------------------------------------------------

_CORROSION = "Corrosion Condition State Classification/original/Test"
CORROSION_CS = Layout(f"{_CORROSION}/images", f"{_CORROSION}/masks", ".jpeg")

DEEPCRACK = Layout("DeepCrack/test_img", f"DeepCrack/{TRUTHS}/test", ".jpg")
DEEPCRACK_RAW = "DeepCrack/test_lab/*.png"


def _deepcrack(root: Path) -> Iterator[Piece]:
    for path in raw_files(root, DEEPCRACK_RAW):
        yield Piece(path.stem, None, path, partial(_white, path))


PST900 = Layout("PST900_RGBT_Dataset/test/thermal", "PST900_RGBT_Dataset/test/labels")

_ZEROWASTE = "zerowaste-f/splits_final_deblurred/test"
ZEROWASTE = Layout(f"{_ZEROWASTE}/data", f"{_ZEROWASTE}/sem_seg", ".PNG", ".PNG")


# --- agriculture and biology ------------------------------------------------------------------------------------------

SUIM = Layout("SUIM/TEST/images", f"SUIM/{TRUTHS}/test", ".jpg")
SUIM_RAW = "SUIM/TEST/masks/*.bmp"


def _suim(root: Path) -> Iterator[Piece]:
    table = {(255 * (label >> 2 & 1), 255 * (label >> 1 & 1), 255 * (label & 1)): label for label in range(8)}
    for path in raw_files(root, SUIM_RAW):
        yield Piece(path.stem, None, path, partial(_coloured, path, table))


CUB_200 = Layout(f"CUB_200_2011/{IMAGES}/test", f"CUB_200_2011/{TRUTHS}/test", ".jpg")
CUB_200_RAW = tuple(
    f"CUB_200_2011/{files}" for files in ("images.txt", "train_test_split.txt", "images/*/*.jpg", "segmentations/*/*.png")
)


def _cub_200(root: Path) -> Iterator[Piece]:
    folder = root / "CUB_200_2011"
    split = folder / "train_test_split.txt"
    try:
        listed = [line.split(" ")[1] for line in read_lines(folder / "images.txt")]
        files = [relative_name(file, f"{folder / 'images.txt'}, entry {number}") for number, file in enumerate(listed, start=1)]
        training = [line.split(" ")[1] == "1" for line in read_lines(split)]
        chosen = [(file, int(file.split(".")[0])) for file, skip in zip(files, training, strict=True) if not skip]
    except (IndexError, ValueError) as error:
        raise DataError(f"{split}: it and images.txt do not fit together ({error}); fetch them again") from None
    for file, species in chosen:
        truth = (folder / "segmentations" / file).with_suffix(".png")
        yield Piece(Path(file).stem, folder / "images" / file, truth, partial(_cub_200_labels, truth, species))


def _cub_200_labels(path: Path, species: int) -> Labels:
    """Return the species where more than half of five annotators marked the bird, else 0."""
    return np.where(read_colours(path)[..., 0] > 128, species, 0).astype(np.uint8)


CWFID = Layout("cwfid/images", f"cwfid/{TRUTHS}/test", "_image.png", "_annotation.png", some=True)
CWFID_TEST = (1, 3, 4, 9, 10, 13, 15, 21, 22, 26, 28, 29, 30, 32, 35, 39, 44, 47, 48, 54, 60)
CWFID_COLOURS = {(0, 0, 0): 0, (255, 0, 0): 1, (0, 255, 0): 2}


def _cwfid(root: Path) -> Iterator[Piece]:
    for number in CWFID_TEST:
        truth = root / f"cwfid/annotations/{number:03}_annotation.png"
        yield Piece(f"{number:03}", None, truth, partial(_coloured, truth, CWFID_COLOURS))


# --- the catalogue's rows ---------------------------------------------------------------------------------------------


def _row(
    name: str,
    title: str,
    group: str,
    images: int,
    layout: Layout,
    get: str,
    raw: tuple[str, ...] = (),
    pieces: Callable[[Path], Iterator[Piece]] | None = None,
    *,
    tiled: bool = False,
) -> Row:
    name = f"mess-{name}"
    prepare = None if pieces is None else partial(prepare_mess, name=name, layout=layout, raw=raw, pieces=pieces, tiled=tiled)
    needs = (f"{layout.images}/*{layout.image_ending}", f"{layout.truths}/*{layout.truth_ending}")
    opened = partial(open_mess, name=name, layout=layout)
    return Row(name, f"MESS: {title}", ("semantic",), needs, get, opened, raw, prepare, images, group=group)


_GENERAL = "General"
_EARTH = "Earth Monitoring"
_MEDICAL = "Medical Sciences"
_ENGINEERING = "Engineering"
_AGRICULTURE = "Agriculture and Biology"

_PAXRAY_GET = (
    "paxray_dataset.zip from https://constantinseibold.github.io/paxray/, unpacked so that paxray_dataset/paxray.json exists."
    " Its four rows are one set of the benchmark."
)

ROWS: tuple[Row, ...] = (
    _row(
        "bdd100k",
        "BDD100K val, driving",
        _GENERAL,
        1000,
        BDD100K,
        "Register at https://bdd-data.berkeley.edu; bdd100k_images_10k.zip ('10K Images') and"
        " bdd100k_sem_seg_labels_trainval.zip ('Segmentation'), both unpacked in the root: they make bdd100k.",
        (f"{BDD100K.images}/*.jpg", BDD100K_RAW),
        _bdd100k,
    ),
    _row(
        "dark-zurich",
        "Dark Zurich val, driving at night",
        _GENERAL,
        50,
        DARK_ZURICH,
        "Dark_Zurich_val_anon.zip from https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/, unpacked in a folder"
        " Dark_Zurich of the root: it makes gt and rgb_anon there.",
        (f"{DARK_ZURICH.images}/*_rgb_anon.png", DARK_ZURICH_RAW, DARK_ZURICH_RAW.replace("labelIds", "invGray")),
        _dark_zurich,
    ),
    replace(
        _row(
            "mhp-v1",
            "MHP v1 test, parts of people",
            _GENERAL,
            980,
            MHP_V1,
            "LV-MHP-v1.zip, linked from https://github.com/ZhaoJ9014/Multi-Human-Parsing, unpacked in the root.",
            MHP_V1_RAW,
        ),
        prepare=prepare_mhp_v1,
    ),
    _row(
        "foodseg103",
        "FoodSeg103 test, ingredients",
        _GENERAL,
        2125,
        FOODSEG103,
        "FoodSeg103.zip from https://xiongweiwu.github.io/foodseg103.html (the page asks to fill in a form and gives the"
        " password), unpacked in the root: it makes FoodSeg103/Images. Nothing is to be prepared.",
    ),
    _row(
        "atlantis",
        "ATLANTIS test, waters",
        _GENERAL,
        1295,
        ATLANTIS,
        "https://github.com/smhassanerfani/atlantis; put its inner folder atlantis/atlantis into the root as atlantis.",
        ATLANTIS_RAW,
        _atlantis,
    ),
    _row(
        "dram",
        "DRAM test, paintings",
        _GENERAL,
        718,
        DRAM,
        "DRAM_processed.zip from https://faculty.runi.ac.il/arik/site/artseg/Dram-Dataset.html; it holds a RAR archive: unpack"
        " that too (for example with unrar), so that DRAM_processed/test and DRAM_processed/labels exist in the root.",
        DRAM_RAW,
        _dram,
    ),
    _row(
        "isaid",
        "iSAID val, pictures from the air",
        _EARTH,
        4055,
        ISAID,
        "From https://captain-whu.github.io/iSAID/dataset.html: the validation pictures (of DOTA, part1.zip), unpacked in"
        " isaid/val, and the validation's semantic masks (images.zip), unpacked in isaid/raw_val; each makes a folder images.",
        ISAID_RAW,
        _isaid,
        tiled=True,
    ),
    _row(
        "isprs-potsdam",
        "ISPRS Potsdam test, infrared pictures of a town",
        _EARTH,
        504,
        ISPRS_POTSDAM,
        "Potsdam.zip from https://www.isprs.org/education/benchmarks/UrbanSemLab/default.aspx (it says how to ask for it)."
        " Of the archives in it unpack 3_Ortho_IRRG.zip in the root's folder ISPRS_Potsdam and 5_Labels_all.zip in"
        " ISPRS_Potsdam/Labels.",
        ISPRS_POTSDAM_RAW,
        _isprs_potsdam,
        tiled=True,
    ),
    _row(
        "worldfloods",
        "WorldFloods test, infrared pictures of Sentinel-2",
        _EARTH,
        160,
        WORLDFLOODS,
        "Its pictures have 13 channels of 16 bits (GeoTIFF), which lexiseg does not read. Let the benchmark fetch and prepare"
        " it: pip install mess-benchmark rasterio, then DETECTRON2_DATASETS=<root> python -m"
        " mess.prepare_datasets.prepare_worldfloods (see https://github.com/blumenstiel/MESS, DATASETS.md).",
    ),
    _row(
        "floodnet",
        "FloodNet test, floods from the air",
        _EARTH,
        5571,
        FLOODNET,
        "FloodNet-Supervised_v1.0, linked from https://github.com/BinaLab/FloodNet-Supervised_v1.0, put into the root under"
        " that name; its folder test is enough.",
        FLOODNET_RAW,
        _floodnet,
        tiled=True,
    ),
    _row(
        "uavid",
        "UAVid val, streets from a drone",
        _EARTH,
        840,
        UAVID,
        "uavid_v1.5_official_release_image.zip from https://uavid.nl ('Semantic Labelling with Images Only'), unpacked so that"
        " uavid_v1.5/uavid_val exists in the root.",
        UAVID_RAW,
        _uavid,
        tiled=True,
    ),
    _row(
        "kvasir-instrument",
        "Kvasir-Instrument test, endoscopy",
        _MEDICAL,
        118,
        KVASIR,
        "kvasir-instrument.zip from https://datasets.simula.no/kvasir-instrument/, unpacked in the root; then unpack"
        " images.tar.gz and masks.tar.gz where they lie in it.",
        KVASIR_RAW,
        _kvasir,
    ),
    _row(
        "chase-db1",
        "CHASE DB1 test, vessels of the eye",
        _MEDICAL,
        20,
        CHASE_DB1,
        "CHASEDB1.zip from https://blogs.kingston.ac.uk/retinal/chasedb1/, unpacked in the root's folder CHASEDB1.",
        CHASE_DB1_RAW,
        _chase_db1,
    ),
    _row(
        "cryonuseg",
        "CryoNuSeg, nuclei of cells",
        _MEDICAL,
        30,
        CRYONUSEG,
        "https://www.kaggle.com/datasets/ipateam/segmentation-of-nuclei-in-cryosectioned-he-images (needs an account);"
        " unpack the archive in the root's folder CryoNuSeg.",
        CRYONUSEG_RAW,
        _cryonuseg,
    ),
    *(
        replace(
            _row(
                f"paxray-{region}",
                f"PAXRay-4 test, X-rays: {region}",
                _MEDICAL,
                180,
                PAXRAY[region],
                _PAXRAY_GET,
                PAXRAY_RAW,
                partial(_paxray, region=region),
            ),
            part_of="mess-paxray",
        )
        for region in PAXRAY_CHANNELS
    ),
    _row(
        "corrosion-cs",
        "Corrosion CS test, rust on bridges",
        _ENGINEERING,
        44,
        CORROSION_CS,
        "https://figshare.com/articles/dataset/Corrosion_Condition_State_Semantic_Segmentation_Dataset/16624663, unpacked in"
        " the root: it makes 'Corrosion Condition State Classification'. Nothing is to be prepared.",
    ),
    _row(
        "deepcrack",
        "DeepCrack test, cracks",
        _ENGINEERING,
        237,
        DEEPCRACK,
        "dataset/DeepCrack.zip of https://github.com/yhlleo/DeepCrack, unpacked in the root's folder DeepCrack.",
        (f"{DEEPCRACK.images}/*.jpg", DEEPCRACK_RAW),
        _deepcrack,
    ),
    _row(
        "pst900",
        "PST900 test, thermal pictures",
        _ENGINEERING,
        288,
        PST900,
        "PST900_RGBT_Dataset.zip, linked from https://github.com/ShreyasSkandanS/pst900_thermal_rgb, unpacked in the root."
        " Nothing is to be prepared.",
    ),
    _row(
        "zerowaste",
        "ZeroWaste-f test, waste on a belt",
        _ENGINEERING,
        929,
        ZEROWASTE,
        "zerowaste-f-final.zip from http://ai.bu.edu/zerowaste/ (on Zenodo), unpacked in the root's folder zerowaste-f."
        " Nothing is to be prepared.",
    ),
    _row(
        "suim",
        "SUIM test, under water",
        _AGRICULTURE,
        110,
        SUIM,
        "TEST.zip, linked from https://irvlab.cs.umn.edu/resources/suim-dataset, unpacked in the root's folder SUIM.",
        (f"{SUIM.images}/*.jpg", SUIM_RAW),
        _suim,
    ),
    _row(
        "cub-200",
        "CUB-200-2011 test, birds",
        _AGRICULTURE,
        5794,
        CUB_200,
        "From https://www.vision.caltech.edu/datasets/cub_200_2011/: CUB_200_2011.tgz, unpacked in the root, and"
        " segmentations.tgz, unpacked in CUB_200_2011.",
        CUB_200_RAW,
        _cub_200,
    ),
    _row(
        "cwfid",
        "CWFID test, crop and weed",
        _AGRICULTURE,
        21,
        CWFID,
        "https://github.com/cwfid/dataset, put into the root as cwfid, so that cwfid/images exists.",
        (f"{CWFID.images}/*_image.png", "cwfid/annotations/*_annotation.png"),
        _cwfid,
    ),
)
