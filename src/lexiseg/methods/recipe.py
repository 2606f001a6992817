"""A recipe: all that the result of a training depends on, as plain data that can be shown, changed and compared.

Recipes stand beside their methods, in ``models.py``; `lexiseg.training` carries them out. A value is changed by its dotted
name, ``stages.0.lr=2e-4`` or ``model.alpha=0.3``; a field of the stage alone is enough where there is only one, ``lr=2e-4``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from annotated_types import Ge, Lt
from torch import Tensor

from lexiseg.errors import UsageError
from lexiseg.losses.matching import PointSource
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.ops.options import Natural, NonNegative, Positive, PositiveFloat, Unit, flat, options, with_settings
from lexiseg.structures import ImageBatch, MaskTarget, TextEmbeddings

Precision = Literal["float32", "bfloat16", "float16"]


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


@options(frozen=True)
class Jitter:
    """Large-scale jitter (Ghiasi et al., 2021): mirrored, resized at random, then a square cut out of it at random."""

    side: Annotated[int, Ge(32)] = 1024
    """Side of the square in pixels."""
    least: PositiveFloat = 0.1
    """Smallest scale, relative to a picture that just fits into the square."""
    most: PositiveFloat = 2.0
    """Largest scale."""
    mirror: Unit = 0.5
    """Probability of a mirrored picture."""
    fill: Annotated[int, Ge(0), Lt(256)] = 128
    """Brightness of what lies beyond the picture."""
    fit: Literal["longer", "shorter"] = "longer"
    """Which side of the picture just fits into the square at a scale of 1."""
    colours: bool = False
    """Whether brightness, contrast, saturation and hue change at random, as in SSD (Liu et al., 2016)."""

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise UsageError(f"least = {self.least} is greater than most = {self.most}")


@options(frozen=True)
class Stage:
    """A stretch of the training with one optimiser, AdamW."""

    steps: Positive
    """Batches."""
    lr: NonNegative = 1e-4
    """Peak learning rate."""
    parts: tuple[str, ...] | None = None
    """Parts of the segmenter that are trained; None: all that its recipe trains."""
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    """Multipliers of the learning rate by part."""
    warmup: Natural = 0
    """Steps over which the learning rate rises from zero."""
    milestones: tuple[int, ...] = ()
    """Steps from which on the learning rate is a tenth of what it was."""
    cooldown: Unit = 0.0
    """Fraction of the steps, at the end, over which the learning rate falls to zero linearly."""
    cosine: bool = False
    """Whether the learning rate falls to zero over all steps like half a cosine."""
    weight_decay: NonNegative = 0.05
    """Of all but norms and embeddings."""
    max_grad_norm: NonNegative = 0.01
    """Greatest norm of the gradient of all parameters together; 0 switches clipping off."""

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0 within the stage."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (self.steps - step) / (self.cooldown * self.steps)) if self.cooldown else 1.0
        if self.cosine:
            fall *= 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * min(rise, fall) * 0.1 ** sum(step >= milestone for milestone in self.milestones)


@options(frozen=True)
class Recipe:
    """How a model is trained."""

    name: str
    """The model that comes out."""
    data: str
    """The data set: a name of the catalogue, or ``world:SPLIT`` for scenes of the emoji world rendered on the spot."""
    stages: tuple[Stage, ...]
    """Stages, carried out one after another."""
    model: Any
    """The model's config (`lexiseg.methods.base.MethodConfig`)."""
    batch_size: Positive = 16
    """Images a step, over all processes."""
    max_classes_per_batch: Natural = 0
    """Classes that a batch is trained on: those in its pictures and others drawn at random; 0: all of the data set. Each
    process, and each part of an accumulated batch, draws its own."""
    grad_accum_steps: Positive = 1
    """Parts into which the batch of each process is cut to save memory."""
    jitter: Jitter = Jitter()
    """How pictures are varied."""
    loss: Any = field(default_factory=SetLossOptions)
    """Options of the segmenter's ``loss``."""
    precision: Precision = "float32"
    """float32, or the dtype of automatic mixed precision."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay a step of a moving average of the weights, which is kept beside them; 0: none."""
    seed: Natural = 0
    """Of the start, of the order of pictures, of their variations and of the points of the loss."""
    validation: tuple[str, ...] = ()
    """Data sets that are measured during training, by name as in ``data``."""
    validate_every: Positive = 5000
    """Steps between validations."""
    validate_limit: Positive = 100
    """Pictures of each."""
    save_every: Positive = 1000
    """Steps between checkpoints."""
    log_every: Positive = 20
    """Steps between lines of the log."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise UsageError(f"{self.name}: a training has at least one stage")

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
        """All values by dotted name, for logs and for comparison."""
        return flat(self)


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with some values changed.

    Args:
        recipe: stays as it is.
        settings: each ``name=value``, see the module's docstring.

    Raises:
        UsageError: an unknown name, with what comes close; or a value that does not fit.
    """
    return with_settings(recipe, settings, owner=recipe.name, shorter=("stages.0.",) if len(recipe.stages) == 1 else ())
