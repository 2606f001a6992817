"""Count the floating-point operations of a model for one image; needs no weights, and no memory for them."""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lexiseg.errors import UsageError
from lexiseg.methods.base import Segmenter
from lexiseg.methods.variant import Variant
from lexiseg.structures import ImageBatch, Size, TextEmbeddings


def count_flops(model: Variant, classes: int, size: Size) -> int:
    """Floating-point operations of a model's forward pass for one image, without text tower and post-processing.

    Those of matrix products, convolutions and attention are counted, two for each multiplication with its addition (MAC); the
    rest (norms, activations, resizing, k-means) is left out, as most tools do.

    Args:
        model: the model.
        classes: K, with one name each.
        size: of the image, in pixels.

    Raises:
        UsageError: what the model computes depends on the image, so that it cannot be counted without one.
    """
    with torch.device("meta"):
        segmenter = model.empty().to("meta").eval()  # transformers leaves some tensors on the CPU
    text = made_text(segmenter, classes, "meta")
    images = ImageBatch(torch.empty(1, 3, *size, device="meta"), (size,))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        try:
            segmenter(images, text)
        except (NotImplementedError, RuntimeError) as error:  # a value of a tensor on the device "meta" is needed
            raise UsageError(
                f"the operations of {model.name} depend on the image and cannot be counted without one; CAT-Seg and ESC-Net "
                "(catseg-vit-l14, escnet-vit-l14) can be counted"
            ) from error
    total: int = counter.get_total_flops()
    return total


def made_text(segmenter: Segmenter, classes: int, device: torch.device | str) -> TextEmbeddings:
    """Random embeddings of made names, for measurements of cost."""
    width = 0 if segmenter.reads_names else segmenter.clip.width
    vectors = functional.normalize(torch.randn(classes, width, device=device), dim=-1)
    names, things = tuple(f"class {number}" for number in range(classes)), torch.ones(classes, dtype=torch.bool, device=device)
    return TextEmbeddings(vectors, torch.arange(classes, device=device), names, things, all_names=names)
