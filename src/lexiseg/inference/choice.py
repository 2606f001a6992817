"""Choice of a model for photographs: "fast", "best", or the best whose weights are on this machine."""

from __future__ import annotations

from functools import lru_cache

from lexiseg.data.published import published
from lexiseg.errors import UsageError
from lexiseg.methods import MODELS, model_named
from lexiseg.methods.base import Segmenter
from lexiseg.methods.prompts import TakesPrompts
from lexiseg.methods.variant import Variant
from lexiseg.structures import Task

FAST, TOY = "sam_clip-mobile", "sam_clip-tiny"
DATA = "ade20k-150"  # the data set that most papers measure, for all three tasks
METRICS: dict[Task, str] = {"panoptic": "PQ", "semantic": "mIoU", "instance": "AP"}


@lru_cache(maxsize=256)
def published_quality(name: str, task: Task) -> float | None:
    """Published number of a model on `DATA`, the highest if papers print several; None if none is printed.

    Args:
        name: name of the model.
        task: its metric is in `METRICS`.
    """
    rows = MODELS[name].printed
    values = [
        figure.value
        for figure in published(DATA, METRICS[task])
        if (figure.method, figure.backbone) == rows and not figure.group and not figure.variant
    ]
    return max(values, default=None)


def models_for_photographs(task: Task, *, prompts: bool = False) -> list[Variant]:
    """Models with published weights that support a task, and prompts if wanted, best first.

    The order is that of the published numbers; models without one follow. [decided] Of these the larger is the better.
    """
    variants = [
        model
        for model in MODELS.values()
        if task in model.tasks and not model.is_toy and not any(source.recipe for source in model.required.values())
        if not prompts or issubclass(model.method, TakesPrompts)
    ]
    return sorted(variants, key=lambda model: (-(published_quality(model.name, task) or 0.0), -model.size))


def choose_model(name: str | None, task: Task, *, prompts: bool = False) -> Variant:
    """Return the model called ``name``, or one for photographs.

    Args:
        name: a model; "best": the one with the best published number for the task; "fast": the fastest; None: the best of
            those whose weights are on this machine, or the fastest if there is none.
        task: task that a model for "best" or None has to support.
        prompts: whether the model has to take points and boxes.

    Raises:
        UsageError: unknown model, or one that takes no points and boxes.
    """
    if name is None:
        return next((model for model in models_for_photographs(task, prompts=prompts) if model.present), MODELS[FAST])
    if name == "best":
        return models_for_photographs(task, prompts=prompts)[0]
    model = model_named(FAST if name == "fast" else name)
    if prompts:
        check_takes_prompts(model.method)
    return model


def check_takes_prompts(method: type[Segmenter]) -> None:
    """Raise UsageError if a method takes no points and boxes."""
    if not issubclass(method, TakesPrompts):
        names = ", ".join(model.name for model in MODELS.values() if issubclass(model.method, TakesPrompts))
        raise UsageError(f"{method.key} takes no points and boxes; models that do: {names}")


def model_here(name: str | None, task: Task = "panoptic") -> Variant:
    """As `choose_model`, but without a name only a model whose weights are on this machine.

    Raises:
        UsageError: unknown model; no name, and no model for photographs is here.
    """
    model = choose_model(name, task)
    if name is None and not model.present:
        raise UsageError(
            f"no model for photographs is on this machine: 'lexiseg fetch {FAST}' gets one; without a connection take {TOY}, a "
            "toy in the package that knows only drawings"
        )
    return model
