"""The depth-N metric on end-to-end matrices: cometric, metric, inner product, volume density.

``A_{N,X}(G) = sum_{p=1}^N (X X^T)^{(N-p)/N} G (X^T X)^{(p-1)/N} = U (a o U^T G V) V^T``, the
kernel extended by zero singular values outside the range and corange of X.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import log_kernel_of_log, log_mixed_kernel
from dln_geometry.geometry.metric.autograd import apply_kernel, cometric_of_matrix
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point
from dln_geometry.support import as_covector

__all__ = ["cometric", "cometric_sqrt", "inner", "log_volume_density", "metric"]


def cometric(point: EndToEnd | Collapsed, g: Any) -> Tensor:
    """Apply the cometric: covectors (Euclidean gradients) to tangent vectors, ``A(G)``.

    Parameters
    ----------
    point : EndToEnd or Collapsed
        A point X of shape (..., m, n) with its depth.
    g : array_like, shape (..., m, n)
        Covector, such as the Euclidean gradient of a loss.

    Returns
    -------
    Tensor, shape (..., m, n)
        Differentiable in the matrix of ``EndToEnd.of(x, depth)`` at equal singular values too.

    Raises
    ------
    TypeError
        If `point` is no point.
    ValueError
        If `g` has the wrong shape or is not finite.

    References
    ----------
    Arora, Cohen, Hazan 2018; Menon, arXiv 2411.09004.

    Examples
    --------
    >>> cometric(EndToEnd.of([[8.0]], 3), [[1.0]])
    tensor([[48.]])
    """
    p = as_point(point)
    if p.source is not None and p.rank == min(p.shape) and torch.is_grad_enabled():
        g = as_covector(g, p.s, p.shape, "g")
        return cometric_of_matrix(p.source, g, p.depth, p.normalized, (p.u, p.s, p.vh))
    return _apply(p, g, "g", 1.0)


def cometric_sqrt(point: EndToEnd | Collapsed, z: Any) -> Tensor:
    """Apply the symmetric square root of the cometric: white noise to Brownian noise.

    Parameters and errors as in `cometric`.

    Examples
    --------
    >>> (cometric_sqrt(EndToEnd.of([[8.0]], 3), [[1.0]]) ** 2).round(decimals=3)
    tensor([[48.]])
    """
    return _apply(point, z, "z", 0.5)


def metric(point: EndToEnd | Collapsed, z: Any) -> Tensor:
    """Apply the metric: tangent vectors to covectors, ``A^{-1}(Z)`` on the tangent space.

    The covector returned has no component that vanishes on the tangent space.

    Parameters
    ----------
    point : EndToEnd or Collapsed
        A point X of shape (..., m, n) and rank r.
    z : array_like, shape (..., m, n)
        Tangent vector of the matrices of rank r; at infinite depth, of those with the same row
        and column spaces (nothing else has finite length).

    Raises
    ------
    ValueError
        If `z` has the wrong shape, is not tangent, or X has a zero singular value (the metric
        is infinite there; state a smaller rank).

    Examples
    --------
    >>> metric(EndToEnd.of([[8.0]], 3), [[48.0]]).round(decimals=4)
    tensor([[1.]])
    """
    p = as_point(point)
    if p.depth > 1.0 and bool((p.s == 0).any()):
        raise ValueError(
            "point must have positive singular values for the metric, got a zero: "
            "give the rank when making the point"
        )
    z = as_covector(z, p.s, p.shape, "z")
    check_tangent(p, z, "z")
    return _apply(p, z, "z", -1.0)


def inner(point: EndToEnd | Collapsed, z1: Any, z2: Any) -> Tensor:
    """Return the inner product ``g^N(Z_1, Z_2) = <Z_1, A^{-1} Z_2>``, shape (...).

    Errors as in `metric`.

    Examples
    --------
    >>> inner(EndToEnd.of([[8.0]], 3), [[48.0]], [[2.0]]).round(decimals=4)
    tensor(2.)
    """
    p = as_point(point)
    z1 = as_covector(z1, p.s, p.shape, "z1")
    check_tangent(p, z1, "z")
    return (z1 * metric(p, z2)).sum((-2, -1))


def log_volume_density(point: EndToEnd | Collapsed) -> Tensor:
    """Return ``log sqrt(det g^N)`` against the Euclidean volume, shape (...).

    ``-1/2 sum_{ij} log a_ij - (m + n - 2r)(1 - 1/N) sum_i log s_i``: at full rank against
    Lebesgue measure on the matrices, at rank r against the volume that the Frobenius norm
    induces on the matrices of rank r. At infinite depth, against the volume of the matrices
    with the same row and column spaces. It is one of three volumes kept apart: that of the
    base (this), of the orbit (`entropy`) and of the balanced manifold (their product).

    Examples
    --------
    >>> (log_volume_density(EndToEnd.of([[8.0]], 3)).exp() ** -2).round(decimals=3)
    tensor(48.)
    """
    p = as_point(point)
    x = p.s.log()
    inside = log_kernel_of_log(x, p.depth, p.normalized).sum((-2, -1))
    m, n = p.shape
    outside = m + n - 2 * p.rank
    if p.depth == 1.0 or math.isinf(p.depth) or outside == 0:
        return -0.5 * inside
    return -0.5 * (inside + outside * log_mixed_kernel(x, p.depth, p.normalized).sum(-1))


def _apply(point: EndToEnd | Collapsed, g: Any, name: str, power: float) -> Tensor:
    """Multiply the kernel's eigendirections by ``a^power``."""
    p = as_point(point)
    g = as_covector(g, p.s, p.shape, name)
    return apply_kernel((p.u, p.s, p.vh), g, p.depth, p.normalized, power)


def check_tangent(p: EndToEnd, z: Tensor, name: str) -> None:
    """Refuse vectors that leave the tangent space of the matrices of rank r."""
    m, n = p.shape
    if p.depth == 1.0 or (p.rank == m == n):
        return
    left = z - p.u @ (p.u.mT @ z)
    if math.isinf(p.depth):
        outside = left.square().sum((-2, -1)) + (z - (z @ p.vh.mT) @ p.vh).square().sum((-2, -1))
    else:
        outside = (left - (left @ p.vh.mT) @ p.vh).square().sum((-2, -1))
    size, eps = z.square().sum((-2, -1)), torch.finfo(z.dtype).eps
    # Of what is left of long vectors that cancel, roundings are no part.
    bound = eps * size + (1000.0 * eps) ** 2 * p.s.square().sum(-1)
    if bool((outside > bound).any()):
        worst = float((outside / size.clamp_min(torch.finfo(z.dtype).tiny)).max().sqrt())
        raise ValueError(
            f"{name} must be tangent to the matrices of rank {p.rank} at the point, got a vector "
            f"with a relative part {worst:.1e} outside"
        )
