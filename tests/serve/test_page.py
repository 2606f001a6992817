"""The page in a real browser: headless Chromium, driven by Playwright.

``make test ARGS="tests/serve/test_page.py --screenshots docs/images"`` draws the pictures of docs/serve.md again, with a model
that can see; without the option they are of random masks, and in a temporary folder.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from lexiseg.inference.pipeline import load
from lexiseg.ops.rle import decode_counts, decompress
from tests.conftest import NO_BROWSER
from tests.serve.running import NAME, PATIENCE, Running, picture, running, until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES = (NAME, "cmpf-tiny")
SIZE = (120, 160)  # of pictures
WIDE, PHONE = {"width": 1360, "height": 860}, {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(offered=NAMES, pixels=10**6) as service:
        yield service


class Visit:
    """A page that was opened, with what it complained about and where it called."""

    def __init__(self, browser: Browser, served: Running, **options: object) -> None:
        self.page: Page = browser.new_page(**{"viewport": WIDE, **options})  # type: ignore[arg-type]
        self.page.set_default_timeout(1000 * PATIENCE)
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        self.page.on(
            "request",
            lambda request: None if request.url.startswith((served.url, "blob:")) else self.elsewhere.append(request.url),
        )
        self.page.goto(served.url)
        expect(self.page.locator("#service")).to_contain_text("model")

    def choose(self, content: bytes, name: str = "photo.png") -> None:
        self.page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
        expect(self.page.locator("#picture-name")).to_contain_text(name)

    def name(self, *classes: str) -> None:
        for each in classes:
            self.page.fill("#word", each)
            self.page.press("#word", "Enter")

    def run(self) -> None:
        self.page.click("#run")
        self.wait()

    def wait(self) -> None:
        expect(self.page.locator("#run")).to_be_visible(timeout=1000 * PATIENCE)

    def legend(self) -> list[str]:
        return [text.strip() for text in self.page.locator(".segment-name").all_text_contents()]


@pytest.fixture
def visit(browser: Browser, served: Running) -> Iterator[Visit]:
    visit = Visit(browser, served)
    yield visit
    assert not visit.complaints
    assert not visit.elsewhere
    visit.page.close()


def answer(served: Running, content: bytes, classes: str, **fields: str) -> dict:
    return served.segment(content, classes=classes, **fields).json()


def masks_of(content: dict) -> list[np.ndarray]:
    size = content["height"], content["width"]
    return [decode_counts(decompress(row["segmentation"]["counts"]), size).numpy() for row in content["segments"]]


def test_a_picture_and_words_give_the_result_of_the_service(visit: Visit, served: Running) -> None:
    content, page = picture(5, SIZE), visit.page
    visit.choose(content)
    visit.name("dog, puppy", "grass", "sky")
    expect(page.locator(".chip")).to_have_count(3)
    expect(page.locator(".chip small")).to_have_text("puppy")
    page.locator(".chip-kind").nth(1).click()
    page.locator(".chip-kind").nth(1).click()
    expect(page.locator(".chip-kind").nth(1)).to_have_text("stuff")
    visit.run()
    expected = answer(served, content, "dog, puppy; grass | stuff; sky")
    rows = sorted(expected["segments"], key=lambda row: -row["area"])
    assert visit.legend() == [f"{row['name']}{'thing' if row['thing'] else 'stuff'}" for row in rows]
    assert len(rows) > 1
    shown = page.locator(".pick .number").all_text_contents()
    assert shown[::2] == [f"{100 * row['score']:.0f} %" for row in rows]
    assert shown[1::2] == [f"{100 * row['area'] / (SIZE[0] * SIZE[1]):.1f} %" for row in rows]
    expect(page.locator("#status")).to_contain_text(f"{len(rows)} segments")


def test_the_drawing_shows_the_masks(visit: Visit, served: Running) -> None:
    content, page = picture(5, SIZE), visit.page
    visit.choose(content)
    visit.name("dog", "grass", "sky")
    visit.run()
    page.uncheck("#names")
    page.uncheck("#outlines")
    masks = masks_of(answer(served, content, "dog; grass; sky"))
    union = np.any(masks, 0)
    assert 0.02 < union.mean() < 0.98

    def drawn(opacity: str) -> np.ndarray:
        page.fill("#opacity", opacity)
        address = page.locator(".canvas").evaluate("canvas => canvas.toDataURL('image/png')")
        opened = Image.open(io.BytesIO(b64decode(address.split(",")[1]))).convert("RGB")
        return np.asarray(opened.resize(SIZE[::-1], Image.Resampling.BOX), np.float32)

    changed = np.abs(drawn("1") - drawn("0")).max(-1) > 8
    assert (changed == union).mean() > 0.97


def test_hovering_names_and_a_click_selects(visit: Visit, served: Running) -> None:
    content, page = picture(5, SIZE), visit.page
    visit.choose(content)
    visit.name("dog", "grass", "sky")
    visit.run()
    expected = answer(served, content, "dog; grass; sky")
    masks, box = masks_of(expected), page.locator(".canvas").bounding_box()
    assert box is not None
    for row, mask in zip(expected["segments"], masks, strict=True):
        inner = mask & ~np.any([other for other in masks if other is not mask], 0)
        ys, xs = np.nonzero(_eroded(inner))
        if len(ys) == 0:
            continue
        y, x = ys[len(ys) // 2], xs[len(ys) // 2]
        page.mouse.move(box["x"] + (x + 0.5) * box["width"] / SIZE[1], box["y"] + (y + 0.5) * box["height"] / SIZE[0])
        expect(page.locator(".tip")).to_have_text(re.compile(rf"^{row['name']}\s+{100 * row['score']:.0f} %$"))
        page.mouse.down()
        page.mouse.up()
        expect(page.locator('.pick[aria-pressed="true"] .segment-name')).to_contain_text(row["name"])
        return
    raise AssertionError("no segment has an inside")


def _eroded(mask: np.ndarray) -> np.ndarray:
    inside = mask.copy()
    for axis in (0, 1):
        for step in (-3, 3):
            inside &= np.roll(mask, step, axis)
    inside[:4] = inside[-4:] = inside[:, :4] = inside[:, -4:] = False
    return inside


def test_segments_are_hidden_and_shown(visit: Visit) -> None:
    page = visit.page
    visit.choose(picture(5, SIZE))
    visit.name("dog", "grass")
    visit.run()
    canvas = page.locator(".canvas")
    state = "canvas => canvas.toDataURL().length + canvas.toDataURL().slice(-200)"
    before = canvas.evaluate(state)
    page.locator(".row-segment input").first.uncheck()
    assert canvas.evaluate(state) != before
    page.get_by_role("button", name="Show all").click()
    assert page.locator(".row-segment input:not(:checked)").count() == 0
    page.get_by_role("button", name="Hide all").click()
    assert page.locator(".row-segment input:checked").count() == 0
    page.select_option(".legend-head select", "name")
    assert visit.legend() == sorted(visit.legend())


def test_a_pasted_list_and_built_in_lists_become_classes(visit: Visit) -> None:
    page = visit.page
    page.locator("#word").evaluate(
        """input => {
          const clipboardData = new DataTransfer();
          clipboardData.setData("text", "# list\\ndog, puppy\\n3: grass | stuff\\r\\nsky; sea");
          input.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
        }"""
    )
    expect(page.locator(".chip-name")).to_have_text(["dog puppy", "grass", "sky", "sea"])
    expect(page.locator(".chip-kind")).to_have_text(["auto", "stuff", "auto", "auto"])
    page.get_by_role("button", name="Remove sky").click()
    expect(page.locator(".chip")).to_have_count(3)
    page.locator(".chip-name").first.click()
    assert page.input_value("#word") == "dog, puppy"
    page.press("#word", "Enter")
    page.select_option("#vocabulary", "cityscapes")
    expect(page.locator("#builtin-about")).to_contain_text("19 classes: 8 things, 11 stuff")
    page.click("#edit-list")
    expect(page.locator(".chip")).to_have_count(19)
    page.click("#clear")
    expect(page.locator(".chip")).to_have_count(0)


def test_a_picture_is_dropped_or_pasted(visit: Visit) -> None:
    page = visit.page
    for number, (kind, event, field) in enumerate(
        (("drop", "DragEvent", "dataTransfer"), ("paste", "ClipboardEvent", "clipboardData"))
    ):
        page.evaluate(
            """([content, name, kind, event, field]) => {
              const files = new DataTransfer();
              files.items.add(new File([new Uint8Array(content)], name, { type: "image/png" }));
              document.body.dispatchEvent(new window[event](kind, { [field]: files, bubbles: true, cancelable: true }));
            }""",
            [list(picture(number, SIZE)), f"{kind}.png", kind, event, field],
        )
        expect(page.locator("#picture-name")).to_have_text(f"{kind}.png · 160 × 120")


def test_progress_is_shown_and_cancel_frees_the_service(visit: Visit, served: Running) -> None:
    page = visit.page
    visit.choose(picture(5, SIZE))
    visit.name("dog")
    served.segmenter.held = True
    try:
        page.click("#run")
        expect(page.locator(".steps li.now")).to_have_text("Masks")
        expect(page.locator(".steps li.done")).to_have_text(["Waiting", "Model", "Picture", "Names"])
        expect(page.locator("#stage")).to_have_attribute("aria-busy", "true")
        page.click("#cancel")
        expect(page.locator("#status")).to_have_text("Cancelled.")
        assert until(lambda: served.service.open == 0) < 1
    finally:
        served.segmenter.held = False
    visit.run()
    assert visit.legend()


def test_errors_are_said(visit: Visit, served: Running) -> None:
    page = visit.page
    page.click("#run")
    expect(page.locator("#message")).to_have_text("Choose a picture first.")
    visit.choose(picture(5, SIZE))
    page.click("#run")
    expect(page.locator("#message")).to_have_text("Name at least one class first.")
    expect(page.locator("#word")).to_be_focused()
    visit.name("dog")
    visit.choose(b"no picture", "text.png")
    expect(page.locator("#picture-name")).to_contain_text("no preview")
    visit.run()
    expect(page.locator("#message")).to_contain_text("not a picture in a format known here")
    visit.choose(picture(5, (1001, 1000)), "large.png")
    visit.run()
    expect(page.locator("#message")).to_contain_text("more than 1,000,000")
    served.service.draining = True
    visit.choose(picture(5, SIZE))
    visit.run()
    expect(page.locator("#message")).to_contain_text("about to end")
    served.service.draining = False
    visit.run()
    expect(page.locator("#message")).to_be_hidden()
    visit.complaints = [text for text in visit.complaints if "Failed to load resource: the server responded" not in text]


def test_two_models_side_by_side_and_the_history(visit: Visit) -> None:
    page = visit.page
    visit.choose(picture(5, SIZE))
    visit.name("dog", "grass")
    visit.run()
    page.select_option("#other", NAMES[1])
    visit.run()
    expect(page.locator(".pane h3")).to_have_text(list(NAMES))
    box = page.locator(".canvas").first.bounding_box()
    assert box is not None
    expect(page.locator(".past")).to_have_count(2)
    page.locator(".past").nth(1).click()
    expect(page.locator(".pane")).to_have_count(1)
    expect(page.locator(".past").nth(1)).to_have_attribute("aria-pressed", "true")


def test_options_task_and_threshold_reach_the_service(visit: Visit, served: Running) -> None:
    page, content = visit.page, picture(5, SIZE)
    visit.choose(content)
    visit.name("dog", "grass", "sky")
    page.check('[name="task"][value="instance"]')
    page.fill("#threshold", "0.2")
    page.click("summary")
    page.fill('[data-option="alpha"]', "1")
    visit.run()
    expected = answer(served, content, "dog; grass; sky", task="instance", threshold="0.2", options=json.dumps({"alpha": 1}))
    assert sorted(visit.legend()) == sorted(
        f"{row['name']}{'thing' if row['thing'] else 'stuff'}" for row in expected["segments"]
    )
    expect(page.locator('#format option[value="coco-panoptic"]')).to_be_disabled()


def test_downloads_are_the_files_of_the_command_line(visit: Visit) -> None:
    page = visit.page
    visit.choose(picture(5, SIZE), "my photo.png")
    visit.name("dog", "grass")
    visit.run()
    for name, file in (("coco", "coco.json"), ("cvat", "cvat.xml"), ("overlay", "my photo.png.overlay.png")):
        page.select_option("#format", name)
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == f"my photo.png-{name}.zip"
        with zipfile.ZipFile(download.value.path()) as opened:
            assert file in opened.namelist()


def test_the_keyboard_alone_suffices(visit: Visit) -> None:
    page = visit.page
    keyboard = page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.locator(selector).evaluate("element => element === document.activeElement"):
                return
            keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#example")
    keyboard.press("Enter")
    expect(page.locator("#picture-name")).to_contain_text("example-7.png")
    tab_to("#word")
    keyboard.type("dog, puppy")
    keyboard.press("Enter")
    keyboard.type("grass")
    keyboard.press("Enter")
    tab_to("#run")
    keyboard.press("Enter")
    expect(page.locator(".pane")).to_be_visible()
    visit.wait()
    tab_to(".canvas")
    label = page.locator(".canvas").get_attribute("aria-label")
    keyboard.press("ArrowRight")
    assert page.locator(".canvas").get_attribute("aria-label") != label
    expect(page.locator('.pick[aria-pressed="true"]')).to_have_count(1)
    keyboard.press("Escape")
    expect(page.locator('.pick[aria-pressed="true"]')).to_have_count(0)
    tab_to(".pick")
    keyboard.press("Enter")
    expect(page.locator('.pick[aria-pressed="true"]')).to_have_count(1)


def test_every_control_has_a_name(visit: Visit) -> None:
    visit.choose(picture(5, SIZE))
    visit.name("dog")
    visit.run()
    nameless = visit.page.locator("button, input, select, canvas:not([aria-hidden])").evaluate_all(
        """elements => elements.filter((element) => !(element.getAttribute("aria-label") || element.textContent.trim()
          || element.labels?.length || element.getAttribute("aria-labelledby"))).map((element) => element.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, served: Running, scheme: str) -> None:
    visit = Visit(browser, served, viewport=PHONE, color_scheme=scheme, has_touch=True)
    visit.choose(picture(5, SIZE))
    visit.name("dog, puppy, little dog of our neighbours", "grass")
    visit.run()
    width = "() => document.documentElement.scrollWidth"
    assert visit.page.evaluate(width) <= PHONE["width"]
    ground = visit.page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")
    visit.page.close()


