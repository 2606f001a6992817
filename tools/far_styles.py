"""Pack styles that are far from those of the emoji world, to test on; nothing of them is shipped.

    python tools/far_styles.py openmoji --output output/far
    python tools/far_styles.py photographs --output output/far

    openmoji      npm     openmoji                 drawings CC BY-SA 4.0   the emoji of the world as other artists drew them
    photographs   Debian  tuxpaint-stamps-default  GPL-2                   things cut out of photographs, named by its text files

The package is fetched by name with its ordinary client (``npm pack``, ``apt-get download`` and ``dpkg``) into a temporary folder;
``--package`` takes one that lies here, as a file or unpacked. Writes an atlas in the form of the world's styles, a cell a thing in
class order, empty where the package has none, and a JSON file beside it that says what is drawn, from which files. Then

    python -m lexiseg.training.score --far output/far/openmoji.webp

scores on it. OpenMoji's package holds SVG alone, so it needs the extra ``pack`` (resvg_py); photographs need no extra.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from pack_glyphs import fitted, svg

OPENMOJI = "openmoji@17.0.0"
STAMPS = "tuxpaint-stamps-default"
LICENCES = {
    "openmoji": "CC BY-SA 4.0, https://openmoji.org",
    "photographs": "GPL-2, as Debian's copyright file of the package says",
}

# Which stamps are photographs. The package puts drawings into folders called cartoon, and keeps the SVG beside the PNG of what
# was drawn as one. These are drawn, too, without its saying so, as a sheet of all showed (version 2022.06.04); they are
# beginnings of paths. Among the seasonal ones a few call themselves photos. Drawings that name nothing of the world are not here.
DRAWN = (
    "symbols/",
    "clothes/",
    "people/",
    "seasonal/christmas/",
    "seasonal/easter/",
    "seasonal/halloween/",
    "seasonal/hanukkah/",
    "seasonal/newyears/",
    "town/flags/",
    "town/roadsigns/",
    "animals/mammals/hedgehog",
    "food/pizza",
    "space/planets/0_sun",
)

# Words before a name that leave it the same thing; any other may make it another (a rubber duck, a sea lion, a VW beetle).
ARTICLES = frozenset(("a", "an", "the"))
PLAIN = frozenset((
    "our", "some", "two", "pair", "bunch", "head", "of",
    "red", "green", "yellow", "brown", "black", "white", "grey", "silver", "pink", "golden", "colorful",
    "little", "small", "large", "big", "very", "ripe", "sweet", "lit", "open", "closed", "sleeping", "sitting", "male", "female",
    "classical", "holm", "sedan", "spiny", "uk",
))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("style", choices=("openmoji", "photographs"))
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--package", type=Path, metavar="PATH", help="the package as fetched, or unpacked; without it, it is fetched"
    )
    arguments = parser.parse_args()
    things = json.loads((files("lexiseg") / "assets/world/classes.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        package = arguments.package or fetched(arguments.style, Path(scratch))
        folder = package if package.is_dir() else unpacked(package, Path(scratch) / "unpacked")
        found = openmoji(folder, things["things"]) if arguments.style == "openmoji" else stamps(folder, things["things"])
        drawings = {name: (source, fitted(drawing, things["cell"])) for name, source, drawing in found}
    write(arguments.output, arguments.style, things, drawings, package.name)
    print(f"{len(drawings)} of {len(things['things'])} things in {arguments.output / arguments.style}.webp")


def write(output: Path, style: str, things: dict, drawings: dict[str, tuple[str, Image.Image]], package: str) -> None:
    """The atlas ``output/style.webp`` of ``drawings`` (name: (file, cell)), and ``style.json`` beside it.

    `lexiseg.world.sprites` and `drawn` read them back.
    """
    cell, columns, names = things["cell"], things["columns"], [row["name"] for row in things["things"]]
    atlas = Image.new("RGBA", (columns * cell, math.ceil(len(names) / columns) * cell))
    for index, name in enumerate(names):
        if name in drawings:
            atlas.paste(drawings[name][1], (index % columns * cell, index // columns * cell))
    output.mkdir(parents=True, exist_ok=True)
    atlas.save(output / f"{style}.webp", quality=85, method=6, alpha_quality=95)
    document = {
        "style": style,
        "package": package,
        "licence": LICENCES[style],
        "drawings": {name: drawings[name][0] for name in names if name in drawings},
    }
    (output / f"{style}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def fetched(style: str, folder: Path) -> Path:
    """The package's file, fetched into ``folder``."""
    command = ["npm", "pack", "--silent", OPENMOJI] if style == "openmoji" else ["apt-get", "download", STAMPS]
    subprocess.run(command, cwd=folder, check=True)
    return next(folder.iterdir())


