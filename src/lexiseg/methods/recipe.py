"""A recipe: all that the result of a training depends on, as plain data that can be shown, changed and compared.

Recipes stand beside their methods, in ``recipe.py``; `lexiseg.training` carries them out. A value is changed by its dotted
name, ``stages.0.rate=2e-4``; a field of the stage alone is enough where there is only one, ``rate=2e-4``.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from lexiseg.errors import UsageError
from lexiseg.losses.matching import PointSource
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods.base import Segmenter
from lexiseg.structures import ImageBatch, MaskTarget, TextEmbeddings

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")


@runtime_checkable
class Trainable(Protocol):
    """What a method that can be trained offers beside `Segmenter`."""

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: Any = None,
        draw: PointSource | None = None,
    ) -> dict[str, Tensor]:
        """The weighted losses of a batch by name; their sum is minimised.

        Over several processes their means are the losses of all images in one batch.
        """
        ...


@dataclass(frozen=True)
class Jitter:
    """Large-scale jitter (Ghiasi et al., 2021): mirrored, resized at random, then a square cut out of it at random.

    Attributes:
        side: of the square, in pixels.
        least, most: of the factor, relative to a picture that just fits into the square.
        mirror: probability of a mirrored picture.
        fill: brightness 0..255 of what lies beyond the picture.
        fit: which side of the picture just fits into the square where the factor is 1.
        colours: brightness, contrast, saturation and hue change at random, as in SSD (Liu et al., 2016).
    """

    side: int = 1024
    least: float = 0.1
    most: float = 2.0
    mirror: float = 0.5
    fill: int = 128
    fit: Literal["longer", "shorter"] = "longer"
    colours: bool = False


@dataclass(frozen=True)
class Stage:
    """A stretch of the training with one optimiser.

    Attributes:
        steps: batches.
        rate: peak learning rate of AdamW.
        parts: of the segmenter that are trained; None: all that its recipe trains.
        multipliers: of the rate, by part.
        warmup: steps over which the rate rises from zero.
        milestones: steps from which on the rate is a tenth of what it was.
        cooldown: share of the steps, at the end, over which the rate falls to zero linearly.
        cosine: the rate falls to zero over all steps like half a cosine.
        weight_decay: of all but norms and embeddings.
        clip: greatest norm of the gradient of all parameters together; 0 switches it off.
    """

    steps: int
    rate: float = 1e-4
    parts: tuple[str, ...] | None = None
    multipliers: Mapping[str, float] = field(default_factory=dict)
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    cooldown: float = 0.0
    cosine: bool = False
    weight_decay: float = 0.05
    clip: float = 0.01

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0 within the stage."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (self.steps - step) / (self.cooldown * self.steps)) if self.cooldown else 1.0
        if self.cosine:
            fall *= 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(rise, fall) * 0.1 ** sum(step >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        name: of the model that comes out.
        build: weights by part (CLIP's, SAM's; where not given, the published ones) and ``model`` -> the segmenter before
            its training.
        skeleton: ``model`` -> the same without any weights.
        data: the data set: a name of the catalogue, or ``world:SPLIT`` for scenes of the emoji world rendered on the spot.
        stages: one after another.
        model: options of the segmenter's constructor.
        batch: images a step, over all processes.
        classes: that a batch is asked for: those in its pictures and others drawn at random; 0: all of the data set.
            Each process, and each part of an accumulated batch, draws its own.
        accumulate: parts into which each process's share of a batch is cut to save memory.
        jitter: how pictures are varied.
        loss: options of the segmenter's ``loss``.
        precision: float32, or that of automatic mixed precision.
        average: decay a step of a moving average of the weights, which is kept beside them; 0: none.
        seed: of the start, of the order of pictures, of their variations and of the points of the loss.
        validation: data sets that are measured during training, by name as in ``data``.
        validate_every: steps between.
        validate_limit: pictures of each.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.
    """

    name: str
    build: Callable[[Mapping[str, str], Mapping[str, Any]], Segmenter]
    skeleton: Callable[[Mapping[str, Any]], Segmenter]
    data: str
    stages: tuple[Stage, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 16
    classes: int = 0
    accumulate: int = 1
    jitter: Jitter = Jitter()
    loss: Any = field(default_factory=SetLossOptions)
    precision: Precision = "float32"
    average: float = 0.0
    seed: int = 0
    validation: tuple[str, ...] = ()
    validate_every: int = 5000
    validate_limit: int = 100
    save_every: int = 1000
    log_every: int = 20

    def __post_init__(self) -> None:
        if not self.stages or any(stage.steps < 1 for stage in self.stages):
            raise UsageError(f"{self.name}: a training has at least one stage of at least one step")
        if self.precision not in PRECISIONS:
            raise UsageError(f"{self.name}: unknown precision '{self.precision}'; there are {', '.join(PRECISIONS)}")
        for key in ("batch", "accumulate", "validate_every", "validate_limit", "save_every", "log_every"):
            if getattr(self, key) < 1:
                raise UsageError(f"{self.name}: {key} must be at least 1, not {getattr(self, key)}")

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_of(self, step: int) -> tuple[int, int]:
        """The number of the stage a step belongs to, and the step's number within it."""
        for number, stage in enumerate(self.stages):
            if step < stage.steps:
                return number, step
            step -= stage.steps
        raise ValueError("the training has fewer steps")

    def document(self) -> dict[str, Any]:
        """All values by dotted name, for logs and for comparison; functions are left out, the name stands for them."""
        return dict(_values(self, ""))


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with some values changed.

    Args:
        recipe: stays as it is.
        settings: each ``key=value``, see the module's docstring.

    Raises:
        UsageError: an unknown key, with what comes close; or a value of another kind.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"'{setting}' is no setting: write key=value, such as batch=8")
        known = recipe.document()
        short = {name.removeprefix("stages.0."): name for name in known} if len(recipe.stages) == 1 else {}
        name = short.get(key, key)
        if name not in known:
            close = get_close_matches(key, sorted({*known, *short}), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(short or known)}"
            raise UsageError(f"{recipe.name} has no setting '{key}': {hint}")
        recipe = _with(recipe, name.split("."), _parsed(setting, text, known[name]))
    return recipe


