r"""The curvature of the depth metric as a vector, and its covariant derivative.

``<R(A, B) C, W>`` with the raised covectors W of the entries gives the vector; differentiated
along a curve through the point, with all four vectors parallel at it, the covariant derivative.
The curve is that of ``X + t H``, below full rank of the matrix of rank r with its rows and columns
in the spaces of the point. What is differentiated is analytic in t as long as t H is smaller than
X: by 16 nodes on a tenth of that the slope errs by less than 1e-14, and is known to about two
digits less than the curvature itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.geometry.curvature import riemann_curvature
from dln_geometry.geometry.metric import cometric, connection
from dln_geometry.geometry.points import EndToEnd
from manifolds._geomstats.tangents import tangent_part, widened

__all__ = ["curvature_derivative", "curvature_vector"]

_NODES = 16
# Of the way to the nearest matrix of lower rank.
_REACH = 0.1


def curvature_vector(p: EndToEnd, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return ``R(A, B) C``, shape (..., m, n).

    Parameters
    ----------
    p : EndToEnd
        A point X of shape (..., m, n).
    a, b, c : Tensor, shape (..., m, n)
        Tangent vectors.
    """
    wide = widened(p)
    a, b, c = (v.unsqueeze(-3) for v in (a, b, c))
    return riemann_curvature(wide, a, b, c, _raised(wide)).unflatten(-1, p.shape)


def curvature_derivative(p: EndToEnd, h: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return ``(nabla_H R)(A, B) C``, shape (..., m, n).

    Parameters
    ----------
    p : EndToEnd
        A point X of shape (..., m, n), below full rank.
    h, a, b, c : Tensor, shape (..., m, n)
        Tangent vectors.
    """
    batch = torch.broadcast_shapes(p.s.shape[:-1], *(v.shape[:-2] for v in (h, a, b, c)))
    h, a, b, c = (v.expand(*batch, *p.shape) for v in (h, a, b, c))
    wide, across = widened(p), h.unsqueeze(-3)
    parallel = [
        # In a covariant derivative -Gamma is the change of what is parallel.
        (v.unsqueeze(-3), connection(wide, across, v.unsqueeze(-3)))
        for v in (a, b, c)
    ]
    raised = _raised(wide)
    parallel.append((raised, connection(wide, across, raised)))

    size = torch.linalg.matrix_norm(h, 2)
    reach = _REACH * p.s[..., -1] / torch.where(size > 0, size, 1.0)
    nodes, weights = (torch.tensor(x, dtype=h.dtype, device=h.device) for x in _rule())
    t = nodes.reshape(-1, *(1,) * reach.ndim) * reach
    t = t[..., None, None]
    q = _moved(p, t * h)
    t, there = t.unsqueeze(-3), widened(q)
    vectors = [tangent_part(there, v - t * turn) for v, turn in parallel]
    values = riemann_curvature(there, *vectors)
    slope = torch.tensordot(weights, values, dims=1)
    return (slope / reach.unsqueeze(-1)).unflatten(-1, p.shape)


def _rule() -> tuple[list[float], list[float]]:
    """Return Chebyshev nodes on [-1, 1] and the weights of the derivative at 0."""
    nodes = [math.cos((k + 0.5) * math.pi / _NODES) for k in range(_NODES)]
    weights = []
    for k, t in enumerate(nodes):
        # The k-th Lagrange polynomial at 0, and its logarithmic slope there: 1/t_k by symmetry.
        others = (s / (s - t) for j, s in enumerate(nodes) if j != k)
        weights.append(math.prod(others) / t)
    return nodes, weights


def _moved(p: EndToEnd, move: Tensor) -> EndToEnd:
    """Return ``X + Z``, below full rank the matrix of rank r that agrees with it in the spaces."""
    x = p.matrix + move
    if p.rank < min(p.shape):
        columns, rows = x @ p.vh.mT, p.u.mT @ x
        x = columns @ torch.linalg.solve(p.u.mT @ columns, rows)
    return EndToEnd.of(x, p.depth, rank=p.rank, normalized=p.normalized)


def _raised(wide: EndToEnd) -> Tensor:
    """Return the covectors of the entries as tangent vectors, shape (..., m n, m, n)."""
    entries = torch.eye(math.prod(wide.shape), dtype=wide.s.dtype, device=wide.s.device)
    return cometric(wide, entries.unflatten(-1, wide.shape))
