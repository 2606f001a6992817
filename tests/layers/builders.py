"""Tiny mask decoders, features and vocabularies for the tests of this folder."""

from __future__ import annotations

import torch
from torch.nn import functional

from lexiseg.layers.mask_decoder import DecodedMasks, MaskDecoder
from lexiseg.layers.pixel_decoder import PixelFeatures
from lexiseg.structures import TextEmbeddings

WIDTH, TEXT_WIDTH, QUERIES, LAYERS = 16, 12, 5, 9


def decoder(layers: int = LAYERS) -> MaskDecoder:
    return MaskDecoder(TEXT_WIDTH, width=WIDTH, queries=QUERIES, layers=layers, heads=2, feedforward=24).eval()


def features(batch: int = 1, size: tuple[int, int] = (8, 12)) -> PixelFeatures:
    high, wide = size
    levels = (torch.randn(batch, WIDTH, -(-high // part), -(-wide // part)) for part in (8, 4, 2))
    return PixelFeatures(torch.randn(batch, WIDTH, high, wide), tuple(levels))


def one_of(batch: PixelFeatures, image: int) -> PixelFeatures:
    return PixelFeatures(batch.mask_features[image, None], tuple(level[image, None] for level in batch.levels))


def text(synonyms: tuple[int, ...] = (1, 2, 1)) -> TextEmbeddings:
    class_index = torch.arange(len(synonyms)).repeat_interleave(torch.tensor(synonyms))
    vectors = functional.normalize(torch.randn(len(class_index), TEXT_WIDTH), dim=-1)
    names = tuple(f"class {number}" for number in range(len(synonyms)))
    return TextEmbeddings(vectors, class_index, names, torch.ones(len(synonyms), dtype=torch.bool))


def same(first: DecodedMasks, second: DecodedMasks) -> bool:
    """Bit for bit, earlier layers included."""
    return (
        torch.equal(first.masks, second.masks)
        and torch.equal(first.classes, second.classes)
        and len(first.auxiliary) == len(second.auxiliary)
        and all(same(one, other) for one, other in zip(first.auxiliary, second.auxiliary, strict=True))
    )
