"""Class colours: fixed by the label, distinct for neighbouring labels."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]

_GOLDEN = 0.61803398875  # turning by the golden ratio keeps any few consecutive hues apart


def class_colour(label: int, shade: int = 0) -> Colour:
    """Return the RGB colour of class ``label``; ``shade`` varies it among instances of the class."""
    hue = (0.58 + label * _GOLDEN) % 1
    value = (1.0, 0.82, 0.92, 0.74)[(label // 7 + shade) % 4]
    saturation = (0.72, 0.55, 0.85)[(label // 3 + shade) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
