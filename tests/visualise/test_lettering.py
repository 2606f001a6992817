"""Letters of all scripts are drawn in a font that has them, and it is said which no font has."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from unicodedata import category, combining

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from lexiseg.errors import UsageError
from lexiseg.visualise import lettering
from lexiseg.visualise.lettering import BASE, Lettering, notice, preferring

ALPHABETS = {  # what DejaVu Sans has
    "Latin": "abcdefghijklmnopqrstuvwxyzäöüßéèçñåøæœłżąęőčšžğışđþðảệơư…–’",  # noqa: RUF001
    "Greek": "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώ",
    "Cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяіїєґўљњћђџ",
    "Armenian": "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցւփքօֆ",
    "Georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "Hebrew": "אבגדהוזחטיכלמנסעפצקרשת",
    "Arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويپچگ",
}
NOBODYS = "\ue000\ue001"  # for private use


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine without fonts; they would be installed in the folder that is returned."""
    folder = tmp_path / "installed"
    monkeypatch.setattr(lettering, "_folders", lambda: [folder])
    monkeypatch.setattr(lettering, "_noticed", set())
    _forget()
    yield folder
    _forget()


def _forget() -> None:
    for cached in (lettering._installed, lettering._font_with):
        cached.cache_clear()


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A font that has a, but neither ą nor Greek: Pillow's own."""
    path = tmp_path / "narrow.ttf"
    font = ImageFont.load_default(12)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert isinstance(font.path, BytesIO)
    path.write_bytes(font.path.getvalue())
    return path


def drawn(text: str, size: int = 20) -> bytes:
    picture = Image.new("L", (16 * size, 3 * size))
    Lettering(size).write(ImageDraw.Draw(picture), size, 2 * size, text, "white")
    return picture.tobytes()


@pytest.mark.parametrize("script", ALPHABETS)
def test_letters_are_told_apart_without_any_font_installed(script: str) -> None:
    letters = [*ALPHABETS[script], NOBODYS[0]]
    assert len({drawn(letter) for letter in letters}) == len(letters)
    assert notice([ALPHABETS[script]]) is None


def test_letters_that_no_font_has_are_named_once() -> None:
    told = notice(["dog", f"d{NOBODYS}g"])
    assert told is not None
    assert " ".join(NOBODYS) in told
    assert "--font" in told
    assert " d " not in told
    assert notice([NOBODYS]) is None
    more = "".join(chr(0xE100 + number) for number in range(lettering.SHOWN + 5))
    assert f"{' '.join(more[: lettering.SHOWN])} and 5 more;" in f"{notice([more])}"


