"""Commands and options, without anything that is slow to import."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from lexiseg import __version__

TASKS = ("panoptic", "semantic", "instance")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; ``command`` names the module that runs."""
    parser = argparse.ArgumentParser(prog="lexiseg", description="Segment any image by words.")
    parser.add_argument("--version", action="version", version=f"lexiseg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add, summary in (
        ("segment", _segment, "segment pictures by words"),
        ("models", _models, "list the models and what they need"),
        ("vocabulary", _vocabulary, "list the built-in vocabularies, or show one"),
        ("world", _world, "render the emoji world with its ground truth"),
    ):
        add(commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."))
    return parser


def _segment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files, globs ('photos/*.jpg'), or - for standard input")
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument(
        "--classes", metavar="WORDS", help="'dog, puppy; grass; sky': semicolons between classes, commas between synonyms"
    )
    words.add_argument(
        "--vocabulary", metavar="NAME|FILE", help="a built-in list ('lexiseg vocabulary'), or a file with one class a line"
    )
    parser.add_argument("--task", choices=TASKS, default="panoptic")
    parser.add_argument("--model", default="sam_clip-tiny", metavar="NAME", help="see 'lexiseg models' (default: %(default)s)")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="PART=FILE",
        help="a local file in place of a published one; may be repeated",
    )
    parser.add_argument(
        "--threshold", type=_unit, default=0.0, metavar="P", help="least score in 0..1; what is below gets no name (default: 0)"
    )
    parser.add_argument("--background", metavar="NAME", help="a further name that competes; where it wins nothing is named")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument(
        "--output", metavar="DIR", help="where overlays, masks and segments go (default: lexiseg-output; with --json: nowhere)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document a picture, each on a line of standard output")


def _models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--describe", metavar="NAME", help="count the parameters of one model; needs no weights")
    parser.add_argument("--json", action="store_true")


def _vocabulary(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME|FILE", help="the list to show")
    parser.add_argument("--json", action="store_true")


def _world(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    render = actions.add_parser("render", help="write scenes as COCO panoptic and as label maps")
    render.add_argument("--split", default="val", metavar="NAME", help="train, val or style (default: %(default)s)")
    render.add_argument("--count", type=_positive, default=100, metavar="N")
    render.add_argument("--size", type=_positive, default=256, metavar="PIXELS")
    render.add_argument("--seed", type=int, default=0)
    render.add_argument("--output", required=True, metavar="DIR")
    render.add_argument("--json", action="store_true")


def _number(kind: Callable[[str], float], text: str, fits: Callable[[float], bool], wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = float("nan")
    if not fits(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
    return value


def _unit(text: str) -> float:
    return _number(float, text, lambda value: 0 <= value <= 1, "a number in 0..1")


def _positive(text: str) -> int:
    return int(_number(int, text, lambda value: value >= 1, "a whole number of at least 1"))
