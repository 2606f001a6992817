"""Published weights fetch themselves: from the hub, its Spaces, an address or Google Drive, always the same file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lexiseg.backbones import digests, downloads
from lexiseg.backbones.sources import SOURCES, Source
from lexiseg.cli import cache, main, weights
from lexiseg.errors import WeightsError
from lexiseg.methods import MODELS
from tests.backbones.stand_in_hub import StandInHub, asked_hub, digest

CONTENT = bytes(range(256)) * 64
SPACE = "spaces/someone/weights"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    """A hub that the client asks, which serves other files, too; empty caches, and little patience."""
    with asked_hub(monkeypatch, tmp_path) as hub:
        monkeypatch.setattr(downloads, "PAUSE", 0)
        monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
        hub.files = {SPACE: {"model_base.pth": CONTENT}, "files": {"sam.pt": CONTENT}}
        yield hub


@pytest.fixture
def space() -> Source:
    return Source("model_base.pth", "MIT", SPACE)


@pytest.fixture
def file(hub: StandInHub) -> Source:
    return Source("sam.pt", "MIT", address=f"http://{hub.address}/storage/files/sam.pt", size=len(CONTENT))


def table(tmp_path: Path) -> dict[str, dict[str, object]]:
    content: dict[str, dict[str, object]] = json.loads((tmp_path / "lexiseg/weights" / digests.TABLE).read_text())
    return content


def test_a_file_is_fetched_once_and_recorded(hub: StandInHub, space: Source, file: Source, tmp_path: Path) -> None:
    for source in (space, file):
        assert not source.present()
        assert source.fetch().read_bytes() == CONTENT
        assert source.present()
    hub.requests.clear()
    assert space.fetch() == space.path()
    assert file.fetch() == tmp_path / "lexiseg/weights/sam.pt"
    assert hub.requests == []
    entry = {"size": len(CONTENT), "sha256": sha256(CONTENT).hexdigest()}
    assert table(tmp_path) == {f"{SPACE}/model_base.pth": entry, file.address: entry}


@pytest.mark.parametrize("kind", ["space", "file"])
def test_another_file_than_the_first_is_refused(
    hub: StandInHub, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Until the user has deleted the entry of the table; nothing of it is kept."""
    source: Source = request.getfixturevalue(kind)
    path = source.fetch()
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    hub.files = {name: dict.fromkeys(files, CONTENT[::-1]) for name, files in hub.files.items()}
    with pytest.raises(WeightsError, match=r"not the file of its first download here: .* delete the entry in .*digests\.json"):
        source.fetch()
    assert not source.present()
    (tmp_path / "lexiseg/weights" / digests.TABLE).write_text("{}")
    assert source.fetch().read_bytes() == CONTENT[::-1]


def test_an_interrupted_transfer_is_continued(hub: StandInHub, file: Source) -> None:
    hub.transfers = iter(["cut", "stalled", ""])
    assert file.fetch().read_bytes() == CONTENT
    assert len(hub.requests) == 3


@pytest.mark.parametrize(
    ("fault", "tries", "said"),
    [
        ("stalled", 2, "does not answer in time"),
        ("cut", 1, "the connection was lost"),
        ("corrupted", 1, "arrives damaged: its digest is not"),
    ],
)
def test_a_transfer_that_fails_leaves_nothing(
    hub: StandInHub, file: Source, fault: str, tries: int, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(downloads, "TRIES", tries)
    hub.transfers = repeat(fault)
    with pytest.raises(WeightsError, match=said):
        replace(file, digest=digest(CONTENT, large=False)).fetch()
    assert not any(path.suffix in {".pt", ".part"} for path in tmp_path.rglob("*"))
    hub.transfers = iter(())
    assert replace(file, digest=digest(CONTENT, large=False)).fetch().read_bytes() == CONTENT


def test_an_address_without_the_file(hub: StandInHub, file: Source, tmp_path: Path) -> None:
    nowhere = replace(file, address=f"http://{hub.address}/files/resolve/main/none.pt")
    with pytest.raises(WeightsError, match=rf"cannot fetch \S+: the server answers 404 .* put it at {tmp_path}/lexiseg"):
        nowhere.fetch()
    with pytest.raises(WeightsError, match="the server cannot be reached"):
        replace(file, address="http://127.0.0.1:1/sam.pt").fetch()


def test_a_file_put_there_by_hand_is_recorded_and_then_compared(hub: StandInHub, file: Source, tmp_path: Path) -> None:
    path = tmp_path / "lexiseg/weights/sam.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert file.fetch() == path
    assert table(tmp_path)[file.address]["sha256"] == sha256(CONTENT).hexdigest()
    assert hub.requests == []
    path.write_bytes(CONTENT[:-1] + b"\0")
    with pytest.raises(WeightsError, match=rf"{path} is damaged, or not the file of its first download: .* delete it"):
        file.fetch()


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"a": {"sha256": "x"}}', "{"])
def test_a_damaged_table_is_named(file: Source, tmp_path: Path, content: str) -> None:
    path = tmp_path / "lexiseg/weights" / digests.TABLE
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(WeightsError, match=rf"{path} is no table of digests"):
        file.fetch()