def test_an_installed_font_is_used_for_what_the_base_lacks(bare: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = {text: drawn(text) for text in ("ą", "ω")}
    monkeypatch.setattr(lettering, "BASE", str(narrow))
    _forget()
    assert drawn("ą") == drawn("ω")
    bare.mkdir()
    (bare / "broken.ttf").write_bytes(b"none")
    shutil.copy(BASE, bare / "one.TTF")
    _forget()
    assert {text: drawn(text) for text in full} == full
    assert drawn("a") != drawn("ą")


def test_the_callers_font_comes_first_and_others_fill_its_gaps(narrow: Path) -> None:
    base = {text: drawn(text) for text in ("a", "ą")}
    with preferring(narrow):
        assert drawn("a") != base["a"]
        assert drawn("ą") == base["ą"]
        with preferring(None):
            assert drawn("a") != base["a"]
        with preferring(BASE):
            assert drawn("a") == base["a"]
    assert drawn("a") == base["a"]


@pytest.mark.parametrize("content", [None, b"", b"no font at all"])
def test_what_is_no_font_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "wrong.ttf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"wrong\.ttf: is not a usable font"), preferring(path):
        pass


def test_a_mark_is_drawn_in_the_font_of_its_letter(narrow: Path) -> None:
    with preferring(narrow):
        runs = Lettering(20)._runs("ax\u0306 b")
    assert [run for run, _ in runs] == ["a", "x\u0306 ", "b"]
    assert drawn("и\u0306") == drawn("й")


@pytest.mark.parametrize(
    ("text", "same"),
    [("dog\u202egod", "doggod"), ("do\ud800g", "do\ufffdg"), ("do\ng", "do g"), ("\ufeffdog", "dog"), ("", "\u200e")],
)
def test_what_is_no_letter_is_not_obeyed(text: str, same: str) -> None:
    assert drawn(text) == drawn(same)
    assert Lettering(20).box(text) == Lettering(20).box(same)


def test_names_are_read_from_the_right_where_pillow_can(narrow: Path) -> None:
    """By Raqm within a font, by the order of the pieces from font to font."""
    picture = np.frombuffer(drawn("לי"), np.uint8).reshape(60, 320)  # lamed is tall, yod small
    inked = np.flatnonzero(picture.any(0))
    heights = picture.any(1), picture[:, : inked.mean().astype(int)].any(1)
    assert (heights[0].sum() > heights[1].sum()) == features.check("raqm")
    with preferring(narrow):
        assert [run for run, _ in Lettering(20)._runs("ל(a")] == ["(a", "ל"]


@pytest.mark.parametrize("text", ["", "dog", "собака כלב dog", "a name that goes on and on"])
@pytest.mark.parametrize("width", [15, 60, 1000])
def test_what_is_too_long_is_cut(text: str, width: int) -> None:
    letters = Lettering(13)
    short = letters.fitted(text, width)
    assert letters.length(short) <= width
    assert short == text if letters.length(text) <= width else text.startswith(short[:-1]) and short[-1] == "…"


@pytest.mark.parametrize("text", ["क्षत्रिय हिन्दी", "ক্ষুদ্র", "ஸ்ரீ கொக்கு"])
def test_a_cut_is_not_within_a_conjunct_or_before_a_mark(text: str) -> None:
    letters = Lettering(13)
    for width in range(10, round(letters.length(text)), 3):
        kept = letters.fitted(text, width).removesuffix("…")
        after = text[len(kept) :].lstrip()
        assert text.startswith(kept)
        assert not kept or combining(kept[-1]) != lettering.VIRAMA
        assert not category(after[0]).startswith("M")


@pytest.mark.parametrize("size", [13, 40])
def test_the_box_holds_the_ink(size: int) -> None:
    for text in ("Ågy", "собака כלב", "i", " a "):
        left, top, right, bottom = Lettering(size).box(text)
        ink = Image.frombytes("L", (16 * size, 3 * size), drawn(text, size)).getbbox()
        assert ink is not None
        assert left + size <= ink[0]
        assert top + 2 * size <= ink[1]
        assert ink[2] <= right + size
        assert ink[3] <= bottom + 2 * size


@pytest.mark.parametrize(
    ("system", "variables", "folders"),
    [
        ("Linux", {"XDG_DATA_HOME": "/u", "XDG_DATA_DIRS": "/a:/b"}, ["/u/fonts", "/a/fonts", "/b/fonts", "/home/.fonts"]),
        ("Darwin", {}, ["/System/Library/Fonts", "/Library/Fonts", "/home/Library/Fonts"]),
        ("Windows", {"WINDIR": "/w", "LOCALAPPDATA": "/l"}, ["/w/Fonts", "/l/Microsoft/Windows/Fonts"]),
    ],
)
def test_fonts_are_looked_for_where_systems_keep_them(
    system: str, variables: dict[str, str], folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr(Path, "home", lambda: Path("/home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [path.as_posix() for path in lettering._folders()] == folders


def test_plain_fonts_are_tried_before_others() -> None:
    wanted = ["NotoSans-Regular", "Arial", "NotoSans-Bold", "DejaVuSerif-BoldItalic"]
    assert sorted([Path(f"{name}.ttf") for name in reversed(wanted)], key=lettering._rank) == [
        Path(f"{name}.ttf") for name in wanted
    ]
