"""The documentation: pip install '.[docs]' && sphinx-build -W docs build/docs."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generated import fill
from sphinx.application import Sphinx

project = "merging"
author = "The merging authors"
html_title = "merging"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# Notebooks are stored with their outputs: running them takes minutes.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# The docstrings' `code` is code.
default_role = "literal"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"

html_theme = "sphinx_book_theme"
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # a second search field
}
html_show_copyright = False


def setup(app: Sphinx) -> None:
    """Fill the pages' `<!-- generated: … -->` lines when they are read."""
    app.connect("source-read", lambda app, page, source: fill(source))
    app.connect("autodoc-process-docstring", _keep_bars)


def _keep_bars(app, what, name, value, options, lines: list[str]) -> None:
    """Have the |Δ| of a docstring be a magnitude, and no reference of Sphinx's."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(`+[^`]*`+)", line)
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            lines[i] = "".join(parts)
