"""Manifolds of deep linear networks for pymanopt and geomstats.

Each host is imported by its own module only, so that either can be missing.
"""

from __future__ import annotations
