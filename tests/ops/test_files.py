"""Files: which are found, how they are written, and what a killed writer leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lexiseg.errors import OutputError
from lexiseg.methods.weights import write_safetensors
from lexiseg.ops import files
from lexiseg.ops.files import (
    find_files,
    is_file,
    is_folder,
    make_writable,
    remove_litter,
    replacing,
    write_atomically,
    write_json,
)


def test_files_are_found_in_sub_folders_whatever_their_case_unless_hidden(tmp_path: Path) -> None:
    names = (
        "b.png",
        "a.PNG",
        "x/y/c.Png",
        "d.png.txt",
        "e.jpg",
        "._b.png",
        ".git/f.png",
        "x/.cache/y/g.png",
        "folder.png/h.jpg",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(tmp_path, ".png") == [tmp_path / name for name in ("a.PNG", "b.png", "x/y/c.Png")]
    assert find_files(tmp_path, (".JPG", ".txt")) == [tmp_path / name for name in ("d.png.txt", "e.jpg", "folder.png/h.jpg")]
    assert find_files(tmp_path / "x/.cache", ".png") == [tmp_path / "x/.cache/y/g.png"], "a hidden folder may be named itself"
    assert find_files(tmp_path / "nowhere", ".png") == []


def test_a_name_that_is_not_utf_8_comes_back_from_json(tmp_path: Path) -> None:
    document = {"source": "caf\udce9 \\u00e9.jpg", "name": "Straße"}
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert "Straße" in text
    assert json.loads(text) == document


WRITER = """
import sys, time
from lexiseg.ops.files import replacing
with replacing(sys.argv[1], apart=sys.argv[2] == "apart") as temporary:
    temporary.write_bytes(b"half")
    print(temporary, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("apart", ["apart", ""])
def test_what_a_killed_writer_leaves_goes_when_the_folder_is_written_again_and_not_before(tmp_path: Path, apart: str) -> None:
    target = tmp_path / "result.bin"
    command = [sys.executable, "-c", WRITER, str(target), apart]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            temporary = Path(writer.stdout.readline().strip())
            assert temporary.read_bytes() == b"half"
            remove_litter(tmp_path)
            assert temporary.read_bytes() == b"half", "its writer lives"
            writer.send_signal(signal.SIGSTOP)
            remove_litter(tmp_path)
            assert temporary.exists(), "its writer only sleeps"
        finally:
            writer.kill()
    assert temporary.exists()
    write_atomically(tmp_path / "other.bin", b"whole")
    assert list(tmp_path.iterdir()) == [tmp_path / "other.bin"]


def _named(machine: str, process: int, began: str) -> str:
    return f".{machine}-{process}-{began}-{'0123456789abcdef'}.part"


def _left(folder: Path, name: str, *, days: float = 0.0) -> Path:
    path = folder / name
    path.write_bytes(b"half")
    os.utime(path, (time.time() - days * 86_400,) * 2)
    return path


@pytest.mark.skipif(files._machine() == "unknown", reason="the system does not say which processes there are")
def test_a_process_of_the_same_number_is_not_the_writer(tmp_path: Path) -> None:
    here, began = files._machine(), files._process(os.getpid())[1]
    living = _left(tmp_path, _named(here, os.getpid(), began), days=9)
    dead = _left(tmp_path, _named(here, os.getpid(), str(int(began) + 1)))
    never = _left(tmp_path, _named(here, 9_999_999, began))
    remove_litter(tmp_path)
    assert (living.exists(), dead.exists(), never.exists()) == (True, False, False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_dead_process_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        left = _left(tmp_path, files._temporary_name())
        os.write(writing, left.name.encode())
        os._exit(0)
    left = tmp_path / os.read(reading, 200).decode()
    while files._machine() != "unknown" and files._process(child)[0] not in "XZ":
        time.sleep(0.001)
    remove_litter(tmp_path)
    os.waitpid(child, 0)
    assert left.exists() == (files._machine() == "unknown")


@pytest.mark.parametrize("machine", ["0123456789ab", "unknown"])
def test_what_another_machine_writes_is_litter_after_a_day(tmp_path: Path, machine: str) -> None:
    today = _left(tmp_path, _named(machine, 9_999_999, "1"), days=0.9)
    long_ago = _left(tmp_path, _named(machine, 9_999_999, "2"), days=1.1)
    remove_litter(tmp_path)
    assert (today.exists(), long_ago.exists()) == (True, False)


def test_only_names_of_ours_are_litter(tmp_path: Path) -> None:
    names = [
        ".part",
        "x.part",
        "film.avi.part",
        ".0123456789abcdef.part",
        _named("0123456789ab", 1, "1")[1:],
        _named("0123456789ab", 1, "1") + "~",
        _named("0123456789AB", 1, "1"),
        _named("0123456789ab", 1, "x"),
    ]
    for name in names:
        _left(tmp_path, name, days=9)
    (tmp_path / "below").mkdir()
    below = _left(tmp_path / "below", _named("0123456789ab", 1, "1"), days=9)
    elsewhere = _left(tmp_path / "below", "mine.txt")
    (tmp_path / _named("0123456789ab", 1, "1")).symlink_to(elsewhere.parent)
    os.utime(tmp_path / _named("0123456789ab", 1, "1"), (0, 0), follow_symlinks=False)
    remove_litter(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, "below"}
    assert below.exists(), "sub-folders are not looked into"
    assert elsewhere.exists(), "a link goes, not what it leads to"
    remove_litter(tmp_path / "nowhere")


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("[enforce fail at x.cc:1] . unexpected pos"), KeyboardInterrupt(),
     RuntimeError("a fault"), KeyError("x")],
)  # fmt: skip
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException, apart: bool) -> None:
    target = tmp_path / "result.bin"
    target.write_bytes(b"old")
    expected = OutputError if isinstance(error, OSError) or "enforce" in str(error) else type(error)
    with pytest.raises(expected) as caught, replacing(target, apart=apart) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise error
    if expected is OutputError:
        assert str(caught.value).startswith(f"cannot write {target}: ")
        assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"result.bin": b"old"}


def test_safetensors_leaves_nothing_of_its_own_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def save_file(_, path, __):  # as it is: to a file beside, which is renamed
        seen.append(Path(path).parent)
        (Path(path).parent / ".tmpXYZ").write_bytes(b"half")
        raise KeyboardInterrupt

    write_safetensors({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~_umask()
    monkeypatch.setattr("lexiseg.methods.weights.save_file", save_file)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert seen[0] != tmp_path
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_folder_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    make_writable(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below", Path("/proc/nowhere")):
        with pytest.raises(OutputError, match=f"cannot write to {folder}: .+; choose another folder"):
            make_writable(folder)


@pytest.mark.parametrize("name", ["x" * 300, "null \0 character"])
def test_a_name_that_no_disk_takes_is_neither_file_nor_folder(name: str, tmp_path: Path) -> None:
    assert not is_file(tmp_path / name)
    assert not is_folder(tmp_path / name)
    (tmp_path / "file").touch()
    assert is_file(tmp_path / "file")
    assert is_folder(tmp_path)
