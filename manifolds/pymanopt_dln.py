"""Manifolds of deep linear networks for pymanopt."""

from __future__ import annotations

from manifolds._pymanopt import (
    BalancedManifold,
    EndToEndManifold,
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
