"""Configuration of Sphinx: ``sphinx-build -W -b html docs docs/_build/html``.

The build needs no network. Links into the documentation of torch and others are made where
``DLN_DOCS_ONLINE`` is set.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = re.DOTALL | re.MULTILINE
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
os.environ.setdefault("MPLBACKEND", "Agg")

from dln_geometry import __version__  # noqa: E402 - found by the path above

project = "dln_geometry"
author = copyright = "the dln-geometry contributors"
version = release = __version__

extensions = [
    "gallery_runs",
    "mathematics",
    "notebooks",
    "reference",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
if (HERE.parent / "examples" / "GALLERY_HEADER.rst").exists():
    extensions.append("sphinx_gallery.gen_gallery")
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/**/*.ipynb", "notebooks"]
templates_path = ["_templates"]
default_role = "py:obj"
html_math_renderer = "mathml"
# A docstring shows how it is called, not the module where it happens to stand.
add_module_names = False
toc_object_entries = False

autosummary_generate = True
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
numpydoc_show_class_members = False
# The same paper stands in the references of many names.
numpydoc_class_members_toctree = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

if os.environ.get("DLN_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "xarray": ("https://docs.xarray.dev/en/stable", None),
    }
    intersphinx_timeout = 20

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"__init__\.py",
    "reset_argv": "gallery_runs.options",
    "image_scrapers": ("gallery_runs.saved_figures",),
    # Values at the end of a cell are not shown: they are paths and artists.
    "capture_repr": (),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 1e9,
    "doc_module": ("dln_geometry", "manifolds"),
    "backreferences_dir": None,
}

# Pages without pages below them have nothing to navigate in.
html_sidebars = {page.stem: [] for page in HERE.glob("*.md")} | {"running/*": []}
html_theme = "pydata_sphinx_theme"
html_title = f"dln_geometry {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "dln_geometry"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 4,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}


def without_last_line(app, page, source):
    """Leave out the empty line by which doctest knows the end of an example in a block of code."""
    source[0] = re.sub(r"^(```python\n.*?)\n+^```$", r"\1\n```", source[0], flags=FLAGS)


def setup(app):
    """Connect what needs no extension of its own."""
    app.connect("source-read", without_last_line)