def _values(value: object, prefix: str) -> list[tuple[str, Any]]:
    if is_dataclass(value):
        found = [(entry.name, getattr(value, entry.name)) for entry in fields(value)]
    elif isinstance(value, tuple) and value and all(map(is_dataclass, value)):
        found = [(str(number), entry) for number, entry in enumerate(value)]
    elif isinstance(value, Mapping) and value:
        found = list(value.items())
    else:
        return [] if callable(value) else [(prefix, value)]
    return [row for name, entry in found for row in _values(entry, f"{prefix}.{name}" if prefix else name)]


def _with(node: Any, path: Sequence[str], value: object) -> Any:
    """The same tree of dataclasses, tuples and mappings with another leaf."""
    if not path:
        return value
    name, *rest = path
    if isinstance(node, tuple):
        place = int(name)
        return (*node[:place], _with(node[place], rest, value), *node[place + 1 :])
    if isinstance(node, Mapping):
        return {**node, name: _with(node[name], rest, value)}
    return replace(node, **{name: _with(getattr(node, name), rest, value)})


def _parsed(setting: str, text: str, like: object) -> object:
    """The value written as ``text``, of the kind of ``like``."""
    if isinstance(like, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(like, tuple) or like is None:
        items = value if isinstance(value, tuple | list) else text.split(",") if isinstance(value, str) else [value]
        kinds = {type(item) for item in like} if like else set()
        if not kinds or all(type(item) in kinds for item in items):
            return tuple(items)
    if type(value) is not type(like):
        raise UsageError(f"'{setting}': the value must be {_KINDS.get(type(like), 'of the kind of')} {like!r}, for instance")
    return value


_KINDS: Mapping[type, str] = {
    int: "a whole number such as",
    float: "a number such as",
    bool: "True or False, not",
    tuple: "a list such as",
    dict: "a dict such as",
}
