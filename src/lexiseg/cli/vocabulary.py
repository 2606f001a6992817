"""``lexiseg vocabulary``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable

from lexiseg.errors import UsageError
from lexiseg.text.hygiene import HypernymPair, Hypernyms, Report, check, load
from lexiseg.text.vocabulary import Vocabulary, builtin_names


def run(arguments: argparse.Namespace) -> int:
    """List the built-in vocabularies, show the classes of one, or check one."""
    if arguments.name == "check":
        if arguments.checked is None:
            raise UsageError("which vocabulary is to be checked? Write 'lexiseg vocabulary check NAME|FILE'")
        return _check(arguments)
    if arguments.checked is not None or arguments.hypernyms is not None:
        raise UsageError("a second name and --hypernyms go with 'lexiseg vocabulary check NAME|FILE' only")
    if arguments.name is None:
        lists = {name: Vocabulary.builtin(name) for name in builtin_names()}
        if arguments.json:
            print(
                json.dumps(
                    [{"name": name, "classes": len(words), "things": sum(words.things)} for name, words in lists.items()]
                )
            )
            return 0
        for name, words in lists.items():
            things = sum(words.things)
            print(f"{name:<20} {len(words):>4} classes: {things} things, {len(words) - things} stuff")
        return 0
    words = Vocabulary.load(arguments.name)
    if arguments.json:
        print(json.dumps([{"name": row.name, "synonyms": list(row.synonyms), "thing": row.thing} for row in words.classes]))
        return 0
    for row in words.classes:
        print(f"{', '.join(row.names)} | {'thing' if row.thing else 'stuff'}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    words = load(arguments.checked)
    hypernyms = Hypernyms.builtin()
    if arguments.hypernyms is not None:
        hypernyms = hypernyms.joined(Hypernyms.from_file(arguments.hypernyms))
    report = check(words, hypernyms)
    if arguments.json:
        print(json.dumps({"name": arguments.checked, "classes": len(words), **_as_json(report, words.names)}))
        return 0
    print(f"{arguments.checked}: {len(words)} classes")
    for title, findings in _as_text(report, words.names).items():
        print(f"{title}: {'' if findings else 'none'}".rstrip())
        for finding in findings:
            print(f"  {finding}")
    return 0


def _as_json(report: Report, names: tuple[str, ...]) -> dict[str, object]:
    """The report as JSON values, with labels from 0 because names need not be unique."""
    return {
        "duplicates": [{"name": clash.name, "labels": clash.labels} for clash in report.duplicates],
        "shared": [{"name": clash.name, "labels": clash.labels} for clash in report.shared],
        "near": [{"names": clash.names, "labels": clash.labels} for clash in report.near],
        **{
            kind: [
                {"hypernym": names[pair.hypernym], "hyponym": names[pair.hyponym], "labels": [pair.hypernym, pair.hyponym]}
                for pair in pairs
            ]
            for kind, pairs in (("hypernyms", report.hypernyms), ("candidates", report.candidates))
        },
    }


def _as_text(report: Report, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Lines of the report by title, with classes counted from 1 as in the errors of `Vocabulary`."""

    def classes(labels: Iterable[int]) -> str:
        return ", ".join(f"{names[label]} (class {label + 1})" for label in labels)

    return {
        "names of several classes": [f"{clash.name}: {classes(clash.labels)}" for clash in report.duplicates],
        "synonyms in several classes": [f"{clash.name}: {classes(clash.labels)}" for clash in report.shared],
        "names that differ in plural, hyphens or spaces only": [
            f"{' / '.join(clash.names)}: {classes(clash.labels)}" for clash in report.near
        ],
        "classes within others, as declared": _grouped(report.hypernyms, names),
        "classes within others, by their last word (declare or deny them)": _grouped(report.candidates, names),
    }


def _grouped(pairs: Iterable[HypernymPair], names: tuple[str, ...]) -> list[str]:
    """One line per hypernym, in the order of the pairs."""
    lines: dict[int, list[str]] = {}
    for pair in pairs:
        lines.setdefault(pair.hypernym, []).append(names[pair.hyponym])
    return [f"{names[upper]} > {', '.join(lowers)}" for upper, lowers in lines.items()]
