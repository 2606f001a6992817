"""Our own form of weights: a folder with ``model.safetensors``, names as in the segmenter, and ``card.json``.

    save_segmenter(segmenter, folder, {"model": "fcclip-tiny"})     the parts its recipe trains; CLIP and SAM on request
    card = fill_from(segmenter, folder)                             or the safetensors file alone

The card says what the weights are: the model's name and whole config, the classes it was trained on, where the weights of its
backbones come from, and how it was trained. It is in the header of ``model.safetensors``, too: that one is read, ``card.json``
is for people.
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

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lexiseg.backbones.eight_bits import STEP
from lexiseg.backbones.state_dicts import read_state, some
from lexiseg.errors import OutputError, UsageError, WeightsError
from lexiseg.methods.base import Segmenter, TrainingClasses
from lexiseg.ops.files import replacing, write_json
from lexiseg.ops.options import to_document

MODEL_FILE, CARD_FILE = "model.safetensors", "card.json"
CARD_KEY = "lexiseg"  # of the safetensors header
LEAN = "lean"  # in a card: of parts that are trained in part, the file holds that part only


class CardFields(BaseModel):
    """What loading needs of a card; whatever else it says is for people.

    Attributes:
        model: name of the model.
        config: all options of its method.
        training_classes: of each class of the training its name and synonyms.
        backbones: of each backbone the repository, or the file and its SHA-256.
        partial: beginnings of names: of the parts they begin with, the file holds these names only.
        lean: whether what was not trained inside trained parts is left out.
    """

    model: str = ""
    config: dict[str, Any] = {}
    training_classes: Sequence[Sequence[str]] | None = None
    backbones: dict[str, dict[str, str]] = {}
    partial: Sequence[str] = ()
    lean: bool = False


@dataclass(frozen=True)
class SavedWeights:
    """Weights in our form.

    Attributes:
        tensors: by name; the first word of a name is the part.
        card: what they are.
        file: where they were read.
    """

    tensors: dict[str, Tensor]
    card: dict[str, Any]
    file: Path

    def parts(self) -> frozenset[str]:
        """The parts the file holds, as far as they have parameters."""
        return frozenset(_part(name) for name in self.tensors)

    @property
    def lean(self) -> bool:
        """Whether the file leaves out what was not trained inside the parts that were."""
        return bool(self.card.get(LEAN))

    @property
    def partial(self) -> tuple[str, ...]:
        """Beginnings of names: of the parts they begin with, the file holds these names only; the rest comes with the part."""
        return tuple(self.card.get("partial", ()))

    @property
    def training_classes(self) -> TrainingClasses | None:
        """Names and synonyms of the classes of the training."""
        classes = self.card.get("training_classes")
        return None if classes is None else tuple(map(tuple, classes))


def save_segmenter(
    segmenter: Segmenter, folder: str | Path, card: Mapping[str, Any], *, all_parts: bool = False, half: bool = False
) -> dict[str, Any]:
    """Write a segmenter's weights in our form, replacing those in ``folder``.

    Args:
        segmenter: on any device; parameters and buffers are written as they are.
        folder: is made if it is not there.
        card: what a reader should know. ``"model"`` is the name that `lexiseg.load` takes; the config, the training's
            classes, files, date and version are added.
        all_parts: also the frozen parts, CLIP and SAM, so that nothing else is needed to load the model.
        half: as `write_weights`.

    Returns:
        The card as written.

    Raises:
        UsageError: nothing is trained, and ``all_parts`` is False.
        OutputError: the folder cannot be written.
    """
    wanted = (frozenset(segmenter.parts()) if all_parts else segmenter.trained_parts()) - segmenter.dropped_parts()
    if not wanted:
        raise UsageError("no part of this model is trained: there is nothing to save, except all parts")
    about = {
        **card,
        "config": to_document(segmenter.saved_config),
        "training_classes": segmenter.training_classes,
    }
    return write_weights(_state(segmenter, wanted), folder, about, half=half)


def write_weights(
    tensors: Mapping[str, Tensor], folder: str | Path, card: Mapping[str, Any], *, half: bool = False
) -> dict[str, Any]:
    """Write named tensors and their card; see `save_segmenter`.

    Args:
        tensors: by name.
        folder: is made if it is not there.
        card: see `save_segmenter`.
        half: as `halved`.

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
    """Write tensors, or leave the old file as it was.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(file, apart=True) as temporary:  # safetensors writes a file beside it and renames that
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(_apart(tensors), temporary, {"format": "pt", **(header or {})})
        except SafetensorError as error:
            raise OutputError(f"cannot write {file}: {error}; choose another folder or free some space") from error
        temporary.chmod(mode)  # safetensors makes it for its owner alone


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in float16; vectors and numbers, which are small, stay, and so does what float16 cannot hold."""
    return {name: _half(tensor) for name, tensor in tensors.items()}


def read_card(path: str | Path) -> dict[str, Any] | None:
    """The card of weights in our form, a folder or its safetensors file; None if they are of another form.

    Raises:
        WeightsError: missing, a folder without ``model.safetensors``, damaged, or with a card that is none.
    """
    file = _file(path)
    if not file.is_file():
        raise WeightsError(f"the weights {file} do not exist; give a checkpoint as published, or what 'lexiseg convert' wrote")
    if file.suffix != ".safetensors":
        return None
    try:
        with safe_open(str(file), "pt") as opened:
            header = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"cannot read weights from {file}: damaged or no weights file; fetch it again") from error
    if CARD_KEY not in header:
        return None
    try:
        card = json.loads(header[CARD_KEY])
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
    """Put weights in our form into a segmenter; frozen parts that the file leaves out keep what they have.

    Args:
        segmenter: built as the one that was saved, on the same CLIP if the card says that the file is lean; keeps its device
            and precision.
        path, model: see `read_weights`.

    Returns:
        The card.

    Raises:
        WeightsError: as `read_weights`; and weights missing, left over, or of another shape.
    """
    saved = read_weights(path, model=model)
    fill(segmenter, saved, elsewhere=frozenset(segmenter.parts()) - segmenter.trained_parts() - saved.parts())
    return saved.card


def fill(segmenter: Segmenter, saved: SavedWeights, *, elsewhere: Collection[str]) -> None:
    """Put weights into a segmenter; see `check_saved`."""
    segmenter.load_state_dict(check_saved(segmenter, saved, elsewhere=elsewhere), strict=False)


def check_saved(segmenter: Segmenter, saved: SavedWeights, *, elsewhere: Collection[str]) -> dict[str, Tensor]:
    """Compare weights with what a segmenter has, which may be on the device "meta".

    Args:
        segmenter: built with the config of the weights.
        saved: the weights.
        elsewhere: parts that have their weights already; of these the file may hold some in a lean or a partial form.

    Returns:
        Those that the segmenter takes from the file.

    Raises:
        WeightsError: weights are missing, left over, or of another shape.
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
    """Hold tensors against what a model has, which may be on the device "meta".

    Raises:
        WeightsError: weights are missing, left over, or of another shape, by name.
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


def digest_of(file: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _version() -> str:
    try:
        return version("lexiseg")
    except PackageNotFoundError:  # run from its sources; no reason to lose a training
        return "not installed"


def _file(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        return folder
    if not (folder / MODEL_FILE).is_file():
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
    """On the CPU, in one piece each; of names for the same memory every one gets its own, as safetensors demands."""
    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        single = tensor.detach().cpu().contiguous()
        whole = single.untyped_storage().nbytes() == single.nbytes
        address = single.untyped_storage().data_ptr()
        held[name] = single if whole and address not in seen else single.clone()
        seen.add(address)
    return held
