"""Models that others have put on the Hugging Face hub, by the name ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``.

A repository holds ``model.safetensors`` and ``card.json``, as `lexiseg.Pipeline.push_to_hub` writes them. ``card.json`` says
which model it is; nothing else of the repository is read, and no code of it is executed. The config in it is validated like
that of any card, and its frozen backbones are the published ones that its model names in `SOURCES`, whatever the card says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lexiseg.backbones.hub import OWNED, fetched, kind_of_repository
from lexiseg.backbones.sam_loading import FAMILIES
from lexiseg.backbones.sources import Source
from lexiseg.errors import UsageError, WeightsError
from lexiseg.methods.variant import Variant
from lexiseg.methods.weights import CARD_FILE, MODEL_FILE, checked_card

PREFIX = "hf:"
MAX_CARD, MAX_WEIGHTS = 2**24, 2**35  # bytes of a card.json and a model.safetensors that are downloaded
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
# Part that takes models of transformers of a type.
_PARTS = {
    **dict.fromkeys(FAMILIES, "sam"),
    **dict.fromkeys(("grounding-dino", "mm-grounding-dino"), "detector"),
    "mask2former": "proposer",
}


def parse_shared(name: str) -> tuple[str, str | None]:
    """Split ``hf:OWNER/NAME@REVISION`` into repository and revision, None if there is none.

    Raises:
        UsageError: it has another form.
    """
    repository, at, revision = name.removeprefix(PREFIX).partition("@")
    if not OWNED.fullmatch(repository) or (at and not _REVISION.fullmatch(revision)):
        raise UsageError(f"'{name}' is not the name of a model on the hub: write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    return repository, revision or None


def shared_model(name: str, models: Mapping[str, Variant]) -> Variant:
    """Return a model on the hub, whose card is downloaded unless it is in the hub client's cache.

    Args:
        name: ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION``.
        models: all models by name.

    Raises:
        UsageError: the name has another form.
        WeightsError: there is no such repository, it is not one of lexiseg, or its card is invalid.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError  # heavy

    repository, revision = parse_shared(name)
    advice = f"copy {CARD_FILE} and {MODEL_FILE} of it to a folder, and give that to lexiseg.from_pretrained"
    try:
        file = fetched(repository, CARD_FILE, advice=advice, revision=revision, max_bytes=MAX_CARD)
    except WeightsError as error:
        if isinstance(error.__cause__, RemoteEntryNotFoundError):
            raise WeightsError(_foreign(repository, revision)) from error
        raise
    card = checked_card(file.read_bytes(), file)
    if "model" not in card:
        raise WeightsError(_foreign(repository, revision))
    base = model_of_card(card, name, models)
    licence = str(card.get("licence") or "none stated")[:60]
    digests = card.get("sha256")
    source = Source(
        MODEL_FILE,
        licence,
        repository,
        (CARD_FILE,),
        digest=str(digests.get(MODEL_FILE)) if isinstance(digests, Mapping) else None,
        revision=revision,
        max_bytes=MAX_WEIGHTS,
    )
    return base.with_weights(name, card, source)


def model_of_card(card: Mapping[str, Any], where: str, models: Mapping[str, Variant]) -> Variant:
    """Return the model of a card that names one.

    Args:
        card: the card.
        where: where it is, for messages.
        models: all models by name.

    Raises:
        WeightsError: there is no such model.
    """
    model = models.get(card["model"])
    if model is None:
        raise WeightsError(
            f"{where} holds weights of the model {card['model']!a:.60}, which this version of lexiseg does not have; "
            "'lexiseg models' lists those it has"
        )
    return model


def _foreign(repository: str, revision: str | None) -> str:
    """Message about a repository without a card: what it is, and what can be done with it."""
    library, kind = kind_of_repository(repository, revision)
    what = f"{repository} is no model of lexiseg: it has no {CARD_FILE} with the name of one"
    if library:
        what = f"{repository} is a model of {library!a}{f' ({kind!a})' if kind else ''}, not of lexiseg"
    if part := _PARTS.get(kind):
        return f"{what}; it can be a part of a model: --model NAME --weights {part}={repository}"
    if library == "open_clip":
        return f"{what}; its CLIP can be a part of a model: --model NAME --weights clip=FILE"
    return f"{what}; 'lexiseg models' lists the models that can be loaded"
