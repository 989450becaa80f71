"""Runs: flows, random motions, geodesics, from the options to the table, the file and the figure.

`flow` does ``dln flow``, `chains` ``dln langevin``, `particles` ``dln dyson`` and `geodesics`
``dln geodesic``; `sweep` runs any command over values of its options; `finishing` is what they
share: checks, files, figures, numbers.
"""

from __future__ import annotations

from dln_geometry.cli.runs.chains import follow_langevin
from dln_geometry.cli.runs.flow import follow_flow
from dln_geometry.cli.runs.geodesics import run_geodesic
from dln_geometry.cli.runs.particles import follow_particles
from dln_geometry.cli.runs.sweep import run_sweep

__all__ = ["follow_flow", "follow_langevin", "follow_particles", "run_geodesic", "run_sweep"]
