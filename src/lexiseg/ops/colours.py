"""The numbers in the colours of a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def ids_of_picture(picture: Image.Image) -> NDArray[np.int32]:
    """The segment ids [H, W] of a panoptic PNG, id = R + 256 G + 65536 B; what Pillow raises if it cannot be decoded.

    Pillow hands out four bytes a pixel as it keeps them, which is many times faster than arithmetic with three channels.
    """
    colours = picture if picture.mode == "RGB" else picture.convert("RGB")
    ids = np.frombuffer(colours.tobytes("raw", "RGBX"), "<u4") & 0xFFFFFF  # without the fourth byte
    return ids.astype(np.int32, copy=False).reshape(colours.height, colours.width)
