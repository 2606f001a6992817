"""The field's words: names that say nothing are not bound, and riddles are not told."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "lexiseg"
VAGUE = {"found", "place", "places", "one", "share", "shares", "asked", "told", "there", "known_as", "thing_", "looked"}
RIDDLES = re.compile(
    r"how many numbers learn|what there is|see there|nobody (says|looks|hangs|asks)|talks\b|as it ever was|"
    r"what chance|says nothing|no reason to",
    re.IGNORECASE,
)
MODULES = sorted(SOURCE.rglob("*.py"))


def bound(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every name that is bound: assigned, looped over, imported as, an argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_vague_names(module: Path) -> None:
    vague = [f"{module.name}:{line} {name}" for line, name in bound(ast.parse(module.read_text())) if name in VAGUE]
    assert not vague, f"give these the name of what they hold: {vague}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_riddles(module: Path) -> None:
    lines = module.read_text().splitlines()
    riddles = [f"{module.name}:{number} {line.strip()}" for number, line in enumerate(lines, 1) if RIDDLES.search(line)]
    assert not riddles, f"say it as the documentation of torch would: {riddles}"


def test_a_vague_name_is_seen() -> None:
    names = [name for _, name in bound(ast.parse("def f(found):\n    for one in x:\n        self.share = one\n"))]
    assert names == ["found", "one", "share"] or sorted(names) == ["found", "one", "share"]