def test_google_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By gdown; without it, and when Drive sends a page, the error says how to get the file by hand."""
    monkeypatch.setenv("LEXISEG_CACHE", str(tmp_path))
    source = Source("model.pth", "MIT", drive="some-id")
    by_hand = rf"open https://drive.google.com/file/d/some-id in a browser and save the file as {tmp_path}/weights/model\.pth"
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(WeightsError, match=rf"'pip install gdown' and try again, or {by_hand}"):
        source.fetch()
    sent = {"some-id": b"<!DOCTYPE html><title>Google Drive - Quota exceeded"}

    def download(*, id: str, output: str, quiet: bool) -> str:
        assert not quiet
        Path(output).write_bytes(sent[id])
        return output

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download))
    with pytest.raises(WeightsError, match=rf"sends a page in place of model\.pth; .*{by_hand}"):
        source.fetch()
    assert not source.present()
    sent["some-id"] = CONTENT
    assert source.fetch().read_bytes() == CONTENT
    sent.clear()
    assert source.fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["sam-b", "clip-ViT-B-16-openai"])
def test_sizes_are_those_of_the_parameters(name: str) -> None:
    part = next(part for model in MODELS.values() for part in model.parts if part.source is SOURCES[name])
    with torch.device("meta"):
        count = sum(tensor.numel() for tensor in part.empty().state_dict().values())
    assert SOURCES[name].size == pytest.approx(4 * count, rel=0.01)


def test_every_source_of_a_model_is_listed_and_named() -> None:
    sources = {
        source for model in MODELS.values() for source in model.sources.values() if not (source.embedded or source.recipe)
    }
    assert sources == set(SOURCES.values())
    assert all(source.size and source.where and source.licence for source in sources)


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(file: Source, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of which a part is at an address."""
    monkeypatch.setitem(MODELS, "case", replace(MODELS["fcclip-tiny"], name="case", source=file))
    return "case"


def test_fetch_says_what_it_fetches_and_where_it_is(hub: StandInHub, model: str, file: Source, capsys, tmp_path: Path) -> None:
    assert main(["fetch", model]) == 0
    out, err = capsys.readouterr()
    assert (
        f"case needs about 1 MB of weights that are not on this machine (fcclip: 1 MB, licence MIT, from {file.address})" in err
    )
    assert f"  fcclip: {tmp_path}/lexiseg/weights/sam.pt" in out
    assert main(["fetch", model, "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["files"]["fcclip"], err) == (f"{tmp_path}/lexiseg/weights/sam.pt", "")
    assert len(hub.requests) == 1


def test_licences_that_may_restrict_the_use_need_consent(
    hub: StandInHub, model: str, file: Source, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    restricted = replace(MODELS[model], source=replace(file, licence="CC BY-NC 4.0"))
    monkeypatch.setitem(MODELS, model, restricted)
    for command in (["fetch", model], ["segment", "a.png", "--classes", "dog", "--json", "--model", model]):
        capsys.readouterr()
        assert main(command) == 2
        assert "nothing is fetched without consent: give --yes, or call 'lexiseg fetch case --yes'" in capsys.readouterr().err
        assert hub.requests == []
    monkeypatch.setattr(weights, "confirmed", lambda _: True)
    assert main(["fetch", model]) == 0
    assert hub.fetched() == ["sam.pt"]


def test_a_question_needs_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert not weights.confirmed("Really?")
    for answer, expected in (("y\n", True), ("Yes\n", True), ("\n", False), ("", False), ("n\n", False)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True, readline=lambda answer=answer: answer))
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        assert weights.confirmed("Really?") is expected
        assert capsys.readouterr().err == "Really? [y/N] "


def test_a_model_that_nobody_has_published(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own weights are trained, its backbones fetched."""
    variant = replace(MODELS["fcclip-tiny"], name="case", source=MODELS["fovseg-vit-b16"].source)
    monkeypatch.setitem(MODELS, "case", variant)
    assert main(["fetch", "case"]) == 0
    out, err = capsys.readouterr()
    assert "nobody has published its weights, 'lexiseg train fovseg-vit-b16' trains them" in err
    assert "clip-tiny-efficientnet" in out


def test_the_cache_is_listed_and_cleared(
    model: str, space: Source, capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SOURCES", {"space": space})
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out == "nothing is cached\n"
    assert main(["fetch", model]) == 0
    space.fetch()
    capsys.readouterr()
    assert main(["cache", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"hub", "weights", SPACE}
    assert rows["weights"]["bytes"] >= len(CONTENT)
    assert len(CONTENT) <= rows[SPACE]["bytes"] < 2 * len(CONTENT)
    assert main(["cache", "clear", SPACE]) == 2
    assert main(["cache", "clear", "nothing"]) == 2
    assert space.present()
    assert main(["cache", "clear", SPACE, "--yes"]) == 0
    assert not space.present()
    assert main(["cache", "clear", "--yes"]) == 0
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out.endswith("nothing is cached\n")
    assert not (tmp_path / "lexiseg/weights").exists()
