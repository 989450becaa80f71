"""How the gallery runs its scripts: small, with their files in a folder that is thrown away."""

from __future__ import annotations

import tempfile

_figures = tempfile.TemporaryDirectory(prefix="dln-figures-")


def options(gallery_conf, script_vars):
    """Return the command line of every script."""
    return ["--quick", "--out", _figures.name]
