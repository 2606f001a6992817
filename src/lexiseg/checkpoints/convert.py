"""Convert official checkpoints to lexiseg's weights and back: the same tensors renamed, with every key accounted for.

    methods with published weights   ``model.safetensors`` + ``card.json``, accepted by `lexiseg.load`
    SAM, HQ-SAM, MobileSAM, SAM 2    also ``config.json``, accepted by ``--weights sam=``
    Mask2Former                      also ``config.json``, accepted by ``--weights proposer=``

Frozen encoders (CLIP, SAM) that a checkpoint contains are kept, so that one folder holds the whole model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from lexiseg.backbones import mask2former, mask2former_weights, sam2_weights, sam_weights
from lexiseg.backbones.digests import digest_of
from lexiseg.backbones.sam_loading import SAM_NAMES, config_document, from_official_state, sam_name
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import UsageError, WeightsError
from lexiseg.methods import MODELS
from lexiseg.methods.variant import Variant
from lexiseg.methods.weights import (
    CARD_FILE,
    MODEL_FILE,
    SavedWeights,
    halved,
    read_card,
    read_weights,
    write_safetensors,
    write_weights,
)
from lexiseg.ops.files import replacing, write_json

CONFIG_FILE = "config.json"
SUFFIXES = (".safetensors", ".pth", ".pt")


class Converter(Protocol):
    """Converts between an official checkpoint and lexiseg's weights."""

    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        """Official keys that are not converted, with the reason."""
        ...

    def ours(self, state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """Convert an official state dictionary; returns the tensors, and the content of the config file or None.

        Raises:
            WeightsError: the state dictionary is not the model's.
        """
        ...

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        """Convert lexiseg's weights to an official state dictionary.

        Raises:
            WeightsError: the official model lacks some of the parameters.
        """
        ...

    def card(self) -> dict[str, Any]:
        """The model card of the weights."""
        ...


class MethodConverter:
    """Converter of a method with published weights."""

    def __init__(self, variant: Variant) -> None:
        assert variant.official is not None
        self.variant, self.names = variant, variant.official

    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        return self.names.dropped(keys)

    def ours(self, state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        tensors = self.names.ours(state, source)
        self.variant.check_tensors(SavedWeights(tensors, self.card(), Path(source)))
        return tensors, None

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        return self.names.official(saved)

    def card(self) -> dict[str, Any]:
        return self.variant.official_card()


class SamConverter:
    """Converter of a SAM."""

    def __init__(self, name: str) -> None:
        self.name = name

    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: sam_weights.DROPPED[key] for key in keys if key in sam_weights.DROPPED}

    def ours(self, state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        sam = from_official_state(state, source)
        if sam_name(sam) != self.name:
            raise WeightsError(f"{source} is another model's: it holds {sam_name(sam)}, not {self.name}")
        return sam_weights.from_official(state), config_document(sam)

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        return sam_weights.to_official(saved.tensors)

    def card(self) -> dict[str, Any]:
        return {"model": self.name, "licence": "Apache-2.0"}


class Sam2Converter:
    """Converter of SAM 2 and 2.1 in all published sizes, without the parameters for video."""

    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: "only videos need it" for key in keys if key.startswith(sam2_weights.VIDEO)}

    def ours(self, state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        if sam2_weights.SAM2_KEY not in state:
            raise WeightsError(f"{source} is another model's: it holds no SAM 2")
        return sam2_weights.from_official(state), config_document(from_official_state(state, source))

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        return sam2_weights.to_official(saved.tensors)

    def card(self) -> dict[str, Any]:
        return {"model": SAM2, "licence": "Apache-2.0"}


class Mask2FormerConverter:
    """Converter of Mask2Former on a Swin Transformer or a ResNet."""

    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: reason for key in keys if (reason := mask2former_weights.reason_to_drop(key))}

    def ours(self, state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        document: dict[str, Any] = mask2former.from_official_state(state, source).model.config.to_dict()
        return mask2former_weights.from_official(state), document

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        return mask2former_weights.to_official(saved.tensors)

    def card(self) -> dict[str, Any]:
        return {"model": MASK2FORMER, "licence": "MIT; of some weights CC-BY-NC, see the authors' page"}


SAM2, MASK2FORMER = "sam2", "mask2former"


def converter_of(model: str) -> Converter:
    """Get the converter of ``model``.

    Raises:
        UsageError: the model has no official checkpoint.
    """
    published = {name: variant for name, variant in MODELS.items() if variant.official is not None}
    if model in published:
        return MethodConverter(published[model])
    if model in SAM_NAMES:
        return SamConverter(model)
    if model == SAM2:
        return Sam2Converter()
    if model == MASK2FORMER:
        return Mask2FormerConverter()
    known = ", ".join([*published, *SAM_NAMES, SAM2, MASK2FORMER])
    why = "has no weights that its authors published" if model in MODELS else "is unknown"
    raise UsageError(f"the model '{model}' {why}; checkpoints can be converted of {known}")


@dataclass(frozen=True)
class Report:
    """Result of a conversion.

    Attributes:
        files: written files.
        mapped: number of converted keys.
        dropped: keys that were not converted, with the reason.
        card: model card of the weights.
    """

    files: tuple[Path, ...]
    mapped: int
    dropped: Mapping[str, str]
    card: Mapping[str, Any]


def to_lexiseg(file: str | Path, model: str, folder: str | Path, *, half: bool = False, progress: bool = False) -> Report:
    """Convert an official checkpoint to lexiseg's weights.

    Args:
        file: checkpoint as published or as written by the official training, ``.pth``, ``.pkl`` or ``.safetensors``.
        model: name of the model.
        folder: output folder of ``model.safetensors`` and ``card.json``.
        half: store matrices and kernels in float16, see `lexiseg.methods.weights.halved`.
        progress: show a progress bar.

    Raises:
        UsageError: the model has no official checkpoint.
        WeightsError: the file cannot be read, or belongs to another model.
        OutputError: the folder cannot be written.
    """
    converter, folder = converter_of(model), Path(folder)
    if (card := read_card(file)) is not None:
        raise WeightsError(f"{file} is in lexiseg's form already, weights of {card.get('model')}; '--to official' goes back")
    with tqdm(total=4, unit="step", disable=None if progress else True) as steps:
        steps.set_description("reading")
        state = read_state(file)
        digest = digest_of(file)
        steps.update()
        steps.set_description("renaming")
        tensors, config = converter.ours(state, str(file))
        dropped = converter.dropped(state)
        steps.update()
        steps.set_description("writing")
        source = {"file": Path(file).name, "sha256": digest, "keys": len(state), "dropped": dropped}
        about = {**converter.card(), "source": source}
        files = [folder / MODEL_FILE, folder / CARD_FILE]
        if config is not None:
            files.append(folder / CONFIG_FILE)
            write_json(files[-1], config, indent=1)
        steps.update()
        card = write_weights(tensors, folder, about, half=half)
        steps.update()
    return Report(tuple(files), len(state) - len(dropped), dropped, card)


def to_official(path: str | Path, model: str, file: str | Path, *, half: bool = False) -> Report:
    """Convert lexiseg's weights to an official checkpoint, without tensors that the official code computes itself.

    Args:
        path: folder of the weights, or its ``model.safetensors``.
        model: name of the model.
        file: output file; ``.pth`` and ``.pt`` hold a dictionary of tensors in PyTorch's format.
        half: as in `to_lexiseg`.

    Raises:
        UsageError: the suffix is unknown, or the model has no official checkpoint.
        WeightsError: the weights cannot be read, belong to another model, or have no official name.
        OutputError: the file cannot be written.
    """
    converter, file = converter_of(model), Path(file)
    if file.suffix not in SUFFIXES:
        raise UsageError(f"--output {file}: name the checkpoint to be written, ending in {', '.join(SUFFIXES)}")
    saved = read_weights(path, model=model)
    official = converter.official(saved)
    tensors = halved(official) if half else official
    if file.suffix == ".safetensors":
        write_safetensors(tensors, file)
    else:
        with replacing(file) as temporary:
            torch.save({name: tensor.clone() for name, tensor in tensors.items()}, temporary)
    copies = {name: "a copy of another" for name in saved.tensors if name.removeprefix("sam.model.") in sam_weights.TIED}
    return Report((file,), len(official), copies, saved.card)
