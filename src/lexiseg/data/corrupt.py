"""Image corruptions for robustness tests: blur, darkness and noise, in five severities.

As in ImageNet-C (Hendrycks and Dietterich, 2019) severities go from 1 to 5; the strengths are our own. [decided]
The noise of a picture is seeded by its key, so that it is the same in every run.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
from PIL import Image, ImageFilter

from lexiseg.data.images import Pixels
from lexiseg.errors import UsageError

STRENGTHS = {
    "blur": (1.0, 2.0, 3.0, 4.0, 6.0),  # standard deviation of a Gaussian in pixels, for a longer side of 512
    "dark": (0.6, 0.4, 0.25, 0.15, 0.08),  # fraction of the light that is left
    "noise": (0.04, 0.08, 0.12, 0.18, 0.26),  # standard deviation, of 1
}


def parse(text: str) -> tuple[str, int]:
    """Parse "blur:3" to ("blur", 3).

    Raises:
        UsageError: an unknown kind, or a severity outside 1..5.
    """
    kind, _, severity = text.partition(":")
    if kind not in STRENGTHS or severity not in {"1", "2", "3", "4", "5"}:
        raise UsageError(f"--corrupt {text}: write {'|'.join(STRENGTHS)} and a severity from 1 to 5, for example blur:3")
    return kind, int(severity)


def corrupt(pixels: Pixels, kind: str, severity: int, key: str) -> Pixels:
    """Corrupt a picture [H, W, 3] uint8; ``key`` is its name, the seed of its noise."""
    strength = STRENGTHS[kind][severity - 1]
    if kind == "blur":
        radius = strength * max(pixels.shape[:2]) / 512
        return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    if kind == "dark":  # sRGB values are about the light to the power 1 / 2.2
        return np.round(pixels * strength ** (1 / 2.2)).astype(np.uint8)
    noise = np.random.default_rng(crc32(f"{severity} {key}".encode())).normal(0, strength * 255, pixels.shape)
    return np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)
