"""Display of results: in a notebook, in a window, or as a file where there is neither."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable

from PIL import Image


def display(rich: object, draw: Callable[[], Image.Image]) -> None:
    """Show a result where it can be seen.

    Args:
        rich: object with ``_repr_html_``, which a notebook displays.
        draw: draws the picture that is shown elsewhere.
    """
    if in_notebook():
        from IPython.display import display as show  # imported already

        show(rich)
    elif has_screen():
        draw().show()
    else:
        with tempfile.NamedTemporaryFile(prefix="lexiseg-", suffix=".png", delete=False) as file:
            draw().save(file, "PNG")
        print(f"no screen here; the overlay is in {file.name}")


def in_notebook() -> bool:
    """Whether the program runs in a kernel of Jupyter, whose output is a page."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return getattr(shell, "kernel", None) is not None


def has_screen() -> bool:
    """Whether a window can be opened."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
