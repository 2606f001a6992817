"""Draw text of any script: each letter in the first font that has it.

Fonts are tried in this order: the caller's (`preferring`); DejaVu Sans, which is in the package and has Latin, Greek,
Cyrillic, Armenian, Georgian, Hebrew, Arabic and more; those installed on the machine. Shaping and right-to-left text need
Pillow's Raqm (its wheels have it, if FriBiDi is installed); without it letters are separate, from left to right.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from unicodedata import bidirectional, category, combining, normalize

from PIL import ImageDraw, ImageFont

from lexiseg.errors import UsageError
from lexiseg.ops.files import find_files

BASE = str(files("lexiseg") / "assets" / "fonts" / "DejaVuSans.ttf")
ENDINGS = (".ttf", ".otf", ".ttc", ".otc")
# In a font's file name: not the regular upright face of the family, or no text font.
STYLES = (
    *("bold", "black", "heavy", "semi", "medium", "light", "thin", "italic", "oblique", "condensed", "narrow", "extra"),
    *("mono", "serif", "display", "looped", "-ui", "math", "symbols", "lastresort"),
)
NO_LETTER = "\U0010ffff"  # not a character, so every font draws its glyph for missing letters
PROBE = 24  # font size in pixels for testing letters
JOINERS = "\u200c\u200d"  # between letters of Arabic and Indic scripts
VIRAMA = 9  # combining class of the signs of Indic scripts that join a consonant with the next
SHOWN = 12  # missing letters named in a notice

_preferred: ContextVar[str | None] = ContextVar("preferred", default=None)
_noticed: set[str] = set()  # letters already named in a notice


@contextmanager
def preferring(font: str | Path | None) -> Iterator[None]:
    """Prefer the font in a file within the block; None changes nothing.

    Raises:
        UsageError: the file is missing or not a scalable font.
    """
    if font is None:
        yield
        return
    try:
        _opened(str(font), PROBE)
    except (OSError, ValueError) as error:
        raise UsageError(f"{font}: is not a usable font ({error}); give a .ttf, .otf or .ttc file") from None
    token = _preferred.set(str(font))
    try:
        yield
    finally:
        _preferred.reset(token)


def notice(names: Iterable[str]) -> str | None:
    """Return a notice of letters in the names that no font has, or None; each letter is named once."""
    written = dict.fromkeys(letter for name in names for letter in _needed(_clean(name)))
    letters = [letter for letter in written if letter not in _noticed and _font_with(letter, _preferred.get()) is None]
    _noticed.update(letters)
    if not letters:
        return None
    more = f" and {len(letters) - SHOWN} more" if len(letters) > SHOWN else ""
    return (
        f"no font here has {' '.join(letters[:SHOWN])}{more}; drawn as boxes. Install a font that has them, such as one of the "
        "Noto family, or name its file (--font FILE; font= in Python)"
    )


def warn_of_boxes(names: Iterable[str]) -> None:
    """Issue the `notice`, if any, as a Python warning."""
    if message := notice(names):
        warnings.warn(message, stacklevel=3)


class Lettering:
    """Text of one font size.

    Args:
        size: the em in pixels, about the height from the top of an Å to the bottom of a g.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def box(self, text: str) -> tuple[float, float, float, float]:
        """Return the bounding box (left, top, right, bottom) of the ink in pixels, relative to the start of the base line."""
        x, boxes = 0.0, []
        for run, font in self._runs(text):
            left, top, right, bottom = font.getbbox(run, anchor="ls")
            boxes.append((x + left, top, x + right, bottom))
            x += font.getlength(run)
        if not boxes:
            return 0.0, 0.0, 0.0, 0.0
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    def length(self, text: str) -> float:
        """Return the width of the text in pixels."""
        return sum(font.getlength(run) for run, font in self._runs(text))

    def fitted(self, text: str, width: float) -> str:
        """Truncate the text with an ellipsis to at most ``width`` pixels."""
        if self.length(text) <= width:
            return text
        clusters = _clusters(text)
        while clusters and self.length(f"{''.join(clusters)}…") > width:
            clusters.pop()
        return f"{''.join(clusters).rstrip()}…"

    def write(self, draw: ImageDraw.ImageDraw, x: float, y: float, text: str, fill: str) -> None:
        """Draw the text from ``x`` on, with its base line at ``y``."""
        for run, font in self._runs(text):
            draw.text((x, y), run, fill=fill, font=font, anchor="ls")
            x += font.getlength(run)

    def _runs(self, text: str) -> list[tuple[str, ImageFont.FreeTypeFont]]:
        """Split the text into (piece, font), from left to right."""
        text, preferred = _clean(text), _preferred.get()
        clusters = groupby(_clusters(text), key=lambda cluster: _font_of(_needed(cluster), preferred))
        runs = [("".join(group), _opened(path, self.size)) for path, group in clusters]
        first = next((bidirectional(letter) for letter in text if bidirectional(letter) in {"L", "R", "AL"}), "L")
        return runs if first == "L" else runs[::-1]


