"""Dyson Brownian motion: eigenvalues and singular values that repel each other, in order.

Open `eigenvalues` first: `dyson`, and how steps by random matrices work. `singular_values` does the
same for rectangular matrices, `network_singular_values` for end-to-end matrices of any depth,
`isospectral` for matrices; `coulomb` is the limit of infinite index. The loop is that of the room
`noise`. A new scheme is a function ``step(x, h)`` of positions.
"""

from __future__ import annotations

from dln_geometry.dynamics.dyson.eigenvalues import (
    dyson,
    field_step,
    isospectral_step,
    tridiagonal_step,
)
from dln_geometry.dynamics.dyson.implicit import proximal
from dln_geometry.dynamics.dyson.isospectral import isospectral_flow
from dln_geometry.dynamics.dyson.network_singular_values import dln_dyson
from dln_geometry.dynamics.dyson.singular_values import (
    singular_dyson,
    singular_step,
    vanishing_bessel,
)

__all__ = [
    "dln_dyson",
    "dyson",
    "field_step",
    "isospectral_flow",
    "isospectral_step",
    "proximal",
    "singular_dyson",
    "singular_step",
    "tridiagonal_step",
    "vanishing_bessel",
]
