"""Official checkpoints into our form of weights, and back: the same tensors under other names, every key accounted for.

    methods with published weights   ``model.safetensors`` + ``card.json``: what `lexiseg.load` takes for the official file
    SAM, HQ-SAM, MobileSAM, SAM 2    the same with ``config.json``: what ``--weights sam=`` takes
    Mask2Former                      likewise: what ``--weights proposer=`` takes

What is frozen, CLIP and SAM, is kept if the checkpoint holds it, so that one folder is all a model needs.
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
from lexiseg.backbones.sam_loading import SAM_NAMES, config_document, from_official_state, sam_name
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import UsageError, WeightsError
from lexiseg.methods import MODELS
from lexiseg.methods.variant import Variant
from lexiseg.methods.weights import (
    CARD_FILE,
    MODEL_FILE,
    SavedWeights,
    digest_of,
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
    """Between an official form of weights and ours."""

    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        """The official keys that carry no parameter, and why."""
        ...

    def ours(self, state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """An official state dictionary under our names, and the config file it needs, if any.

        Raises:
            WeightsError: it is not the model's.
        """
        ...

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        """The reverse.

        Raises:
            WeightsError: parameters that the official model does not have.
        """
        ...

    def card(self) -> dict[str, Any]:
        """What a card says of the weights."""
        ...


class MethodConverter:
    """A method whose authors publish weights."""

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
    """A SAM by itself."""

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
    """SAM 2 and 2.1 of any published size, without what only videos need."""

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
    """Mask2Former on a Swin or a ResNet."""

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
    """The converter of ``model``.

    Raises:
        UsageError: it has no official checkpoint of its own.
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
    """What a conversion did.

    Attributes:
        files: that were written.
        mapped: how many keys of the source have another name now.
        dropped: keys of the source that were left out, and why.
        card: that of the weights.
    """

    files: tuple[Path, ...]
    mapped: int
    dropped: Mapping[str, str]
    card: Mapping[str, Any]


def to_lexiseg(file: str | Path, model: str, folder: str | Path, *, half: bool = False, progress: bool = False) -> Report:
    """An official checkpoint into our form.

    Args:
        file: ``.pth``, ``.pkl`` or ``.safetensors`` as published, or of the official training program.
        model: whose it is.
        folder: where ``model.safetensors`` and ``card.json`` go.
        half: matrices and kernels in float16, see `lexiseg.methods.weights.halved`.
        progress: show a bar.

    Raises:
        UsageError: a model without official checkpoint.
        WeightsError: the file cannot be read, or is another model's.
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
    """Weights in our form as an official checkpoint, without what the official programs make themselves.

    Args:
        path: the folder, or its ``model.safetensors``.
        model: whose weights they are.
        file: to be written; ``.pth`` and ``.pt`` as PyTorch saves a dictionary of tensors, or ``.safetensors``.
        half: as `to_lexiseg`.

    Raises:
        UsageError: another suffix, or a model without official checkpoint.
        WeightsError: the weights cannot be read, are another model's, or have no official name.
        OutputError: the file cannot be written.
    """
    converter, file = converter_of(model), Path(file)
    if file.suffix not in SUFFIXES:
        raise UsageError(f"--output {file}: name the checkpoint to be written, ending in {', '.join(SUFFIXES)}")
    saved = read_weights(path, model=model)
    official = converter.official(saved)
    held = halved(official) if half else official
    if file.suffix == ".safetensors":
        write_safetensors(held, file)
    else:
        with replacing(file) as temporary:
            torch.save({name: tensor.clone() for name, tensor in held.items()}, temporary)
    copies = {name: "a copy of another" for name in saved.tensors if name.removeprefix("sam.model.") in sam_weights.TIED}
    return Report((file,), len(official), copies, saved.card)
