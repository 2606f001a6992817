"""The papers' printed numbers: well formed, complete, and those of the papers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from statistics import fmean

import pytest

from lexiseg.data.catalogue import rows
from lexiseg.data.published import METRICS, Figure, columns, figures, published, titles

MESS = (
    "atlantis", "bdd100k", "chase-db1", "corrosion-cs", "cryonuseg", "cub-200", "cwfid", "dark-zurich", "deepcrack",
    "dram", "floodnet", "foodseg103", "isaid", "isprs-potsdam", "kvasir-instrument", "mhp-v1", "paxray", "pst900",
    "suim", "uavid", "worldfloods", "zerowaste",
)  # fmt: skip
DATASETS = {
    "",
    "ade20k-150",
    "ade20k-847",
    "bdd100k",
    "bdd100k-panoptic",
    "cityscapes",
    "coco-panoptic",
    "coco-stuff",
    "lvis",
    "mapillary-1.2",
    "mess",
    *(f"mess-{name}" for name in MESS),
    "pascal-context-459",
    "pascal-context-59",
    "refcoco",
    "refcoco-plus",
    "voc-20",
    "voc-20b",
    "voc-21",
}
NUMBERED = {  # the tables each paper has, and how many numbers stand in them
    "cmpf": ([str(number) for number in range(1, 10)], 255),
    "frozenseg": ([str(number) for number in range(1, 10)], 310),
    "sam-mi": ([str(number) for number in range(1, 12)], 441),
    "esc-net": ([str(number) for number in range(1, 5)], 204),
    "fov-seg": (["I", "II", "III", *(f"IV{letter}" for letter in "abcdefghij"), "Fig. 2a"], 172),
}


def one(**wanted: object) -> Figure:
    found = [figure for figure in figures() if wanted.items() <= asdict(figure).items()]
    assert len(found) == 1, wanted
    return found[0]


def test_every_figure_is_well_formed() -> None:
    for figure in figures():
        unit = METRICS[figure.metric][1]
        assert figure.method
        assert figure.caption
        assert figure.dataset in DATASETS
        assert figure.dataset or not figure.task, "a score belongs to a data set"
        assert 0 <= figure.value <= 100 or unit != "%"
        assert figure.value >= 0
        assert figure.group in ("", "seen", "unseen", "rare")
        assert (figure.group == "rare") == (figure.dataset == "lvis")


def test_every_metric_and_data_set_is_used() -> None:
    assert {figure.metric for figure in figures()} == {*METRICS}
    assert {figure.dataset for figure in figures()} == DATASETS


def test_data_sets_are_those_of_the_catalogue() -> None:
    means = {"mess", "mess-paxray", "refcoco", "refcoco-plus"}  # of several rows, or of a split that no paper names
    known = {row.name: row.tasks for row in rows()}
    for figure in figures():
        if figure.dataset and figure.dataset not in means:
            assert figure.dataset in known
            assert figure.task not in ("panoptic", "semantic", "instance") or figure.task in known[figure.dataset]


def test_no_figure_stands_twice() -> None:
    places = Counter(
        (figure.paper, figure.table, figure.row, figure.dataset, figure.metric, figure.group) for figure in figures()
    )
    assert max(places.values()) == 1
    printed = {(figure.paper, figure.table, figure.row) for figure in figures()}
    names = {
        (figure.paper, figure.table, figure.method, figure.variant, figure.backbone, figure.training) for figure in figures()
    }
    assert len(names) == len(printed), "two rows of a table read alike"


def test_every_column_has_numbers() -> None:
    tables = {(figure.paper, figure.table) for figure in figures()}
    for paper, table in tables:
        own = {(f.dataset, f.metric, f.group) for f in figures() if (f.paper, f.table) == (paper, table)}
        known = columns(paper, table)
        assert set(known) == own, (paper, table)
        assert len(known) == len(own)
    assert columns("cmpf", "6")[:2] == [("pascal-context-459", "mIoU", ""), ("ade20k-847", "mIoU", "")]
    assert columns("cmpf", "none") == []
    assert list(titles()) == list(NUMBERED)


@pytest.mark.parametrize("paper", NUMBERED)
def test_every_table_is_there(paper: str) -> None:
    tables, numbers = NUMBERED[paper]
    printed = [figure for figure in figures() if figure.paper == paper]
    assert list(dict.fromkeys(figure.table for figure in printed)) == tables
    assert len(printed) == numbers
    assert any(figure.own for figure in printed)
    assert {figure.own for figure in printed if not figure.ablation} == {True, False}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (19.3, {"paper": "cmpf", "table": "1", "method": "CMPF", "backbone": "ConvNeXt-L", "dataset": "bdd100k-panoptic"}),
        (57.5, {"paper": "cmpf", "table": "2", "method": "CMPF", "backbone": "RN50x64", "dataset": "pascal-context-59"}),
        (82.9, {"paper": "cmpf", "table": "5", "own": True, "dataset": "ade20k-847", "metric": "recall@0.5"}
            | {"group": "unseen"}),
        (25.6, {"paper": "frozenseg", "table": "3", "own": True, "dataset": "lvis"}),
        (92.4, {"paper": "frozenseg", "table": "2", "method": "FC-CLIP*", "backbone": "ConvNeXt-L", "dataset": "voc-21"}
            | {"metric": "FWIoU"}),
        (0.78, {"paper": "frozenseg", "table": "6", "own": True, "dataset": "cityscapes", "metric": "FPS"}),
        (36.27, {"paper": "sam-mi", "table": "1", "own": True, "dataset": "mess-floodnet"}),
        (30.7, {"paper": "sam-mi", "table": "3", "variant": "without SMAgg", "dataset": "ade20k-150", "metric": "mIoU"}),
        (950, {"paper": "sam-mi", "table": "11", "own": True, "metric": "latency"}),
        (86.3, {"paper": "esc-net", "table": "1", "own": True, "backbone": "ViT-L/14", "dataset": "voc-20b"}),
        (20.5, {"paper": "esc-net", "table": "3", "variant": "boxes", "dataset": "pascal-context-459"}),
        (2203.5, {"paper": "esc-net", "table": "4", "own": True, "metric": "GFLOPs"}),
        (30.1, {"paper": "fov-seg", "table": "I", "own": True, "dataset": "mapillary-1.2", "metric": "mIoU"}),
        (24.5, {"paper": "fov-seg", "table": "III", "own": True, "dataset": "pascal-context-459"}),
        (41.7, {"paper": "fov-seg", "table": "IVj", "own": True, "variant": "true masks", "metric": "mIoU"}),
        (25.9, {"paper": "fov-seg", "table": "IVh", "own": True, "dataset": "refcoco-plus"}),
    ],
)  # fmt: skip
def test_known_numbers(value: float, wanted: dict[str, object]) -> None:
    assert one(**wanted).value == value


def test_the_mean_over_mess_is_the_mean_of_its_columns() -> None:
    numbers = {figure.row for figure in figures() if figure.paper == "sam-mi" and figure.table == "1"}
    assert len(numbers) == 9
    for row in numbers:
        printed = {f.dataset: f.value for f in figures() if (f.paper, f.table, f.row) == ("sam-mi", "1", row)}
        mean = printed.pop("mess")
        assert len(printed) == 22
        assert fmean(printed.values()) == pytest.approx(mean, abs=0.01), row


def test_papers_agree_on_cat_seg() -> None:
    for dataset in ("ade20k-847", "ade20k-150", "pascal-context-459", "pascal-context-59"):
        figures_of = [f for f in published(dataset, "mIoU") if f.method == "CAT-Seg" and f.backbone != "ViT-B/16"]
        assert {figure.paper for figure in figures_of} == {"sam-mi", "esc-net", "fov-seg"}
        assert len({figure.value for figure in figures_of}) == 1


def test_published_chooses() -> None:
    assert {figure.metric for figure in published("cityscapes", task="panoptic")} == {"PQ"}
    assert {figure.task for figure in published("ade20k-150", "mIoU")} == {"semantic"}
    assert not any(figure.ablation for figure in published("ade20k-150"))
    assert len(published("ade20k-150", ablations=True)) > len(published("ade20k-150"))
    assert {figure.method for figure in published("lvis", "AP")} >= {"CMPF", "FrozenSeg", "RegionSpot"}
    assert published("camvid") == []


def test_own_rows_say_backbone_and_training() -> None:
    assert all(figure.backbone and figure.training for figure in figures() if figure.own)
    assert one(paper="fov-seg", table="III", own=True, dataset="ade20k-847").training == "COCO-Stuff"
    assert one(paper="fov-seg", table="I", own=True, dataset="ade20k-847").training == "COCO panoptic"
