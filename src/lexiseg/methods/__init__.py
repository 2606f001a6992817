"""All models by name. To add a method, copy `sam_clip`, the smallest, and add its models here; the laws apply at once."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from lexiseg.errors import UsageError
from lexiseg.methods.base import Model
from lexiseg.methods.catseg import recipe as catseg_recipes
from lexiseg.methods.catseg import variants as catseg
from lexiseg.methods.cmpf import recipe as cmpf_recipes
from lexiseg.methods.cmpf import variants as cmpf
from lexiseg.methods.escnet import recipe as escnet_recipes
from lexiseg.methods.escnet import variants as escnet
from lexiseg.methods.fcclip import recipe as fcclip_recipes
from lexiseg.methods.fcclip import variants as fcclip
from lexiseg.methods.fovseg import recipe as fovseg_recipes
from lexiseg.methods.fovseg import variants as fovseg
from lexiseg.methods.maskclip import variants as maskclip
from lexiseg.methods.recipe import Recipe
from lexiseg.methods.sam_clip import variants as sam_clip
from lexiseg.methods.sam_mi import recipe as sam_mi_recipes
from lexiseg.methods.sam_mi import variants as sam_mi

MODELS: dict[str, Model] = {
    name: model
    for method in (sam_clip, fcclip, cmpf, catseg, sam_mi, escnet, maskclip, fovseg)
    for name, model in method.MODELS.items()
}
RECIPES: dict[str, Callable[[], Recipe]] = {
    name: make
    for method in (fcclip_recipes, cmpf_recipes, catseg_recipes, sam_mi_recipes, escnet_recipes, fovseg_recipes)
    for name, make in method.RECIPES.items()
}
DEFAULT = "sam_clip-tiny"


def model_named(name: str) -> Model:
    """The model called ``name``; `UsageError` with the nearest names if there is none."""
    if name not in MODELS:
        raise UsageError(f"unknown model '{name}': {_near(name, MODELS)} ('lexiseg models' lists them)")
    return MODELS[name]


def recipe_named(name: str) -> Recipe:
    """The recipe called ``name``; `UsageError` with the nearest names if there is none."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe '{name}': {_near(name, RECIPES)} ('lexiseg train' lists them)")
    return RECIPES[name]()


def _near(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
