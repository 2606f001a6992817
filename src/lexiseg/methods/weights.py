"""Our format of weights: a folder with ``model.safetensors``, with the names of the segmenter, and ``card.json``.

    save_segmenter(segmenter, folder, {"model": "fcclip-tiny"})     trained parts; CLIP and SAM on request
    card = fill_from(segmenter, folder)                             or from the safetensors file alone

The card records the model's name and whole config, the classes it was trained on, the origin of the weights of its backbones,
and its training. It is also stored in the header of ``model.safetensors``, which is what loading reads; ``card.json`` is for
readers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lexiseg.backbones.digests import digest_of
from lexiseg.backbones.eight_bits import STEP
from lexiseg.backbones.state_dicts import read_state, some
from lexiseg.errors import OutputError, UsageError, WeightsError
from lexiseg.methods.base import Segmenter, TrainingClasses
from lexiseg.ops.files import is_file, is_folder, replacing, write_json
from lexiseg.ops.options import to_document, without_paths

MODEL_FILE, CARD_FILE = "model.safetensors", "card.json"
CARD_KEY = "lexiseg"  # key in the safetensors header
LEAN = "lean"  # card key: of partly trained parts, the file holds only the trained parameters


class CardFields(BaseModel):
    """Fields of a card that loading needs; others are informative.

    Attributes:
        model: name of the model.
        config: all options of its method.
        training_classes: names of each training class, synonyms included.
        backbones: repository of each backbone, or its file and SHA-256.
        partial: name prefixes; of the parts of these prefixes, the file holds only matching parameters.
        lean: whether frozen parameters of trained parts are left out.
    """

    model: str = ""
    config: dict[str, Any] = {}
    training_classes: Sequence[Sequence[str]] | None = None
    backbones: dict[str, dict[str, str]] = {}
    partial: Sequence[str] = ()
    lean: bool = False


@dataclass(frozen=True)
class SavedWeights:
    """Weights in our format.

    Attributes:
        tensors: by name; the first component of a name is the part.
        card: their description.
        file: file they were read from.
    """

    tensors: dict[str, Tensor]
    card: dict[str, Any]
    file: Path

    def parts(self) -> frozenset[str]:
        """Names of the parts in the file."""
        return frozenset(_part(name) for name in self.tensors)

    @property
    def lean(self) -> bool:
        """Whether frozen parameters of trained parts are left out."""
        return bool(self.card.get(LEAN))

    @property
    def partial(self) -> tuple[str, ...]:
        """Name prefixes: of the parts of these prefixes, the file holds only matching parameters."""
        return tuple(self.card.get("partial", ()))

    @property
    def training_classes(self) -> TrainingClasses | None:
        """Names of the training classes, synonyms included."""
        classes = self.card.get("training_classes")
        return None if classes is None else tuple(map(tuple, classes))


def save_segmenter(
    segmenter: Segmenter, folder: str | Path, card: Mapping[str, Any], *, all_parts: bool = False, half: bool = False
) -> dict[str, Any]:
    """Save a segmenter's weights in our format, replacing those in ``folder``.

    Args:
        segmenter: on any device.
        folder: created if it does not exist.
        card: description; ``"model"`` is the name for `lexiseg.load`. Config without paths, training classes, files, date and
            version are added. The trained parts are saved, and those in ``"parts"``.
        all_parts: also save the frozen parts, CLIP and SAM, so that loading needs no other files.
        half: see `write_weights`.

    Returns:
        The card as written.

    Raises:
        UsageError: nothing is trained, and ``all_parts`` is False.
        OutputError: the folder cannot be written.
    """
    parts = frozenset(segmenter.parts())
    wanted = parts if all_parts else segmenter.trained_parts() | (parts & frozenset(card.get("parts", ())))
    if not wanted:
        raise UsageError("this model has no trained parts to save; pass all_parts=True to save the frozen ones")
    about = {
        **card,
        "config": to_document(without_paths(segmenter.config)),
        "training_classes": segmenter.training_classes,
    }
    return write_weights(_state(segmenter, wanted), folder, about, half=half)


def write_weights(
    tensors: Mapping[str, Tensor], folder: str | Path, card: Mapping[str, Any], *, half: bool = False
) -> dict[str, Any]:
    """Write named tensors and their card; see `save_segmenter`.

    Args:
        tensors: by name.
        folder: created if it does not exist.
        card: see `save_segmenter`.
        half: convert to half precision, see `halved`.

    Raises:
        OutputError: the folder cannot be written.
    """
    held = halved(tensors) if half else dict(tensors)
    about: dict[str, Any] = {
        **card,
        "lexiseg": _version(),
        "date": datetime.now(UTC).date().isoformat(),
        "parts": sorted({_part(name) for name in held}),
        "tensors": sum(not name.endswith(STEP) for name in held),
        "numbers": sum(tensor.numel() for name, tensor in held.items() if not name.endswith(STEP)),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in held.values()}),
    }
    file = Path(folder) / MODEL_FILE
    write_safetensors(held, file, {CARD_KEY: json.dumps(about, ensure_ascii=False)})
    about["sha256"] = {MODEL_FILE: digest_of(file)}
    write_json(Path(folder) / CARD_FILE, about, indent=1)
    return about


def write_safetensors(tensors: Mapping[str, Tensor], file: Path, header: Mapping[str, str] | None = None) -> None:
    """Write tensors atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(file, apart=True) as temporary:  # safetensors writes a temporary file and renames it
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(_apart(tensors), temporary, {"format": "pt", **(header or {})})
        except SafetensorError as error:
            raise OutputError(f"cannot write {file}: {error}; choose another folder or free some space") from error
        temporary.chmod(mode)  # safetensors restricts it to the owner


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert matrices and kernels to float16, if their values are in its range; vectors and scalars are kept."""
    return {name: _half(tensor) for name, tensor in tensors.items()}


def read_card(path: str | Path) -> dict[str, Any] | None:
    """Read the card of weights in our format, a folder or its safetensors file; None if they have another format.

    Raises:
        WeightsError: the file is missing or damaged, or its card is invalid.
    """
    file = _file(path)
    if not is_file(file):
        raise WeightsError(f"the weights {file} do not exist; give a checkpoint as published, or what 'lexiseg convert' wrote")
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(str(file), "pt") as opened:
            header = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"cannot read weights from {file}: damaged or no weights file; fetch it again") from error
    return checked_card(header[CARD_KEY], file) if CARD_KEY in header else None


def checked_card(text: str | bytes, file: Path) -> dict[str, Any]:
    """Parse and validate a card.

    Args:
        text: the card as JSON.
        file: the file it is in, for messages.

    Raises:
        WeightsError: it is no JSON, or invalid.
    """
    try:
        card: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the card in {file} is no JSON ({error!r}); fetch the file again") from error
    try:
        CardFields.model_validate(card, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise WeightsError(f"the card in {file} is damaged: {where}: {first['msg']}; fetch the file again") from error
    return card


def read_weights(path: str | Path, *, model: str | None = None) -> SavedWeights:
    """Weights in our form, floating point as float32.

    Args:
        path: a folder or its safetensors file.
        model: whose weights they must be; any model's if left out.

    Raises:
        WeightsError: missing, damaged, of another form, or another model's.
    """
    file, card = _file(path), read_card(path)
    if card is None:
        raise WeightsError(
            f"{path} has no card, so it was not written by lexiseg; 'lexiseg convert' reads official checkpoints"
        )
    if model is not None and card.get("model") != model:
        raise WeightsError(f"{path} holds weights of {card.get('model')}, not of {model}; load it under that name")
    return SavedWeights({name: _full(tensor) for name, tensor in read_state(file).items()}, card, file)


def fill_from(segmenter: Segmenter, path: str | Path, *, model: str | None = None) -> dict[str, Any]:
    """Load weights in our format into a segmenter; frozen parts that the file leaves out are not changed.

    Args:
        segmenter: built as the saved one, with the same CLIP if the file is lean; keeps its device and precision.
        path, model: see `read_weights`.

    Returns:
        The card.

    Raises:
        WeightsError: see `read_weights`; or weights are missing, unexpected, or of another shape.
    """
    saved = read_weights(path, model=model)
    fill(segmenter, saved, elsewhere=frozenset(segmenter.parts()) - segmenter.trained_parts() - saved.parts())
    return saved.card


def fill(segmenter: Segmenter, saved: SavedWeights, *, elsewhere: Collection[str]) -> None:
    """Load weights into a segmenter, see `check_saved`."""
    segmenter.load_state_dict(check_saved(segmenter, saved, elsewhere=elsewhere), strict=False)


def check_saved(segmenter: Segmenter, saved: SavedWeights, *, elsewhere: Collection[str]) -> dict[str, Tensor]:
    """Check names and shapes of weights against a segmenter, which may be on the device "meta".

    Args:
        segmenter: built with the config of the weights.
        saved: the weights.
        elsewhere: parts that have their weights already; the file may hold some of them in a lean or partial form.

    Returns:
        The tensors to load into the segmenter.

    Raises:
        WeightsError: weights are missing, unexpected, or of another shape.
    """
    own = segmenter.state_dict()
    pieces = frozenset(map(_part, saved.partial))
    complete = frozenset(elsewhere) - pieces - (segmenter.trained_parts() if saved.lean else frozenset())
    tensors = {name: tensor for name, tensor in saved.tensors.items() if _part(name) not in complete}
    if saved.lean:
        tensors = {**{name: own[name] for name in segmenter.untouched_parameters()}, **tensors}
    expected = {
        name: value
        for name, value in own.items()
        if _part(name) not in complete and (_part(name) not in pieces or name.startswith(saved.partial))
    }
    check(tensors, expected, saved.file)
    return tensors


def check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str | Path) -> None:
    """Check names and shapes of tensors against those of a model, which may be on the device "meta".

    Raises:
        WeightsError: weights are missing, unexpected, or of another shape, by name.
    """
    problems = [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"{name} is unknown" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if problems:
        raise WeightsError(f"{source} is another model's: {some(problems)}")


def digest_of_parameters(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, with their names, in hexadecimal."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _version() -> str:
    try:
        return version("lexiseg")
    except PackageNotFoundError:  # run from a source tree
        return "not installed"


def _file(path: str | Path) -> Path:
    folder = Path(path)
    if not is_folder(folder):
        return folder
    if not is_file(folder / MODEL_FILE):
        raise WeightsError(f"{folder} has no {MODEL_FILE}; give the folder that 'lexiseg convert' or a training wrote")
    return folder / MODEL_FILE


def _state(segmenter: nn.Module, parts: Collection[str]) -> dict[str, Tensor]:
    return {name: value for name, value in segmenter.state_dict().items() if _part(name) in parts}


def _part(name: str) -> str:
    return name.split(".", 1)[0]


def _half(tensor: Tensor) -> Tensor:
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return tensor
    small = tensor.half()
    return small if small.isfinite().all() or not tensor.isfinite().all() else tensor


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, contiguous and without shared memory, as safetensors requires."""
    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        single = tensor.detach().cpu().contiguous()
        whole = single.untyped_storage().nbytes() == single.nbytes
        address = single.untyped_storage().data_ptr()
        held[name] = single if whole and address not in seen else single.clone()
        seen.add(address)
    return held
