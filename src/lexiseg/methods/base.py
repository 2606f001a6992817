"""What every method is: images and text embeddings in, a prediction out; and the card that says what a model needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lexiseg.backbones.clip import ClipBackbone
from lexiseg.errors import UsageError
from lexiseg.structures import ImageBatch, MaskPrediction, PixelPrediction, TextEmbeddings, Trace

ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True)
class Trained:
    """A parameter that a recipe trains.

    Attributes:
        name: its part, a dot, and its name in the part.
        parameter: the whole of it.
        kept: the rows that stay as they are; None if all learn.
    """

    name: str
    parameter: nn.Parameter
    kept: slice | None = None

    @property
    def numbers(self) -> int:
        """How many numbers learn."""
        return self.parameter.numel() - (0 if self.kept is None else self.parameter[self.kept].numel())


class Segmenter(nn.Module, ABC):
    """Images × text embeddings → prediction. No vocabulary, cache or data-set name lives in a method.

    Attributes:
        tasks: what its prediction can be made into, best first.
        templates: the prompts its names are embedded with (a set of `lexiseg.text.templates`).
        overlap: a panoptic region keeps its place if at least this share of its mask is still its own.
        clip: the CLIP whose joint space the text embeddings must come from.
        trained_on: the vocabulary of its training, by which a class counts as seen; None if that makes no difference.
        tunes_text: its recipe trains CLIP's text tower, too.
    """

    tasks: tuple[str, ...]
    templates: str
    overlap: float = 0.8
    trained_on: str | None = None
    tunes_text: bool = False
    clip: ClipBackbone

    @abstractmethod
    def forward(
        self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None
    ) -> MaskPrediction | PixelPrediction:
        """Predict for a batch; the same for an image alone as for an image among others.

        Args:
            images, text: see there.
            trace: what the method makes on the way is kept in it; for batches of one image.
        """

    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """The named parts whose parameters together are the model's."""

    def trained_parts(self) -> frozenset[str]:
        """Names of the parts its recipe trains; the others stay frozen."""
        return frozenset()

    def dropped_parts(self) -> frozenset[str]:
        """Names of the parts that are of use in training only: they are in checkpoints, but not among the saved weights."""
        return frozenset()

    def trainable(self) -> Iterator[Trained]:
        """What can be trained: all parameters, part by part, but those that no recipe of the method touches."""
        for name, part in self.parts().items():
            yield from (Trained(f"{name}.{key}", parameter) for key, parameter in part.named_parameters())

    def trained_parameters(self) -> Iterator[Trained]:
        """What its recipe trains."""
        wanted = self.trained_parts()
        return (one for one in self.trainable() if one.name.split(".", 1)[0] in wanted)

    def untouched_parameters(self) -> frozenset[str]:
        """Names of what its recipe does not train inside the parts that it trains."""
        parts, wanted = self.parts(), self.trained_parts()
        names = {f"{part}.{name}" for part in wanted for name, _ in parts[part].named_parameters()}
        return frozenset(names) - {one.name for one in self.trained_parameters()}


@runtime_checkable
class NamesRegions(Protocol):
    """A method that names whatever masks it is given; it finds its own elsewhere."""

    def name_regions(self, image: Tensor, regions: Tensor, text: TextEmbeddings) -> MaskPrediction:
        """An image [3, H, W], float RGB in 0..1, with regions [R, H, W] bool as its masks; they stay as they are."""
        ...


def check_trace(images: ImageBatch, trace: Trace | None) -> None:
    """Raise UsageError if several images were to leave their traces in one place."""
    if trace is not None and len(images) != 1:
        raise UsageError(f"a trace is of one image; got a batch of {len(images)}")


@dataclass(frozen=True)
class Source:
    """Where the weights of one part come from.

    Attributes:
        part: key of the part, as in ``--weights PART=FILE``.
        repository: on the Hugging Face hub; None where the weights are inside the package.
        file: in that repository, or below the package's ``assets``.
        licence: of the weights.
        by_hand: the page where a person must fetch them, for no program can; they are given with ``--weights`` then.
    """

    part: str
    repository: str | None
    file: str
    licence: str
    by_hand: str = ""

    def present(self) -> bool:
        """Whether the file is on this machine; never touches the network."""
        if self.repository is None:
            return (ASSETS / self.file).is_file()
        from huggingface_hub import try_to_load_from_cache  # not needed for embedded weights

        return isinstance(try_to_load_from_cache(self.repository, self.file), str)


@dataclass(frozen=True)
class Model:
    """A model by name: how to build it, with weights or as a skeleton, and what a user should know before.

    Attributes:
        summary: one line.
        tasks: as the method's.
        sources: one a part that has weights.
        load: weights by part (local files instead of the published ones) -> the segmenter.
        skeleton: the segmenter without weights; under ``torch.device("meta")`` it needs no memory.
        optional: further parts whose weights may be given, but need not.
    """

    summary: str
    tasks: tuple[str, ...]
    sources: tuple[Source, ...]
    load: Callable[[Mapping[str, str]], Segmenter]
    skeleton: Callable[[], Segmenter]
    optional: frozenset[str] = frozenset()

    def parameters(self) -> dict[str, Any]:
        """Parameter counts of the full-size model: total, trainable (what its recipe trains), frozen, by part."""
        with torch.device("meta"):
            segmenter = self.skeleton()
        by_part = {name: sum(p.numel() for p in part.parameters()) for name, part in segmenter.parts().items()}
        trainable = sum(one.numbers for one in segmenter.trained_parameters())
        total = sum(by_part.values())
        return {"total": total, "trainable": trainable, "frozen": total - trainable, "by_part": by_part}
