"""docs/first-day.md, read by somebody who types every line of it, in its order, without a connection."""

from __future__ import annotations

from lexiseg.cli import main
from tests.architecture.test_docs import FENCE, ROOT, commands


def test_every_line_does_what_it_says(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs/first-day.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    printed = []
    for arguments in commands(text):
        assert main(arguments) == 0, arguments
        printed.append(capsys.readouterr())
    (snippet,) = (block for _, block in FENCE.findall(text) if block.startswith("import lexiseg"))
    exec(compile(snippet, "docs/first-day.md", "exec"), {})  # the page's own Python
    first, again = printed[1], printed[4]
    assert "scorpion" in first.out
    assert "elephant" not in first.out
    assert "2 of 2 pictures are finished" in again.err
    assert list((tmp_path / "from-python").iterdir())
    written = ("found/coco.json", "found/contact-sheet.html", "runs/sam-clip/report.md", "comparison.png", "runs/mine/model")
    assert [name for name in written if not (tmp_path / name).exists()] == []