def _clean(text: str) -> str:
    """Compose letters (NFC), and remove control characters, direction marks and lone surrogates."""
    kinds = ((letter, category(letter)) for letter in normalize("NFC", text))
    shown = ("\ufffd" if kind == "Cs" else " " if kind in {"Cc", "Zl", "Zp"} else letter for letter, kind in kinds)
    return "".join(letter for letter in shown if category(letter) != "Cf" or letter in JOINERS)


def _clusters(text: str) -> list[str]:
    """Split the text into letters, each with the spaces, joiners and marks that follow it; conjuncts are kept together."""
    clusters: list[str] = []
    for letter in text:
        follows = letter.isspace() or letter in JOINERS or category(letter).startswith("M")
        if clusters and (follows or (combining(clusters[-1][-1]) == VIRAMA and category(letter) == "Lo")):
            clusters[-1] += letter
        else:
            clusters.append(letter)
    return clusters


def _needed(text: str) -> str:
    """Return the letters that a font must have: not spaces, joiners and variation selectors."""
    return "".join(letter for letter in text if not (letter.isspace() or letter in JOINERS or "\ufe00" <= letter <= "\ufe0f"))


def _font_of(letters: str, preferred: str | None) -> str:
    """Return the first font with a letter and its marks, or else with the letter, or else `BASE`."""
    return _font_with(letters, preferred) or _font_with(letters[:1], preferred) or BASE


@lru_cache(maxsize=4096)
def _font_with(letters: str, preferred: str | None) -> str | None:
    """Return the file of the first font that has all these letters."""
    near = [path for path in (preferred, BASE) if path is not None]
    return next((path for paths in (near, _installed()) for path in paths if all(_has(path, each) for each in letters)), None)


def _has(path: str, letter: str) -> bool:
    """Return whether a font draws a letter differently from missing letters."""
    try:
        font, missing = _probe(path)
        return _drawing(font, letter) != missing
    except (OSError, ValueError):  # damaged, or bitmaps of one size
        return False


@lru_cache(maxsize=1024)
def _probe(path: str) -> tuple[ImageFont.FreeTypeFont, bytes]:
    """Return a font of size `PROBE`, and its drawing of a missing letter."""
    font = ImageFont.truetype(path, PROBE, layout_engine=ImageFont.Layout.BASIC)
    return font, _drawing(font, NO_LETTER)


def _drawing(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    mask = font.getmask(letter)
    return bytes(mask) + repr(mask.size).encode()


@lru_cache(maxsize=64)
def _opened(path: str, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(path, size)
    with suppress(OSError, ValueError):  # a font of one weight only
        font.set_variation_by_name("Regular")
    return font


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    """Return the fonts installed on this machine, regular faces first, Noto before others."""
    paths = []
    for folder in _folders():
        with suppress(OSError):
            paths += find_files(folder, ENDINGS)
    return tuple(str(path) for path in sorted(paths, key=_rank))


def _rank(path: Path) -> tuple[int, bool, str]:
    name = path.stem.lower()
    return sum(word in name for word in STYLES), not name.startswith("noto"), name


def _folders() -> list[Path]:
    """Return the folders of installed fonts, of the system and of this user."""
    home, given = Path.home(), os.environ
    if platform.system() == "Windows":
        local = Path(given.get("LOCALAPPDATA") or home / "AppData" / "Local")
        return [Path(given.get("WINDIR") or "C:/Windows") / "Fonts", local / "Microsoft" / "Windows" / "Fonts"]
    if platform.system() == "Darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    shared = (given.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share").split(":")
    roots = [given.get("XDG_DATA_HOME") or home / ".local" / "share", *(root for root in shared if root)]
    return [*(Path(root) / "fonts" for root in roots), home / ".fonts"]
