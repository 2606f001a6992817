"""Results as HTML: every region where it is, names as text, and nothing from outside."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import lexiseg
from lexiseg.exports import hover
from lexiseg.ops.markup import ROWS
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Segment
from lexiseg.text.vocabulary import ClassName, Vocabulary
from lexiseg.visualise import display
from lexiseg.visualise.overlay import colours_of

TAGS = {"div", "style", "img", "svg", "path", "title", "table", "caption", "tr", "th", "td", "i", "span"}
EVIL = '<script>alert("&")</script>\'"'


class Page(HTMLParser):
    """Elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def result(masks: NDArray[np.bool_], name: str = "dog") -> Segmentation:
    """A result with a segment per mask [N, H, W]."""
    height, width = masks.shape[1:]
    segments = tuple(
        Segment(number, 0, name, True, 0.5, int(mask.sum()), (0, 0, width, height)) for number, mask in enumerate(masks, 1)
    )
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Segmentation("instance", pixels, (name,), (True,), segments, masks)


def drawn(path: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a path of SVG whose centres it encloses, by the even-odd rule; at a quarter of a pixel."""
    inside = np.zeros((4 * size[0], 4 * size[1]), bool)
    for ring in path.removeprefix("M").removesuffix("Z").split("ZM"):
        canvas = Image.new("1", (4 * size[1], 4 * size[0]))
        corners = [tuple(4 * int(value) - 0.5 for value in corner.split()) for corner in ring.split("L")]
        ImageDraw.Draw(canvas).polygon(corners, fill=1)
        inside ^= np.asarray(canvas)
    return inside[2::4, 2::4]


def test_regions_are_where_they_are_and_the_first_is_on_top() -> None:
    masks = np.zeros((2, 20, 30), bool)
    masks[0, 3:15, 4:20] = True
    masks[0, 6:9, 8:12] = False  # a hole
    masks[1, :, 15:] = True
    page = Page(result(masks)._repr_html_())
    paths = [str(path["d"]) for path in page.all("path")]
    assert np.array_equal(drawn(paths[1], (20, 30)), masks[0])
    assert np.array_equal(drawn(paths[0], (20, 30)), masks[1])
    (drawing,) = page.all("svg")
    assert (drawing["viewbox"], drawing["style"]) == ("0 0 30 20", "aspect-ratio: 30 / 20")


def test_a_result_is_complete_in_itself_and_names_are_text() -> None:
    masks = np.ones((1, 20, 30), bool)
    found = result(masks, EVIL)
    page = Page(found._repr_html_())
    assert page.text.count(EVIL) == 2  # under the pointer and in the legend
    assert {tag for tag, _ in page.elements} <= TAGS
    (image,) = page.all("img")
    kind, _, content = str(image["src"]).partition(",")
    assert kind == "data:image/webp;base64"
    assert Image.open(BytesIO(b64decode(content))).size == (30, 20)
    assert not re.search(r"https?://|url\(|@import|\son\w+=", hover.STYLE)
    assert all(not name.startswith("on") and name not in ("href", "srcset") for _, each in page.elements for name in each)
    assert f"background: #{bytes(colours_of(found.segments)[0]).hex()}" in str(page.all("i")[0]["style"])
    assert "0.50" in page.text
    assert "100.0%" in page.text


def test_a_notebook_that_is_not_trusted_has_no_stray_names() -> None:
    """JupyterLab removes style sheets and SVG from it, but keeps their text and ``hidden="hidden"``."""
    page = result(np.ones((1, 20, 30), bool))._repr_html_()
    kept = re.sub(r'<style>.*?</style>|<span hidden="hidden">.*?</span>', "", page, flags=re.DOTALL)
    assert Page(kept).text.count("dog") == 1  # in the legend
    assert ".lexiseg-picture [hidden] { display: block }" in page


@pytest.mark.parametrize(
    "make", [lambda shape: np.ones(shape, bool), lambda shape: np.random.default_rng(0).random(shape) > 0.5]
)
def test_a_large_result_stays_small(make: Callable[[tuple[int, ...]], NDArray[np.bool_]]) -> None:
    """Whatever its masks are; the picture is scaled down, and a long legend ends in a count."""
    page = result(make((60, 300, 1000)))._repr_html_()
    assert len(page) < 1_000_000
    assert "… and 10 more" in page
    content = re.findall(r"base64,([^\"]+)", page)[0]
    assert Image.open(BytesIO(b64decode(content))).size == (800, 240)


@pytest.mark.parametrize("shape", [(0, 20, 30), (1, 1, 1), (1, 1, 900), (2, 700, 3)])
def test_any_shape_has_a_page(shape: tuple[int, int, int]) -> None:
    page = Page(result(np.ones(shape, bool))._repr_html_())
    assert len(page.all("path")) == shape[0]


def test_a_picture_without_names_has_the_size_of_its_own() -> None:
    found = result(np.ones((1, 20, 30), bool))
    assert found.to_pil().size == (30, 20)
    assert found.overlay().height > 20


def test_vocabularies_and_models_are_tables() -> None:
    words = Vocabulary((ClassName(EVIL, ("a", "b"), thing=False), *(ClassName(f"name {number}") for number in range(ROWS + 5))))
    page = Page(words._repr_html_())
    assert page.text.count(EVIL) == 1
    assert "a, b" in page.text
    assert "… and 6 more" in page.text
    assert len(page.all("tr")) == ROWS + 1
    models = lexiseg.list_models("instance")
    assert models == list(models)
    assert all(name in Page(models._repr_html_()).text for name in models)
    assert not page.all("script")


@pytest.mark.parametrize("where", ["notebook", "desktop", "terminal"])
def test_a_result_is_shown_where_it_can_be_seen(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, shown = result(np.ones((1, 20, 30), bool)), []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture.size))
    monkeypatch.setenv("DISPLAY", ":0" if where == "desktop" else "")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(display.sys, "platform", "linux")
    kernel = object() if where == "notebook" else None
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setitem(display.sys.modules, "IPython", ipython)
    monkeypatch.setitem(display.sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    found.show()
    said = capsys.readouterr().out
    if where == "terminal":
        path = said.strip().removeprefix("no screen here; the overlay is in ")
        with Image.open(path) as written:
            assert written.size == found.overlay().size
        Path(path).unlink()
    else:
        assert said == ""
    assert shown == {"notebook": [found], "desktop": [found.overlay().size], "terminal": []}[where]
