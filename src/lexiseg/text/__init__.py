"""Text side: vocabularies, prompt templates, and their embedding by CLIP's text tower."""

from lexiseg.text.embed import TextEncoder, cache_folder, embed_names, embed_vocabulary
from lexiseg.text.templates import fill, resolve_templates, template_names
from lexiseg.text.vocabulary import ClassList, ClassName, Vocabulary, builtin_names

__all__ = [
    "ClassList",
    "ClassName",
    "TextEncoder",
    "Vocabulary",
    "builtin_names",
    "cache_folder",
    "embed_names",
    "embed_vocabulary",
    "fill",
    "resolve_templates",
    "template_names",
]
