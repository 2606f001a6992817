"""The glossary is true: every identifier it names is bound in the file beside it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src/lexiseg"
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
ENTRY = re.compile(r"`(\w+)` \(`([\w/]+\.py)`\)")
ENTRIES = sorted(set(ENTRY.findall(GLOSSARY)))
ROWS = [line for line in GLOSSARY.splitlines() if line.startswith("| ") and not line.startswith(("| term |", "| symbol |"))]


def bound(tree: ast.AST) -> Iterator[str]:
    """Names of classes, functions, arguments, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@cache
def names(file: str) -> frozenset[str]:
    return frozenset(bound(ast.parse((PACKAGE / file).read_text())))


@pytest.mark.parametrize(("identifier", "file"), ENTRIES, ids=lambda value: value)
def test_an_identifier_exists_in_its_file(identifier: str, file: str) -> None:
    assert identifier in names(file)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_names_an_identifier_and_nothing_unchecked(row: str) -> None:
    _, symbol, identifiers, meaning, _ = row.split("|")
    assert symbol.strip()
    assert meaning.strip()
    assert identifiers.strip() == ", ".join(f"`{name}` (`{file}`)" for name, file in ENTRY.findall(identifiers)) != ""


def test_a_name_that_is_only_used_does_not_count() -> None:
    assert set(bound(ast.parse("def f(a):\n    self.b = c = d(a).e\n"))) == {"f", "a", "b", "c"}
