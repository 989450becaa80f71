"""Manifolds of deep linear networks for pymanopt."""

from __future__ import annotations

from manifolds._pymanopt.balanced import BalancedManifold
from manifolds._pymanopt.end_to_end import EndToEndManifold
from manifolds._pymanopt.vectors import (
    FactorPoint,
    FactorVector,
    FixedRankPoint,
    FixedRankTangent,
)

__all__ = [
    "BalancedManifold",
    "EndToEndManifold",
    "FactorPoint",
    "FactorVector",
    "FixedRankPoint",
    "FixedRankTangent",
]
