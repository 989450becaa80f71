"""What the manifolds for pymanopt are made of; `manifolds.pymanopt_dln` shows them."""

from __future__ import annotations

from manifolds._pymanopt.balanced import BalancedManifold
from manifolds._pymanopt.end_to_end import EndToEndManifold
from manifolds._pymanopt.frame import inner_christoffel, outer_christoffel
from manifolds._pymanopt.vectors import FactorPoint, FactorVector, FixedRankPoint, FixedRankTangent

__all__ = [
    "BalancedManifold",
    "EndToEndManifold",
    "FactorPoint",
    "FactorVector",
    "FixedRankPoint",
    "FixedRankTangent",
    "inner_christoffel",
    "outer_christoffel",
]
