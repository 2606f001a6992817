"""What is fetched from the hub is whole, whatever happens on the way; and where nothing can be fetched, the error says why."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub import constants, file_download
from open_clip import pretrained
from safetensors.torch import load, save
from torch import Tensor, nn

from lexiseg.backbones import digests
from lexiseg.backbones.clip import build_clip, load_clip
from lexiseg.backbones.grounding_dino import load_grounding_dino
from lexiseg.backbones.hub import FETCHED, fetched
from lexiseg.backbones.mask2former import load_mask2former
from lexiseg.backbones.sam_loading import load_sam
from lexiseg.errors import WeightsError
from lexiseg.ops.progress import reporting
from tests.backbones import test_grounding_dino, test_mask2former, test_sam
from tests.backbones.stand_in_hub import StandInHub, asked_hub, digest, is_large

CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
BY_HAND = {
    "sam": "Without a connection: put config.json and model.safetensors of someone/sam in a folder",
    "clip": "Without a connection: give the path of that file, the weights 'tag' of the CLIP lexiseg-test-hub",
}


@dataclass(frozen=True)
class Part:
    """A model on the hub: its repository, in the layout of published ones, and what loads it."""

    name: str
    files: dict[str, bytes]
    load: Callable[[], nn.Module]

    @property
    def repository(self) -> str:
        return f"someone/{self.name}"

    @property
    def weights(self) -> str:
        """The name of its large file."""
        return next(name for name in self.files if is_large(name))

    def in_cache(self, file: str = "") -> Path:
        """Where a file of it is in the client's cache, the weights if none is named."""
        path = huggingface_hub.try_to_load_from_cache(self.repository, file or self.weights)
        assert isinstance(path, str)
        return Path(path).resolve()


def published(model: Any) -> dict[str, bytes]:
    """A model of transformers as it is on the hub."""
    weights = save({name: value.contiguous().clone() for name, value in model.state_dict().items()})
    return {"config.json": json.dumps(model.config.to_dict()).encode(), "model.safetensors": weights}


@cache
def tokenizer() -> open_clip.SimpleTokenizer:
    """CLIP's, which takes longer to make than all else of a tiny model."""
    return open_clip.SimpleTokenizer(context_length=16)


@pytest.fixture(scope="module")
def files() -> dict[str, dict[str, bytes]]:
    """Of each part, the files of its repository."""
    torch.manual_seed(0)
    return {
        "sam": published(test_sam.tiny("sam").model),
        "mask2former": published(test_mask2former.tiny("swin").model),
        "clip": {"open_clip_model.safetensors": save(open_clip.CLIP(**CLIP).state_dict())},
        "detector": test_grounding_dino.published("grounding-dino"),
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    """A hub that the client asks, empty caches, and little patience."""
    with asked_hub(monkeypatch, tmp_path) as hub:
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
        monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))  # between the client's tries
        yield hub


