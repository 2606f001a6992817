"""Model variants: method, backbones, config and weights of a model by name. All models are built by `Variant`:

empty       random weights; without memory on the device "meta"                 parameter counts, tests, benchmarks
untrained   backbones with their published weights, the rest random            start of a training
load        trained weights: ours, or a checkpoint as published by the authors
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

from lexiseg.backbones.clip_base import ClipBackbone
from lexiseg.backbones.digests import digest_of
from lexiseg.backbones.sam import SamFamily
from lexiseg.backbones.sources import Source
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import UsageError, WeightsError
from lexiseg.methods.base import MethodConfig, Published, Segmenter, check_runtime
from lexiseg.methods.recipe import Recipe
from lexiseg.methods.weights import LEAN, SavedWeights, check_saved, fill, read_card, read_weights
from lexiseg.ops.files import is_file
from lexiseg.ops.options import from_document, readings, to_document, with_value, without_paths
from lexiseg.structures import Task
from lexiseg.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Part:
    """Backbone of a model.

    Attributes:
        name: argument of the method's constructor, prefix of its parameter names, and PART in ``--weights PART=FILE``.
        empty: builds it with random weights.
        load: builds it with the weights of a file or folder, or with the published weights for None.
        source: source of the published weights.
        optional: whether it is omitted if no weights are given.
    """

    name: str
    empty: Callable[[], nn.Module]
    load: Callable[[str | None], nn.Module]
    source: Source | None = None
    optional: bool = False


class Official(ABC):
    """Format of the weights as published by the authors of a method.

    Attributes:
        licence: licence of the weights.
        options: config options that weights of this format require.
        partial: prefixes of our names; of the parts of these prefixes, the file holds only matching parameters.
    """

    licence: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {"behaviour": "official"}
    partial: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        """Official keys without a parameter, and the reason why each is dropped."""

    @abstractmethod
    def ours(self, state: Mapping[str, Tensor], source: str, /) -> dict[str, Tensor]:
        """Rename an official state dictionary to our names.

        Raises:
            WeightsError: unknown keys, by name.
        """

    @abstractmethod
    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        """Rename to official names, the inverse of `ours` without the dropped keys.

        Raises:
            WeightsError: parameters that the official model does not have.
        """


@dataclass(frozen=True)
class Variant:
    """Named model.

    Attributes:
        name: name for `lexiseg.load`.
        summary: one line.
        method: class of the segmenter.
        config: its config.
        parts: its backbones.
        source: source of the trained weights; None if nothing is trained.
        official: format of the weights published by the authors, if any.
        training_classes: built-in vocabulary that the published weights were trained on.
        recipe: training recipe, if any.
        start: model whose trained weights initialise the training.
        published: options under which the authors measured it on some data sets.
        printed: (method, backbone) of its rows in the tables of papers, ``assets/published.yaml``.
        base: the model in the card of its weights, if that has another name, see `with_weights`.
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
    published: tuple[Published, ...] = ()
    printed: tuple[str, str] | None = None
    base: str | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Supported tasks, best first."""
        return self.method.tasks

    @property
    def sources(self) -> dict[str, Source]:
        """Sources of its weights, by NAME in ``--weights NAME=FILE``."""
        own = {} if self.source is None else {self.method.key: self.source}
        return {part.name: part.source for part in self.parts if part.source is not None} | own

    @property
    def required(self) -> dict[str, Source]:
        """Sources that have to be on this machine to load it, by NAME in ``--weights NAME=FILE``.

        A checkpoint of the authors is assumed to hold its backbones as far as they are not `Official.partial`; those that
        it does not hold are downloaded when it is loaded.
        """
        if self.official is None or self.source is None:
            return self.sources
        partial = {prefix.split(".")[0] for prefix in self.official.partial}
        wanted = partial | {self.method.key}
        return {name: source for name, source in self.sources.items() if name in wanted}

    @property
    def present(self) -> bool:
        """Whether the `required` weights are on this machine; makes no request."""
        return all(source.present() for source in self.required.values())

    @property
    def licences(self) -> tuple[str, ...]:
        """Licences of the `required` weights, each once."""
        return tuple(dict.fromkeys(source.licence for source in self.required.values()))

    @property
    def identity(self) -> tuple[str, str | None]:
        """Name, and digest of the trained weights if it is known: a repository of the hub may change."""
        return self.name, None if self.source is None else self.source.digest

    @property
    def is_toy(self) -> bool:
        """Whether all its weights are in the package: it knows nothing but the emoji world."""
        return all(source.embedded for source in self.sources.values())

    @property
    def size(self) -> int:
        """Bytes of the `required` weights that are not in the package, approximately; 0 if they are not published."""
        return sum(source.size or 0 for source in self.required.values())

    @property
    def weight_names(self) -> tuple[str, ...]:
        """All valid NAMEs of ``--weights NAME=FILE``."""
        own = () if self.source is None and self.recipe is None else (self.method.key,)
        return (*own, *(part.name for part in self.parts))

    def empty(self, config: MethodConfig | None = None) -> Segmenter:
        """Build the model with random weights, on PyTorch's default device."""
        return self._build({part.name: part.empty() for part in self.parts if not part.optional}, config or self.config)

    def untrained(self, weights: Mapping[str, str] | None = None, config: MethodConfig | None = None) -> Segmenter:
        """Build the model as before its training.

        Args:
            weights: local files that replace the published weights, by part; under the method's key trained weights of this
                model to go on from; those of the `start` model, by its method.
            config: config; default is that of the variant.

        Raises:
            UsageError: weights for an unknown part.
            WeightsError: weights cannot be found, fetched or read, or belong to another model or config.
        """
        given, start = dict(weights or {}), self.start
        self._check_names(given, {*self.weight_names, *self._start_key})
        segmenter = self._build(self._backbones(given), config or self.config)
        if self.method.key in given:
            start = self
        if start is not None:
            started = start.load({name: path for name, path in given.items() if name in start.weight_names})
            _copy(started, segmenter, given.get(start.method.key, start.name))
        return segmenter

    def load(self, weights: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None) -> Segmenter:
        """Build the model with trained weights.

        Args:
            weights: local files that replace the published weights, by part; under the method's key the trained weights, a
                folder in our format or an official checkpoint.
            options: overrides of the saved config, by (dotted) name.

        Raises:
            UsageError: weights for an unknown part; an unknown option, or one that the weights fix.
            WeightsError: weights cannot be found, fetched or read, or belong to another model.
        """
        given, options = dict(weights or {}), options or {}
        self._check_names(given, self.weight_names)
        if self.source is None and self.method.key not in given:
            segmenter = self._build(self._backbones(given), self._changed(self.config, options), options)
            segmenter.card = {"model": self.name, "backbones": self.origins(given)}
            return segmenter
        path = given.pop(self.method.key, None) or self._published()
        saved = self._read(path)
        config = self._config_of(saved)
        check_runtime(config, options, self.name)
        self.check_tensors(saved)
        inside = self._inside(saved) - given.keys()
        self._check_origins(saved, given, inside)
        segmenter = self._build(self._backbones(given, inside), self._changed(config, options), options)
        fill(segmenter, saved, elsewhere=frozenset(part.name for part in self.parts) - inside)
        segmenter.training_classes = saved.training_classes
        parts = saved.parts() - given.keys()
        origins = {name: origin for name, origin in self.origins(given).items() if name not in parts}
        segmenter.card = {
            **{key: value for key, value in saved.card.items() if key not in (LEAN, "partial")},
            "backbones": {**saved.card.get("backbones", {}), **origins},
            "parts": sorted(parts),
        }
        return segmenter

    def with_weights(self, name: str, card: Mapping[str, Any], source: Source) -> Variant:
        """The model with weights in our format from elsewhere.

        Args:
            name: its name.
            card: the card of the weights. Parts that they hold need no other source.
            source: their source.

        Raises:
            WeightsError: the config in the card does not match this model.
        """
        config = self._config_of(SavedWeights({}, dict(card), Path(source.where)))
        partial = {str(prefix).split(".")[0] for prefix in card.get("partial", ())}
        inside = frozenset() if card.get(LEAN) else frozenset(card.get("parts", ())) - partial
        own = self._fixed(config)
        return replace(
            self,
            name=name,
            base=self.name,
            config=config,
            source=source,
            official=None,
            parts=tuple(replace(part, source=None) if part.name in inside else part for part in self.parts),
            published=tuple(entry.without(own) for entry in self.published),
            printed=None,
        )

    def parts_within(self, path: str | Path) -> frozenset[str]:
        """Parts whose weights a file of trained weights holds completely.

        Raises:
            WeightsError: it cannot be read, or belongs to another model.
        """
        return self._inside(self._read(path))

    def _inside(self, saved: SavedWeights) -> frozenset[str]:
        return frozenset() if saved.lean else saved.parts() - {name.split(".")[0] for name in saved.partial}

    def check_tensors(self, saved: SavedWeights) -> None:
        """Check names and shapes of saved tensors against the model, on the device "meta".

        Raises:
            WeightsError: weights are missing, unexpected, or of another shape.
        """
        with torch.device("meta"):
            inside = {part.name: part.empty() for part in self.parts if not part.optional or part.name in saved.parts()}
            segmenter = self._build(inside, self._config_of(saved))
        check_saved(segmenter, saved, elsewhere=frozenset(part.name for part in self.parts) - saved.parts())

    def num_parameters(self, config: MethodConfig | None = None) -> dict[str, Any]:
        """Parameter counts: ``total``, ``trainable`` (by its recipe), ``frozen``, ``by_part``; of CLIP and SAM ``by_tower``."""
        with torch.device("meta"):
            segmenter = self.empty(config)
        parts = segmenter.parts()
        by_tower = {name: part.num_parameters() for name, part in parts.items() if isinstance(part, ClipBackbone | SamFamily)}
        by_part = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        trainable = sum(entry.num_parameters for entry in segmenter.trained_parameters())
        total = sum(by_part.values())
        counts = {"total": total, "trainable": trainable, "frozen": total - trainable}
        return {**counts, "by_part": by_part, "by_tower": by_tower}

    def origins(self, weights: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Origin of the weights of each backbone, for the card of a training with local ``weights``."""
        return {part.name: origin for part in self.parts if (origin := _origin(part, weights.get(part.name)))}

    def start_origin(self, weights: Mapping[str, str]) -> dict[str, str] | None:
        """Origin of the trained weights with which a training begins, for its card; None: those of `start`, or none."""
        given = next((weights[key] for key in (self.method.key, *self._start_key) if key in weights), None)
        return None if given is None else _file_origin(given)

    @property
    def _start_key(self) -> tuple[str, ...]:
        return () if self.start is None else (self.start.method.key,)

    def _build(self, backbones: Mapping[str, nn.Module], config: MethodConfig, given: Collection[str] = ()) -> Segmenter:
        """Build the model. Options that the caller gives, or that differ from the variant's, hold on every data set."""
        segmenter = self.method(**backbones, config=config)
        own = self._fixed(config) | set(given)
        segmenter.published = tuple(entry.without(own) for entry in self.published)
        return segmenter

    def _fixed(self, config: MethodConfig) -> set[str]:
        """Published options in which a config differs from the variant's."""
        names = {name for entry in self.published for name in entry.options}
        return {name for name in names if getattr(config, name) != getattr(self.config, name)}

    def _backbones(self, given: Mapping[str, str], inside: Collection[str] = ()) -> dict[str, nn.Module]:
        """Build the backbones with their weights; those in ``inside`` without, as a file that is read later holds them."""
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
        if source.recipe:
            raise WeightsError(
                f"{self.name} has no published weights: train it (`{source.recipe}`) and give --weights {key}=FOLDER"
            )
        return source.fetch().parent if source.embedded else source.fetch()

    def _read(self, path: str | Path) -> SavedWeights:
        """Read trained weights, ours or official."""
        if self.official is None or read_card(path) is not None:
            return read_weights(path, model=self.base or self.name)
        tensors = self.official.ours(read_state(Path(path)), str(path))
        return SavedWeights(tensors, self.official_card(), Path(path))

    def official_card(self) -> dict[str, Any]:
        """Card of the weights published by the authors."""
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
        try:  # options that the card does not name, as they are newer than it, are those of the variant
            config = from_document(type(self.config), to_document(self.config) | saved.card["config"])
        except UsageError as error:
            raise WeightsError(f"the config in the card of {saved.file} does not match {self.name}: {error}") from error
        return without_paths(config)

    def _check_origins(self, saved: SavedWeights, given: Mapping[str, str], inside: Collection[str]) -> None:
        """Check that the backbones are those the weights were trained on, as recorded in the card."""
        trained: Mapping[str, Mapping[str, str]] = saved.card.get("backbones", {})
        for part in self.parts:
            then = trained.get(part.name)
            if then is None or part.name in inside:
                continue
            now = _origin(part, given.get(part.name)) or {}
            if any(key in then and then[key] == now.get(key) for key in ("repository", "sha256", "address")):
                continue
            message = f"{saved.file} was trained on the {part.name} {_described(then)}, not on {_described(now)}"
            if part.name not in given:
                raise WeightsError(f"{message}: give that one, --weights {part.name}=FILE")
            warnings.warn(message, stacklevel=3)


def _copy(trained: Segmenter, segmenter: Segmenter, source: str) -> None:
    """Copy the parameters of a trained model into one that has all its parts."""
    parts = segmenter.parts()
    for name, part in trained.parts().items():
        ours, theirs = parts[name].state_dict(), part.state_dict()
        for key in ours.keys() | theirs.keys():
            shapes = [tuple(state[key].shape) if key in state else None for state in (ours, theirs)]
            if shapes[0] != shapes[1]:
                raise WeightsError(
                    f"{source} does not fit this training: {name}.{key} has the shape {shapes[1]}, not {shapes[0]}; "
                    "set the model's options as in the card of these weights, model.OPTION=VALUE"
                )
        parts[name].load_state_dict(theirs)


def _origin(part: Part, given: str | None) -> dict[str, str] | None:
    """Origin of the weights of a part; None if it has none."""
    if given is None:
        return None if part.source is None else part.source.origin()
    return _file_origin(given)


def _file_origin(given: str) -> dict[str, str]:
    file = weights_file(Path(given))
    return {"file": file.name, "sha256": digest_of(file)} if is_file(file) else {"repository": given}


def weights_file(path: Path) -> Path:
    """Weights file in the folder of a backbone; a file is returned as is."""
    names = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
    return next((path / name for name in names if is_file(path / name)), path)


def _described(origin: Mapping[str, str]) -> str:
    digest = f" (SHA-256 {origin['sha256'][:12]}…)" if "sha256" in origin else ""
    return f"{origin.get('repository', origin.get('file', 'unknown'))}{digest}"
