"""Base class of all methods: a config, named parts, and `forward` from images and text embeddings to a prediction."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from lexiseg.backbones.clip import ClipBackbone
from lexiseg.errors import UsageError
from lexiseg.ops.options import Unit, flat, options
from lexiseg.postprocess import Policy
from lexiseg.structures import ImageBatch, MaskPrediction, PixelPrediction, Task, TextEmbeddings, Trace
from lexiseg.text.embed import embed_vocabulary, with_vectors
from lexiseg.text.templates import resolve_templates
from lexiseg.text.vocabulary import Vocabulary

Item = TypeVar("Item")
Result = TypeVar("Result")
TrainingClasses = tuple[tuple[str, ...], ...]  # names of each class, synonyms included


@options(frozen=True)
class MethodConfig:
    """Config of a method: all constructor options besides its backbones. Each method extends it.

    It is saved with the weights (`lexiseg.methods.weights`), so that loading them rebuilds the same model.
    """

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"templates", "object_threshold", "overlap_threshold"})
    """Options that may be changed after training."""

    templates: str = "single"
    """Prompt templates of class names: a set of `lexiseg.text.templates`, or one sentence with ``{}``."""
    object_threshold: Unit = 0.0
    """Score that a query must exceed to be a panoptic segment (Mask2Former)."""
    overlap_threshold: Unit = 0.8
    """Minimum fraction of its mask that a panoptic segment must retain (Mask2Former)."""

    def __post_init__(self) -> None:
        resolve_templates(self.templates)


def check_heads(width: int, heads: int, name: str) -> None:
    """Raise UsageError if ``heads`` does not divide ``width``, the channels of an attention."""
    if width % heads:
        raise UsageError(f"{name} = {heads} does not divide the {width} channels of the attention")


@dataclass(frozen=True)
class Published:
    """Options under which published results on some data sets were measured, where they differ from the config's.

    Attributes:
        data: names of data sets, or patterns of names.
        options: values of options that may be changed after training (`MethodConfig.RUNTIME`).
        source: paper and section, or the official program.
    """

    data: tuple[str, ...]
    options: Mapping[str, Any]
    source: str

    def without(self, names: Collection[str]) -> Published:
        """The same without the options ``names``."""
        return replace(self, options={name: value for name, value in self.options.items() if name not in names})


@dataclass(frozen=True)
class Trained:
    """Trainable parameter.

    Attributes:
        name: ``part.name``.
        parameter: the whole parameter.
        frozen_rows: rows that are not trained.
    """

    name: str
    parameter: nn.Parameter
    frozen_rows: tuple[slice, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Number of trainable values."""
        return self.parameter.numel() - sum(self.parameter[rows].numel() for rows in self.frozen_rows)


