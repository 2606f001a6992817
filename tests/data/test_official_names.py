"""Official class lists, fetched from a stand-in for the authors' repositories on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from lexiseg.cli import evaluate as command
from lexiseg.cli import main
from lexiseg.cli.evaluate import renamed
from lexiseg.data import official_names
from lexiseg.data.catalogue import row_named
from lexiseg.data.dataset import Dataset
from lexiseg.data.official_names import LISTS, OfficialList, fetch, load
from lexiseg.data.sets.pascal import context_table
from lexiseg.errors import DataError, UsageError
from lexiseg.inference.evaluation import Protocol
from lexiseg.inference.pipeline import Pipeline
from lexiseg.metrics.seen import seen_classes
from lexiseg.text.vocabulary import ClassList, Vocabulary
from tests.data.miniatures import cityscapes
from tests.inference.test_evaluation import Colours
from tests.loopback import serving
from tests.parity.cases.names import OFFICIAL

RECORDED = json.loads((Path(__file__).parents[1] / "parity/data/05_dataset_overlap.json").read_text())


def entries(dataset: str) -> list[str]:
    """Made-up names of a data set's classes: a synonym of a training class where the official program says that it is seen."""
    flags = RECORDED[OFFICIAL[dataset]]["category_overlapping_mask"]
    return [f"{dataset} {number},training {number % 133}" if seen else f"new {number}" for number, seen in enumerate(flags)]


def stand_in(file: str, dataset: str) -> str:
    """The text of a file in the form of the authors'."""
    if dataset == "coco-panoptic":  # ids with gaps, as COCO's
        lines = ["0:invalid_class_id"]
        for number in range(133):
            lines += [f"{len(lines)}:training {number},trained {number}"]
            lines += [f"{len(lines)}:invalid_class_id"] if number % 2 else []
        return "\n".join(lines)
    if file.endswith("semseg.py"):
        return f"raise SystemExit('never run')\nBDD_SEM = {[entry.split(',')[-1] for entry in entries(dataset)]}\n"
    if file.endswith("panoseg.py"):
        labels = ", ".join(f"Label({entry.split(',')[-1]!r}, {number})" for number, entry in enumerate(entries(dataset)))
        return f"raise SystemExit('never run')\nBDD_CATEGORIES = [\n    # a comment\n    {labels},\n]\n"
    background = ["0:background,training 0"] if dataset == "voc-20" else []
    first = 0 if dataset in ("cityscapes", "voc-21") else 1
    void = ["0:invalid_class_id"] if first and not background else []
    return "\n".join([*background, *void, *(f"{number}:{entry}" for number, entry in enumerate(entries(dataset), first))])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Serves the texts of a mapping from path to text, and counts requests under "requests"."""
    texts: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = texts.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("LEXISEG_CACHE", str(tmp_path / "cache"))
    with serving(Handler) as address:
        monkeypatch.setattr(official_names, "SERVER", f"http://{address}")
        yield texts


def serve(texts: dict[str, str], dataset: str) -> OfficialList:
    official = LISTS[dataset]
    texts[f"/{official.file}"] = stand_in(official.file, dataset)
    return official


@pytest.mark.parametrize("dataset", OFFICIAL)
def test_the_recorded_flags_of_the_eleven_lists(dataset: str, server: dict[str, str]) -> None:
    for name in (dataset, "coco-panoptic"):
        serve(server, name)
        assert main(["data", "names", name]) == 0
    names = load(dataset)
    flags = RECORDED[OFFICIAL[dataset]]["category_overlapping_mask"]
    training = load(official_names.TRAINING).vocabulary.class_names
    assert seen_classes(names.vocabulary.class_names, training).astype(int).tolist() == flags


def dataset_of(vocabulary: Vocabulary, category_ids: tuple[int, ...]) -> Dataset:
    return Dataset("some", vocabulary, (), {}, category_ids)


def test_an_official_list_is_in_the_order_of_the_data_sets_own_ids() -> None:
    """Our 59 classes of PASCAL Context have VOC's twenty first, the official list is in the order of the label maps."""
    ours = Vocabulary.builtin("pascal-context-59")
    of_label = {label: raw for raw, label in context_table(ours).labels.items()}
    dataset = dataset_of(ours, tuple(of_label[label] for label in range(59)))
    alphabetical = [ours.names[label] for label in context_table(ours).labels.values()]
    numbered = ClassList(Vocabulary.parse(alphabetical), tuple(range(1, 60)), numbered=True)
    assert renamed(dataset, numbered).vocabulary.names == ours.names
    assert renamed(dataset, numbered).vocabulary.things == ours.things
    plain = ClassList(Vocabulary.parse(list(ours.names)), tuple(range(59)))
    assert renamed(dataset, plain).vocabulary.names == ours.names


