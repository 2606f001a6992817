"""Every command that writes: on a full disk, into no folder, beside another process. Nothing is half-written."""

from __future__ import annotations

import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lexiseg.backbones import sam_weights
from lexiseg.backbones.sam_loading import mobile_sam
from lexiseg.cli import main
from lexiseg.exports.manifest import FILE as MANIFEST
from lexiseg.inference import evaluation
from lexiseg.inference.pipeline import Pipeline
from lexiseg.ops.locks import LOCK
from tests.data.miniatures_prepared import BUILDERS
from tests.inference.test_evaluation import Colours
from tests.kills import contents
from tests.processes import Command
from tests.training.recipes import recipe

PICTURES = 3
WORDS = ("--classes", "red; green; blue", "--model", "fcclip-tiny")
PREPARED = "mess-kvasir-instrument"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with label maps, an official checkpoint in both forms, and a download to be prepared."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    for number in range(PICTURES):
        labels = rng.integers(0, 3, (40, 30), np.uint8)
        Image.fromarray(labels).save(folder / f"labels/{number}.png")
        Image.fromarray((255 * (labels[..., None] == (0, 1, 2))).astype(np.uint8)).save(folder / f"images/{number}.png")
    for name in ("images", "labels"):
        shutil.copytree(folder / name, folder / "copy" / name)
    shutil.copy(folder / "classes.txt", folder / "copy")
    torch.save(sam_weights.to_official(mobile_sam().model.state_dict()), folder / "mobile_sam.pt")
    assert main(["convert", str(folder / "mobile_sam.pt"), "--model", "mobile_sam", "--output", str(folder / "ours")]) == 0
    return folder


COMMANDS: dict[str, tuple[str, ...]] = {
    "segment": ("segment", "{data}/images", *WORDS, "--output", "{output}"),
    "semantic": ("segment", "{data}/images", *WORDS, "--task", "semantic", "--output", "{output}"),
    "evaluate": ("evaluate", "--data", "{data}", "--model", "fcclip-tiny", "--output", "{output}"),
    "predictions": ("evaluate", "--data", "{data}", "--model", "fcclip-tiny", "--save-predictions", "--output", "{output}"),
    "two sets": ("evaluate", "--data", "{data}", "--data", "{data}/copy", "--model", "fcclip-tiny", "--output", "{output}"),
    "train": ("train", "fcclip-tiny", "--device", "cpu", "--workers", "0", "--output", "{output}"),
    "render": ("world", "render", "--count", "2", "--size", "64", "--output", "{output}"),
    "figure": ("figure", "comparison", "{data}/images/0.png", *WORDS, "--output", "{output}/figure.png"),
    "metrics": (
        *("metrics", "--task", "semantic", "--predictions", "{data}/labels", "--ground-truth", "{data}/labels"),
        *("--vocabulary", "{data}/classes.txt", "--output", "{output}/numbers.json"),
    ),
    "convert": ("convert", "{data}/mobile_sam.pt", "--model", "mobile_sam", "--output", "{output}"),
    "official": ("convert", "{data}/ours", "--model", "mobile_sam", "--to", "official", "--output", "{output}/sam.pth"),
    "official safetensors": (
        *("convert", "{data}/ours", "--model", "mobile_sam", "--to", "official", "--output", "{output}/sam.safetensors"),
    ),
    "prepare": ("data", "prepare", PREPARED, "--root", "{output}"),
}


@pytest.fixture
def run(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A command of `COMMANDS` with a model and a recipe that take no time: its exit code and its standard error."""
    for command in ("segment", "evaluate", "figure"):
        monkeypatch.setattr(f"lexiseg.cli.{command}.load", lambda *_, **__: Pipeline(Colours(), cache=None))
    monkeypatch.setattr("lexiseg.cli.train.recipe_named", lambda _: recipe("steps=4", "log_every=1"))
    monkeypatch.setattr(evaluation, "CHUNK", 2)
    monkeypatch.setattr("lexiseg.cli.evaluate.CHUNK", 2)

    def called(command: str, output: Path) -> tuple[int, str]:
        code = main([word.format(data=data, output=output) for word in COMMANDS[command]])
        return code, capsys.readouterr().err

    return called


@contextmanager
def files_end_after(size: int) -> Iterator[None]:
    """No file of this process can be longer, as on a disk that is full then: what is longer is written so far."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def prepared_for(command: str, output: Path) -> None:
    """What has to be in the output folder before."""
    if command == "prepare":
        BUILDERS[PREPARED](output)


def judged(command: str, said: str) -> None:
    """Whether what was said is a line, or one a picture and their number."""
    lines = said.splitlines()
    wanted = {PICTURES + 1} if command in {"segment", "semantic"} else {1}
    lines = [line for line in lines if not line.startswith("step ")]
    assert len(lines) in wanted, said
    for line in lines[: max(wanted) - 1] or lines:
        assert line.startswith("lexiseg: cannot write "), line
        assert line.endswith(("free some space", "free some space and start the same command again")), line


@pytest.mark.parametrize("size", [0, 2000])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_a_line_and_nothing_is_half_written(run, tmp_path, command, size) -> None:
    output, whole = tmp_path / "out", tmp_path / "whole"
    for folder in (output, whole):
        prepared_for(command, folder)
    before = contents.digests(output)
    done = run(command, whole)  # 0, but for a miniature of a data set, which is told to be small
    with files_end_after(size):
        code, said = run(command, output)
    if size == 0 or (code, said) != done:
        assert code == 1
        judged(command, said)
    assert contents.damaged(output) == []
    assert contents.temporary(output) == []
    found = contents.digests(output)
    assert {name: found[name] for name in before} == before
    assert run(command, output)[0] == done[0], "with space it goes on"
    assert contents.files(output).keys() == contents.files(whole).keys()
    assert contents.damaged(output) == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "prepare"])
