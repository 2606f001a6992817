"""The notebooks of the documentation run, offline and with small settings, and are stored without outputs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.architecture.test_docs import LINK, ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
SMALL = {"size": 64, "num_train": 2, "num_val": 1, "steps": 2}
SETTING = re.compile(r"^(\w+(?:, \w+)*) = (\d+(?:, \d+)*)", re.MULTILINE)
LARGEST = 20_000  # bytes


def with_small_settings(source: str) -> str:
    """A cell whose settings are those of `SMALL`."""

    def small(match: re.Match[str]) -> str:
        names = match[1].split(", ")
        return f"{match[1]} = {', '.join(str(SMALL[name]) for name in names)}"

    return SETTING.sub(small, source)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Any:
    return nbformat.read(request.param, as_version=4)


def test_a_notebook_runs(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, which takes this checkout."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for cell in notebook.cells:
        cell.source = with_small_settings(cell.source)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("lexiseg-picture" in output.get("data", {}).get("text/html", "") for output in shown)
    assert not [output for output in shown if output.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_links_to_what_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    document = json.loads(text)
    nbformat.validate(nbformat.from_dict(document))
    assert len(text) < LARGEST
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in document["cells"])
    links = [
        link for cell in document["cells"] if cell["cell_type"] == "markdown" for link in LINK.findall("".join(cell["source"]))
    ]
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_settings_are_made_small() -> None:
    assert with_small_settings("# a\nsize, steps = 256, 200") == "# a\nsize, steps = 64, 2"
