"""``lexiseg figure``: each kind is drawn of pictures and of a data set, and what cannot be drawn is said."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lexiseg.cli import main
from lexiseg.inference.figures import Subject, _over_picture, _prompted
from lexiseg.inference.pipeline import load
from lexiseg.structures import Geometry, PanopticMap, PanopticSegment, Trace
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.world import scenes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert main(["world", "render", "--split", "val", "--count", "2", "--seed", "3", "--output", str(folder)]) == 0
    return folder


def width(path: Path) -> int:
    with Image.open(path) as drawn:
        assert np.asarray(drawn).std() > 20
        return drawn.width


def test_each_kind_of_a_data_set(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = cache(load)  # six models, of which some are in two or three figures
    monkeypatch.setattr("lexiseg.cli.figure.load", lambda name, **_: loaded(name, device="cpu"))
    widths = {}
    two = ["--model", "FC:fcclip-tiny", "--model", "cmpf-tiny"]
    own = {"prompts": ["--model", "cmpf-tiny"], "points": ["--model", "sam_mi-tiny"]}
    own |= {kind: ["--model", "escnet-tiny"] for kind in ("pseudo", "correlation")}
    own["similarity"] = ["--model", "maskclip-tiny", "--model", "fovseg-tiny"]
    for kind in ("comparison", "attention", "clusters", "prompts", "points", "pseudo", "correlation", "similarity"):
        path = tmp_path / "figures" / f"{kind}.png"
        models = own.get(kind, two)
        arguments = ["figure", kind, "--data", str(world), "--limit", "1", "--most", "2", *models, "--output", str(path)]
        assert main(arguments) == 0
        widths[kind] = width(path)
    assert widths["clusters"] > widths["comparison"] > widths["attention"]  # 6, 4 and 3 columns


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_picture_with_names(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexiseg.cli.progress_line.INTERVAL", 0.01)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    picture = next((world / "images").iterdir())
    arguments = ["figure", "comparison", str(picture), "--vocabulary", "emoji", "--output", str(tmp_path / "one.webp")]
    assert main(arguments) == 0
    assert all(words in terminal.getvalue() for words in ("loading models", "one.webp  ")), "it is not silent"
    assert width(tmp_path / "one.webp") < 3 * 260  # no column for a truth nobody knows
    with Image.open(tmp_path / "one.webp") as drawn:
        assert drawn.format == "WEBP"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "PICTURE", "--classes", "sky", "--model", "sam_clip-tiny"], "sam_clip-tiny"),
        (["prompts", "PICTURE", "--classes", "sky", "--model", "fcclip-tiny"], "has no SAM"),
        (["points", "PICTURE", "--classes", "sky", "--model", "cmpf-tiny"], "does not predict point prompts"),
        (["pseudo", "PICTURE", "--classes", "sky", "--model", "catseg-tiny"], "has no correlation blocks to show"),
        (["similarity", "PICTURE", "--classes", "sky", "--model", "fcclip-tiny"], "has no patch embeddings"),
        (["comparison", "PICTURE"], "--classes or --vocabulary"),
        (["comparison", "--classes", "sky"], "either pictures or"),
        (["comparison", "missing.png", "--classes", "sky"], "missing.png"),
        (["comparison", "PICTURE", "--classes", "sky", "--model", "cmpf-tiny,cmpf"], "PART=FILE"),
        (["comparison", "PICTURE", "--classes", "sky", "--output", "figure.jpg"], "ends in .png or .webp"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    arguments: list[str], message: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(next((world / "images").iterdir()))
    given = ["figure", *(picture if word == "PICTURE" else word for word in arguments)]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "figure.png")]
    assert main(given) in {1, 2}
    assert message in capsys.readouterr().err


def test_padding_is_cut_off_before_a_map_is_stretched_over_the_picture() -> None:
    trace = Trace()
    trace.geometry = Geometry((8, 8), (6, 4), (30, 20))
    maps = torch.zeros(1, 8, 8)
    maps[:, :6, :4] = 1
    drawn = _over_picture(maps, trace, (30, 20))[0]
    assert drawn.shape == (30, 20)
    np.testing.assert_allclose(drawn[:27, :17], 1, atol=1e-6)  # beyond, the first padded cell blends in


def test_a_box_prompt_finds_what_is_in_the_box() -> None:
    scene = next(iter(scenes("val", 1, seed=5)))
    areas = np.bincount(scene.panoptic.ravel())
    thing = max((segment for segment in scene.segments if segment.style), key=lambda segment: areas[segment.id])
    mask = scene.panoptic == thing.id
    rows, columns = np.nonzero(mask)
    box = torch.tensor([[columns.min(), rows.min(), columns.max(), rows.max()]]).float()
    truth = PanopticMap(scene.panoptic, (PanopticSegment(thing.id, 0),))
    subject = Subject("scene", scene.image, Vocabulary.parse(["thing"]), truth)
    sam = load("sam_clip-tiny", device="cpu").segmenter.parts()["sam"]
    with torch.no_grad():
        (found,) = _prompted(sam, subject, box)
    inside = found > 0.5
    assert (inside & mask).sum() / (inside | mask).sum() > 0.5
