"""How the gallery runs its scripts: small, with their files in a folder that is thrown away.

A figure is shown once, where its script saves it. The scraper of sphinx-gallery would take and
close it at the end of the first cell, half drawn.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from sphinx_gallery.scrapers import figure_rst

_figures = tempfile.TemporaryDirectory(prefix="dln-figures-")

# The line of a script that says where its figure went, and output that holds nothing else.
_SAVED = re.compile(r"^ +figure: .*dln-figures-.*\n", re.MULTILINE)
_EMPTY = re.compile(
    r"^ *\.\. rst-class:: sphx-glr-script-out\n\s+\.\. code-block:: none\n\s*\n(?=\S)", re.MULTILINE
)


def options(gallery_conf, script_vars):
    """Return the command line of every script."""
    return ["--quick", "--out", _figures.name]


def saved_figures(block, block_vars, gallery_conf):
    """Return the figures that a cell saved, as images of the page."""
    shown, title = [], Path(block_vars["src_file"]).stem.replace("_", " ")
    for png in sorted(Path(_figures.name).glob("*.png")):
        png.with_suffix(".pdf").unlink(missing_ok=True)
        shown.append(next(block_vars["image_path_iterator"]))
        shutil.move(png, shown[-1])
    return figure_rst(shown, gallery_conf["src_dir"], title)


def without_paths(app, page, source):
    """Leave out where figures went on the machine that built the pages."""
    if page.startswith("gallery/"):
        source[0] = _EMPTY.sub("", _SAVED.sub("", source[0]))


def setup(app):
    app.connect("source-read", without_paths)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
