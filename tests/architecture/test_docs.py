"""The documents are true: the equations, paths, links and commands they name exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from lexiseg.cli.parser import build_parser

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src/lexiseg"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
METHODS = sorted(path.parent.name for path in PACKAGE.glob("methods/*/model.py"))

FENCE = re.compile(r"^[ \t]*(`{3,})[^\n`]*\n(.*?)^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
EQUATION = re.compile(r"Eq\. \((\d+)\)(?:-\((\d+)\))?")
CALL = re.compile(r"(?:^|[|&;]\s*)(?:\w+=\S*\s+)*lexiseg\s")


def equations(text: str) -> set[int]:
    """The numbers in "Eq. (7)" and "Eq. (7)-(9)"."""
    return {number for first, last in EQUATION.findall(text) for number in range(int(first), int(last or first) + 1)}


def equations_of_table(text: str) -> set[int]:
    """The equations a page says are implemented: those in the first column of its tables."""
    return equations("\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|")))


def equations_of_code(source: str) -> set[int]:
    return equations("\n".join(re.findall(r"# (Eq\. .*)", source)))


def paths(text: str) -> Iterator[str]:
    """What looks like a path of the repository among the code spans; ``<name>`` stands for any name."""
    for span in CODE_SPAN.findall(FENCE.sub("", text)):
        named = "/" in span and span.endswith((".py", ".md", ".json", ".txt"))
        if re.fullmatch(r"\w[\w.<>*/-]*", span) and (named or span.startswith(("src/", "tests/", "docs/"))):
            yield span


def exists(path: str) -> bool:
    """Whether a path, counted from the root or from the package, is there."""
    pattern = re.sub(r"<[^<>]*>", "*", path).rstrip("/")
    return any(True for base in (ROOT, PACKAGE) for _ in base.glob(pattern))


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every call of lexiseg in the code blocks."""
    for _, block in FENCE.findall(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = line.strip().removeprefix("$ ")
            if CALL.search(line):
                yield from calls(line)


def calls(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for token in lexer:
        if token in {"|", "||", "&", "&&", ";"}:
            parts.append([])
        else:
            parts[-1].append(token)
    for part in parts:
        while part and re.match(r"\w+=", part[0]):
            part.pop(0)
        if part and part[0] == "lexiseg":
            redirections = [position for position, token in enumerate(part) if token in {"<", ">", ">>"}]
            yield part[1 : min(redirections, default=len(part))]


def accepted(arguments: list[str]) -> bool:
    try:
        build_parser().parse_args(arguments)
    except SystemExit as stop:
        return not stop.code  # --help and --version stop too, with 0
    return True


def title(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_method_has_its_page() -> None:
    assert sorted(path.stem for path in ROOT.glob("docs/methods/*.md")) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_page_and_code_name_the_same_equations(method: str) -> None:
    page = (ROOT / f"docs/methods/{method}.md").read_text(encoding="utf-8")
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "methods" / method).rglob("*.py")))
    assert equations_of_table(page) == equations_of_code(source)


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_paths_and_links_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(FENCE.sub("", text)) if "://" not in link]
    missing = [path for path in paths(text) if not exists(path)]
    missing += [link for link in links if not (document.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=title)
def test_commands_are_accepted(document: Path) -> None:
    refused = [shlex.join(arguments) for arguments in commands(document.read_text(encoding="utf-8")) if not accepted(arguments)]
    assert not refused


# --- that the readers above see what is wrong -------------------------------------------------------------------------


def test_curl_sends_whole_values() -> None:
    """Its -F ends a value at the first semicolon, which separates our classes; --form-string does not."""
    lines = [line for document in DOCUMENTS for line in document.read_text().splitlines() if line.startswith("curl ")]
    fields = [after for line in lines for before, after in pairwise(shlex.split(line)) if before in {"-F", "--form"}]
    assert fields
    assert [field for field in fields if ";" in field] == []


def test_equations_are_read_from_first_columns_and_comments() -> None:
    assert equations_of_table("Eq. (1)\n| Eq. (2) | as Eq. (3) |\n| Eq. (5)-(7) | x |") == {2, 5, 6, 7}
    assert equations_of_code('"""Eq. (1)"""\nx = y  # Eq. (2)\n# Eq. (4)-(5): why\n') == {2, 4, 5}


def test_paths_are_read_from_code_spans() -> None:
    text = "`ops/rle.py`, `tests/laws`, `docs/methods/<name>.md`, `a/b`, `x.json`, `make x/y.py`\n```\n`src/not.py`\n```\n"
    assert list(paths(text)) == ["ops/rle.py", "tests/laws", "docs/methods/<name>.md"]
    assert all(exists(path) for path in paths(text))
    assert not exists("src/lexiseg/nowhere.py")
    assert not exists("docs/methods/<name>.py")


def test_commands_are_read_from_code_blocks() -> None:
    text = """lexiseg not this
```
$ lexiseg segment photo.jpg \\
    --classes 'dog; grass'  # a remark
HF_HOME=DIR lexiseg models --json | head > x; cat y | lexiseg segment - --vocabulary coco < z
import lexiseg
```
"""
    assert list(commands(text)) == [
        ["segment", "photo.jpg", "--classes", "dog; grass"],
        ["models", "--json"],
        ["segment", "-", "--vocabulary", "coco"],
    ]
    assert all(accepted(arguments) for arguments in commands(text))


@pytest.mark.parametrize("line", ["paint x", "segment photo.jpg", "models --nonsense", "world render --count 0 --output DIR"])
def test_a_wrong_command_is_refused(line: str) -> None:
    assert not accepted(line.split())
