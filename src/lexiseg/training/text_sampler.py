"""Text embeddings for training batches: of all classes or a sample, computed once or in each step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lexiseg.methods.base import Segmenter
from lexiseg.structures import MaskTarget, TextEmbeddings
from lexiseg.text.embed import embed_names
from lexiseg.text.templates import resolve_templates
from lexiseg.text.vocabulary import Vocabulary
from lexiseg.training.batches import CLASSES, Batch, seed_of


def training_text(segmenter: Segmenter, vocabulary: Vocabulary, *, cache: str | Path | None = "default") -> TextEmbeddings:
    """Embed the vocabulary of a training; the text cache is used only if the text tower is frozen."""
    cache = None if segmenter.tunes_text else cache
    return segmenter.embed_text(vocabulary, cache=cache, progress=True)


class TextSampler:
    """Samples classes and their text embeddings for each batch.

    Args:
        segmenter: if its text tower is trained, names are embedded with gradients in each batch.
        vocabulary: vocabulary of the training.
        device: device of the embeddings.
        max_classes: classes per batch: those in its images, filled up at random; 0: all.
        seed: seed of the training.
        cache: see `embed_vocabulary`.
        text: embeddings of the vocabulary; None: computed.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        vocabulary: Vocabulary,
        device: torch.device,
        *,
        max_classes: int,
        seed: int,
        cache: str | Path | None = "default",
        text: TextEmbeddings | None = None,
    ) -> None:
        self.segmenter, self.vocabulary, self.max_classes, self.seed = segmenter, vocabulary, max_classes, seed
        self.text = (text or training_text(segmenter, vocabulary, cache=cache)).to(device)

    def sample(self, batch: Batch) -> tuple[TextEmbeddings, tuple[MaskTarget, ...]]:
        """Text embeddings for a batch, and its targets with labels that index them."""
        text, targets, vocabulary = self.text, batch.targets, self.vocabulary
        if self.max_classes and self.max_classes < len(text):
            chosen = self._chosen(batch)
            targets = tuple(MaskTarget(target.masks, torch.searchsorted(chosen, target.labels)) for target in targets)
            text, vocabulary = text.select(chosen), vocabulary.select(chosen.tolist())
        if self.segmenter.tunes_text:
            sentences = resolve_templates(self.segmenter.config.templates)
            text = replace(text, vectors=embed_names(self.segmenter.clip, vocabulary.all_names, sentences))
        return text, targets

    def _chosen(self, batch: Batch) -> torch.Tensor:
        """The sampled labels in ascending order, determined by seed and batch."""
        device = self.text.class_index.device
        present = torch.cat([target.labels for target in batch.targets]).unique()
        generator = torch.Generator().manual_seed(seed_of(self.seed, CLASSES, batch.positions[0]))
        order = torch.randperm(len(self.text), generator=generator).to(device)
        others = order[~torch.isin(order, present)]
        return torch.cat([present, others[: max(0, self.max_classes - len(present))]]).sort().values