def test_a_file_in_the_place_of_the_folder_is_a_line(run, tmp_path, command) -> None:
    output = tmp_path / "out"
    output.write_bytes(b"mine")
    code, said = run(command, output)
    assert code == 1
    assert len(said.splitlines()) == 1, said
    assert said.startswith("lexiseg: cannot write "), said
    assert output.read_bytes() == b"mine"


def test_predictions_asked_for_later_are_those_asked_for_at_once(run, tmp_path) -> None:
    assert run("evaluate", tmp_path / "later") == (0, "")
    assert run("predictions", tmp_path / "later") == (0, "")
    assert run("predictions", tmp_path / "once") == (0, "")
    later, once = (contents.files(tmp_path / name) for name in ("later", "once"))
    assert {name for name in later if name.startswith("predictions/semantic/")}
    assert later.keys() == once.keys()
    for name in later.keys() - {"metrics.json", "report.md"}:  # they have the command, which names the folder
        assert contents.read(later[name]) == contents.read(once[name]), name
    assert run("evaluate", tmp_path / "later") == (0, ""), "and without them again"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    assert main(["world", "render", "--count", "3", "--size", "64", "--output", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("command", ["evaluate", "render"])
def test_the_second_of_two_processes_in_a_folder_is_refused_and_the_first_ends_well(scenes, tmp_path, command) -> None:
    output = tmp_path / "out"
    arguments = {
        "evaluate": ("evaluate", "--data", scenes, "--model", "fcclip-tiny", "--output", output, "--device", "cpu"),
        "render": ("world", "render", "--count", "20", "--size", "64", "--output", output),
    }[command]
    first = Command(*arguments)
    try:
        while not (output / LOCK).exists() or not (output / LOCK).read_text().endswith("\n"):
            assert first.running, "it ended before it began"
            time.sleep(0.002)
        first.send(signal.SIGSTOP)
        code, said = Command(*arguments).end()
        assert code == 1
        assert said.startswith(f"lexiseg: {output} is in use by process {first.pid} on ")
        assert len(said.splitlines()) == 1
    finally:
        first.send(signal.SIGCONT)
    assert first.end()[0] == 0
    assert contents.damaged(output) == []
    if command == "evaluate":
        assert Command(*arguments).end() == (0, "")
    else:
        second = Command(*arguments)
        time.sleep(0.1)
        second.send(signal.SIGKILL)
        second.end()
        assert Command(*arguments).end()[0] == 0, "a dead one keeps nobody out"


def test_two_processes_that_segment_into_one_folder_write_what_one_would(scenes, tmp_path) -> None:
    arguments = ("segment", scenes / "images", "--classes", "dog; grass; sky", "--model", "fcclip-tiny", "--device", "cpu")
    both = [Command(*arguments, "--output", tmp_path / "two") for _ in range(2)]
    assert [process.end() for process in both] == [(0, ""), (0, "")]
    assert Command(*arguments, "--output", tmp_path / "one").end() == (0, "")
    two, one = (contents.digests(tmp_path / name) for name in ("two", "one"))
    del two[MANIFEST], one[MANIFEST]
    assert two == one != {}
    finished = [sorted(set((tmp_path / name / MANIFEST).read_text().splitlines())) for name in ("two", "one")]
    assert finished[0] == finished[1], "both add a line for each picture"
    assert contents.temporary(tmp_path / "two") == []


def test_a_data_set_that_was_half_rendered_anew_is_not_the_old_one(tmp_path, monkeypatch) -> None:
    output = tmp_path / "set"
    command = ("world", "render", "--count", "2", "--size", "64", "--output", str(output), "--seed")
    assert main([*command, "1"]) == 0
    old = contents.digests(output)
    monkeypatch.setattr("lexiseg.exports.labels.write_labels", _fails_at_the_second())
    assert main([*command, "2"]) == 1
    assert contents.files(output)["images/000000.png"].read_bytes() != old["images/000000.png"]
    assert not (output / "panoptic.json").exists(), "what it would say is of other pictures"
    monkeypatch.undo()
    assert main([*command, "1"]) == 0
    assert contents.digests(output) == old
    shutil.rmtree(output)


def test_where_the_list_of_scenes_is_all_else_is(tmp_path, monkeypatch) -> None:
    output = tmp_path / "set"
    monkeypatch.setattr("lexiseg.exports.labels.write_classes", _fails)
    assert main(["world", "render", "--count", "1", "--size", "64", "--output", str(output)]) == 1
    assert contents.files(output).keys() == {f"{kind}/000000.png" for kind in ("images", "labels", "panoptic")}


def _fails(*_: object) -> None:
    raise OSError(28, "No space left on device")


def _fails_at_the_second() -> Callable[..., None]:
    calls = iter([None])

    def write_labels(*_: object) -> None:
        if next(calls, "none left") == "none left":
            raise OSError(28, "No space left on device")

    return write_labels
