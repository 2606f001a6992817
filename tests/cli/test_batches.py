"""One batch, one report: whatever goes wrong with one picture or data set is a line and a count, and the others are done."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lexiseg.cli import main
from lexiseg.cli.segment import table
from lexiseg.errors import DataError
from lexiseg.inference.pipeline import Pipeline
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Segment
from tests.inference.test_evaluation import Colours
from tests.laws.builders import tiny_fcclip

WORDS = ("--classes", "red; green; blue", "--model", "fcclip-tiny")


class Panic(BaseException):
    """As libraries in Rust raise: no Exception."""


class Failing(Pipeline):
    """Fails for pictures of some name."""

    error: BaseException | None = None

    def __call__(self, picture: Any, *arguments: Any, **options: Any) -> Segmentation:
        if self.error is not None and "bad" in str(picture):
            raise self.error
        return super().__call__(picture, *arguments, **options)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Failing:
    made = Failing(Colours())
    for command in ("segment", "evaluate"):
        monkeypatch.setattr(f"lexiseg.cli.{command}.load", lambda *_, **__: made)
    return made


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in ("first", "bad", "last")]
    for path in paths:
        Image.fromarray((255 * (rng.integers(0, 3, (9, 8, 1)) == (0, 1, 2))).astype(np.uint8)).save(path)
    return paths


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def called(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return called


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("torch fell over\nand over"),
            r"{bad}: unexpected RuntimeError: torch fell over \(cli/segment\.py:\d+\); --debug shows",
        ),
        (
            UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates"),
            r"{bad}: unexpected UnicodeEncodeError: .* \(cli/segment\.py:\d+\)",
        ),
        (MemoryError(), r"{bad}: there is not enough memory for it; scale"),
        (RuntimeError("CUDA out of memory. Tried"), r"{bad}: there is not enough memory for it; scale"),
        (OSError(5, "Input/output error"), r"{bad}: unexpected OSError: .*Input/output error"),
        (BrokenPipeError(32, "Broken pipe"), r"{bad}: unexpected BrokenPipeError"),
        (DataError("a file: is none"), r"a file: is none"),
    ],
)
def test_one_failure_is_a_line_and_a_count(pipeline, pictures, run, tmp_path, error, said) -> None:
    pipeline.error = error
    code, out, err = run("segment", *pictures, *WORDS, "--output", tmp_path / "out")
    lines = err.splitlines()
    assert code == 1
    assert len(lines) == 2
    assert re.match("lexiseg: " + said.replace("{bad}", re.escape(str(pictures[1]))), lines[0])
    assert lines[1] == "lexiseg: 1 of 3 pictures failed"
    assert len(list((tmp_path / "out").glob("*.json"))) == 2
    assert str(pictures[0]) in out
    assert str(pictures[2]) in out


def test_a_second_call_continues_the_first(pipeline, pictures, run, tmp_path, monkeypatch) -> None:
    """Pictures with results are skipped, unless they, the options or the results are others, or that is not wanted."""
    call = ("segment", *pictures, *WORDS, "--output", tmp_path / "out")
    pipeline.error = RuntimeError("torch fell over")
    assert run(*call)[0] == 1
    pipeline.error = None
    code, out, err = run(*call)
    note = "of 3 pictures are finished by an earlier call with these options; --overwrite segments them again"
    assert (code, err) == (0, f"note: 2 {note}\n")
    assert str(pictures[1]) in out
    assert str(pictures[0]) not in out
    code, out, err = run(*call, "--threshold", 0.1)
    assert (code, err, str(pictures[0]) in out) == (0, "", True)
    assert run(*call, "--overwrite")[::2] == (0, "")
    next((tmp_path / "out").glob("last.png-*.overlay.png")).unlink()
    with monkeypatch.context() as patched:
        patched.setattr("lexiseg.cli.segment.load", lambda *_, **__: pytest.fail("the model was loaded"))
        code, out, err = run("segment", *pictures[:2], *WORDS, "--output", tmp_path / "out", "--json")
        assert (code, err) == (0, f"note: 2 {note}\n".replace("3", "2"))
    assert [json.loads(line)["skipped"] for line in out.splitlines()] == [True, True]
    code, out, err = run(*call)
    assert (code, err) == (0, f"note: 2 {note}\n")
    assert str(pictures[2]) in out
    for _ in range(2):
        assert str(pictures[0]) in run("segment", pictures[0], *WORDS, "--output", tmp_path / "out")[1], (
            "one alone is segmented"
        )


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("batch", [1, 2])
def test_pictures_at_addresses_are_fetched_if_that_is_allowed(pictures, run, tmp_path, monkeypatch, batch) -> None:
    address, data = "https://example.org/a/photo.png", pictures[0].read_bytes()

    def fetched(given: str, *, private: bool) -> bytes:
        assert (given, private) == (address, False)
        return data

    monkeypatch.setattr("lexiseg.cli.segment.fetch_picture", fetched)
    call = ("segment", address, pictures[1], *WORDS, "--json", "--batch", batch, "--output", tmp_path / "out")
    code, out, err = run(*call, "--allow-url")
    assert (code, err) == (0, "")
    assert [json.loads(line)["source"] for line in out.splitlines()] == [address, str(pictures[1])]
    assert len(list((tmp_path / "out").glob("photo.png-*.json"))) == 1
    code, out, err = run(*call)
    assert (code, out) == (2, "")
    assert "is an address: --allow-url fetches pictures" in err


def test_debug_shows_where_it_came_from_and_the_others_are_done(pipeline, pictures, run, tmp_path) -> None:
    pipeline.error = RuntimeError("torch fell over")
    code, _, err = run("segment", *pictures, *WORDS, "--output", tmp_path / "out", "--debug")
    assert code == 1
    assert "\nTraceback" in err
    assert "test_batches.py" in err
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by nothing"), Panic("a library panicked"), BrokenPipeError(32, "a worker has gone")]
)
@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_ours_is_a_short_message_with_the_place(run, monkeypatch, error, debug) -> None:
    def faulty(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("lexiseg.cli.segment.find_images", faulty)
    code, _, err = run("segment", "x.png", *WORDS, *(["--debug"] if debug else []))
    assert code == 1
    assert re.match(
        rf"lexiseg: unexpected {type(error).__name__}: .* \(cli/segment\.py:\d+\); --debug shows the traceback\n", err
    )
    assert ("Traceback" in err) == debug
    assert len(err.splitlines()) == 1 or debug


@pytest.mark.parametrize("arguments", [["data", "list"], ["data", "check", "coco-panoptic"], ["models"], ["vocabulary"]])
def test_every_command_takes_debug(run, tmp_path, arguments) -> None:
    assert run(*arguments, "--debug", *(["--root", tmp_path] if "check" in arguments else []))[2].count("unrecognized") == 0


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_standard_input_that_is_closed_fails_alone(pictures, run, tmp_path, monkeypatch, stream) -> None:
    if stream is not None:
        stream = (tmp_path / "first.png").open()
        stream.close()
    monkeypatch.setattr("sys.stdin", stream)
    code, _, err = run("segment", "-", pictures[0], *WORDS, "--output", tmp_path / "out")
    assert code == 1
    assert err.startswith("lexiseg: standard input: is closed")
    assert len(list((tmp_path / "out").glob("*.json"))) == 1


def test_names_with_control_characters_are_shown_and_do_nothing() -> None:
    names = ("dog\x1b[31m", "cat\nlexiseg: all is well", "\u202eyks", "\x9b2J")
    segments = tuple(Segment(k + 1, k, name, True, 0.5, 1, (k, 0, 1, 1)) for k, name in enumerate(names))
    masks = np.eye(4, dtype=bool)[:, None]
    result = Segmentation("instance", np.zeros((1, 4, 3), np.uint8), names, (True,) * 4, segments, masks, source="a\r\nb.png")
    shown = table(result, [Path("out/a\x1b.json")])
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
    assert len(shown.splitlines()) == 7
    for word in (r"dog\u001b[31m", r"cat\nlexiseg: all is well", r"\u202eyks", r"\u009b2J", r"a\u000d\nb.png", r"a\u001b.json"):
        assert word in shown


@pytest.fixture
def mine(tmp_path: Path, pictures: list[Path]) -> Path:
    folder = tmp_path / "mine"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    for path in pictures:
        values = np.array(Image.open(path))
        Image.fromarray(values).save(folder / "images" / path.name)
        Image.fromarray(values.argmax(-1).astype(np.uint8)).save(folder / "labels" / path.name)
    return folder


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("file", ["images/bad.png", "labels/bad.png"])
@pytest.mark.parametrize("length", [0, 8, 40, 60])
def test_evaluate_keeps_going_whatever_a_file_is(mine, run, tmp_path, file, length) -> None:
    data = (mine / file).read_bytes()
    (mine / file).write_bytes(data[:length])
    arguments = ("evaluate", "--data", mine, "--model", "any", "--output", tmp_path / "out")
    code, _, err = run(*arguments)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "bad.png" in err
    code, _, err = run(*arguments, "--keep-going")
    assert code == 1
    assert err.splitlines()[-1] == "lexiseg: 1 of 3 pictures failed; they are not in the numbers"
    assert json.loads((tmp_path / "out/metrics.json").read_text())["results"]["semantic"]["images"] == 2
    (mine / file).write_bytes(data)
    code, _, err = run(*arguments)
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "out/metrics.json").read_text())["results"]["semantic"]["images"] == 3


@pytest.mark.usefixtures("pipeline")
def test_evaluate_keeps_going_over_data_sets(mine, run, tmp_path) -> None:
    arguments = (
        "evaluate",
        "--data",
        "camvid-val",
        "--data",
        mine,
        "--root",
        tmp_path,
        "--model",
        "any",
        "--output",
        tmp_path / "out",
    )
    assert run(*arguments)[0] == 1
    assert not list((tmp_path / "out").glob("*/metrics.json"))
    code, _, err = run(*arguments, "--keep-going")
    assert code == 1
    assert "of camvid-val is missing" in err
    assert err.splitlines()[-1] == "lexiseg: 1 of 2 data sets failed; they are in no mean"
    assert len(list((tmp_path / "out").glob("*/metrics.json"))) == 1


@pytest.mark.usefixtures("pipeline")
def test_a_class_that_is_no_unicode_is_in_the_report(mine, run, tmp_path) -> None:
    other = tmp_path / "caf\udce9"
    mine.rename(other)
    code, out, _ = run("evaluate", "--data", other, "--model", "any", "--output", tmp_path / "out")
    assert code == 0
    assert r"caf\udce9" in out
    assert r"caf\udce9" in (tmp_path / "out/report.md").read_text()


@pytest.fixture
def several(tmp_path: Path) -> list[Path]:
    """Pictures of two sizes, and one that is cut off."""
    rng, paths = np.random.default_rng(1), [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        high, wide = (24, 32) if number % 2 else (30, 20)
        Image.fromarray(np.kron(rng.integers(0, 256, (high // 2, wide // 2, 3)), np.ones((2, 2, 1))).astype(np.uint8)).save(
            path
        )
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    return paths


@pytest.mark.parametrize("batch", [4, 100])
def test_segment_finds_the_same_in_batches(several, run, tmp_path, monkeypatch, batch) -> None:
    segment = Pipeline(tiny_fcclip("convnext"))
    monkeypatch.setattr("lexiseg.cli.segment.load", lambda *_, **__: segment)
    words = (*WORDS, "--task", "semantic")
    alone = run("segment", *several, *words, "--output", tmp_path / "alone")
    together = run("segment", *several, *words, "--output", tmp_path / "together", "--batch", batch)
    assert (alone[0], alone[2]) == (together[0], together[2])
    assert "2.png: " in together[2]
    assert together[2].endswith("1 of 6 pictures failed\n")
    assert together[1].replace("together", "alone") == alone[1]
    files = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "together").iterdir())
    for name in files:
        if name.endswith(".png"):
            assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()


def test_a_batch_that_fails_together_is_done_one_by_one(several, run, tmp_path, monkeypatch) -> None:
    class Narrow(Pipeline):
        def predict_batch(self, pictures: Any, text: Any) -> Any:
            if len(pictures) > 1:
                raise MemoryError
            return super().predict_batch(pictures, text)

    segment = Narrow(Colours())
    monkeypatch.setattr("lexiseg.cli.segment.load", lambda *_, **__: segment)
    assert run("segment", *several[3:], *WORDS, "--output", tmp_path / "out", "--batch", 3)[::2] == (0, "")
    assert len(list((tmp_path / "out").glob("*.json"))) == 3


@pytest.mark.parametrize("options", [("--batch", 2), ("--batch", 16, "--workers", 3), ("--workers", 0)])
def test_evaluate_measures_the_same_in_batches(several, run, tmp_path, monkeypatch, options) -> None:
    folder = tmp_path / "own"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    for path in several:
        path.rename(folder / "images" / path.name)
        size = (20, 30) if path.stem in "024" else (32, 24)
        Image.new("L", size, int(path.stem) % 3).save(folder / "labels" / path.name)
    monkeypatch.setattr("lexiseg.cli.evaluate.load", lambda *_, **__: Pipeline(tiny_fcclip("convnext")))
    arguments = ("evaluate", "--data", folder, "--model", "any", "--save-predictions", "--keep-going")
    found = []
    for name, more in (("alone", ()), ("together", options)):
        code, _, err = run(*arguments, *more, "--output", tmp_path / name)
        assert code == 1
        assert "2: " in err
        assert err.endswith("1 of 6 pictures failed; they are not in the numbers\n")
        document = json.loads((tmp_path / name / "metrics.json").read_text())
        found.append((document["results"], sorted(path.name for path in (tmp_path / name).rglob("*"))))
        maps = [path.read_bytes() for path in sorted((tmp_path / name / "predictions/semantic").iterdir())]
        assert len(maps) == 5
        found[-1] += (maps,)
    assert found[0] == found[1]