def test_lists_as_published_are_taken_by_names(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("0:invalid_class_id\n1:cup,mug\n2:mug\n3:invalid_class_id\n4:tea,mug")
    names = ClassList.from_file(path, unique=False)
    vocabulary = renamed(dataset_of(Vocabulary.parse("a; b; c"), (3, 5, 9)), names).vocabulary
    assert vocabulary.class_names == (("cup", "mug"), ("mug",), ("tea", "mug"))
    with pytest.raises(UsageError, match="--names has 3 classes, some 2"):
        renamed(dataset_of(Vocabulary.parse("a; b"), (0, 1)), names)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "404"),
        ("<html>sign in</html>", "has 1 classes, not 19"),
        ("0:road\n0:road", "id 0 is in line 1 and line 2"),
        ("0:road\n1:path", "has 2 classes, not 19"),
    ],
)
def test_what_is_no_list_is_refused(text: str | None, reason: str, server: dict[str, str]) -> None:
    if text is not None:
        server[f"/{LISTS['cityscapes'].file}"] = text
    with pytest.raises(DataError, match=reason) as refused:
        fetch("cityscapes")
    assert "\n" not in str(refused.value)
    assert not official_names.path_of("cityscapes").exists()


@pytest.mark.parametrize("text", ["BDD_SEM = names()", "BDD_SEM = [name]", "other = 1", "def"])
def test_a_program_without_the_list_is_refused(text: str, server: dict[str, str]) -> None:
    server[f"/{LISTS['bdd100k'].file}"] = text
    with pytest.raises(DataError, match="cannot fetch"):
        fetch("bdd100k")


def test_a_list_is_fetched_once_and_stays(server: dict[str, str]) -> None:
    serve(server, "cityscapes")
    path = fetch("cityscapes")
    server.clear()
    assert fetch("cityscapes") == path
    assert path.read_text().startswith("# http://127.0.0.1")


def test_a_list_that_is_not_here_names_the_command(server: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert server == {}
    with pytest.raises(UsageError, match="'lexiseg data names ade20k-150' gets it"):
        load("ade20k-150")
    assert main(["data", "names", "camvid-val"]) == 2
    assert "have no class list of camvid-val" in capsys.readouterr().err


def test_names_and_seen_of_the_command(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`evaluate --names official --seen official`: names of the list, and its flags in the model and in the groups."""
    for name in ("cityscapes", "coco-panoptic"):
        serve(server, name)
        fetch(name)
    taken: dict[str, object] = {}

    def loaded(*_: object, seen: Vocabulary, **__: object) -> object:
        taken["seen"] = seen.class_names
        return Pipeline(Colours())

    def evaluated(_: object, dataset: Dataset, protocol: Protocol, *__: object, **___: Mapping[str, object]) -> None:
        taken.update(dataset=dataset, protocol=protocol)
        raise UsageError("far enough")

    monkeypatch.setattr(command, "load", loaded)
    monkeypatch.setattr(command, "evaluate", evaluated)
    cityscapes(tmp_path / "data")
    arguments = ["--data", "cityscapes", "--root", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    assert main(["evaluate", *arguments, "--names", "official", "--seen", "official"]) == 2
    dataset, protocol = taken["dataset"], taken["protocol"]
    assert isinstance(dataset, Dataset)
    assert isinstance(protocol, Protocol)
    assert taken["seen"] == load("coco-panoptic").vocabulary.class_names
    assert dataset.vocabulary.class_names == load("cityscapes").vocabulary.class_names
    flags = RECORDED[OFFICIAL["cityscapes"]]["category_overlapping_mask"]
    assert protocol.groups is not None
    assert protocol.groups["seen"] == {label for label, flag in enumerate(flags) if flag}
    assert (protocol.names, protocol.seen) == ("official", "official")


def test_every_list_is_of_a_data_set() -> None:
    for name, official in LISTS.items():
        assert row_named(name).tasks
        assert official.address.startswith("https://raw.githubusercontent.com/")
        assert replace(official, file="x").address.endswith("/x")
