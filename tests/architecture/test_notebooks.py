"""The notebooks of the documentation run, offline and with small settings, and are stored without outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

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
    """Cell by cell, by the shell that is in every kernel."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shell, shown = InteractiveShell.instance(), []
    try:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                with shell.display_trap, capture_output() as captured:
                    shell.run_cell(with_small_settings(cell.source)).raise_error()
                shown += captured.outputs
    finally:
        InteractiveShell.clear_instance()
    assert any("lexiseg-picture" in output.data.get("text/html", "") for output in shown)


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
