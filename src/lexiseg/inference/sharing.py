"""Save a model for others: `lexiseg.Pipeline.save_pretrained` and `push_to_hub`.

A saved model is a folder with ``model.safetensors`` and ``card.json`` (`lexiseg.methods.weights`), and a model card for
readers, ``README.md`` (`lexiseg.inference.model_card`). Frozen backbones are not in it unless they are asked for, as in the
weights of a training: the card names the published ones. [decided] A copy in every repository would be many times the size of
the trained parts, and would be published under licences that the user has not chosen.

Folders of this machine do not leave it: the config is saved without paths, and data sets at a path by their last name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lexiseg.backbones.hub import upload
from lexiseg.errors import UsageError
from lexiseg.inference.model_card import model_card
from lexiseg.methods.base import Segmenter
from lexiseg.methods.shared import PREFIX
from lexiseg.methods.weights import CARD_FILE, MODEL_FILE, save_segmenter
from lexiseg.ops.files import write_atomically

README = "README.md"


def save(
    segmenter: Segmenter,
    folder: str | Path,
    *,
    repository: str | None = None,
    all_parts: bool = False,
    licence: str | None = None,
) -> Path:
    """Write a segmenter's weights with their card and a model card into a folder.

    Args:
        segmenter: a segmenter of `Variant.load`.
        folder: created if it does not exist.
        repository: its repository on the hub, for the model card; None: it has none.
        all_parts, licence: see `lexiseg.Pipeline.save_pretrained`.

    Returns:
        The folder.

    Raises:
        UsageError: nothing of the model is trained, or it has no card.
        OutputError: the folder cannot be written.
    """
    name = segmenter.card.get("model")
    if not name:
        raise UsageError("this pipeline does not know which model it is; save one that lexiseg.load returned")
    if not segmenter.trained_parts():
        raise UsageError(f"nothing of {name} is trained, so there is nothing to save: lexiseg.load({name!r}) is all of it")
    stated = {"licence": licence} if licence else {}
    card = save_segmenter(segmenter, folder, {**_without_folders(segmenter.card), **stated}, all_parts=all_parts)
    text = str(model_card(card, segmenter, f"{PREFIX}{repository}" if repository else None))
    write_atomically(Path(folder) / README, text.encode(errors="replace"))
    return Path(folder)


def push(
    segmenter: Segmenter,
    repository: str,
    *,
    token: str | None,
    private: bool | None,
    all_parts: bool,
    licence: str | None,
    message: str | None,
) -> str:
    """Upload a segmenter to the hub, see `lexiseg.Pipeline.push_to_hub`.

    Raises:
        UsageError: as `save` and `upload`.
        OutputError: as `upload`; or the disk is full.
    """
    with TemporaryDirectory(prefix="lexiseg-") as folder:
        save(segmenter, folder, repository=repository, all_parts=all_parts, licence=licence)
        return upload(
            Path(folder),
            repository,
            (MODEL_FILE, CARD_FILE, README),
            message=message or f"{segmenter.card['model']}, by lexiseg",
            private=private,
            token=token,
        )


def _without_folders(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card whose recipe names data sets at a path by their last name."""
    recipe = card.get("recipe")
    if not isinstance(recipe, Mapping):
        return dict(card)
    return {**card, "recipe": {key: _last(value) if key in ("data", "validation") else value for key, value in recipe.items()}}


def _last(name: object) -> object:
    """The last part of a path, or of each of several."""
    if isinstance(name, list | tuple):
        return [_last(item) for item in name]
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if isinstance(name, str) else name