def unpacked(package: Path, folder: Path) -> Path:
    if package.suffix == ".deb":
        subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)
    else:
        with tarfile.open(package) as archive:
            archive.extractall(folder, filter="data")
    return folder


def openmoji(folder: Path, things: list[dict]) -> Iterator[tuple[str, str, Image.Image]]:
    """(name, file, drawing) by the code of each thing."""
    drawings = next(folder.rglob("color/svg"))
    for row in things:
        path = drawings / f"{row['code'].upper()}.svg"
        if path.is_file():
            yield row["name"], f"color/svg/{path.name}", svg(path)


def stamps(folder: Path, things: list[dict]) -> Iterator[tuple[str, str, Image.Image]]:
    """(name, file, picture) by what the text files say; every match is printed, with what it was chosen from."""
    root = next((path for path in folder.rglob("stamps") if path.is_dir()), folder)
    matches: dict[str, list[tuple[int, str, str]]] = {}
    forms = word_forms(things)
    for path in sorted(root.rglob("*.png")):
        source, text = path.relative_to(root).as_posix(), path.with_suffix(".txt")
        if photographed(path, source) and text.is_file():
            line = text.read_text(encoding="utf-8").partition("\n")[0].strip()
            match = matched(line, path.stem, forms)
            if match is not None:
                matches.setdefault(match[0], []).append((match[1], source, line))
    for row in things:
        if row["name"] in matches:
            (_, source, line), *others = sorted(matches[row["name"]])
            print(f"{row['name']:<18} {source:<44} {line}", *(f"\n{'':<18} not {other[1]}" for other in others))
            picture = Image.open(root / source)
            yield row["name"], source, picture.convert("RGBA")


def photographed(path: Path, source: str) -> bool:
    drawn = "cartoon" in path.parts or path.with_suffix(".svg").exists() or source.startswith(DRAWN)
    return not drawn or "photo" in path.stem


def word_forms(things: list[dict]) -> dict[str, tuple[str, bool]]:
    """Written form (see `form`): (name of the thing, whether it is a synonym); names come before synonyms."""
    forms: dict[str, tuple[str, bool]] = {}
    for row in things:
        forms.setdefault(form(row["name"]), (row["name"], False))
    for row in things:
        for word in row["synonyms"]:
            forms.setdefault(form(word), (row["name"], True))
    return forms


def matched(line: str, stem: str, forms: dict[str, tuple[str, bool]]) -> tuple[str, int] | None:
    """What the first line of a stamp's text names: (name of the thing, how far from plainly).

    A line names a thing if its first phrase ends with it after words that are all `PLAIN` ("A brown bear."), or holds it
    anywhere and the file is called so, too ("Remember to flush the toilet ..."). Further is what says more, and a synonym.
    """
    line = re.sub(r"[“”\"]", "", line.lower()).replace("’", "'")
    phrase = re.split(r"[.,;:!?(—]", line)[0].split()
    for start in range(len(phrase)):
        if (found := forms.get(form(" ".join(phrase[start:])))) is not None:
            before = [word for word in phrase[:start] if word not in ARTICLES]
            if PLAIN.issuperset(before):
                return found[0], len(before) + 10 * found[1]
            if phrase[0] in ARTICLES:
                return None  # another kind of thing
            break  # a sentence, not a name
    found = forms.get(form(stem))
    named = found is not None and form(stem) in {form(word) for word in re.findall(r"[a-z'-]+", line)}
    return (found[0], 5 + 10 * found[1]) if named else None


def form(words: str) -> str:
    """Letters alone, without the plural of the last word: "T-shirts" and "t shirt" are the same."""
    letters = re.sub(r"[^a-z]", "", words.lower())
    return letters.removesuffix("ies") + "y" if letters.endswith("ies") else re.sub(r"(?<!s)s$", "", letters)


if __name__ == "__main__":
    main()
