"""A vocabulary in CLIP's joint space: each name through all templates, encoded, averaged, one unit row a name.

A name's row is normalise(mean over templates of normalise(CLIP(prompt))), as in FC-CLIP and CAT-Seg. Synonyms keep rows
of their own; a class is scored by its best one (`TextEmbeddings.per_class`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lexiseg.errors import OutputError, UsageError
from lexiseg.ops.files import write_atomically
from lexiseg.structures import TextEmbeddings
from lexiseg.text.templates import fill, resolve_templates
from lexiseg.text.vocabulary import Vocabulary

_LAYOUT = 1  # part of every digest; raise it when the order of operations changes


class TextEncoder(Protocol):
    """What a CLIP must offer to embed names."""

    @property
    def identity(self) -> str:
        """Model and weights in words or a digest: it differs whenever the weights do, for the cache depends on it."""
        ...

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids [P, L] of P prompts, cut off at CLIP's context length L."""
        ...

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Unit rows [P, D] of tokens [P, L]."""
        ...


@torch.no_grad()
def embed_vocabulary(
    clip: TextEncoder,
    vocabulary: Vocabulary,
    templates: str | Sequence[str] = "vild14",
    *,
    chunk: int = 512,
    cache: str | Path | None = None,
    progress: bool = False,
) -> TextEmbeddings:
    """Embed all names of a vocabulary, float32 on the CPU, without gradients.

    Args:
        clip: any CLIP with a text tower.
        templates: a set's name or own templates, see `resolve_templates`.
        chunk: prompts encoded at once. The result does not depend on it, the memory needed does.
        cache: folder that keeps the rows for the next run; "default" is `cache_folder`; None keeps nothing.
        progress: show a bar on stderr, if that is a terminal.

    Raises:
        UsageError: if the templates are not fit for use, or ``chunk`` is below 1.
    """
    sentences, names = resolve_templates(templates), vocabulary.all_names
    folder = cache_folder() if cache == "default" else cache
    path = None if folder is None else Path(folder) / f"{_digest(clip.identity, sentences, names)}.safetensors"
    rows = None if path is None else _cached(path, len(names))
    if rows is None:
        rows = embed_names(clip, names, sentences, chunk=chunk, progress=progress).cpu()
        if path is not None:
            _keep(path, rows)
    return TextEmbeddings(rows, torch.tensor(vocabulary.class_index), vocabulary.names, torch.tensor(vocabulary.things))


def embed_names(
    clip: TextEncoder, names: Sequence[str], templates: Sequence[str], *, chunk: int = 512, progress: bool = False
) -> Tensor:
    """Unit rows [S, D], float32 on CLIP's device, of S names; differentiable, for text towers that learn.

    A name that occurs twice is encoded once. Beyond the rows, memory is that of one chunk of prompts.
    """
    if chunk < 1:
        raise UsageError(f"chunk is {chunk}: at least one prompt is encoded at once")
    unique = {name: row for row, name in enumerate(dict.fromkeys(names))}
    prompts = ((row, fill(template, name)) for name, row in unique.items() for template in templates)
    total, hidden = len(unique) * len(templates), None if progress else True  # None: hidden unless stderr is a terminal
    sums = torch.empty(0)
    with tqdm(total=total, desc="embedding names", unit="prompt", leave=False, disable=hidden) as bar:
        while part := list(islice(prompts, chunk)):
            vectors = functional.normalize(clip.encode_text(clip.tokenize([text for _, text in part])).float(), dim=-1)
            if not sums.numel():
                sums = vectors.new_zeros(len(unique), vectors.shape[-1])
            sums.index_add_(0, torch.tensor([row for row, _ in part], device=vectors.device), vectors)
            bar.update(len(part))
    rows = functional.normalize(sums, dim=-1)  # the mean's length is lost here, so a sum will do
    return rows[torch.tensor([unique[name] for name in names], device=rows.device)]


def cache_folder(room: str = "text") -> Path | None:
    """Where a kind of cache is kept: ``$LEXISEG_CACHE/text`` or the user's cache folder; None for a user without a home."""
    for variable, below in (("LEXISEG_CACHE", ""), ("XDG_CACHE_HOME", "lexiseg")):
        if os.environ.get(variable):
            return Path(os.environ[variable]) / below / room
    try:
        return Path.home() / ".cache/lexiseg" / room
    except RuntimeError:
        return None


def _digest(identity: str, templates: Sequence[str], names: Sequence[str]) -> str:
    return sha256(json.dumps([_LAYOUT, identity, list(templates), list(names)]).encode()).hexdigest()


def _cached(path: Path, count: int) -> Tensor | None:
    """The rows in a cache file, or None if it is missing, damaged or not what it should be."""
    try:
        rows = load_file(path)["vectors"]
    except (OSError, SafetensorError, KeyError):
        return None
    fits = rows.ndim == 2 and len(rows) == count and rows.dtype == torch.float32 and bool(rows.isfinite().all())
    return rows if fits else None


def _keep(path: Path, rows: Tensor) -> None:
    with suppress(
        OutputError
    ):  # a read-only or full disk costs the next run some seconds; it must not cost this run its result
        write_atomically(path, save({"vectors": rows.contiguous()}))
