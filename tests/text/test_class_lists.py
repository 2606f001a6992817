"""Lists of classes in files: every accepted form means the same, and everything else is refused with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lexiseg.cli import main
from lexiseg.errors import UsageError
from lexiseg.exports import write_classes
from lexiseg.text import ClassList, ClassName, Vocabulary, builtin_names
from lexiseg.text.hygiene import load

CLASSES = (ClassName("building", ("edifice",), False), ClassName("traffic light", (), True), ClassName("dog", ("puppy",), True))
OBJECTS = [
    {"name": "building", "synonyms": ["edifice"], "isthing": 0},
    {"name": "traffic light", "synonyms": [], "supercategory": "outdoor", "id": None},
    {"name": "dog, puppy", "thing": True},
]
UNNUMBERED = {
    "lines": "building, edifice | stuff\ntraffic light\ndog,puppy\n",
    "as ADE20K writes synonyms": "building;edifice\ntraffic light\ndog;puppy\n",
    "comments, blank lines, ends of lines": "# mine\r\n\r\n building,  edifice;\r\ntraffic\tlight\r  # dogs\rdog, puppy, Dog",
    "a byte order mark": "\ufeffbuilding, edifice\ntraffic light | thing\ndog, puppy",
    "JSON strings": '["building, edifice", "traffic light", "dog;puppy | thing"]',
    "JSON objects": json.dumps(OBJECTS),
    "JSON with a byte order mark": "\ufeff\n" + json.dumps(OBJECTS),
}
IDS = (7, 255, 3)
NUMBERED = {
    "lines": "7: building, edifice\n255:traffic light\n 03 : dog,puppy | thing\n",
    "void": "0: void\n7:building,edifice\n254:void\n255:traffic light\n3:dog,puppy\n",
    "as FC-CLIP writes void": "0:invalid_class_id\n7:building,edifice\n254:invalid_class_id\n255:traffic light\n3:dog,puppy\n",
    "JSON strings": '["7: building, edifice", "255: traffic light", "3: dog, puppy"]',
    "JSON objects": json.dumps([{**item, "id": number} for item, number in zip(OBJECTS, IDS, strict=True)]),
    "COCO": json.dumps({"images": [], "categories": [{**item, "id": n} for item, n in zip(OBJECTS, IDS, strict=True)]}),
    "id to name": '{"7": "building;edifice", "255": "traffic light", "3": "dog, puppy"}',
    "id to name with void": '{"0": "void", "7": "building, edifice", "254": "void", "255": "traffic light", "3": "dog, puppy"}',
}


def written(folder: Path, text: str, name: str = "words.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", ["words.txt", "words.json"])
@pytest.mark.parametrize("form", UNNUMBERED)
def test_all_files_without_ids_mean_the_same(form: str, name: str, tmp_path: Path) -> None:
    if name.endswith("json") and not form.startswith("JSON"):
        with pytest.raises(UsageError, match=r"words\.json is not JSON"):
            ClassList.load(written(tmp_path, UNNUMBERED[form], name))
        return
    assert ClassList.load(written(tmp_path, UNNUMBERED[form], name)) == ClassList(Vocabulary(CLASSES), (0, 1, 2))


@pytest.mark.parametrize("form", NUMBERED)
def test_all_files_with_ids_mean_the_same(form: str, tmp_path: Path) -> None:
    path = written(tmp_path, NUMBERED[form])
    void = {0, 254} if "void" in form else set()
    assert ClassList.load(path) == ClassList(Vocabulary(CLASSES), IDS, frozenset(void), numbered=True)
    for vocabulary in (Vocabulary.load(path), Vocabulary.parse(path), Vocabulary.parse(str(path)), load(path)):
        assert vocabulary.classes == CLASSES


@pytest.mark.parametrize("form", [*UNNUMBERED, *NUMBERED])
def test_the_command_shows_the_same_classes_of_all_forms(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, {**UNNUMBERED, **NUMBERED}[form])
    assert main(["vocabulary", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown == "building, edifice | stuff\ntraffic light | thing\ndog, puppy | thing\n"
    assert Vocabulary.load(written(tmp_path, shown, "again.txt")).classes == CLASSES
    assert main(["vocabulary", str(path), "--json"]) == 0
    assert Vocabulary.load(written(tmp_path, capsys.readouterr().out, "again.json")).classes == CLASSES


def test_what_lexiseg_writes_is_read(tmp_path: Path) -> None:
    write_classes(tmp_path, Vocabulary(CLASSES).names, Vocabulary(CLASSES).things)
    for name in ("classes.txt", "classes.json"):
        words = ClassList.load(tmp_path / name)
        assert (words.vocabulary.names, words.vocabulary.things) == (Vocabulary(CLASSES).names, Vocabulary(CLASSES).things)
        assert words.ids == (0, 1, 2)


def test_ids_are_no_part_of_names_in_strings_and_lists_either() -> None:
    for value in ("0: void; 7: dog, puppy; 3:cat", ["0: void", "7: dog, puppy", "3:cat"]):
        assert Vocabulary.parse(value).all_names == ("dog", "puppy", "cat")
    assert Vocabulary.parse("void; dog").names == ("void", "dog")  # without an id it is a name like others


REFUSED = {
    "nothing": ("", "words.txt is empty"),
    "blank lines": ("\n \n# x\n", "words.txt is empty"),
    "an empty JSON list": ("[]", "words.txt is empty"),
    "void alone": ("7: void\n", "words.txt is empty"),
    "some with ids": ("7: dog\ncat\n", "words.txt: line 2 ('cat') has no id while line 1 has"),
    "some with ids in JSON": ('[{"name": "dog", "id": 1}, "cat"]', "words.txt: entry 2 ('cat') has no id while entry 1 has"),
    "an id twice": ("7: dog\n\n07: puppy\n", "words.txt: id 7 is in line 1 and line 3"),
    "a key twice": ('{"1": "dog", "1": "cat"}', "the key '1' stands twice"),
    "a key twice but for zeros": ('{"1": "dog", "01": "cat"}', "words.txt: id 1 is in id '1' and id '01'"),
    "a name twice": ("dog\n\nDog\n", "words.txt: 'Dog' names line 1 and line 3"),
    "a name twice under two ids": ("1: dog\n2: dog\n", "words.txt: 'dog' names line 1 and line 2"),
    "a name that is a synonym elsewhere": ("dog, cat\ncat\n", "words.txt: 'cat' is line 2 and a synonym in line 1 ('dog')"),
    "a negative id": ("-1: dog\n", "words.txt, line 1 has the id -1: ids are values of label maps, 0 to 65535"),
    "a signed id": ("+1: dog\n", "words.txt, line 1 has the id +1"),
    "an id beyond 16 bits": ("1: dog\n65536: cat\n", "words.txt, line 2 has the id 65536"),
    "the id of void": ("65535: dog\n", "words.txt: line 1 has the id 65535; 65535 is void"),
    "an id without end": ("9" * 5000 + ": dog\n", "words.txt, line 1 has the id 9999"),
    "a huge id in JSON": ('[{"name": "dog", "id": 10000000000000000000000}]', "words.txt, entry 1 is "),
    "a huge key in JSON": ('{"10000000000000000000000": "dog"}', "has the id 10000000000000000000000"),
    "a negative id in JSON": ('[{"name": "dog", "id": -1}]', "words.txt, entry 1 has the id -1"),
    "an id that is half a number": ('[{"name": "dog", "id": 1.5}]', "words.txt, entry 1 is .*whole number"),
    "an id that is a word": ('[{"name": "dog", "id": "a"}]', "words.txt, entry 1 is .*whole number"),
    "no name": ("dog\n3:\n", "words.txt, line 2 has an empty name"),
    "an empty synonym": ("dog\ncat,,kitten\n", "words.txt, line 2 has an empty name"),
    "a string saved as a file": (
        "dog; cat; grass\n",
        "words.txt has one line, 'dog; cat; grass': are these classes or synonyms",
    ),
    "two separators": ("sky\ndog, puppy; cat\n", "words.txt, line 2 is 'dog, puppy; cat': has both ',' and ';'"),
    "an unknown kind": ("dog\ncat | animal\n", "words.txt, line 2 ends in '| animal'"),
    "a kind within": ("sky | stuff; dog | thing\nx\n", "words.txt, line 1 ends in "),
    "a sentence": ("dog\n" + "very " * 100 + "\n", "words.txt, line 2 is .*sentence"),
    "an escape sequence": ("dog\n\x1b[31mcat\n", "words.txt, line 2 is '\\x1b[31mcat': U+001B is a control character"),
    "a form feed": ("dog\x0ccat\n", "words.txt, line 1 is 'dog\\x0ccat': U+000C"),
    "a line separator": ("dog\u2028cat\n", "words.txt, line 1 is 'dog\\u2028cat': U+2028"),
    "a mark that turns text": ("dog\n\u202ecat\n", "words.txt, line 2 is '\\u202ecat': U+202E"),
    "a byte order mark within": ("dog\n\ufeffcat\n", "words.txt, line 2 is '\\ufeffcat': U+FEFF"),
    "a zero byte": ("dog\0cat\n", "words.txt is not text"),
    "half a character in JSON": ('["dog", "\\ud83d"]', "words.txt, entry 2 is '\\ud83d': U+D83D"),
    "a control character in JSON": ('["a\\u0000b"]', "words.txt, entry 1 is 'a\\x00b': U+0000"),
    "JSON cut off": ('["dog", ', "words.txt is not JSON"),
    "JSON nested too deep": ("[" * 100_000, "words.txt is JSON nested too deep"),
    "JSON of numbers": ("[1, 2]", "words.txt, entry 1 is 1; accepted are a list of strings"),
    "JSON of lists": ('[["dog"]]', "words.txt, entry 1 is ['dog']; accepted are"),
    "an object of words": ('{"dog": "puppy"}', "words.txt is JSON of another form; accepted are a list of strings"),
    "from name to id": ('{"dog": 1}', "words.txt is JSON of another form; accepted are"),
    "from id to a number": ('{"1": 2}', "words.txt, id '1' is 2; accepted are"),
    "an object of nothing": ("{}", "words.txt is JSON of another form"),
    "an object without name": ('[{"id": 3}]', "words.txt, entry 1 is {'id': 3}: 'name' must be a string"),
    "synonyms that are no list": ('[{"name": "dog", "synonyms": 3}]', "words.txt, entry 1 is "),
    "a kind that is no flag": ('[{"name": "dog", "isthing": 2}]', "words.txt, entry 1 is .*must be 0 or 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_the_file_and_the_line(case: str, tmp_path: Path) -> None:
    text, message = REFUSED[case]
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        ClassList.load(path)
    said = str(caught.value)
    for part in message.split(".*"):
        assert part in said
    assert str(path) in said
    assert len(said.replace(str(path), "")) < 320
    assert said.isprintable()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("dog\ncat\n".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("dog\ncat\n".encode("utf-16-le"), "is not text"),
        ('["dog"]'.encode("utf-32"), "not UTF-8|not text"),
        ("caf\u00e9".encode("latin-1"), r"not UTF-8 text \(byte 3\)"),
    ],
)
def test_other_encodings_are_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(data)
    with pytest.raises(UsageError, match=message):
        ClassList.load(tmp_path / "words.txt")


@pytest.mark.parametrize("name", ["a\0b.txt", "x" * 5000, "x" * 5000 + ".txt", "\ud800.txt", "no/such/list"])
def test_paths_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UsageError):
        ClassList.load(name)


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_lists_are_as_their_files_say(name: str) -> None:
    folder = Path(__file__).parents[2] / "src/lexiseg/assets/vocabularies"
    lines = (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.rpartition(" | ") for line in lines if not line.startswith("#")]
    expected = [(tuple(names.split(", ")), kind == "thing") for names, _, kind in rows]
    words = ClassList.load(name)
    assert [(entry.names, entry.thing) for entry in words.vocabulary.classes] == expected
    assert words.ids == tuple(range(len(expected)))
    assert words.void == frozenset()
