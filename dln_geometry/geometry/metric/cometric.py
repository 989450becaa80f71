"""The depth-N metric on end-to-end matrices: cometric, metric, inner product, volume density.

``A_{N,X}(G) = sum_{p=1}^N (X X^T)^{(N-p)/N} G (X^T X)^{(p-1)/N} = U (a o U^T G V) V^T``, the
kernel extended by zero singular values outside the range and corange of X.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import log_kernel_of_log, log_mixed_kernel
from dln_geometry.geometry.metric.autograd import cometric_of_matrix
from dln_geometry.geometry.metric.blocks import apply_kernel
from dln_geometry.geometry.metric.kernel_moves import kernel_power
from dln_geometry.geometry.metric.spectral import over_field, sum_over_pairs
from dln_geometry.geometry.metric.unit_size import in_range
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point
from dln_geometry.support import (
    absolute_square,
    as_covector,
    common_batch,
    is_differentiated,
    real_product,
)


def cometric(point: EndToEnd | Collapsed, g: Any) -> Tensor:
    """Apply the cometric: covectors (Euclidean gradients) to tangent vectors, ``A(G)``.

    Differentiable in the matrix of ``EndToEnd.of(x, depth)``, at equal singular values too.

    Parameters
    ----------
    point : EndToEnd or Collapsed
        A point X of shape (..., m, n) with its depth.
    g : array_like, shape (..., m, n)
        Covector, such as the Euclidean gradient of a loss.

    References
    ----------
    Arora, Cohen, Hazan 2018; Menon, arXiv 2411.09004.

    Examples
    --------
    >>> dln.cometric(dln.EndToEnd.of([[8.0]], 3), [[1.0]])
    tensor([[48.]])
    """
    p = as_point(point, complex=True)
    g = as_covector(g, p.u, p.shape, "g", p.batch_shape)
    return applied(p, g, 1.0)


def cometric_sqrt(point: EndToEnd | Collapsed, z: Any) -> Tensor:
    """Apply the symmetric square root of the cometric: white noise to Brownian noise.

    Parameters as in `cometric`.

    Examples
    --------
    >>> (dln.cometric_sqrt(dln.EndToEnd.of([[8.0]], 3), [[1.0]]) ** 2).round(decimals=3)
    tensor([[48.]])
    """
    p = as_point(point, complex=True)
    z = as_covector(z, p.u, p.shape, "z", p.batch_shape)
    return applied(p, z, 0.5)


def metric(point: EndToEnd | Collapsed, z: Any) -> Tensor:
    """Apply the metric: tangent vectors to covectors, ``A^{-1}(Z)`` on the tangent space.

    The covector returned has no part that vanishes on the tangent space. `point` as in `cometric`.

    Parameters
    ----------
    z : array_like, shape (..., m, n)
        Tangent vector of the matrices of rank r; at infinite depth, of those with the same row
        and column spaces (nothing else has finite length).

    Raises
    ------
    ValueError
        If `z` is not tangent, or X has a zero singular value (the metric is infinite there; state
        a smaller rank).

    Examples
    --------
    >>> dln.metric(dln.EndToEnd.of([[8.0]], 3), [[48.0]]).round(decimals=4)
    tensor([[1.]])
    """
    p = as_point(point, complex=True)
    z = tangent_argument(p, z, "z")
    return applied(p, z, -1.0)


def inner(point: EndToEnd | Collapsed, z1: Any, z2: Any) -> Tensor:
    """Return the inner product ``g^N(Z_1, Z_2) = <Z_1, A^{-1} Z_2>``, shape (...).

    Errors as in `metric`.

    Examples
    --------
    >>> dln.inner(dln.EndToEnd.of([[8.0]], 3), [[48.0]], [[2.0]]).round(decimals=4)
    tensor(2.)
    """
    p = as_point(point, complex=True)
    z1, z2 = tangent_arguments(p, z1=z1, z2=z2)

    def product(p: EndToEnd, z1: Tensor, z2: Tensor) -> Tensor:
        return real_product(z1, _applied(-1.0, p, z2)).sum((-2, -1))

    return in_range(product, p, -p.depth.exponent, z1, z2, axes=0)


def log_volume_density(point: EndToEnd | Collapsed, *, field: str | None = None) -> Tensor:
    """Return ``log sqrt(det g^N)`` against the Euclidean volume, shape (...).

    ``-1/2 sum_{ij} log a_ij - (m + n - 2r)(1 - 1/N) sum_i log s_i``, against the volume that the
    Frobenius norm induces on the matrices of rank r (at infinite depth, on those with the same
    row and column spaces). This is the volume of the base; the volume of the orbit is `entropy`,
    and that of the balanced manifold their product. Complex matrices have twice it, quaternions
    four times it: `field` as in `entropy`.

    Examples
    --------
    >>> (dln.log_volume_density(dln.EndToEnd.of([[8.0]], 3)).exp() ** -2).round(decimals=3)
    tensor(48.)
    """
    p, f = over_field(as_point(point, complex=True), field)
    rows = 1.0 if p.depth.infinite else sum(p.shape) - 2.0 * p.rank + 1.0
    if p.followed is not None:
        weights = -0.5 * f, -0.5 * f * p.depth.exponent * rows
        return sum_over_pairs(p, f * _log_volume_density(p.detach()), *weights)
    return f * _log_volume_density(p)


def _log_volume_density(p: EndToEnd) -> Tensor:
    """Return `log_volume_density` of a real matrix from its singular values."""
    x = p.s.log()
    total = log_kernel_of_log(x, p.depth, p.normalized).sum((-2, -1))
    outside = sum(p.shape) - 2 * p.rank
    if outside and not p.depth.infinite:
        total = total + outside * log_mixed_kernel(x, p.depth, p.normalized).sum(-1)
    return -0.5 * total


def applied(p: EndToEnd, g: Tensor, power: float) -> Tensor:
    """Multiply by a power of the kernel, at unit size where numbers leave their range."""
    return in_range(partial(_applied, power), p, power * p.depth.exponent, g)


def _applied(power: float, p: EndToEnd, g: Tensor) -> Tensor:
    """Multiply by a power of the kernel; differentiable in the matrix of the point."""
    source, parts = p.source, (p.u, p.s, p.vh)
    if source is None or p.depth == 1.0 or not is_differentiated(source, g):
        return apply_kernel(parts, g, p.depth, p.normalized, power)
    if power == 1.0 and p.rank == min(p.shape):
        return cometric_of_matrix(source, g, p.depth, p.normalized, parts)
    ranks = (p.s > 0).sum(-1)
    r = int(ranks.max()) if ranks.numel() else 0
    if r == 0 or bool((ranks < r).any()):
        return apply_kernel(parts, g, p.depth, p.normalized, power)
    # Zero singular values count as directions outside of range and corange.
    u, s, vh = p.constants
    kept = u[..., :r], s[..., :r], vh[..., :r, :]
    return kernel_power(source, g, kept, p.depth, p.normalized, power)


def tangent_arguments(p: EndToEnd, **vectors: Any) -> tuple[Tensor, ...]:
    """Return tangent vectors at a point, by their names; their leading dimensions broadcast."""
    tensors = {name: tangent_argument(p, z, name) for name, z in vectors.items()}
    common_batch(point=p.batch_shape, **{name: z.shape[:-2] for name, z in tensors.items()})
    return tuple(tensors.values())


def tangent_argument(p: EndToEnd, z: Any, name: str) -> Tensor:
    """Return a tangent vector of the matrices of rank r at a point whose metric is finite."""
    if p.depth > 1.0 and bool((p.s == 0).any()):
        raise ValueError(
            "point must have positive singular values for the metric, got a zero: "
            "give the rank when making the point"
        )
    z = as_covector(z, p.u, p.shape, name, p.batch_shape)
    if p.depth == 1.0 or (p.rank, p.rank) == p.shape:
        return z
    outside, size, bound = _parts_outside(p, z, p.s)
    if not bool(((outside < bound) & (bound < math.inf)).all()):
        # Squares may have left the range of their type: measure in the largest number there is.
        unit = torch.maximum(z.abs().amax((-2, -1)), p.s.amax(-1))
        unit = torch.where(unit > 0, unit, 1.0).unsqueeze(-1)
        outside, size, bound = _parts_outside(p, z / unit.unsqueeze(-1), p.s / unit)
    if bool((outside > bound).any()):
        worst = float((outside / size.clamp_min(torch.finfo(z.dtype).tiny)).max().sqrt())
        raise ValueError(
            f"{name} must be tangent to the matrices of rank {p.rank} at the point, got a vector "
            f"with a relative part {worst:.1e} outside"
        )
    return z


def _parts_outside(p: EndToEnd, z: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the squares of what is not tangent in z, of z, and of what is allowed."""
    left = z - p.u @ (p.u.mH @ z)
    if p.depth.infinite:
        outside = absolute_square(left).sum((-2, -1)) + absolute_square(
            z - (z @ p.vh.mH) @ p.vh
        ).sum((-2, -1))
    else:
        outside = absolute_square(left - (left @ p.vh.mH) @ p.vh).sum((-2, -1))
    size, eps = absolute_square(z).sum((-2, -1)), torch.finfo(z.dtype).eps
    # Allow rounding relative to the point, for vectors that are differences of long ones.
    return outside, size, eps * size + (1000.0 * eps) ** 2 * s.square().sum(-1)
