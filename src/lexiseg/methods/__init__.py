"""All models by name. To add a method, copy `sam_clip`, the smallest, and add its models here; the laws apply at once."""

from difflib import get_close_matches

from lexiseg.errors import UsageError
from lexiseg.methods.base import Model
from lexiseg.methods.cmpf import variants as cmpf
from lexiseg.methods.fcclip import variants as fcclip
from lexiseg.methods.sam_clip import variants as sam_clip

MODELS: dict[str, Model] = {**sam_clip.MODELS, **fcclip.MODELS, **cmpf.MODELS}
DEFAULT = "sam_clip-tiny"


def model_named(name: str) -> Model:
    """The model called ``name``; `UsageError` with the nearest names if there is none."""
    if name in MODELS:
        return MODELS[name]
    near = get_close_matches(name, MODELS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(MODELS)}"
    raise UsageError(f"unknown model '{name}': {hint} ('lexiseg models' lists them)")
