"""Segment ids in the colours of panoptic PNGs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def ids_of_picture(picture: Image.Image) -> NDArray[np.int32]:
    """Decode the segment ids [H, W] of a panoptic PNG, id = R + 256 G + 65536 B; Pillow's errors are not converted.

    Pillow returns the four bytes per pixel of its internal storage, which is much faster than arithmetic on three channels.
    """
    colours = picture if picture.mode == "RGB" else picture.convert("RGB")
    ids = np.frombuffer(colours.tobytes("raw", "RGBX"), "<u4") & 0xFFFFFF  # without the fourth byte
    return ids.astype(np.int32, copy=False).reshape(colours.height, colours.width)