def part_on(hub: StandInHub, name: str, files: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Part:
    """A part whose repository is on the hub."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "lexiseg-test-hub", CLIP)
    tags = {"tag": pretrained._pcfg(hf_hub="someone/clip/")}
    monkeypatch.setitem(pretrained._PRETRAINED, "lexiseg-test-hub", tags)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _: tokenizer())
    hub.files[f"someone/{name}"] = dict(files[name])
    load: dict[str, Callable[[], nn.Module]] = {
        "sam": lambda: load_sam("someone/sam").model,
        "mask2former": lambda: load_mask2former("someone/mask2former").model,
        "clip": lambda: load_clip("lexiseg-test-hub", "tag").clip_model,
        "detector": lambda: load_grounding_dino("someone/detector").model,
    }
    return Part(name, files[name], load[name])


@pytest.fixture(params=["clip", "sam"])
def part(
    request: pytest.FixtureRequest, hub: StandInHub, files: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> Part:
    return part_on(hub, request.param, files, monkeypatch)


def assert_loads(part: Part) -> None:
    """It loads, with the weights that are on the hub."""
    expected: dict[str, Tensor] = load(part.files[part.weights])
    state = part.load().state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def refused(part: Part) -> str:
    """Why it does not load, in one line."""
    with pytest.raises(WeightsError) as caught:
        part.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def offline(monkeypatch: pytest.MonkeyPatch, *, yes: bool = True) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", yes)


@pytest.mark.parametrize("name", ["clip", "sam", "mask2former", "detector"])
def test_what_is_fetched_once_is_used_without_a_request(
    hub: StandInHub, name: str, files: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched but the files that are named, whatever else a stranger has put there."""
    part = part_on(hub, name, files, monkeypatch)
    strange = ("modeling.py", "config.py", "pytorch_model.bin", "tokenizer_config.json", "model.safetensors.index.json")
    hub.files[part.repository] |= dict.fromkeys(strange, b"{}")
    assert_loads(part)
    assert sorted(hub.fetched()) == sorted(part.files)
    assert FETCHED.issuperset(hub.fetched())
    hub.requests.clear()
    assert_loads(part)
    offline(monkeypatch)
    assert_loads(part)
    assert hub.requests == []


def test_a_vocabulary_may_be_of_the_tokenizers_library(
    hub: StandInHub, files: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a repository has no vocab.txt."""
    part = part_on(hub, "detector", files, monkeypatch)
    words = part.files["vocab.txt"].decode().splitlines()
    document = {"model": {"type": "WordPiece", "vocab": {word: number for number, word in enumerate(words)}}}
    hub.files[part.repository] = {**part.files, "tokenizer.json": json.dumps(document).encode()}
    del hub.files[part.repository]["vocab.txt"]
    assert_loads(part)
    assert "tokenizer.json" in hub.fetched()


def test_a_name_that_is_not_listed_is_not_fetched(hub: StandInHub) -> None:
    with pytest.raises(AssertionError):
        fetched("someone/sam", "modeling.py", advice="")
    assert hub.requests == []


def test_the_weights_of_a_clip_may_be_of_pytorch(
    hub: StandInHub, files: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """Where a repository has no safetensors; where it has neither, both are named."""
    part = part_on(hub, "clip", files, monkeypatch)
    torch.save(open_clip.CLIP(**CLIP).state_dict(), tmp_path / "weights.bin")
    hub.files[part.repository] = {"open_clip_pytorch_model.bin": (tmp_path / "weights.bin").read_bytes()}
    part.load()
    hub.requests.clear()
    part.load()
    assert hub.requests == []
    hub.files["someone/clip"] = {}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    said = refused(part)
    assert (
        "cannot fetch open_clip_model.safetensors or open_clip_pytorch_model.bin of someone/clip: there is no such file" in said
    )


@pytest.mark.parametrize(
    ("refusal", "said", "by_hand"),
    [
        ("mistyped", r"there is no http://\S+/someone/\w+, or it is private; .*'hf auth login'", False),
        ("not found", r"there is no http://\S+/someone/\w+, or it is private; .*'hf auth login'", False),
        ("old token", r"does not accept your token; log in again with 'hf auth login'", False),
        ("gated", r"gated; accept its licence at http://\S+/someone/\w+, log in with 'hf auth login'", False),
        ("gated, no token", r"gated; accept its licence at http://\S+/someone/\w+, log in with 'hf auth login'", False),
        ("forbidden", r"access to http://\S+/someone/\w+ is forbidden; .*a token that may read it", False),
        ("closed", r"the hub has disabled it; look at http://\S+/someone/\w+", False),
        ("no branch", r"there is no such revision of it; look at http://\S+/someone/\w+", False),
        ("too many", r"too many requests from here; wait some minutes", False),
        ("down", r"temporarily out of order \(it answers 503\); try again later", True),
        ("broken", r"temporarily out of order \(it answers 500\); try again later", True),
        ("odd", r"the hub answers 418; look at http://\S+/someone/\w+", True),
        ("silent", r"does not answer in time; try again, or allow more .* with HF_HUB_ETAG_TIMEOUT", True),
        ("foreign", r"does not answer like a hub; check HF_ENDPOINT", True),
    ],
)
def test_a_hub_that_refuses_is_quoted(hub: StandInHub, part: Part, refusal: str, said: str, by_hand: bool) -> None:
    """By one request, with the advice that helps; and once the cause is gone, it loads."""
    hub.refusal = refusal
    message = refused(part)
    assert re.search(rf"^cannot fetch \S+ of {part.repository}: .*{said}", message), message
    assert (BY_HAND[part.name] in message) == by_hand
    assert len(hub.requests) == (2 if refusal == "foreign" else 1)
    hub.refusal = ""
    assert_loads(part)


def test_without_a_connection_it_says_what_to_put_where(hub: StandInHub, part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    message = refused(part)
    assert "HF_HUB_OFFLINE is set, so nothing is fetched. " + BY_HAND[part.name] in message
    assert f"copy a Hugging Face cache that has it to {constants.HF_HUB_CACHE}" in message
    assert hub.requests == []
    offline(monkeypatch, yes=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}")
    message = refused(part)
    assert re.search(r"cannot be reached \(.+\); check the connection, HF_ENDPOINT and your proxy. Without", message)
    assert BY_HAND[part.name] in message


def test_a_name_that_cannot_be_a_repository_is_refused(hub: StandInHub) -> None:
    with pytest.raises(WeightsError, match=r"cannot fetch config\.json of some--one/sam: this is not the name of a repository"):
        load_sam("some--one/sam")
    assert hub.requests == []


def test_a_text_tower_of_the_hub_fails_with_the_same_words(hub: StandInHub) -> None:
    """It is transformers that fetches them."""
    hub.refusal = "gated"
    with (
        torch.device("meta"),
        pytest.raises(WeightsError, match=r"cannot fetch .* of roberta-base: it is gated; accept") as caught,
    ):
        build_clip("roberta-ViT-B-32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["short", "cut", "corrupted", "stalled"])
def test_a_transfer_that_goes_wrong_once_is_no_error(hub: StandInHub, part: Part, fault: str) -> None:
    """But for a file that is said to be shorter than it is, which is one, and gone the next time."""
    hub.transfers = iter([fault])
    if fault == "short":
        assert "Consistency check failed: file should be of size" in refused(part)
        assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert_loads(part)


def test_a_file_that_arrives_damaged_twice_is_not_kept(hub: StandInHub, part: Part) -> None:
    hub.transfers = repeat("corrupted")
    message = refused(part)
    assert f"{part.weights} of {part.repository} arrives damaged: its digest differs from that of http://" in message
    assert hub.fetched().count(part.weights) == 2
    stated = digest(part.files[part.weights], large=True)
    assert not list(Path(constants.HF_HUB_CACHE).rglob(f"blobs/{stated}"))
    hub.transfers = iter(())
    assert_loads(part)


def test_a_transfer_that_stalls_is_given_up(hub: StandInHub, part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the client's tries, of which it tells once, also where the root logger has a handler, too."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.transfers = repeat("stalled")
    client, written = logging.getLogger("huggingface_hub"), io.StringIO()
    for handler in client.handlers:
        monkeypatch.setattr(handler, "stream", written)
    before = client.propagate, [list(handler.filters) for handler in client.handlers]
    of_root = logging.StreamHandler(written)
    logging.getLogger().addHandler(of_root)
    try:
        message = refused(part)
    finally:
        logging.getLogger().removeHandler(of_root)
    assert "does not answer in time" in message
    assert BY_HAND[part.name] in message
    assert hub.fetched().count(part.weights) > 1
    assert written.getvalue().count("Error while downloading") == 1
    assert (client.propagate, [list(handler.filters) for handler in client.handlers]) == before
    hub.transfers = iter(())
    assert_loads(part)


def broken(kind: str, content: bytes) -> bytes:
    """The content of a file, damaged."""
    half = len(content) // 2
    damaged = {
        "header": b"\xff" * 8 + content[8:],
        "zeros": content[:half] + bytes(len(content) - half),
        "cut": content[:half],
        "empty": b"",
        "a bit": content[:-1] + bytes([content[-1] ^ 1]),
    }
    return damaged[kind]


@pytest.mark.parametrize(
    ("kind", "links"),
    [("header", True), ("zeros", True), ("cut", True), ("empty", True), ("a bit", True), ("zeros", False)],
    ids=["header", "zeros", "cut", "empty", "a bit", "zeros, no links"],
)
def test_a_damaged_file_in_the_cache_is_fetched_again(
    hub: StandInHub, part: Part, kind: str, links: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named; without a connection the error says that it is to be deleted, which helps."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links)
    assert_loads(part)
    for name, content in part.files.items():
        file = part.in_cache(name)
        assert file.name == (digest(content, large=is_large(name)) if links else name)
        facts = file.stat()
        file.write_bytes(broken(kind, content))
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as some programs that copy do
        hub.requests.clear()
        offline(monkeypatch)
        caplog.clear()
        message = refused(part)
        assert not caplog.records
        assert message.startswith(f"{file} is damaged, and {name} of {part.repository} cannot be fetched again: HF_HUB_OFFLINE")
        assert "Delete the damaged file" in message
        assert file.exists()
        assert hub.requests == []
        offline(monkeypatch, yes=False)
        assert_loads(part)
        assert hub.fetched() == [name]
        assert [f"{file} is damaged" in record.getMessage() for record in caplog.records] == [True]
        file.write_bytes(broken(kind, content))
        file.unlink()
        assert_loads(part)


def test_a_file_is_hashed_once(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_loads(part)
    monkeypatch.setattr("lexiseg.backbones.digests.has_digest", lambda *_: pytest.fail("it was hashed again"))
    assert_loads(part)


def test_a_transfer_is_reported_when_its_bar_begins(hub: StandInHub) -> None:
    """Not before: the requests for it may take long, and a line on the terminal says so until then."""
    hub.files["someone/sam"] = {"config.json": b"{}", "model.safetensors": b"weights"}
    asked: list[tuple[str, list[str]]] = []
    with reporting(lambda progress: asked.append((progress.stage, hub.fetched()))):
        fetched("someone/sam", "model.safetensors", advice="")
    assert [stage for stage, _ in asked] == ["transfer"]
    assert asked[0][1] == ["model.safetensors"], "the file has been asked for"


def test_on_a_terminal_a_long_check_has_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 4)
    monkeypatch.setattr(digests, "BLOCK", 100)
    for patience in (0.0, 60.0):
        monkeypatch.setattr(digests, "PATIENCE", patience)
        monkeypatch.setattr("sys.stderr", terminal := Terminal())
        assert digests.digest_of(tmp_path / "weights.bin") == digest(bytes(range(256)) * 4, large=True)
        assert ("checking weights.bin" in terminal.getvalue()) == (patience == 0)


def test_a_damaged_record_is_no_record(part: Part) -> None:
    assert_loads(part)
    for record in (b"", b"[]", b"{", b'["x"]', b"[1, 2, 3, 4]", b'{"a": 1}'):
        records = list(Path(os.environ["LEXISEG_CACHE"]).glob("hub/*.json"))
        assert len(records) == len(part.files)
        for path in records:
            path.write_bytes(record)
        part.in_cache().write_bytes(broken("zeros", part.files[part.weights]))
        assert_loads(part)


def test_a_cache_that_cannot_be_written(part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that has all is read; one that lacks something is an error that names it."""
    make, cache = os.makedirs, constants.HF_HUB_CACHE

    def read_only(path: str, *arguments: Any, **options: Any) -> None:
        if Path(path).is_relative_to(cache):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        make(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "makedirs", read_only)
        message = refused(part)
        assert re.search(rf"cannot fetch .*: no access to {re.escape(cache)}/\S+ \(Read-only file system\); .*HF_HOME", message)
        assert BY_HAND[part.name] not in message
    assert_loads(part)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEXISEG_CACHE", str(tmp_path / "file"))  # no record can be kept either
    monkeypatch.setattr(os, "makedirs", read_only)
    assert_loads(part)


def test_a_full_disk(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    get = file_download.http_get

    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", lambda url, _, **options: get(url, Full(), **options))
        message = refused(part)
    assert f"no space is left for {constants.HF_HUB_CACHE}; free some, or set HF_HOME to a folder on another disk" in message
    assert BY_HAND[part.name] not in message
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert_loads(part)


def test_digests_of_mirrors_are_not_known(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror may state tags that are no digests: then there is nothing to compare with."""
    monkeypatch.setattr("tests.backbones.stand_in_hub.digest", lambda content, **_: f"tag-{len(content)}")
    assert_loads(part)
    assert part.in_cache().name == f"tag-{len(part.files[part.weights])}"
    assert_loads(part)
