"""Figures of runs, matrices and points, in one style for papers.

Every function draws into the axes `ax` and returns them. Without `ax` it makes a new figure, which
pyplot does not know of: `save` or ``ax.figure.savefig(path)`` writes it. ``**style`` goes to the
method of matplotlib that draws, for instance ``label`` and ``color``. Open `appearance` first for
sizes, fonts and colours (`style`), `runs` for what is drawn against time. matplotlib is imported
with the first figure.
"""

from __future__ import annotations

from dln_geometry.plot.appearance import (
    depth_color,
    depth_label,
    figure,
    panel_letters,
    save,
    style,
)
from dln_geometry.plot.comparisons import balancedness, charges, depths
from dln_geometry.plot.films import animation
from dln_geometry.plot.matrices import matrix, spectrum
from dln_geometry.plot.motions import histogram, particles
from dln_geometry.plot.planes import landscape, phase_portrait, spectral_plane
from dln_geometry.plot.runs import entropy, loss, observable, singular_values
from dln_geometry.plot.spaces import scalar_fibre

__all__ = [
    "animation",
    "balancedness",
    "charges",
    "depth_color",
    "depth_label",
    "depths",
    "entropy",
    "figure",
    "histogram",
    "landscape",
    "loss",
    "matrix",
    "observable",
    "panel_letters",
    "particles",
    "phase_portrait",
    "save",
    "scalar_fibre",
    "singular_values",
    "spectral_plane",
    "spectrum",
    "style",
]
