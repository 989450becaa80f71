"""dyson."""

from __future__ import annotations

from dln_geometry.dynamics.dyson.eigenvalue_steps import (
    field_step,
    isospectral_step,
    proximal,
    tridiagonal_step,
)
from dln_geometry.dynamics.dyson.eigenvalues import dyson
from dln_geometry.dynamics.dyson.isospectral import isospectral_flow
from dln_geometry.dynamics.dyson.network_singular_values import dln_dyson
from dln_geometry.dynamics.dyson.singular_value_steps import singular_step, vanishing_bessel
from dln_geometry.dynamics.dyson.singular_values import singular_dyson

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
