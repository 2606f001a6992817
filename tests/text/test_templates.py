"""Prompt templates against the published sets."""

from __future__ import annotations

from hashlib import sha256

import pytest

from lexiseg.errors import UsageError
from lexiseg.text import fill, resolve_templates, template_names


def test_vild14_expands_as_the_official_code_does() -> None:
    """84 prompts of six names, recorded from FrozenSeg's own expansion; the digest is of the recording, one a line."""
    names = ("person", "child", "river", "stream", "sofa", "car")
    prompts = [fill(template, name) for name in names for template in resolve_templates("vild14")]
    assert prompts[:5] == [
        "a photo of a person.",
        "This is a photo of a person",
        "There is a person in the scene",
        "There is the person in the scene",
        "a photo of a person in the scene",
    ]
    assert sha256("\n".join(prompts).encode()).hexdigest() == "9b5e7cebed5ca91927f91f69dad2b8938e62125e591d6a7d6a800bb6d4eece1d"


def test_sizes_of_the_sets() -> None:
    sizes = {name: len(set(resolve_templates(name))) for name in template_names()}
    assert sizes == {"none": 1, "single": 1, "catseg": 1, "vild14": 14, "imagenet": 80}
    assert all("{}" in template for name in template_names() for template in resolve_templates(name))


def test_imagenet_templates_are_openai_s() -> None:
    import open_clip

    filled = [fill(template, "tench") for template in resolve_templates("imagenet")]
    assert filled == [template("tench") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]


def test_own_templates() -> None:
    assert resolve_templates("an x-ray of {}") == ("an x-ray of {}",)
    assert resolve_templates(["{}", "the {}"]) == ("{}", "the {}")
    assert fill("a {} of {}", "{x} {0}") == "a {x} {0} of {x} {0}"


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("vild", "no prompt templates named 'vild'; choose none, single"),
        (["a {}", "a dog"], "'a dog' has no {}"),
        ([3], "3"),
        ([], "no prompt"),
    ],
)
def test_unfit_templates_are_refused(templates: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_templates(templates)
