"""The classes behind `manifolds.pymanopt_dln`.

Open `end_to_end` first: the matrices of rank r, with points and vectors in `fixed_rank` and
`vectors`. `frame` tabulates the metric at a point; `conversion` makes gradients and Hessians of it,
`steps` retractions and `paths` geodesics. `balanced` holds the networks, `shape` their normal
vectors and nearest points. A new manifold subclasses `Manifold` or `FixedRankMatrices`.
"""

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
