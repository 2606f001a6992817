"""A model by name: a method, its backbones, its config and where its weights come from; and the only way to build one.

empty       random weights; on the device "meta" without memory                parameter counts, laws, benchmarks
untrained   backbones with their published weights, the rest random            where a training starts
load        trained weights: ours, or a checkpoint as its authors published it
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import UsageError, WeightsError
from lexiseg.methods.base import MethodConfig, Segmenter, check_runtime
from lexiseg.methods.recipe import Recipe
from lexiseg.methods.weights import SavedWeights, check_saved, digest_of, fill, read_card, read_weights
from lexiseg.ops.options import from_document, readings, to_document, with_value
from lexiseg.structures import Task
from lexiseg.text.vocabulary import Vocabulary

ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
        file: in the repository, or below the package's ``assets``.
        licence: of the weights.
        repository: on the Hugging Face hub; None where they are inside the package or fetched by hand.
        manual_url: the page where a person must fetch them, or the command that trains them; given with ``--weights`` then.
    """

    file: str
    licence: str
    repository: str | None = None
    manual_url: str = ""

    def present(self) -> bool:
        """Whether the file is on this machine; never touches the network."""
        if self.manual_url:
            return False
        if self.repository is None:
            return (ASSETS / self.file).is_file()
        from huggingface_hub import try_to_load_from_cache  # not needed for embedded weights

        return isinstance(try_to_load_from_cache(self.repository, self.file), str)

    def origin(self) -> dict[str, str]:
        """What a card says of a backbone with these weights."""
        if self.repository is None:
            return {"file": self.file, "sha256": digest_of(ASSETS / self.file)}
        return {"repository": self.repository, "file": self.file}


@dataclass(frozen=True)
class Part:
    """A backbone that a model stands on.

    Attributes:
        name: argument of the method's constructor, first word of its parameters' names, and PART in ``--weights PART=FILE``.
        empty: builds it with random weights.
        load: builds it with the weights of a file or folder; given None, with the published ones.
        source: of the published weights.
        optional: whether it is left out where no weights are given.
    """

    name: str
    empty: Callable[[], nn.Module]
    load: Callable[[str | None], nn.Module]
    source: Source | None = None
    optional: bool = False


class Official(ABC):
    """The form in which the authors of a method publish its weights.

    Attributes:
        licence: of the weights.
        options: of the config, that weights of this form need.
        partial: beginnings of our names: of a part that one of them begins with, the file holds these only.
    """

    licence: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {"behaviour": "official"}
    partial: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        """Official keys that carry no parameter, and why."""

    @abstractmethod
    def ours(self, state: Mapping[str, Tensor], source: str, /) -> dict[str, Tensor]:
        """An official state dictionary under our names.

        Raises:
            WeightsError: keys that no rule knows, by name.
        """

    @abstractmethod
    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        """The reverse of `ours`, without the dropped keys.

        Raises:
            WeightsError: parameters that the official model does not have.
        """


