"""Registry of all models. To add a method, copy `sam_clip`, the smallest, and add its models here; tests/laws then cover it."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from lexiseg.errors import UsageError
from lexiseg.methods.catseg import models as catseg
from lexiseg.methods.cmpf import models as cmpf
from lexiseg.methods.escnet import models as escnet
from lexiseg.methods.fcclip import models as fcclip
from lexiseg.methods.fovseg import models as fovseg
from lexiseg.methods.grounded_sam import models as grounded_sam
from lexiseg.methods.maskclip import models as maskclip
from lexiseg.methods.recipe import Recipe
from lexiseg.methods.sam_clip import models as sam_clip
from lexiseg.methods.sam_mi import models as sam_mi
from lexiseg.methods.shared import PREFIX, shared_model
from lexiseg.methods.variant import Variant
from lexiseg.ops.markup import html_table
from lexiseg.structures import Task

MODELS: dict[str, Variant] = {
    variant.name: variant
    for method in (sam_clip, grounded_sam, fcclip, cmpf, catseg, sam_mi, escnet, maskclip, fovseg)
    for variant in method.MODELS
}
RECIPES: dict[str, Callable[[], Recipe]] = {
    name: variant.recipe for name, variant in MODELS.items() if variant.recipe is not None
}


class ModelNames(list[str]):
    """Names of models; in a notebook a table."""

    def _repr_html_(self) -> str:
        titles = ("name", "summary", "tasks", "licence", "here")
        return html_table(titles, [_row(MODELS[name]) for name in self if name in MODELS], "models")


def _row(model: Variant) -> tuple[str, ...]:
    here = "yes" if model.present else "no"
    return (model.name, model.summary, ", ".join(model.tasks), ", ".join(model.licences), here)


def list_models(task: Task | None = None) -> ModelNames:
    """Names of all models, or of those that support a task; in a notebook a table of them."""
    return ModelNames(name for name, variant in MODELS.items() if task is None or task in variant.tasks)


def model_named(name: str) -> Variant:
    """Return the model called ``name``, or that on the hub if it is ``hf:OWNER/NAME``, see `lexiseg.methods.shared`.

    Raises:
        UsageError: there is none; the message has similar names.
        WeightsError: as `shared_model`.
    """
    if name.startswith(PREFIX):
        return shared_model(name, MODELS)
    if name not in MODELS:
        raise UsageError(f"unknown model '{name}': {_near(name, MODELS)} ('lexiseg models' lists them)")
    return MODELS[name]


def recipe_named(name: str) -> Recipe:
    """Return the recipe called ``name``; raise UsageError with similar names if there is none."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe '{name}': {_near(name, RECIPES)} ('lexiseg train' lists them)")
    return RECIPES[name]()


def _near(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"available: {', '.join(known)}"
