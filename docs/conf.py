"""How Sphinx makes web pages of this folder: ``make docs``."""

from __future__ import annotations

from lexiseg import __version__

project, release, copyright = "lexiseg", __version__, "the developers of lexiseg"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme, html_title = "furo", f"lexiseg {__version__}"
myst_heading_anchors = 3  # links to headings, as on the web
suppress_warnings = ["misc.highlighting_failure"]  # commands in a plain block are no program
autodoc_member_order, autodoc_typehints = "bysource", "description"
napoleon_use_ivar = True  # attributes of dataclasses are described once
exclude_patterns = ["conf.py"]