@dataclass(frozen=True)
class Variant:
    """A model by name.

    Attributes:
        name: as `lexiseg.load` takes it.
        summary: one line.
        method: the segmenter's class.
        config: its options.
        parts: its backbones.
        source: of the trained weights; None: nothing is trained.
        official: the authors' form of them, if they are published.
        training_classes: built-in vocabulary that published weights were trained on.
        recipe: how it is trained, if it can be.
        start: the model whose trained weights its training starts from, instead of random ones.
    """

    name: str
    summary: str
    method: type[Segmenter]
    config: MethodConfig
    parts: tuple[Part, ...]
    source: Source | None = None
    official: Official | None = None
    training_classes: str | None = None
    recipe: Callable[[], Recipe] | None = None
    start: Variant | None = field(default=None, repr=False)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What its predictions can be made into, best first."""
        return self.method.tasks

    @property
    def sources(self) -> dict[str, Source]:
        """Where its weights come from, by the name in ``--weights NAME=FILE``."""
        own = {} if self.source is None else {self.method.key: self.source}
        return {part.name: part.source for part in self.parts if part.source is not None} | own

    @property
    def weight_names(self) -> tuple[str, ...]:
        """All names that ``--weights NAME=FILE`` takes."""
        own = () if self.source is None else (self.method.key,)
        return (*own, *(part.name for part in self.parts))

    def empty(self, config: MethodConfig | None = None) -> Segmenter:
        """The model with random weights, on PyTorch's current default device."""
        return self._build({part.name: part.empty() for part in self.parts if not part.optional}, config or self.config)

    def untrained(self, weights: Mapping[str, str] | None = None, config: MethodConfig | None = None) -> Segmenter:
        """The model before its training.

        Args:
            weights: local files in place of the published ones, by part; of a model whose training starts from another model
                also that one's, by its method.
            config: options; this model's if left out.

        Raises:
            UsageError: weights for a part that there is not.
            WeightsError: weights that cannot be found, fetched or read, or are another model's.
        """
        given, start = dict(weights or {}), self.start
        names = {part.name for part in self.parts}
        self._check_names(given, names if start is None else names | {start.method.key})
        segmenter = self._build(self._backbones(given), config or self.config)
        if start is not None:
            started = start.load({name: path for name, path in given.items() if name in start.weight_names})
            for name, part in started.parts().items():
                segmenter.parts()[name].load_state_dict(part.state_dict())
        return segmenter

    def load(self, weights: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None) -> Segmenter:
        """The model with trained weights.

        Args:
            weights: local files in place of the published ones, by part; under the method's key the trained weights, a folder
                in our form or a checkpoint as published.
            options: values that differ from the weights' config, by (dotted) name.

        Raises:
            UsageError: weights for a part that there is not; an unknown option, or one that the weights have fixed.
            WeightsError: weights that cannot be found, fetched or read, or are another model's.
        """
        given, options = dict(weights or {}), options or {}
        self._check_names(given, self.weight_names)
        if self.source is None:
            return self._build(self._backbones(given), self._changed(self.config, options))
        path = given.pop(self.method.key, None) or self._published()
        saved = self._read(path)
        config = self._config_of(saved)
        check_runtime(config, options, self.name)
        self.check_tensors(saved)
        inside = frozenset() if saved.lean else saved.parts() - given.keys() - {name.split(".")[0] for name in saved.partial}
        self._check_origins(saved, given, inside)
        segmenter = self._build(self._backbones(given, inside), self._changed(config, options))
        fill(segmenter, saved, elsewhere=frozenset(part.name for part in self.parts) - inside)
        segmenter.training_classes = saved.training_classes
        return segmenter

    def check_tensors(self, saved: SavedWeights) -> None:
        """Compare tensors with those the model has; needs no memory.

        Raises:
            WeightsError: weights are missing, left over, or of another shape.
        """
        with torch.device("meta"):
            inside = {part.name: part.empty() for part in self.parts if not part.optional or part.name in saved.parts()}
            segmenter = self._build(inside, self._config_of(saved))
        check_saved(segmenter, saved, elsewhere=frozenset(part.name for part in self.parts) - saved.parts())

    def num_parameters(self, config: MethodConfig | None = None) -> dict[str, Any]:
        """Parameter counts: total, trainable (by its recipe), frozen, and by part."""
        with torch.device("meta"):
            segmenter = self.empty(config)
        by_part = {name: sum(p.numel() for p in part.parameters()) for name, part in segmenter.parts().items()}
        trainable = sum(entry.num_parameters for entry in segmenter.trained_parameters())
        total = sum(by_part.values())
        return {"total": total, "trainable": trainable, "frozen": total - trainable, "by_part": by_part}

    def origins(self, weights: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Where the weights of each backbone come from, for the card of a training that was given ``weights``."""
        return {part.name: origin for part in self.parts if (origin := _origin(part, weights.get(part.name)))}

    def _build(self, backbones: Mapping[str, nn.Module], config: MethodConfig) -> Segmenter:
        return self.method(**backbones, config=config)

    def _backbones(self, given: Mapping[str, str], inside: Collection[str] = ()) -> dict[str, nn.Module]:
        """The backbones with their weights, but empty ones where the weights are inside a file that is read later."""
        return {
            part.name: part.empty() if part.name in inside else part.load(given.get(part.name))
            for part in self.parts
            if part.name in given or part.name in inside or not part.optional
        }

    def _changed(self, config: MethodConfig, options: Mapping[str, Any]) -> MethodConfig:
        for name, value in options.items():
            config = with_value(config, name, *readings(value), owner=self.name)
        return config

    def _check_names(self, weights: Mapping[str, str], known: Iterable[str]) -> None:
        if extra := sorted(weights.keys() - set(known)):
            raise UsageError(f"{self.name} has no part '{extra[0]}' to give weights for; it has {', '.join(sorted(known))}")

    def _published(self) -> Path:
        source, key = self.source, self.method.key
        assert source is not None
        if not source.manual_url:
            return ASSETS / Path(source.file).parent
        if self.official is None:
            raise WeightsError(
                f"nobody has published weights of {self.name}: train it (`{source.manual_url}`) and give --weights {key}=FOLDER"
            )
        raise WeightsError(
            f"the weights of {self.name} cannot be fetched by a program: load {source.manual_url} in a browser and give the "
            f"file, --weights {key}=FILE. A tiny model, whose weights are here, is {key}-tiny"
        )

    def _read(self, path: str | Path) -> SavedWeights:
        """Trained weights of either form."""
        if self.official is None or read_card(path) is not None:
            return read_weights(path, model=self.name)
        tensors = self.official.ours(read_state(Path(path)), str(path))
        return SavedWeights(tensors, self.official_card(), Path(path))

    def official_card(self) -> dict[str, Any]:
        """What a card says of weights that the authors published."""
        assert self.official is not None
        classes = () if self.training_classes is None else Vocabulary.builtin(self.training_classes).classes
        return {
            "model": self.name,
            "licence": self.official.licence,
            "config": to_document(replace(self.config, **self.official.options)),
            "training_classes": tuple(entry.names for entry in classes) or None,
            "partial": list(self.official.partial),
        }

    def _config_of(self, saved: SavedWeights) -> MethodConfig:
        if not isinstance(saved.card.get("config"), dict):
            raise WeightsError(f"the card in {saved.file} has no config; write the weights again with this version of lexiseg")
        try:
            return from_document(type(self.config), saved.card["config"])
        except UsageError as error:
            raise WeightsError(f"the config in the card of {saved.file} is not one of {self.name}: {error}") from error

    def _check_origins(self, saved: SavedWeights, given: Mapping[str, str], inside: Collection[str]) -> None:
        """Compare the backbones with those the weights were trained on, as far as the card tells."""
        trained: Mapping[str, Mapping[str, str]] = saved.card.get("backbones", {})
        for part in self.parts:
            then = trained.get(part.name)
            if then is None or part.name in inside:
                continue
            now = _origin(part, given.get(part.name)) or {}
            if any(key in then and then[key] == now.get(key) for key in ("repository", "sha256")):
                continue
            told = f"{saved.file} was trained on the {part.name} {_told(then)}, not on {_told(now)}"
            if part.name not in given:
                raise WeightsError(f"{told}: give that one, --weights {part.name}=FILE")
            warnings.warn(told, stacklevel=3)


def _origin(part: Part, given: str | None) -> dict[str, str] | None:
    """Where the weights of a part come from; None if it has none."""
    if given is None:
        return None if part.source is None else part.source.origin()
    file = weights_file(Path(given))
    return {"file": file.name, "sha256": digest_of(file)} if file.is_file() else {"repository": given}


def weights_file(path: Path) -> Path:
    """The file with the weights in a folder of any backbone; a file itself."""
    names = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
    return next((path / name for name in names if (path / name).is_file()), path)


def _told(origin: Mapping[str, str]) -> str:
    digest = f" (SHA-256 {origin['sha256'][:12]}…)" if "sha256" in origin else ""
    return f"{origin.get('repository', origin.get('file', 'unknown'))}{digest}"
