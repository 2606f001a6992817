"""Vocabulary hygiene: what is found, what is not, and what a score may forgive."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from lexiseg.cli import main
from lexiseg.errors import UsageError
from lexiseg.text.hygiene import HypernymPair, Hypernyms, NearNames, SharedName, check, forgiving, load, plain, singulars
from lexiseg.text.vocabulary import ClassName, Vocabulary, builtin_names

NOTHING = Hypernyms()
ANIMALS = Hypernyms.parse("animal > cat, dog, bird\nbird > duck\n  # nothing\n\ndog !> hot dog  # a snack")


def pairs(found: tuple[HypernymPair, ...], vocabulary: Vocabulary) -> set[tuple[str, str]]:
    return {(vocabulary.names[pair.hypernym], vocabulary.names[pair.hyponym]) for pair in found}


def test_a_clean_list_has_nothing() -> None:
    report = check(Vocabulary.parse("sofa; grass, lawn; door frame; door knob, knob"), Hypernyms.builtin())
    assert report == type(report)((), (), (), (), ())


def test_duplicates_and_shared_synonyms_are_told_apart() -> None:
    dog, cat, hound, wolf = (
        ClassName("dog", ("pet",)),
        ClassName("cat", ("pet", "kitty")),
        ClassName("hound", ("Dog",)),
        ClassName("Hound"),
    )
    report = check(Vocabulary((dog, cat, hound, wolf)), NOTHING)
    assert report.duplicates == (SharedName("dog", (0, 2)), SharedName("hound", (2, 3)))
    assert report.shared == (SharedName("pet", (0, 1)),)
    assert report.near == ()


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("t-shirt", "T shirt"),
        ("tshirt", "t_shirt"),
        ("book", "books"),
        ("cherries", "cherry"),
        ("cookies", "cookie"),
        ("wine bottle", "wine-bottles"),
        ("box", "boxes"),
        ("shelves", "shelf"),
        ("horse", "horses"),
        ("traffic light", "trafficlights"),
    ],
)
def test_plurals_hyphens_and_spaces_are_near(one: str, two: str) -> None:
    vocabulary = Vocabulary((ClassName("sky"), ClassName("thing", (one,)), ClassName(two)))
    assert check(vocabulary, NOTHING).near == (NearNames((one, two), (1, 2)),)


@pytest.mark.parametrize(
    ("one", "two"),
    [("cap", "cape"), ("bus", "bu"), ("glass", "glasses"), ("car", "cart"), ("grass", "gras"), ("iris", "iri"), ("gas", "ga")],
)
def test_other_words_are_not_near(one: str, two: str) -> None:
    assert check(Vocabulary((ClassName(one), ClassName(two))), NOTHING).near == ()


def test_names_of_one_class_may_be_near() -> None:
    assert check(Vocabulary.parse("tree, trees; t-shirt, tshirt"), NOTHING).near == ()


def test_declared_hypernyms_are_found_over_several_steps() -> None:
    vocabulary = Vocabulary.parse("ducks; sky; animal; Cat, kitten; hot dog; bird; wolf, dog")
    report = check(vocabulary, ANIMALS)
    assert pairs(report.hypernyms, vocabulary) == {
        ("animal", "ducks"),
        ("animal", "Cat"),
        ("animal", "bird"),
        ("bird", "ducks"),
    }  # neither the synonym of the wolf, nor the hot dog
    assert report.hypernyms == tuple(sorted(report.hypernyms, key=lambda pair: (pair.hypernym, pair.hyponym)))
    assert report.candidates == ()


def test_the_last_words_make_candidates() -> None:
    vocabulary = Vocabulary.parse("table; dining table; door; door frame; hot dog; dog; traffic light; big stop traffic-lights")
    assert pairs(check(vocabulary, NOTHING).candidates, vocabulary) == {
        ("table", "dining table"),
        ("dog", "hot dog"),
        ("traffic light", "big stop traffic-lights"),
    }
    settled = Hypernyms.parse("table > dining table\ndog !> hot dog")
    report = check(vocabulary, settled)
    assert pairs(report.hypernyms, vocabulary) == {("table", "dining table")}
    assert pairs(report.candidates, vocabulary) == {("traffic light", "big stop traffic-lights")}


def test_forgiving_lets_pass_what_is_vague_and_nothing_else() -> None:
    vocabulary = Vocabulary.parse("animal; bird; duck; sky; dining table; table")
    assert forgiving(vocabulary, ANIMALS) == (
        frozenset({0}),  # a bird, on an animal nobody named, may be wrong
        frozenset({0, 1}),
        frozenset({0, 1, 2}),
        frozenset({3}),
        frozenset({4}),  # a candidate is not declared
        frozenset({5}),
    )
    assert forgiving(vocabulary, NOTHING) == tuple(frozenset({label}) for label in range(6))


def test_joined_declarations_correct_each_other() -> None:
    own = Hypernyms.parse("animal !> bird\ndog > hot dog")
    both = ANIMALS.joined(own)
    assert both.above("hot dog") == {"dog", "animal"}
    assert both.above("duck") == {"bird"}
    assert both.above("bird") == frozenset()
    assert own.joined(ANIMALS).above("bird") == {"animal"}


@pytest.mark.parametrize(
    "text", ["animal", "animal > ", "> dog", "animal > dog,, cat", "a > b\nb > a", "a > a", "a > b\nb > c\nc > a"]
)
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="hypernyms"):
        Hypernyms.parse(text)


def test_files_of_hypernyms_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.txt cannot be read"):
        Hypernyms.from_file(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UsageError, match="not UTF-8"):
        Hypernyms.from_file(tmp_path / "binary.txt")
    (tmp_path / "wrong.txt").write_text("animal > dog\nanimal: cat\n")
    with pytest.raises(UsageError, match=r"wrong\.txt, line 2 is 'animal: cat'"):
        Hypernyms.from_file(tmp_path / "wrong.txt")


def test_plain_and_singulars() -> None:
    assert plain("  T-shirt_Rack ") == "t shirt rack"
    assert singulars("Wine Glasses") == {"wine glasses"}
    assert "steak knife" in singulars("steak knives")
    assert singulars("bus") == {"bus"}
    assert singulars("犬") == {"犬"}


def test_the_built_in_declarations_cover_the_built_in_lists() -> None:
    hypernyms = Hypernyms.builtin()
    assert hypernyms.above("duck") == {"bird", "animal"}
    for name, wanted in {
        "coco": {("food", "fruit"), ("fruit", "apple"), ("food", "apple"), ("wall", "brick wall")},
        "ade150": {("plant", "palm tree"), ("tree", "palm tree"), ("door", "screen door"), ("seat", "armchair")},
        "cityscapes": {("person", "rider")},
        "emoji": {("shoe", "hiking boot"), ("fish", "shark")},
    }.items():
        vocabulary = Vocabulary.builtin(name)
        report = check(vocabulary, hypernyms)
        assert wanted <= pairs(report.hypernyms, vocabulary)
        assert len(report.candidates) <= 3
        assert not {("dog", "hot dog"), ("bear", "teddy bear")} & pairs(report.candidates + report.hypernyms, vocabulary)


def test_every_built_in_declaration_is_made_once() -> None:
    text = (files("lexiseg") / "assets" / "hypernyms.txt").read_text(encoding="utf-8")
    statements = [
        (upper.strip(), lower.strip())
        for upper, bar, lowers in (line.partition("#")[0].partition(">") for line in text.splitlines())
        if bar
        for lower in lowers.split(",")
    ]
    assert sorted(statements) == sorted(set(statements))


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_lists_have_no_duplicates(name: str) -> None:
    assert check(Vocabulary.builtin(name), NOTHING).duplicates == ()


def test_load_takes_what_parse_refuses_for_its_names(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeff# mine\ndog, puppy\ncat\n\nDog | stuff;\n", encoding="utf-8")
    with pytest.raises(UsageError):
        Vocabulary.load(path)
    assert load(path).classes == (ClassName("dog", ("puppy",)), ClassName("cat"), ClassName("Dog", (), False))
    assert load("coco") == Vocabulary.load("coco")
    path.write_text("dog\ncat | animal\n")
    with pytest.raises(UsageError, match=r"words\.txt, line 2"):
        load(path)
    for content in ("# nothing\n", "dog\0\n"):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"words\.txt"):
            load(path)
    with pytest.raises(UsageError, match="no built-in vocabulary named 'cocoa'"):
        load("cocoa")


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("mammal\ndog, pet\ncat, pet\ndog\ndogs\nguide dog\n")
    assert main(["vocabulary", "check", str(words)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "names of several classes:",
        "  dog: dog (class 2), dog (class 4)",
        "synonyms in several classes:",
        "  pet: dog (class 2), cat (class 3)",
        "names that differ in plural, hyphens or spaces only:",
        "  dog / dogs: dog (class 2), dogs (class 5)",
        "  dog / dogs: dog (class 4), dogs (class 5)",
        "classes within others, as declared: none",
        "classes within others, by their last word (declare or deny them):",
        "  dog > guide dog",
        "  dog > guide dog",
        "  dogs > guide dog",
    ]
    words.write_text("mammal\ndog\n")
    own = tmp_path / "own.txt"
    own.write_text("mammal > dog\n")
    assert main(["vocabulary", "check", str(words), "--hypernyms", str(own), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": str(words),
        "classes": 2,
        "duplicates": [],
        "shared": [],
        "near": [],
        "hypernyms": [{"hypernym": "mammal", "hyponym": "dog", "labels": [0, 1]}],
        "candidates": [],
    }


@pytest.mark.parametrize(
    "arguments", [["check"], ["coco", "voc20"], ["--hypernyms", "x.txt"], ["check", "coco", "--hypernyms", "no-such.txt"]]
)
def test_the_command_called_wrongly(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(["vocabulary", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("lexiseg: ")
