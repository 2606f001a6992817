"""An evaluation that is repeated measures again what has changed since, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from lexiseg.data.own import open_own
from lexiseg.errors import DataError, RunError, UsageError
from lexiseg.inference import evaluation, report, results
from lexiseg.inference.evaluation import Protocol, collect, evaluate
from lexiseg.inference.fingerprint import digest
from lexiseg.inference.pipeline import Pipeline
from tests.inference.test_evaluation import NAMES, Colours

PICTURES, CHUNK = 7, 3
PROTOCOL = Protocol("colours", "mine", ("semantic",))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CHUNK", CHUNK)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Noisy pictures of three colours, with label maps and a list of classes."""
    rng, folder = np.random.default_rng(0), tmp_path / "mine"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    for number in range(PICTURES):
        labels = rng.integers(0, 3, (12, 10), np.uint8)
        noisy = np.where(rng.random(labels.shape) < 0.3, rng.integers(0, 3, labels.shape), labels)
        Image.fromarray(labels).save(folder / f"labels/{number}.png")
        Image.fromarray((255 * (noisy[..., None] == (0, 1, 2))).astype(np.uint8)).save(folder / f"images/{number}.png")
    return folder


class Run:
    """One evaluation of a folder of one's own, which can be repeated."""

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder, self.output = folder, output

    def __call__(
        self, *, keep_going: bool = False, keep_predictions: bool = False, pipeline: Pipeline | None = None
    ) -> tuple[str, list[str], int]:
        """The numbers, what failed, and how many pictures were predicted for it."""
        pipeline, dataset = pipeline or Pipeline(Colours()), open_own(self.folder)
        evaluate(pipeline, dataset, PROTOCOL, self.output, keep_going=keep_going, keep_predictions=keep_predictions)
        metrics, failed = collect(dataset, PROTOCOL, self.output)
        numbers = json.dumps(report.document(PROTOCOL, metrics, failed, dataset, command="x"), sort_keys=True)
        return numbers, list(failed), pipeline.segmenter.calls


@pytest.fixture
def again(mine: Path, tmp_path: Path) -> Run:
    run = Run(mine, tmp_path / "out")
    assert run()[2] == PICTURES
    assert run()[2] == 0, "nothing has changed"
    return run


def fresh(run: Run, tmp_path: Path) -> str:
    """The numbers of the same folder as it is now, without anything kept."""
    return Run(run.folder, tmp_path / "fresh")()[0]


