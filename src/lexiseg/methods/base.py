"""What every method is: a config, named parts, and images and text embeddings into a prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from lexiseg.backbones.clip import ClipBackbone
from lexiseg.errors import UsageError
from lexiseg.ops.options import Unit, options
from lexiseg.structures import ImageBatch, MaskPrediction, PixelPrediction, Task, TextEmbeddings, Trace
from lexiseg.text.templates import resolve_templates

Item = TypeVar("Item")
Result = TypeVar("Result")
TrainingClasses = tuple[tuple[str, ...], ...]  # of each class its name and its synonyms


@options(frozen=True)
class MethodConfig:
    """Every value that a method's constructor depends on besides its backbones; each method extends it.

    It is stored with the weights (`lexiseg.methods.weights`), so that loading them rebuilds the model they were trained in.
    """

    RUNTIME: ClassVar[frozenset[str]] = frozenset({"templates", "overlap_threshold"})
    """Options that may be changed after training, for they decide no shape of a weight."""

    templates: str = "single"
    """Prompts that class names are embedded with: a set of `lexiseg.text.templates`, or one sentence with ``{}``."""
    overlap_threshold: Unit = 0.8
    """A panoptic segment is kept if at least this fraction of its mask is not covered by better ones (Mask2Former)."""

    def __post_init__(self) -> None:
        resolve_templates(self.templates)


def check_heads(width: int, heads: int, name: str) -> None:
    """Raise UsageError if attention of ``width`` channels cannot be divided into ``heads`` heads."""
    if width % heads:
        raise UsageError(f"{name} = {heads} does not divide the {width} channels of the attention")


@dataclass(frozen=True)
class Trained:
    """A parameter that a recipe trains.

    Attributes:
        name: its part, a dot, and its name in the part.
        parameter: the whole of it.
        frozen_rows: rows that are not trained; None if all are.
    """

    name: str
    parameter: nn.Parameter
    frozen_rows: slice | None = None

    @property
    def num_parameters(self) -> int:
        """Number of trainable values."""
        return self.parameter.numel() - (0 if self.frozen_rows is None else self.parameter[self.frozen_rows].numel())


class Segmenter(nn.Module, ABC):
    """Images × text embeddings → prediction. No vocabulary, cache or data-set name lives in a method.

    Args:
        config: its options.

    Attributes:
        key: name of the trained weights in ``--weights KEY=FILE``.
        tasks: what its prediction can be made into, best first.
        clip: the CLIP whose joint space the text embeddings must come from.
        training_classes: names of the classes it was trained on, by which a class counts as seen; None if they are not known.
        tunes_text: its recipe trains CLIP's text tower, too.
    """

    key: ClassVar[str]
    tasks: ClassVar[tuple[Task, ...]]
    tunes_text: ClassVar[bool] = False
    clip: ClipBackbone

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config = config
        self.training_classes: TrainingClasses | None = None

    @property
    def saved_config(self) -> MethodConfig:
        """The config that rebuilds the model from its saved weights."""
        return self.config

    @abstractmethod
    def forward(
        self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None
    ) -> MaskPrediction | PixelPrediction:
        """Predict for a batch; the same for an image alone as for an image among others, but for rounding.

        Args:
            images: B images of any sizes; those whose network input has one size go through the networks together.
            text: embeddings of K classes by `clip`.
            trace: receives intermediate maps; for batches of one image.
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
        return (entry for entry in self.trainable() if entry.name.split(".", 1)[0] in wanted)

    def untouched_parameters(self) -> frozenset[str]:
        """Names of what its recipe does not train inside the parts that it trains."""
        parts, wanted = self.parts(), self.trained_parts()
        names = {f"{part}.{name}" for part in wanted for name, _ in parts[part].named_parameters()}
        return frozenset(names) - {entry.name for entry in self.trained_parameters()}


@runtime_checkable
class NamesRegions(Protocol):
    """A method that names whatever masks it is given; it finds its own elsewhere."""

    def name_regions(self, image: Tensor, regions: Tensor, text: TextEmbeddings) -> MaskPrediction:
        """An image [3, H, W], float RGB in 0..1, with regions [R, H, W] bool as its masks; they stay as they are."""
        ...


def in_groups(
    items: Sequence[Item], key: Callable[[Item], Hashable], work: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result]:
    """Work on items of equal keys together: images whose network input has one size make one batch, without any padding.

    Args:
        items: in any order.
        key: what must be equal.
        work: from some items to as many results.

    Returns:
        The result of each item, in the order of the items.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(key(item), []).append(number)
    results: dict[int, Result] = {}
    for numbers in groups.values():
        results |= zip(numbers, work([items[number] for number in numbers]), strict=True)
    return [results[number] for number in range(len(items))]


def check_trace(images: ImageBatch, trace: Trace | None) -> None:
    """Raise UsageError if several images were to leave their traces in one place."""
    if trace is not None and len(images) != 1:
        raise UsageError(f"a trace is of one image; got a batch of {len(images)}")


def check_runtime(config: MethodConfig, names: Mapping[str, Any], owner: str) -> None:
    """Raise UsageError if one of the options ``names`` cannot be changed once a model is built or trained."""
    for name in names:
        if name.split(".")[0] not in config.RUNTIME and hasattr(config, name.split(".")[0]):
            raise UsageError(
                f"{owner}: {name} was fixed when the model was trained; of these weights can be changed "
                f"{', '.join(sorted(config.RUNTIME))}"
            )