class Segmenter(nn.Module, ABC):
    """Abstract segmentation model: images and text embeddings to a prediction. It has no vocabulary, cache or data set.

    Args:
        config: options of the method.

    Attributes:
        key: name of the trained weights in ``--weights KEY=FILE``.
        reference: the paper, in one line.
        tasks: tasks that its prediction supports, best first.
        clip: CLIP that must compute the text embeddings; absent if it ``reads_names``.
        reads_names: whether it reads the names themselves (`TextEmbeddings.all_names`) instead of their embeddings.
        training_classes: names of the classes it was trained on (the seen classes); None if unknown.
        published: options of published results by data set, see `on`.
        card: description of its weights, see `lexiseg.methods.weights`; empty if they are random.
        tunes_text: whether training also fine-tunes CLIP's text tower.
    """

    key: ClassVar[str]
    reference: ClassVar[str]
    tasks: ClassVar[tuple[Task, ...]]
    tunes_text: ClassVar[bool] = False
    reads_names: ClassVar[bool] = False
    clip: ClipBackbone

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config = config
        self.training_classes: TrainingClasses | None = None
        self.published: tuple[Published, ...] = ()
        self.card: Mapping[str, Any] = {}

    @property
    def policy(self) -> Policy:
        """Post-processing of its predictions."""
        return Policy(object_threshold=self.config.object_threshold, overlap=self.config.overlap_threshold)

    def published_for(self, data: str) -> tuple[Published, ...]:
        """Entries of ``published`` for a data set, by its name in the catalogue."""
        return tuple(entry for entry in self.published if any(fnmatchcase(data, pattern) for pattern in entry.data))

    def on(self, data: str) -> Self:
        """The model with the options published for a data set: a copy with the same parameters, or itself if there are none."""
        entries = self.published_for(data)
        if not entries:
            return self
        changed = copy(self)  # shallow: modules and parameters are shared
        for entry in entries:
            changed.config = replace(changed.config, **entry.options)
        return changed

    @abstractmethod
    def forward(
        self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None
    ) -> MaskPrediction | PixelPrediction:
        """Predict a batch. The prediction of an image does not depend on the others, up to rounding.

        Args:
            images: B images of any sizes; images with network inputs of equal size are processed together.
            text: embeddings of K classes by `embed_text`.
            trace: receives intermediate maps; requires a batch of one image.
        """

    def embed_text(self, vocabulary: Vocabulary, *, cache: str | Path | None = None, progress: bool = False) -> TextEmbeddings:
        """Return a vocabulary as `forward` takes it, on the CPU: embedded by `clip`, or names alone if it `reads_names`.

        Args:
            vocabulary: K classes.
            cache, progress: see `embed_vocabulary`.
        """
        if self.reads_names:
            return with_vectors(vocabulary, torch.zeros(len(vocabulary.all_names), 0))
        return embed_vocabulary(self.clip, vocabulary, self.config.templates, cache=cache, progress=progress)

    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """Named parts, which together hold all parameters."""

    def trained_parts(self) -> frozenset[str]:
        """Names of the parts that its recipe trains; the others are frozen."""
        return frozenset()

    def trainable(self) -> Iterator[Trained]:
        """Trainable parameters, part by part: all but those that the method keeps frozen."""
        for name, part in self.parts().items():
            yield from (Trained(f"{name}.{key}", parameter) for key, parameter in part.named_parameters())

    def trained_parameters(self) -> Iterator[Trained]:
        """Parameters that its recipe trains."""
        wanted = self.trained_parts()
        return (entry for entry in self.trainable() if entry.name.split(".", 1)[0] in wanted)

    def untouched_parameters(self) -> frozenset[str]:
        """Names of the parameters of trained parts that its recipe does not train."""
        parts, wanted = self.parts(), self.trained_parts()
        names = {f"{part}.{name}" for part in wanted for name, _ in parts[part].named_parameters()}
        return frozenset(names) - {entry.name for entry in self.trained_parameters()}


@runtime_checkable
class NamesRegions(Protocol):
    """Protocol of methods that can classify given masks."""

    def name_regions(self, image: Tensor, regions: Tensor, text: TextEmbeddings) -> MaskPrediction:
        """Classify regions [R, H, W] bool of an image [3, H, W], float RGB in 0..1."""
        ...


def in_groups(
    items: Sequence[Item], key: Callable[[Item], Hashable], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result]:
    """Process items with equal keys together, such as images with network inputs of one size, without padding.

    Args:
        items: in any order.
        key: grouping key of an item.
        work: maps a group of items to as many results.

    Returns:
        The results in the order of the items.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(key(item), []).append(index)
    results: dict[int, Result] = {}
    for indices in groups.values():
        results |= zip(indices, work([items[index] for index in indices]), strict=True)
    return [results[index] for index in range(len(items))]


def check_trace(images: ImageBatch, trace: Trace | None) -> None:
    """Raise UsageError if a trace is requested for several images."""
    if trace is not None and len(images) != 1:
        raise UsageError(f"a trace needs a batch of one image; got {len(images)}")


def runtime_options(config: MethodConfig) -> dict[str, Any]:
    """Options that may be changed after training, by dotted name, as JSON values."""
    values = {name: value for name, value in flat(config).items() if name.split(".")[0] in config.RUNTIME}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def check_runtime(config: MethodConfig, names: Mapping[str, Any], owner: str) -> None:
    """Raise UsageError if one of the options ``names`` is fixed after training."""
    for name in names:
        if name.split(".")[0] not in config.RUNTIME and hasattr(config, name.split(".")[0]):
            raise UsageError(
                f"{owner}: {name} is fixed by the trained weights; options that can be changed: "
                f"{', '.join(sorted(config.RUNTIME))}"
            )