def inverted(path: Path) -> None:
    """Another picture in the place of this, with its date."""
    about = path.stat()
    values = np.array(Image.open(path))
    Image.fromarray(2 - values if values.ndim == 2 else 255 - values).save(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("file", ["labels/4.png", "images/4.png"])
def test_a_damaged_file_stops_a_run_in_a_line_that_names_it_and_what_was_measured_before_is_kept(
    mine: Path, tmp_path: Path, file: str
) -> None:
    run, whole = Run(mine, tmp_path / "out"), (mine / file).read_bytes()
    (mine / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError) as raised:
        run()
    assert "\n" not in str(raised.value)
    assert f"{mine / file}: is damaged or cut off" in str(raised.value)
    assert str(raised.value).startswith(f"{mine / 'images/4.png'}: ")
    (mine / file).write_bytes(whole)
    numbers, _, predicted = run()
    assert (numbers, predicted) == (fresh(run, tmp_path), PICTURES - CHUNK)


@pytest.mark.parametrize("file", ["labels/4.png", "images/4.png"])
def test_a_changed_picture_or_truth_is_measured_again_with_its_chunk(again: Run, tmp_path: Path, file: str) -> None:
    before = again()[0]
    inverted(again.folder / file)
    numbers, _, predicted = again()
    assert numbers == fresh(again, tmp_path) != before
    assert predicted == CHUNK


@pytest.mark.parametrize("classes", ["green\nred\nblue", "red\ngreen | stuff\nblue", "0: red\n1: green\n2: blue\n3: void"])
def test_other_classes_begin_anew(again: Run, tmp_path: Path, classes: str) -> None:
    (again.folder / "classes.txt").write_text(classes)
    numbers, _, predicted = again()
    assert (numbers, predicted) == (fresh(again, tmp_path), PICTURES)


def test_what_only_looks_changed_is_not_measured_again(again: Run, tmp_path: Path) -> None:
    before = again()[0]
    moved = shutil.copytree(again.folder, tmp_path / "moved", copy_function=shutil.copyfile)  # with other dates
    shutil.rmtree(again.folder)
    assert Run(moved, again.output)() == (before, [], 0)


def test_a_changed_annotation_file_begins_anew(mine: Path, tmp_path: Path) -> None:
    runs = [{"size": [12, 10], "counts": [number, 20, 100 - number]} for number in range(PICTURES)]
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 12, "width": 10} for n in range(PICTURES)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": n,
                "category_id": 1,
                "segmentation": runs[n],
                "area": 20,
                "bbox": [0, 0, 2, 10],
                "iscrowd": 0,
            }
            for n in range(PICTURES)
        ],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES.names)],
    }
    source, protocol = mine / "truth.json", Protocol("colours", "mine", ("instance",))
    source.write_text(json.dumps(document))

    def measured(output: Path) -> tuple[str, int]:
        pipeline, dataset = Pipeline(Colours()), open_own(source)
        evaluate(pipeline, dataset, protocol, output)
        return json.dumps(collect(dataset, protocol, output)[0]["instance"].result()), pipeline.segmenter.calls

    before = measured(tmp_path / "out")
    assert measured(tmp_path / "out") == (before[0], 0)
    document["annotations"][4]["category_id"] = 3
    source.write_text(json.dumps(document))
    after = measured(tmp_path / "out")
    assert after[0] == measured(tmp_path / "fresh")[0]
    assert after[1] == PICTURES


def test_a_picture_that_was_repaired_is_measured(mine: Path, tmp_path: Path) -> None:
    whole, run = Run(mine, tmp_path / "fresh")()[0], Run(mine, tmp_path / "out")
    damaged = mine / "images/5.png"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:60])
    assert run(keep_going=True)[1:] == (["5"], PICTURES - 1)
    assert run(keep_going=True)[1:] == (["5"], CHUNK - 1), "what failed is tried again"
    damaged.write_bytes(data)
    assert run() == (whole, [], CHUNK)


def test_a_failure_is_tried_again_even_if_the_files_are_the_same(mine: Path, tmp_path: Path) -> None:
    class Short(Colours):
        def forward(self, images, text, *, trace=None):
            if self.calls == 4:
                self.calls += 1
                raise DataError("for a moment")
            return super().forward(images, text, trace=trace)

    run = Run(mine, tmp_path / "out")
    assert run(keep_going=True, pipeline=Pipeline(Short()))[1] == ["4"]
    with pytest.raises(DataError, match="for a moment"):
        run(pipeline=Pipeline(_after(Short(), 3)))
    assert run()[1:] == ([], CHUNK)


def _after(segmenter: Colours, calls: int) -> Colours:
    segmenter.calls = calls
    return segmenter


def test_predictions_may_be_asked_for_later(again: Run, tmp_path: Path) -> None:
    before = again()[0]
    assert again(keep_predictions=True) == (before, [], PICTURES)
    assert again(keep_predictions=True)[2] == 0
    folder, dataset = again.output / "predictions", open_own(again.folder)
    results.assemble(folder, dataset, PROTOCOL.tasks, range(0, PICTURES, CHUNK))
    Run(again.folder, tmp_path / "fresh")(keep_predictions=True)
    maps = {path.name: path.read_bytes() for path in (folder / "semantic").iterdir()}
    assert maps == {path.name: path.read_bytes() for path in (tmp_path / "fresh/predictions/semantic").iterdir()}
    assert len(maps) == PICTURES


