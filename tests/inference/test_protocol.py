"""Published input sizes and thresholds travel with a model and a data set, and are said in the protocol."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lexiseg.cli import evaluate as command
from lexiseg.cli import main
from lexiseg.errors import UsageError
from lexiseg.inference import report
from lexiseg.inference.pipeline import Pipeline
from lexiseg.methods import MODELS
from lexiseg.methods.base import Published, Segmenter
from lexiseg.methods.fcclip.config import FcClipConfig
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.fcclip.models import LARGER
from lexiseg.ops.options import from_document
from lexiseg.structures import Geometry, ImageBatch, MaskPrediction, Size, TextEmbeddings, Trace, size_of
from tests.data.miniatures import cityscapes
from tests.laws.builders import tiny_clip

NAME = "fcclip-convnext-l"


class Recorder(FcClip):
    """Records the size of its network input, and predicts no mask."""

    def __init__(self, config: FcClipConfig) -> None:
        super().__init__(tiny_clip("resnet"), config)  # type: ignore[arg-type]
        self.network_sizes: list[Size] = []

    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> MaskPrediction:
        assert trace is None
        self.network_sizes += [self.network_size(size_of(image)) for image in images]
        masks, classes = torch.zeros(len(images), 0, 1, 1), torch.zeros(len(images), 0, len(text) + 1)
        return MaskPrediction(masks, classes, True, tuple(map(Geometry.unresized, images.sizes)))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """In place of the official checkpoint."""
    config = from_document(FcClipConfig, MODELS[NAME].official_card()["config"])
    segmenter = Recorder(replace(config, templates="single"))
    segmenter.published = MODELS[NAME].published
    monkeypatch.setattr(command, "load", lambda *_args, **_options: Pipeline(segmenter.eval()))
    return segmenter


def evaluated(folder: Path, *options: str) -> tuple[dict[str, object], str]:
    cityscapes(folder / "data")
    output = folder / "out"
    arguments = ["--data", "cityscapes", "--root", str(folder / "data"), "--output", str(output), "--task", "panoptic"]
    assert main(["evaluate", "--model", NAME, *arguments, *options]) == 0
    document = json.loads((output / "metrics.json").read_text())
    return document["protocol"], (output / "report.md").read_text()


def test_cityscapes_is_seen_at_1024_pixels(recorder: Recorder, tmp_path: Path) -> None:
    """Pictures of 4 × 6; 800 × 1200 is what other data sets get."""
    protocol, page = evaluated(tmp_path)
    assert set(recorder.network_sizes) == {(1024, 1536)}
    assert recorder.network_size((4, 6)) == (800, 1200)
    assert protocol["options"]["shortest_edge"] == 1024
    assert "* published for cityscapes: CMPF, Sec. 4.3" in page
    assert "shortest_edge 1024, longest_edge 2560" in page


def test_the_protocol_of_an_official_checkpoint_has_its_published_thresholds(recorder: Recorder, tmp_path: Path) -> None:
    protocol, page = evaluated(tmp_path, "--set", "alpha=0.4")
    expected = {"object_threshold": 0.0, "overlap": 0.8, "generous_overlap": True, "stuff_detections": True, "detections": 100}
    assert expected.items() <= protocol["policy"].items()
    assert "* post-processing: threshold 0.0, object_threshold 0.0, overlap 0.8" in page
    assert "* given: alpha=0.4" in page
    assert "alpha 0.4, beta 0.8" in page
    assert recorder.network_sizes


def published(name: str, data: str) -> Segmenter:
    """The model of official weights, without weights, on a data set."""
    variant = MODELS[name]
    config = variant.config if variant.official is None else replace(variant.config, **variant.official.options)
    with torch.device("meta"):
        return variant.empty(config).on(data)


@pytest.mark.parametrize(
    ("name", "data", "threshold", "overlap", "as_mask2former"),
    [
        ("fcclip-convnext-l", "ade20k-150", 0.0, 0.8, True),
        ("cmpf-convnext-l", "bdd100k-panoptic", 0.4, 0.8, True),
        ("cmpf-convnext-l", "cityscapes", 0.0, 0.8, True),
        ("maskclip-vit-l14", "ade20k-150", 0.3, 0.5, True),
        ("maskclip-vit-l14", "coco-panoptic", 0.5, 0.5, True),
        ("fovseg-vit-l14", "ade20k-150", 0.3, 0.5, False),
        ("fcclip-tiny", "cityscapes", 0.0, 0.4, False),
        ("maskclip-tiny", "coco-panoptic", 0.0, 0.4, False),
    ],
)
def test_published_post_processing(name: str, data: str, threshold: float, overlap: float, as_mask2former: bool) -> None:
    policy = published(name, data).policy
    assert (policy.object_threshold, policy.overlap) == (threshold, overlap)
    assert policy.generous_overlap == policy.stuff_detections == as_mask2former


@pytest.mark.parametrize("name", ["fcclip-convnext-l", "cmpf-rn50x64"])
@pytest.mark.parametrize(
    ("data", "size"),
    [("cityscapes", (1024, 2048)), ("mapillary-1.2", (1024, 2048)), ("bdd100k-panoptic", (667, 1333)), ("my/own", (667, 1333))],
)
def test_published_sizes(name: str, data: str, size: Size) -> None:
    segmenter = published(name, data)
    assert isinstance(segmenter, FcClip)
    assert segmenter.network_size((1024, 2048)) == size


def test_maskclip_is_given_bare_names() -> None:
    assert MODELS["maskclip-vit-l14"].config.templates == "none"


def test_what_a_user_gives_is_not_replaced() -> None:
    variant = replace(MODELS["maskclip-tiny"], published=(Published(("city*",), {"shortest_edge": 512}, "nowhere"),))
    assert variant.load().on("cityscapes").config.shortest_edge == 512
    assert variant.load(options={"shortest_edge": 256}).on("cityscapes").config.shortest_edge == 256
    assert variant.empty(replace(variant.config, shortest_edge=128)).on("cityscapes").config.shortest_edge == 128


def test_a_model_on_a_data_set_has_the_parameters_of_the_model() -> None:
    segmenter = Recorder(FcClipConfig())
    segmenter.published = (LARGER,)
    larger = segmenter.on("cityscapes")
    assert larger is not segmenter
    assert segmenter.on("ade20k-150") is segmenter
    assert all(mine is its for mine, its in zip(larger.parameters(), segmenter.parameters(), strict=True))
    assert segmenter.config.shortest_edge == 800


def test_options_of_published_results_are_options() -> None:
    for variant in MODELS.values():
        for entry in variant.published:
            assert set(entry.options) <= variant.config.RUNTIME, variant.name
            replace(variant.config, **entry.options)
    with pytest.raises(UsageError, match="object_threshold must be"):
        replace(MODELS[NAME].config, object_threshold=2.0)


# --- the published numbers in report.md ---------------------------------------------------------------------------------


def page_of(data: str, *tasks: str, recall: bool = False) -> str:
    protocol = {
        "data": data, "tasks": tasks, "recall": recall, "names": None, "seen": None, "options": {}, "policy": {},
        "published": [], "given": [], "limit": None, "oracle": None, "corrupt": None,
    }  # fmt: skip
    head = {"model": "cmpf", "data": data, "command": "", "results": {}, "absent": {}, "notes": [], "failed": {}}
    return report.markdown({**head, "protocol": protocol})


def cells(page: str, title: str, row: str) -> dict[str, str]:
    """The row of a table of published numbers, by column."""
    lines = page.partition(f"## Published: {title}\n")[2].splitlines()
    columns, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| "))
    return dict(zip(columns, next(cells for cells in rows if row in cells[0] and "**" in cells[1]), strict=True))


def test_a_published_number_stands_under_its_own_group() -> None:
    page = page_of("pascal-context-459", "semantic")
    row = cells(page, "semantic", "cmpf, 4")
    assert (row["mIoU seen %"], row["mIoU unseen %"], row["mIoU %"]) == ("48.1", "11.2", "-")
    assert cells(page_of("lvis", "instance"), "instance", "cmpf, 3")["AP rare %"] == "25.6"


def test_a_report_says_which_numbers_contain_the_ensemble_of_masks() -> None:
    page = page_of("ade20k-150", "semantic", "panoptic")
    last = page.partition("## Published: semantic")[2].partition("| frozenseg")[0]
    assert "34.4 †" in last
    assert "† with the ensemble of SAM's masks." in page
    assert "†" not in page_of("cityscapes", "semantic")
    assert "Cityscapes' 56.8 is without it (Table 8)" in page_of("cityscapes", "semantic")


def test_the_published_recall_is_shown_with_recall() -> None:
    assert "Published: recall" not in page_of("ade20k-847", "semantic")
    assert cells(page_of("ade20k-847", "semantic", recall=True), "recall", "cmpf, 5")["recall@0.5 unseen %"] == "82.9"


def test_a_split_has_the_numbers_whose_split_is_not_named() -> None:
    assert cells(page_of("refcoco-val", "semantic"), "referring", "fov-seg, IVh")["unnamed %"] == "24.6"
    assert cells(page_of("refcoco-plus-testb", "semantic"), "referring", "fov-seg, IVh")["unnamed %"] == "25.9"
