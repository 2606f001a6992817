"""Weights of a model that are not on this machine: what they are, whether the user wants them, and their download."""

from __future__ import annotations

import sys
from collections.abc import Collection

from lexiseg.backbones.sources import Source
from lexiseg.cli.progress_line import ProgressLine
from lexiseg.cli.streams import one_line
from lexiseg.errors import UsageError, WeightsError
from lexiseg.inference.choice import TOY
from lexiseg.methods.variant import Variant
from lexiseg.ops.progress import reporting


def size_text(size: int | None) -> str:
    """A number of bytes for readers, "about 599 MB"; empty if it is unknown."""
    if size is None:
        return ""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def missing(model: Variant, given: Collection[str] = ()) -> dict[str, Source]:
    """Sources of a model's weights that are not on this machine, by part, without those that the user gives."""
    return {part: source for part, source in model.required.items() if part not in given and not source.present()}


def described(model: Variant, sources: dict[str, Source]) -> str:
    """One line about a model's missing weights: size, licence and location of each."""
    total = size_text(sum(source.size or 0 for source in sources.values()))
    parts = "; ".join(f"{part}: {_facts(source)}, from {source.where}" for part, source in sources.items())
    return f"{model.name} needs about {total} of weights that are not on this machine ({parts})"


def _facts(source: Source) -> str:
    gated = ", gated" if source.gated else ""
    return f"{size_text(source.size)}, licence {source.licence}{gated}".removeprefix(", ")


def fetch(model: Variant, sources: dict[str, Source], *, yes: bool, ask: bool) -> None:
    """Download weights, with a line about them, and a question if that is wanted or a licence demands it.

    Args:
        model: the model.
        sources: its sources to fetch, by part.
        yes: do not ask.
        ask: ask also for weights of permissive licences.

    Raises:
        UsageError: the user has not consented, or cannot be asked.
        WeightsError: a download fails, or nobody has published the weights.
    """
    if not sources:
        return
    for source in sources.values():
        if source.recipe:
            raise WeightsError(
                f"{model.name} has no published weights: train it (`{source.recipe}`) and give "
                f"--weights {model.method.key}=FOLDER"
            )
    print(one_line(described(model, sources)), file=sys.stderr)
    if not yes and (ask or any(source.needs_consent for source in sources.values())) and not confirmed("Fetch them?"):
        raise UsageError(
            f"nothing is fetched without consent: give --yes, or call 'lexiseg fetch {model.name} --yes' before; without a "
            f"connection take --model {TOY}, a toy in the package that knows only drawings"
        )
    for part, source in sources.items():
        _fetch(part, source)


def _fetch(part: str, source: Source) -> None:
    """Download a file, with a line on the terminal until the transfer begins, which has a bar of its own."""
    with ProgressLine(f"fetching {part}") as line, reporting(lambda _: line.pause()):
        source.fetch()


def confirmed(question: str) -> bool:
    """Ask a question on the terminal; False without one."""
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stderr.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