def test_predictions_are_of_what_was_measured(again: Run) -> None:
    again(keep_predictions=True)
    maps = again.output / "predictions/semantic"
    old = (maps / "4.png").read_bytes()
    inverted(again.folder / "images/4.png")
    again()  # without predictions: those there are of the former picture
    assert again(keep_predictions=True)[2] == CHUNK
    assert (maps / "4.png").read_bytes() != old
    (again.folder / "images/4.png").write_bytes(b"no picture")
    assert again(keep_going=True, keep_predictions=True)[1] == ["4"]
    assert {path.stem for path in maps.iterdir()} == {"0", "1", "2", "3", "5", "6"}


FOREIGN = [b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'"text"']


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_folder_that_does_not_say_what_it_is_of_is_refused_with_a_way_out(again: Run, foreign: bytes) -> None:
    before, path = again()[0], again.output / "protocol.json"
    path.write_bytes(foreign)
    with pytest.raises(
        UsageError, match=r"protocol\.json is not a protocol of an evaluation .* delete that file to begin anew"
    ):
        again()
    path.unlink()
    assert again() == (before, [], 0), "its sums say themselves what they are of"


@pytest.mark.parametrize("failed", ["[]", "null", "{", '{"1": 2}', None])
@pytest.mark.parametrize("kind", ["failed", "sums", "no digest", "bytes"])
def test_a_damaged_part_is_measured_again(again: Run, kind: str, failed: str | None) -> None:
    before, path = again()[0], again.output / "parts/0000003.safetensors"
    arrays, about = load_file(path), {"failed": "{}", "inputs": _inputs(path)}
    if kind == "failed":
        save_file(arrays, path, {"inputs": about["inputs"]} if failed is None else {**about, "failed": failed})
    elif kind == "sums":
        shapes = {"[]": (0,), "null": (1, 1), "{": (3, 3, 3), '{"1": 2}': (4, 4), None: (7,)}
        save_file({name: np.zeros(shapes[failed], array.dtype) for name, array in arrays.items()}, path, about)
    elif kind == "no digest":
        save_file(arrays, path, {"failed": "{}"})
    else:
        path.write_bytes((failed or "").encode())
    assert again() == (before, [], CHUNK)


def _inputs(path: Path) -> str:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["inputs"]


@pytest.mark.parametrize("foreign", [*FOREIGN, b"{}", b'{"images": 1, "panoptic": [], "instance": [], "inputs": ""}'])
def test_a_damaged_list_of_predictions_is_written_again(again: Run, foreign: bytes) -> None:
    before = again(keep_predictions=True)[0]
    fragment = again.output / "predictions/parts/0000003.json"
    whole = fragment.read_bytes()
    fragment.write_bytes(foreign)
    with pytest.raises(DataError, match=r"0000003\.json is"):
        results.assemble(again.output / "predictions", open_own(again.folder), PROTOCOL.tasks, range(0, PICTURES, CHUNK))
    assert again(keep_predictions=True) == (before, [], CHUNK)
    assert fragment.read_bytes() == whole


def test_another_precision_is_another_evaluation(again: Run) -> None:
    with pytest.raises(UsageError, match=r"another dtype \(float32, now bfloat16\)"):
        again(pipeline=Pipeline(Colours(), dtype=torch.bfloat16))


def test_digests_tell_apart_what_is_different_and_nothing_else() -> None:
    def adder(number: int) -> Callable[[int], int]:
        return lambda other: other + number

    same = [
        {"table": NAMES, "ids": frozenset({1, 2, 3}), "reader": partial(adder(1), 2), "array": np.arange(3)} for _ in range(2)
    ]
    assert digest(same[0]) == digest(same[1])
    changes = [
        {"table": replace(NAMES, classes=NAMES.classes[:2])},
        {"ids": frozenset({1, 2})},
        {"reader": partial(adder(2), 2)},
        {"reader": partial(adder(1), 3)},
        {"array": np.arange(3) + 1},
        {"array": np.arange(3.0)},
    ]
    assert len({digest({**same[0], **change}) for change in [{}, *changes]}) == len(changes) + 1
