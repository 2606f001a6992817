"""Training recipes: all settings that the result of a training depends on, as plain data.

Recipes are defined in ``models.py`` of each method and run by `lexiseg.training`. Values are overridden by dotted name, such as
``stages.0.lr=2e-4`` or ``model.alpha=0.3``; with a single stage the name of its field is enough, ``lr=2e-4``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from annotated_types import Ge, Lt
from torch import Tensor

from lexiseg.errors import UsageError
from lexiseg.losses.fiser import FiserOptions
from lexiseg.losses.matching import PointSource
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods.base import MethodConfig
from lexiseg.ops.options import Natural, NonNegative, Positive, PositiveFloat, Unit, flat, options, with_settings
from lexiseg.structures import ImageBatch, MaskTarget, TextEmbeddings

Precision = Literal["float32", "bfloat16", "float16"]


@runtime_checkable
class Trainable(Protocol):
    """Protocol of trainable methods, in addition to `Segmenter`."""

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: Any = None,
        draw: PointSource | None = None,
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch by name; their sum is minimised.

        Their means over several processes are the losses of all images in one batch.
        """
        ...


@options(frozen=True)
class Jitter:
    """Large-scale jitter (Ghiasi et al., 2021): random horizontal flip, random resize, and random square crop."""

    side: Annotated[int, Ge(32)] = 1024
    """Side of the crop, in pixels."""
    min_scale: PositiveFloat = 0.1
    """Minimum scale, relative to an image that fits the crop."""
    max_scale: PositiveFloat = 2.0
    """Maximum scale."""
    mirror: Unit = 0.5
    """Probability of a horizontal flip."""
    fill: Annotated[int, Ge(0), Lt(256)] = 128
    """Pixel value of the padding."""
    fit: Literal["longer", "shorter"] = "longer"
    """Side of the image that fits the crop at scale 1."""
    colours: bool = False
    """Whether to apply colour jitter (brightness, contrast, saturation, hue) as in SSD (Liu et al., 2016)."""

    def __post_init__(self) -> None:
        if self.min_scale > self.max_scale:
            raise UsageError(f"min_scale = {self.min_scale} is greater than max_scale = {self.max_scale}")


@options(frozen=True)
class Stage:
    """Stage of a training with its own AdamW optimiser."""

    steps: Positive
    """Number of optimiser steps."""
    lr: NonNegative = 1e-4
    """Peak learning rate."""
    parts: tuple[str, ...] | None = None
    """Parts that are trained; None: all trainable parts of the method (`Segmenter.trained_parts`)."""
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    """Learning rate multipliers by part."""
    warmup: Natural = 0
    """Steps of linear warm-up."""
    milestones: tuple[int, ...] = ()
    """Steps at which the learning rate is divided by 10."""
    cooldown: Unit = 0.0
    """Fraction of the steps, at the end, over which the learning rate decays linearly to zero."""
    cosine: bool = False
    """Whether to use cosine decay of the learning rate to zero."""
    weight_decay: NonNegative = 0.05
    """Weight decay of all parameters but norms and embeddings."""
    max_grad_norm: NonNegative = 0.01
    """Maximum norm of the gradient of all parameters (gradient clipping), that of FiSeR's predictor apart; 0 disables
    clipping."""

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0 within the stage."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (self.steps - step) / (self.cooldown * self.steps)) if self.cooldown else 1.0
        if self.cosine:
            fall *= 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * min(rise, fall) * 0.1 ** sum(step >= milestone for milestone in self.milestones)


@options(frozen=True)
class Recipe:
    """Training recipe of a model."""

    name: str
    """Name of the trained model."""
    data: str
    """Data set: a name of the catalogue, or ``world:SPLIT`` for rendered scenes of the emoji world."""
    stages: tuple[Stage, ...]
    """Stages, in order."""
    model: MethodConfig
    """The model's config."""
    batch_size: Positive = 16
    """Images per step, over all processes."""
    max_classes_per_batch: Natural = 0
    """Number of classes per batch: those in its images and randomly sampled others; 0: all classes of the data set. Each
    process, and each part of an accumulated batch, samples its own."""
    grad_accum_steps: Positive = 1
    """Gradient accumulation: number of parts that the batch of each process is split into."""
    jitter: Jitter = Jitter()
    """Data augmentation."""
    loss: Any = field(default_factory=SetLossOptions)
    """Options of the method's ``loss``."""
    fiser: FiserOptions = FiserOptions()
    """Options of FiSeR, an auxiliary loss for any method that trains a vision transformer CLIP or mask tokens of one; on if
    ``fiser.weight`` is not 0."""
    precision: Precision = "float32"
    """float32, or the dtype of automatic mixed precision."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay per step of the exponential moving average of the weights; 0: no average."""
    seed: Natural = 0
    """Seed of initialisation, sampling order, augmentation and loss points."""
    validation: tuple[str, ...] = ()
    """Validation data sets, by name as in ``data``."""
    validate_every: Positive = 5000
    """Steps between validations."""
    validate_limit: Positive = 100
    """Images per validation data set."""
    save_every: Positive = 1000
    """Steps between checkpoints."""
    log_every: Positive = 20
    """Steps between log lines."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise UsageError(f"{self.name}: the recipe has no stages; give at least one")

    @property
    def steps(self) -> int:
        """Total number of steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_of(self, step: int) -> tuple[int, int]:
        """Index of the stage of a step, and the step's index within the stage."""
        for number, stage in enumerate(self.stages):
            if step < stage.steps:
                return number, step
            step -= stage.steps
        raise ValueError("step is beyond the end of the training")

    def to_dict(self) -> dict[str, Any]:
        """All values by dotted name, for logs and comparison."""
        return flat(self)


def with_overrides(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Return a copy of the recipe with some values overridden.

    Args:
        recipe: is not modified.
        settings: ``name=value`` each, see the module's docstring.

    Raises:
        UsageError: an unknown name, with suggestions; or an invalid value.
    """
    return with_settings(recipe, settings, owner=recipe.name, shorter=("stages.0.",) if len(recipe.stages) == 1 else ())
