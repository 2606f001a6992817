"""``lexiseg vocabulary``."""

from __future__ import annotations

import argparse
import json

from lexiseg.text.vocabulary import Vocabulary, builtin_names


def run(arguments: argparse.Namespace) -> int:
    """List the built-in vocabularies, or the classes of one."""
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
