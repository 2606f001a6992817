"""Models of the service: which are offered, and those in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lexiseg import __version__
from lexiseg.inference.choice import models_for_photographs
from lexiseg.inference.fingerprint import digest, state_of
from lexiseg.inference.pipeline import Pipeline, load
from lexiseg.methods import MODELS, model_named
from lexiseg.methods.base import MethodConfig
from lexiseg.ops.allocator import return_freed_memory
from lexiseg.ops.options import describe, readings, with_value


@dataclass(frozen=True)
class ModelSpec:
    """Model that the service offers.

    Attributes:
        name: its name, as in `lexiseg models`.
        weights: local files in place of the published ones, by part.
        options: options that differ from its config's.
    """

    name: str
    weights: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> MethodConfig:
        """The config of the variant with these options.

        Raises:
            UsageError: the model or an option is unknown, or a value is invalid.
        """
        config = model_named(self.name).config
        for name, value in self.options.items():
            config = with_value(config, name, *readings(value), owner=self.name)
        return config

    def digest(self, dtype: str) -> str:
        """Digest of what its results depend on besides the request; local weights count by name, size and date."""
        weights = {part: (path, state_of(path)) for part, path in self.weights.items()}
        return digest([__version__, model_named(self.name).identity, weights, self.options, dtype])


@dataclass(frozen=True)
class ModelOption:
    """Option that a request may set: a number in 0..1, which decides about the result and not about its cost."""

    name: str
    default: float
    about: str


def safe_options(config: MethodConfig) -> dict[str, ModelOption]:
    """Options of a config that requests may set, by name.

    Those are numbers in 0..1 that may be changed after training. Sizes of images, numbers of points and the like are not among
    them: with them a request could need any amount of memory and time.
    """
    return {
        option.name: ModelOption(option.name, float(option.value), option.about)
        for option in describe(config)
        if option.name in config.RUNTIME and option.type.startswith("float ≥ 0 and ≤ 1") and isinstance(option.value, float)
    }


def models_at_hand() -> list[ModelSpec]:
    """The models whose weights are on this machine: those for photographs, best first, then the toys."""
    models = [*models_for_photographs("panoptic"), *(model for model in MODELS.values() if model.is_toy)]
    return [ModelSpec(model.name) for model in models if model.present]


@dataclass(frozen=True)
class Loaded:
    """Model in memory.

    Attributes:
        pipeline: for names of requests, whose embeddings are not written to the disk.
        caching: the same, for built-in lists, whose embeddings are.
        nbytes: bytes of its weights.
    """

    pipeline: Pipeline
    caching: Pipeline
    nbytes: int


class Models:
    """Models in memory, at most `memory` bytes of weights besides the one in use. Only the worker thread calls `get`.

    Args:
        specs: the models offered; the first is the default.
        device: device of all.
        dtype: as for `lexiseg.load`.
        memory: limit of the weights in memory, in bytes; the model used last stays even if it is larger.

    Attributes:
        digests: by name, the digest of what a model's results depend on besides the request.
    """

    def __init__(self, specs: list[ModelSpec], *, device: torch.device | str, dtype: str, memory: int) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self._device, self._dtype, self._memory = device, dtype, memory
        self.digests = {spec.name: spec.digest(dtype) for spec in specs}
        self._loaded: dict[str, Loaded] = {}  # least recently used first

    @property
    def default(self) -> str:
        """Name of the first model."""
        return next(iter(self.specs))

    @property
    def names_loaded(self) -> tuple[str, ...]:
        """Names of the models in memory, least recently used first."""
        return tuple(self._loaded)

    def get(self, name: str) -> Loaded:
        """Return a model, loaded if it is not in memory.

        Raises:
            WeightsError: as `lexiseg.load`.
        """
        loaded = self._loaded.pop(name, None) or self._load(self.specs[name])
        self._loaded[name] = loaded
        while len(self._loaded) > 1 and sum(entry.nbytes for entry in self._loaded.values()) > self._memory:
            self._loaded.pop(next(iter(self._loaded)))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return_freed_memory()
        return loaded

    def _load(self, spec: ModelSpec) -> Loaded:
        caching = load(spec.name, weights=spec.weights, device=self._device, dtype=self._dtype, **spec.options)
        segmenter = caching.segmenter
        nbytes = sum(tensor.numel() * tensor.element_size() for tensor in (*segmenter.parameters(), *segmenter.buffers()))
        return Loaded(Pipeline(segmenter, device=caching.device, dtype=caching.dtype), caching, nbytes)
