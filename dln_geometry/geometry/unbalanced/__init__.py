"""Layers with given moments: networks that are not balanced.

Open `construction` first. `chains` makes layers of scalar modes, `existence` says which moments
have layers, `fitting` solves for layers where no scalar modes serve.
"""

from __future__ import annotations

from dln_geometry.geometry.unbalanced.construction import lambda_balanced, with_moments

__all__ = ["lambda_balanced", "with_moments"]