def test_a_token_is_asked_for(browser: Browser) -> None:
    with running(token="a-token-of-some-length") as served:
        page = browser.new_page()
        page.goto(served.url)
        expect(page.locator("#token-dialog")).to_be_visible()
        page.fill("#token", "a-token-of-some-length")
        page.press("#token", "Enter")
        expect(page.locator("#service")).to_contain_text("1 model")
        page.close()


# --- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_of_the_page(browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = request.config.getoption("--screenshots")
    names = ("sam_clip-tiny", "fcclip-tiny") if folder else NAMES
    with running(offered=names, loader=load if folder else None) as served:
        target = Path(folder) if folder else tmp_path
        for scheme in ("light", "dark"):
            visit = Visit(browser, served, color_scheme=scheme)
            if scheme == "light":
                shoot(visit, target / "page-start.webp")
            example(visit, "11")
            shoot(visit, target / ("page-result.webp" if scheme == "light" else "page-dark.webp"))
            if scheme == "light":
                visit.page.select_option("#other", names[1])
                visit.run()
                shoot(visit, target / "page-compare.webp")
                visit.choose(b"no picture", "holiday.png")
                visit.run()
                shoot(visit, target / "page-error.webp")
            visit.page.close()
        visit = Visit(browser, served, viewport=PHONE, has_touch=True)
        example(visit, "11")
        visit.page.locator(".pane").scroll_into_view_if_needed()
        visit.page.locator("#toolbar").evaluate("element => element.scrollIntoView()")
        shoot(visit, target / "page-phone.webp")
        visit.page.close()
    assert {path.name for path in target.glob("page-*.webp")} == {
        f"page-{name}.webp" for name in ("start", "result", "dark", "compare", "error", "phone")
    }


def example(visit: Visit, seed: str) -> None:
    """Segment an example with the names of the emoji world, and hover."""
    page = visit.page
    page.fill("#seed", seed)
    page.click("#example")
    expect(page.locator("#picture-name")).to_contain_text(f"example-{seed}.png")
    page.select_option("#vocabulary", "emoji")
    visit.run()
    page.hover(".canvas", position={"x": 150, "y": 150})


def shoot(visit: Visit, path: Path) -> None:
    """Write what the window shows as a WebP."""
    Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB").save(path, "WEBP", quality=75, method=6)
