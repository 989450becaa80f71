r"""The Levi-Civita connection of the metric g^N, and Riemannian Hessians.

With ``Z = A(alpha)`` and ``W = A(beta)``, ``nabla_Z W = D_Z W + Gamma(Z, W)`` where

``Gamma(Z, W) = 1/2 [ A(d<alpha, A beta>) - dA[Z](beta) - dA[W](alpha) ]``:

first variations of the cometric only, in closed form and finite at equal singular values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import Differences, is_extreme
from dln_geometry.geometry.metric.blocks import (
    Across,
    Blocks,
    Frames,
    apply,
    blocks_of,
    combine_blocks,
    pull,
    push,
    push_beyond,
    tangent_matrix,
)
from dln_geometry.geometry.metric.cometric import applied, tangent_argument, tangent_arguments
from dln_geometry.geometry.metric.kernel_moves import kernel_model
from dln_geometry.geometry.metric.unit_size import doubled, in_range, total_size
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point, separate, smooth
from dln_geometry.support import (
    as_covector,
    as_double,
    broadcast_shapes,
    common_batch,
    real_product,
)

_Applied = Callable[[Tensor, Tensor], Tensor]


def connection(point: EndToEnd | Collapsed, z: Any, w: Any) -> Tensor:
    r"""Return the Christoffel term ``Gamma_X(Z, W)`` of the metric, symmetric in Z and W.

    ``nabla_Z W = D_Z W + Gamma_X(Z, W)`` for every field W of tangent vectors, ``D`` the plain
    derivative of its matrix. Below full rank ``D_Z W`` leaves the tangent space; Gamma brings it
    back by minus the second fundamental form of the matrices of rank r. It is zero at depth 1,
    where the metric is the flat one of all matrices.

    `z` and `w` are tangent vectors; parameters and errors as in `metric`.

    Examples
    --------
    >>> dln.connection(dln.EndToEnd.of([[8.0]], 3), [[1.0]], [[1.0]])
    tensor([[-0.0833]])
    """
    p = as_point(point, complex=True)
    z, w = tangent_arguments(p, z=z, w=w)
    if p.depth == 1.0:
        return z.new_zeros(broadcast_shapes(z.shape, w.shape, p.matrix.shape))

    def term(u: Tensor, s: Tensor, vh: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor]:
        k = Differences(s, p.depth, p.normalized)
        zb, wb = (blocks_of(u, vh, part, p.depth.infinite) for part in (z, w))
        gamma = tangent_matrix(u, vh, connection_blocks(k, zb, wb))
        beyond = push_beyond(k, zb, apply(k, wb, -1.0))
        # dA[Z](beta) and dA[W](alpha) are the same beyond range and corange.
        return (gamma if beyond is None else gamma - beyond,)

    def model(x: Tensor, z: Tensor, w: Tensor, frames: Frames) -> tuple[Tensor]:
        raised, lowered = _varied(p, frames)
        alpha, beta = (lowered(x, part) for part in (z, w))
        slope = torch.func.grad(lambda y: real_product(alpha, raised(y, beta)).sum())(x)
        along = _along(raised, x, beta, z) + _along(raised, x, alpha, w)
        return (0.5 * (raised(x, slope) - along),)

    def gamma(p: EndToEnd, z: Tensor, w: Tensor) -> Tensor:
        return _followed(p, term, model, "the derivative of connection", z, w)

    return in_range(gamma, p, -1.0, z, w, strict=True)


def _varied(p: EndToEnd, frames: Frames) -> tuple[_Applied, _Applied]:
    """Return the cometric and the metric next to a point, as functions of X and a matrix."""

    def applied(power: float) -> _Applied:
        model = kernel_model(p.depth, p.normalized, power, 2)
        return lambda x, g: model(x, g, frames)[0]

    return applied(1.0), applied(-1.0)


def _along(f: _Applied, x: Tensor, g: Tensor, z: Tensor) -> Tensor:
    """Return the derivative of ``f(x, g)`` along a move z of x, as the adjoint of the adjoint."""
    g, z = torch.broadcast_tensors(g, z)
    value, pull, *_ = torch.func.vjp(lambda y: f(y, g), x.expand(g.shape))
    return torch.func.vjp(lambda h: pull(h)[0], torch.zeros_like(value))[1](z)[0]


def _followed(
    p: EndToEnd, term: Callable[..., tuple[Tensor]], model: Any, what: str, *vectors: Tensor
) -> Tensor:
    """Return a function of U, s, V^T and vectors, with the derivatives of a model of first order.

    Second derivatives are those of the function, at separate singular values.
    """
    if p.followed is None:
        return term(p.u, p.s, p.vh, *vectors)[0]
    batch = broadcast_shapes(p.followed.shape, *(v.shape for v in vectors))
    x, *wide = (v.expand(batch) for v in (p.followed, *vectors))
    frames = p.expand(batch[:-2]).constants
    value = term(*frames, *(v.detach() for v in wide))
    return smooth(value, (model, separate(term, what)), (x, *wide), frames)[0]


def connection_blocks(k: Differences, z: Blocks, w: Blocks) -> Blocks:
    """Return the tangent blocks of ``Gamma(Z, W)``."""
    alpha = apply(k, z, -1.0)
    if w is z:
        return combine_blocks((0.5, apply(k, pull(k, alpha, alpha))), (-1.0, push(k, z, alpha)))
    beta = apply(k, w, -1.0)
    raised = apply(k, pull(k, alpha, beta))
    return combine_blocks((0.5, raised), (-0.5, push(k, z, beta)), (-0.5, push(k, w, alpha)))


def riemannian_hessian(
    point: EndToEnd | Collapsed, gradient: Any, hessian_vector: Any, z: Any
) -> Tensor:
    r"""Return the Riemannian Hessian of a function along a tangent vector, ``nabla_Z grad f``.

    With ``grad f = A(E')``, ``alpha = A^{-1} Z`` and ``W = grad f``:
    ``A(E''[Z] + 1/2 d<alpha, A E'>) + 1/2 (dA[Z](E') - dA[W](alpha))``. It is self-adjoint in
    the metric.

    Other parameters and errors as in `metric`.

    Parameters
    ----------
    gradient : array_like, shape (..., m, n)
        The Euclidean gradient ``E'(X)``, with its part beyond range and corange.
    hessian_vector : array_like, shape (..., m, n)
        The Euclidean Hessian along Z, ``E''(X)[Z]``, which is the result at depth 1.

    Examples
    --------
    >>> dln.riemannian_hessian(dln.EndToEnd.of([[1.0]], 2), [[1.0]], [[0.0]], [[1.0]])
    tensor([[1.]])
    """
    p = as_point(point, complex=True)
    g = as_covector(gradient, p.u, p.shape, "gradient", p.batch_shape)
    h = as_covector(hessian_vector, p.u, p.shape, "hessian_vector", p.batch_shape)
    z = tangent_argument(p, z, "z")
    batches = {"gradient": g.shape[:-2], "hessian_vector": h.shape[:-2], "z": z.shape[:-2]}
    common_batch(point=p.batch_shape, **batches)
    if p.depth == 1.0:
        return h.expand(broadcast_shapes(g.shape, h.shape, z.shape, p.matrix.shape))

    def term(u: Tensor, s: Tensor, vh: Tensor, g: Tensor, h: Tensor, z: Tensor) -> tuple[Tensor]:
        k = Differences(s, p.depth, p.normalized)
        zb, gb, hb = (blocks_of(u, vh, part, p.depth.infinite) for part in (z, g, h))
        across = (None, None)
        if zb.left is not None and zb.right is not None and gb.left is not None:
            beyond = g - tangent_matrix(u, vh, gb)
            across = (beyond @ zb.right.mH, zb.left.mH @ beyond)
        return (tangent_matrix(u, vh, hessian_blocks(k, gb, hb, zb, across)),)

    def model(x: Tensor, g: Tensor, h: Tensor, z: Tensor, frames: Frames) -> tuple[Tensor]:
        raised, lowered = _varied(p, frames)
        alpha, w = lowered(x, z), raised(x, g)
        slope = torch.func.grad(lambda y: real_product(alpha, raised(y, g)).sum())(x)
        back = _along(raised, x, g, z) - _along(raised, x, alpha, w)
        return (raised(x, h + 0.5 * slope) + 0.5 * back,)

    def hessian(p: EndToEnd, *vectors: Tensor) -> Tensor:
        return _followed(p, term, model, "the derivative of riemannian_hessian", *vectors)

    if not is_extreme(p.s.detach(), 2.0 if p.source is None else 6.0):
        value = hessian(p, g, h, z)
        if math.isfinite(total_size(value)):
            return value

    def turned(p: EndToEnd, g: Tensor, z: Tensor) -> Tensor:
        return hessian(p, g, torch.zeros_like(g), z)

    # Terms of different degrees in X: either may leave the range of its type, and the sum not.
    dtype, p, g, h, z = p.dtype, doubled(p), *(as_double(part) for part in (g, h, z))
    value = in_range(turned, p, p.depth.exponent - 1.0, g, z, strict=True) + applied(p, h, 1.0)
    if bool(torch.isnan(value.detach()).any()):
        raise ValueError("hessian must have terms in the range of numbers, got two infinite ones")
    return value.to(dtype)


def hessian_blocks(
    k: Differences, gradient: Blocks, hessian: Blocks, z: Blocks, across: Across = (None, None)
) -> Blocks:
    """Return `riemannian_hessian` in the frames of the point, `hessian` the blocks of ``E''[Z]``.

    `across` holds ``G' Z_right^T`` (m x r) and ``Z_left^T G'`` (r x n), with
    ``G' = (1 - U U^T) E'(X) (1 - V V^T)``; None where that is zero. Here depth 1 is the limit of
    depths above: the matrices of rank r with the Frobenius metric.
    """
    alpha = apply(k, z, -1.0)
    # Of the covector of Z: its outer blocks are divided by the mixed kernel.
    lowered = (
        None if across[0] is None else across[0] / k.mixed.unsqueeze(-2),
        None if across[1] is None else across[1] / k.mixed.unsqueeze(-1),
    )
    slope = pull(k, alpha, gradient, lowered)
    raised = apply(k, combine_blocks((1.0, hessian), (0.5, slope)))
    along, back = push(k, z, gradient, across), push(k, apply(k, gradient), alpha)
    return combine_blocks((1.0, raised), (0.5, along), (-0.5, back))
