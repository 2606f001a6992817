"""Vocabularies: the ways to write one, what is refused and how, and the built-in lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from lexiseg.errors import UsageError
from lexiseg.text import ClassName, Vocabulary, builtin_names
from lexiseg.world import world_classes

EXPECTED = (ClassName("dog", ("puppy",), True), ClassName("grass", ("lawn",), False), ClassName("Eiffel Tower", (), True))


@pytest.mark.parametrize(
    "value",
    [
        ["dog, puppy", "grass, lawn", "Eiffel Tower"],
        ("dog,puppy", " grass ,  lawn | stuff", "Eiffel\tTower | thing"),
        "dog, puppy; grass, lawn; Eiffel Tower",
        " dog ,puppy, Dog;grass,lawn ; Eiffel  Tower;",
        {"dog": ["puppy"], "grass": "lawn", "Eiffel Tower": []},
        Vocabulary(EXPECTED),
    ],
)
def test_all_ways_to_write_a_vocabulary_mean_the_same(value: object) -> None:
    assert Vocabulary.parse(value).classes == EXPECTED


def test_a_file_means_the_same(tmp_path: Path) -> None:
    path = tmp_path / "my {classes}.txt"
    path.write_text("\ufeff# mine\n\ndog, puppy\n  # grass comes next\ngrass, lawn | stuff\r\nEiffel Tower\n", encoding="utf-8")
    for vocabulary in (
        Vocabulary.from_file(path),
        Vocabulary.parse(path),
        Vocabulary.parse(str(path)),
        Vocabulary.load(str(path)),
    ):
        assert vocabulary.classes == EXPECTED


def test_names_and_owners_go_together() -> None:
    vocabulary = Vocabulary.parse("dog, puppy, hound; sky; cat, kitten")
    assert len(vocabulary) == 3
    assert vocabulary.names == ("dog", "sky", "cat")
    assert vocabulary.things == (True, False, True)
    assert vocabulary.all_names == ("dog", "puppy", "hound", "sky", "cat", "kitten")
    assert vocabulary.class_index == (0, 0, 0, 1, 2, 2)
    assert vocabulary.select([2, 0]).all_names == ("cat", "kitten", "dog", "puppy", "hound")
    assert vocabulary.label("CAT") == 2


def test_unicode_names_are_kept_and_compared_composed() -> None:
    assert Vocabulary.parse("犬, 子犬; Straße").all_names == ("犬", "子犬", "Straße")
    with pytest.raises(UsageError, match="'caf\u00e9' names class 1 and class 2"):
        Vocabulary.parse(["caf\u00e9", "cafe\u0301"])


def test_background_is_stuff_at_the_end_once() -> None:
    vocabulary = Vocabulary.parse("dog; cat").with_background("background, other")
    assert vocabulary.classes[-1] == ClassName("background", ("other",), False)
    assert vocabulary.with_background("Background") is vocabulary


@pytest.mark.parametrize(
    ("text", "thing"), [("sky", False), ("Street", False), ("table", True), ("unheard-of", True), ("sky | thing", True)]
)
def test_kind_where_nobody_says_is_that_of_most_lists(text: str, thing: bool) -> None:
    assert Vocabulary.parse([text]).things == (thing,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "is empty"),
        ("", "is empty"),
        (" ; ;", "is empty"),
        ({}, "is empty"),
        ("dog;;cat", "class 2 has an empty name"),
        (";dog", "class 1 has an empty name"),
        (["dog", " "], "class 2 has an empty name"),
        (["dog, "], "class 1 has an empty name"),
        ({"dog": [""]}, "class 1 has an empty name"),
        ("dog; cat; DOG", "'DOG' names class 1 and class 3"),
        ("dog, puppy; cat; Puppy", "'puppy' is class 3 and a synonym in class 1"),
        ("puppy; dog, Puppy", "'Puppy' is class 1 and a synonym in class 2"),
        ("cat;" + "very " * 299 + "long", "class 2 .* 300 words.*sentence"),
        ("a" * 501, "501 characters"),
        (["dog; cat"], "class 1 .*separates classes"),
        ("grass | thingy", "after '|' write thing or stuff"),
        (["dog", 3], "class 2 is 3"),
        ({"dog": 3}, "strings"),
        ({"dog": [3]}, "strings"),
        (3, "int"),
        (None, "NoneType"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("|", r"\|")) as caught:
        Vocabulary.parse(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_long_name_up_to_the_limit_and_a_shared_synonym_are_fine() -> None:
    assert len(Vocabulary.parse(" ".join(["very"] * 60))) == 1
    assert Vocabulary.parse("dog, animal; cat, animal").all_names == ("dog", "animal", "cat", "animal")


def test_files_that_are_no_vocabulary_are_named(tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "comment": b"# nothing\n\n",
        "latin": "caf\u00e9".encode("latin-1"),
        "nul": b"dog\0cat",
        "twice": b"dog\nDog\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "line").write_text("dog\n\ncat,,kitten\n")
    expected = {
        "empty": "is empty",
        "comment": "is empty",
        "latin": "UTF-8",
        "nul": "not text",
        "twice": "'Dog' names",
        "line": "line 3 has",
    }
    for name, message in expected.items():
        with pytest.raises(UsageError, match=message):
            Vocabulary.from_file(tmp_path / name)
    with pytest.raises(UsageError, match=r"absent\.txt does not exist"):
        Vocabulary.parse(str(tmp_path / "absent.txt"))
    with pytest.raises(UsageError, match="is a folder"):
        Vocabulary.load(tmp_path)


def test_unknown_builtin_suggests_its_neighbours() -> None:
    with pytest.raises(UsageError, match=r"did you mean cityscapes.*path of a text file"):
        Vocabulary.load("cityscape")
    with pytest.raises(UsageError, match=r"choose ade150, .*cityscapes, .*path of a text file"):
        Vocabulary.builtin("zzzz")
    with pytest.raises(UsageError, match="did you mean 'giraffe'"):
        Vocabulary.parse("giraffe; dog").label("girafe")


def test_five_thousand_classes_are_parsed() -> None:
    text = ";".join(f"class number {number}, synonym {number}" for number in range(5000))
    vocabulary = Vocabulary.parse(text)
    assert len(vocabulary.all_names) == 10000


@pytest.mark.parametrize(
    ("name", "things", "stuff", "ends"),
    [
        ("ade150", 100, 50, ("wall", "flag")),
        ("cityscapes", 8, 11, ("road", "bicycle")),
        ("coco", 80, 53, ("person", "rug")),
        ("coco-stuff-171", 80, 91, ("person", "wood")),
        ("pascal-context-59", None, None, ("aeroplane", "wood")),
        ("voc20", 20, 0, ("aeroplane", "tv monitor")),
    ],
)
def test_builtin_lists_have_the_data_sets_counts(
    name: str, things: int | None, stuff: int | None, ends: tuple[str, str]
) -> None:
    vocabulary = Vocabulary.builtin(name)
    assert (vocabulary.names[0], vocabulary.names[-1]) == ends
    if things is None:
        assert len(vocabulary) == 59
    else:
        assert (sum(vocabulary.things), len(vocabulary) - sum(vocabulary.things)) == (things, stuff)
    assert Vocabulary.parse(name) == Vocabulary.load(name) == vocabulary


def test_lists_of_the_same_family_agree() -> None:
    coco, stuff = Vocabulary.builtin("coco"), Vocabulary.builtin("coco-stuff-171")
    assert coco.classes[:80] == stuff.classes[:80]
    assert Vocabulary.builtin("pascal-context-59").names[:10] == Vocabulary.builtin("voc20").names[:10]


def test_ade_things_are_where_the_benchmark_has_them() -> None:
    """First and last of the panoptic benchmark's contiguous thing labels."""
    labels = [label for label, thing in enumerate(Vocabulary.builtin("ade150").things) if thing]
    assert labels[:12] == [7, 8, 10, 12, 14, 15, 18, 19, 20, 22, 23, 24]
    assert labels[-10:] == [137, 138, 139, 142, 143, 144, 146, 147, 148, 149]


def test_every_builtin_class_says_its_kind() -> None:
    folder = Path(__file__).parents[2] / "src/lexiseg/assets/vocabularies"
    lines = [line for name in builtin_names() for line in (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 1000
    assert [line for line in lines if not line.startswith("#") and not line.endswith((" | thing", " | stuff"))] == []


def test_emoji_list_is_the_world() -> None:
    """The text package may not import the world, so the list is a file: write it anew when the world changes."""
    assert [(c.name, c.synonyms, c.thing) for c in Vocabulary.builtin("emoji").classes] == [
        (c.name, c.synonyms, c.thing) for c in world_classes()
    ]
