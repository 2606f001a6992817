"""The plan of the house, held: imports run one way, the public face is true, no file knows the machine it was made on."""

from __future__ import annotations

import ast
import importlib
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import lexiseg

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src/lexiseg"
FACE = "lexiseg"  # the public face itself, src/lexiseg/__init__.py

# A room is a module or folder directly under src/lexiseg. What it may import is said below, and nowhere else.
FOUNDATION = {"structures", "errors", "ops"}
ASIDE = {"data", "metrics", "exports", "visualise", "world"}  # they know only the foundation, and not each other
RESULT = {"segmentation", "formats"}  # the result object, which saves and shows itself
ENCODERS = {"text", "backbones", "layers"}
HEADS = {"losses", "ensembles", "postprocess"}
METHODS = {"methods"}
CONVERSION = {"checkpoints"}  # of all methods' weights; what is loaded or trained does not ask it
DRIVERS = {"inference", "training"}
CLIENT = {"client"}  # of a service: what it takes to send a picture and to read a result, and no model
TABLES = {"reproduce"}  # the papers' tables, by what is above
SHELLS = {"cli", "serve", "integrations", "demo", "__main__"}

BELOW_HEADS = FOUNDATION | ENCODERS | RESULT
BELOW_METHODS = BELOW_HEADS | HEADS
BELOW_DRIVERS = BELOW_METHODS | METHODS | ASIDE
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(FOUNDATION, FOUNDATION),
    **{room: FOUNDATION | {room} for room in ASIDE},
    "data": FOUNDATION | {"data", "text"},  # a data set has a vocabulary
    **dict.fromkeys(RESULT, FOUNDATION | RESULT | {"exports", "visualise"}),
    **dict.fromkeys(ENCODERS, FOUNDATION | ENCODERS),
    **dict.fromkeys(HEADS, BELOW_HEADS | HEADS),
    **dict.fromkeys(METHODS, BELOW_METHODS | METHODS),
    **dict.fromkeys(CONVERSION, BELOW_METHODS | METHODS | CONVERSION),
    **dict.fromkeys(DRIVERS, BELOW_DRIVERS | DRIVERS),
    **dict.fromkeys(CLIENT, FOUNDATION | RESULT | CLIENT | {"text", "data", "exports"}),
    **dict.fromkeys(TABLES, BELOW_DRIVERS | DRIVERS | TABLES),
    **dict.fromkeys(SHELLS, BELOW_DRIVERS | CONVERSION | DRIVERS | CLIENT | TABLES | SHELLS | {FACE}),
}
ROOMS = set(MAY_IMPORT)

MOST_OF_REPOSITORY, MOST_OF_WEIGHTS = 45 * 2**20, 22 * 10**6  # bytes

# Written so that no pattern matches its own text.
FOREIGN = ("[/]work/", "pypi[.]org", "registry[.]npmjs", "files[.]pythonhosted", "deb[.]debian[.]org")


def imported_rooms(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of lexiseg in ``source``, the text of ``module``, wherever it stands in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            targets = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for package, *inner in (target.split(".") for target in targets):
            if package == FACE:
                yield node.lineno, inner[0] if inner and inner[0] in ROOMS else FACE


def modules() -> dict[str, Path]:
    """Every module of the package except its public face: dotted name -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join((FACE, *(parts[:-1] if parts[-1] == "__init__" else parts)))
        if name != FACE:
            found[name] = path
    return found


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    room = module.split(".")[1]
    return [
        f"{module}, line {line}: {room} may not import {target}"
        for line, target in imported_rooms(source, module, is_package=is_package)
        if target not in MAY_IMPORT[room]
    ]


def test_every_room_has_its_place() -> None:
    unknown = {module.split(".")[1] for module in modules()} - ROOMS
    assert not unknown, f"new rooms {sorted(unknown)}: say what they may import in MAY_IMPORT of {Path(__file__).name}"


def test_imports_run_one_way() -> None:
    found = {name: path for name, path in modules().items() if name.split(".")[1] in ROOMS}
    assert found
    wrong = [
        line
        for name, path in found.items()
        for line in violations(name, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("statement", "room"),
    [
        ("import lexiseg.methods.sam_clip", "methods"),
        ("from lexiseg.methods import sam_clip", "methods"),
        ("from lexiseg import methods", "methods"),
        ("from ..methods import sam_clip", "methods"),
        ("from .. import methods", "methods"),
        ("def late():\n    from lexiseg.methods import sam_clip", "methods"),
        ("from lexiseg import load", FACE),
        ("import lexiseg", FACE),
    ],
)
def test_an_import_that_points_back_is_seen(statement: str, room: str) -> None:
    for module, is_package in (("lexiseg.ops.masks", False), ("lexiseg.ops", True)):
        (found,) = violations(module, statement, is_package=is_package)
        assert found.endswith(f"ops may not import {room}")


@pytest.mark.parametrize(
    "statement", ["from . import rle", "from ..errors import UsageError", "import lexiseg.ops.rle", "import torch"]
)
def test_an_import_that_points_forward_is_fine(statement: str) -> None:
    assert violations("lexiseg.ops.masks", statement) == []


def test_the_public_face_is_sorted_and_true() -> None:
    assert lexiseg.__all__ == sorted(set(lexiseg.__all__))
    face = importlib.import_module(FACE)
    missing = [name for name in lexiseg.__all__ if not hasattr(face, name)]
    assert not missing
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    undocumented = [name for name in lexiseg.__all__ if f":: lexiseg.{name}\n" not in page]
    assert not undocumented, "docs/api.md has every name of the public face"


def test_the_repository_stays_small() -> None:
    """Who clones it waits for all of it; large things belong elsewhere."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = _sizes(ROOT / name for name in listed.stdout.split("\0") if name)
    assert sum(found.values()) <= MOST_OF_REPOSITORY, _largest(found)


def test_the_embedded_weights_stay_small() -> None:
    found = _sizes((PACKAGE / "assets").rglob("*.safetensors"))
    assert found
    assert sum(found.values()) <= MOST_OF_WEIGHTS, _largest(found)


def _sizes(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: path.stat().st_size for path in paths if path.is_file()}


def _largest(sizes: dict[Path, int]) -> str:
    rows = sorted(sizes.items(), key=lambda row: -row[1])[:5]
    return "\n".join([f"{sum(sizes.values()) / 2**20:.1f} MiB; the largest:", *(f"{size:>12,} {path}" for path, size in rows)])


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
@pytest.mark.parametrize("pattern", FOREIGN)
def test_no_file_knows_a_machine_or_a_registry(pattern: str) -> None:
    command = ["git", "grep", "--untracked", "-nIE", "-e", pattern]  # untracked: what the next commit would add
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1, f"files that must not name {pattern}:\n{found.stdout}{found.stderr}"
