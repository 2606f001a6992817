"""Prompt templates: sentences with ``{}`` for the class name.

none       the bare name
single     one plain sentence
catseg     the one sentence of CAT-Seg
vild14     the 14 sentences FC-CLIP and FrozenSeg took from ViLD
imagenet   the 80 sentences OpenAI tuned for ImageNet
"""

from __future__ import annotations

from collections.abc import Sequence

from lexiseg.errors import UsageError

_SIZES = ("small", "medium", "large")
_VILD = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    *(f"a photo of a {size} {{}}." for size in _SIZES),
    *(f"This is a photo of a {size} {{}}." for size in _SIZES),
    *(f"There is a {size} {{}} in the scene." for size in _SIZES),
)
_SETS = {"none": ("{}",), "single": ("a photo of a {}.",), "catseg": ("A photo of a {} in the scene",), "vild14": _VILD}


def template_names() -> tuple[str, ...]:
    """Return the names of the template sets."""
    return (*_SETS, "imagenet")


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Return the T templates of a set, or the given ones.

    Args:
        templates: the name of a set, one template, or several; ``{}`` is replaced by the name.

    Raises:
        UsageError: if there is no such set, no template, or a template without ``{}``.
    """
    if isinstance(templates, str):
        if templates in _SETS:
            return _SETS[templates]
        if templates == "imagenet":
            return _imagenet()
        if "{}" not in templates:
            known = ", ".join(template_names())
            raise UsageError(
                f"no prompt templates named {templates!r}; choose {known}, or write your own with {{}} for the name"
            )
        return (templates,)
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise UsageError(f"prompt template {template!r} has no {{}}; write one where the name goes")
    if not templates:
        raise UsageError("no prompt templates given; use 'none' for bare names")
    return tuple(templates)


def fill(template: str, name: str) -> str:
    """Replace each ``{}`` of a template by ``name``; braces within the name are kept."""
    return template.replace("{}", name)


def _imagenet() -> tuple[str, ...]:
    import open_clip  # slow to import, used by this set only

    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
