"""Embed a vocabulary in CLIP's joint space: one unit row per name, averaged over the prompt templates.

A name's row is normalise(mean over templates of normalise(CLIP(prompt))), as in FC-CLIP and CAT-Seg. Synonyms have their own
rows; a class has the score of its best name (`TextEmbeddings.per_class`).
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
from lexiseg.ops.progress import report
from lexiseg.structures import TextEmbeddings
from lexiseg.text.templates import fill, resolve_templates
from lexiseg.text.vocabulary import Vocabulary

_LAYOUT = 1  # part of every digest; raise it when the order of operations changes


class TextEncoder(Protocol):
    """Interface of a CLIP model that embeds text."""

    @property
    def identity(self) -> str:
        """Name or digest of model and weights, the key of the cache: it differs whenever the weights do."""
        ...

    def tokenize(self, texts: list[str]) -> Tensor:
        """Return the token ids [P, L] of P prompts, truncated to CLIP's context length L."""
        ...

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return the unit embeddings [P, D] of tokens [P, L]."""
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
        clip: a CLIP with a text tower.
        templates: the name of a set, or templates, see `resolve_templates`.
        chunk: prompts per batch; affects memory, not the result.
        cache: folder where the rows are cached; "default" is `cache_folder`; None for no cache.
        progress: show a progress bar on stderr, if that is a terminal.

    Raises:
        UsageError: if the templates are invalid, or ``chunk`` is below 1.
    """
    sentences, names = resolve_templates(templates), vocabulary.all_names
    folder = cache_folder() if cache == "default" else cache
    path = None if folder is None else Path(folder) / f"{_digest(clip.identity, sentences, names)}.safetensors"
    rows = None if path is None else _cached(path, len(names))
    if rows is None:
        rows = embed_names(clip, names, sentences, chunk=chunk, progress=progress).cpu()
        if path is not None:
            _keep(path, rows)
    return with_vectors(vocabulary, rows)


def with_vectors(vocabulary: Vocabulary, vectors: Tensor) -> TextEmbeddings:
    """Return a vocabulary with the embeddings [S, D] of its names, on the CPU."""
    class_index, things = torch.tensor(vocabulary.class_index), torch.tensor(vocabulary.things)
    return TextEmbeddings(vectors, class_index, vocabulary.names, things, all_names=vocabulary.all_names)


def embed_names(
    clip: TextEncoder, names: Sequence[str], templates: Sequence[str], *, chunk: int = 512, progress: bool = False
) -> Tensor:
    """Embed S names as unit rows [S, D], float32 on CLIP's device; differentiable, for trainable text towers.

    Duplicate names are encoded once. Apart from the rows, memory is that of one chunk of prompts.
    """
    if chunk < 1:
        raise UsageError(f"chunk is {chunk}: give at least 1 prompt")
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
            report("names", bar.n, total)
    rows = functional.normalize(sums, dim=-1)  # normalised, so the sum serves as mean
    return rows[torch.tensor([unique[name] for name in names], device=rows.device)]


def cache_folder(room: str = "text") -> Path | None:
    """Return the folder of a cache: ``$LEXISEG_CACHE/text`` or the user's cache folder; None for a user without a home."""
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
    """Return the rows of a cache file, or None if it is missing, damaged or does not fit."""
    try:
        rows = load_file(path)["vectors"]
    except (OSError, SafetensorError, KeyError):
        return None
    fits = rows.ndim == 2 and len(rows) == count and rows.dtype == torch.float32 and bool(rows.isfinite().all())
    return rows if fits else None


def _keep(path: Path, rows: Tensor) -> None:
    with suppress(OutputError):  # a read-only or full disk must not cost this run its result
        write_atomically(path, save({"vectors": rows.contiguous()}))
