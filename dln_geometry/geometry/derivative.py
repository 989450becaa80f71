r"""The derivative of the cometric in the point, in closed form, smooth across equal values.

With ``P = X X^T``, ``Q = X^T X`` and ``phi`` the depth kernel of their eigenvalues, ``A_X(G)`` is
the double operator function ``phi(P, Q)`` at G. In the frames of X (``s`` extended by zeros),

``[dA(G)]_ij = sum_k phi[p_i, p_k; p_j] dP_ik G_kj + sum_k G_ik dQ_kj phi[p_k, p_j; p_i]``

with first divided differences in one argument. Since ``phi = 1/g[p, q]``, ``g = N x^{1/N}``
(``log x`` at infinite depth), they are ``-g[p_i, p_k, p_j] / (g[p_i, p_j] g[p_k, p_j])``: of
positive numbers, and finite at equal values, where the derivatives of U and V are not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dln_geometry.geometry.kernel import log_kernel_of_log, log_kernel_of_pairs, log_mixed_kernel

__all__ = ["apply_kernel", "cometric_of_matrix", "log_second_difference"]

_Frames = tuple[Tensor, Tensor, Tensor]


def cometric_of_matrix(
    x: Tensor, g: Tensor, depth: float, normalized: bool, frames: _Frames | None = None
) -> Tensor:
    """Return ``A_X(G)`` with the derivatives in `x` and `g` in closed form.

    The first derivative is right at equal and at nearly equal singular values. Second derivatives
    go through the singular value decomposition: right at distinct values, NaN at equal ones.
    Where X loses rank, the derivative is the one along the matrices of the same rank; it is the
    full one for N < 2, while across ranks ``A`` has a kink at N = 2 and infinite slope above.

    Parameters
    ----------
    x : Tensor, shape (..., m, n)
    g : Tensor, shape (..., m, n)
        Covector; leading dimensions broadcast against those of `x`.
    depth : float
        Real depth N >= 1, or ``math.inf``.
    normalized : bool
        Divide by N; always so at infinite depth.
    frames : tuple of Tensor, optional
        Thin singular value decomposition ``(U, s, V^T)`` of `x`, of rank ``min(m, n)``, if at hand.

    Returns
    -------
    Tensor, shape (..., m, n)

    References
    ----------
    Daleckii, Krein 1965; Bhatia, Matrix Analysis, theorem V.3.3 (divided differences).
    """
    if depth == 1.0:
        return g.expand(torch.broadcast_shapes(g.shape, x.shape))
    if frames is None:
        u, s, vh = torch.linalg.svd(x.detach(), full_matrices=False)
    else:
        u, s, vh = (part.detach() for part in frames)
    return _Cometric.apply(x, g, u, s, vh, depth, normalized)


def apply_kernel(
    frames: _Frames, g: Tensor, depth: float, normalized: bool, power: float = 1.0
) -> Tensor:
    """Multiply the kernel's eigendirections by ``a^power``, shape (..., m, n)."""
    u, s, vh = frames
    m, r, n = u.shape[-2], s.shape[-1], vh.shape[-1]
    if depth == 1.0:
        return g.expand(torch.broadcast_shapes(g.shape, u.shape[:-1] + vh.shape[-1:]))
    x = s.log()
    inner_kernel = torch.exp(power * log_kernel_of_log(x, depth, normalized))
    gv = g @ vh.mT
    core = u.mT @ gv
    moved = u @ (inner_kernel * core) @ vh
    if m == r == n or math.isinf(depth):
        return moved
    mixed = torch.exp(power * log_mixed_kernel(x, depth, normalized))
    if m > r:
        moved = moved + ((gv - u @ core) * mixed.unsqueeze(-2)) @ vh
    if n > r:
        ug = u.mT @ g
        moved = moved + u @ (mixed.unsqueeze(-1) * (ug - core @ vh))
    return moved


class _Cometric(torch.autograd.Function):
    """``A_X(G)``, with the frames of X as constants."""

    @staticmethod
    def forward(
        x: Tensor, g: Tensor, u: Tensor, s: Tensor, vh: Tensor, depth: float, normalized: bool
    ) -> Tensor:
        return apply_kernel((u, s, vh), g, depth, normalized)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.save_for_forward(*inputs[:5])
        ctx.options = inputs[5:]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, g, u, s, vh = ctx.saved_tensors
        (h,) = cotangents
        in_x = in_g = None
        if ctx.needs_input_grad[0]:
            in_x = _Gradient.apply(x, g, h, u, s, vh, *ctx.options).sum_to_size(x.shape)
        if ctx.needs_input_grad[1]:
            # The cometric is self-adjoint.
            in_g = _Cometric.apply(x, h, u, s, vh, *ctx.options).sum_to_size(g.shape)
        return (in_x, in_g, None, None, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        _, g, u, s, vh = ctx.saved_tensors
        y, dg = tangents[:2]
        moved = torch.zeros_like(g @ vh.mT @ vh)
        if y is not None:
            moved = moved + _push((u, s, vh), y, g, *ctx.options)
        if dg is not None:
            moved = moved + apply_kernel((u, s, vh), dg, *ctx.options)
        return moved


class _Gradient(torch.autograd.Function):
    """The gradient in X of ``<H, A_X(G)>``; its own derivatives go through the frames."""

    @staticmethod
    def forward(
        x: Tensor,
        g: Tensor,
        h: Tensor,
        u: Tensor,
        s: Tensor,
        vh: Tensor,
        depth: float,
        normalized: bool,
    ) -> Tensor:
        return _pull((u, s, vh), h, g, depth, normalized)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.options = inputs[6:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            x, g, h = (part.detach().requires_grad_() for part in ctx.saved_tensors)
            # Sums over a broadcast batch are taken outside: here X has the full batch.
            wide = x.expand(torch.broadcast_shapes(x.shape, g.shape))
            moved = apply_kernel(torch.linalg.svd(wide, full_matrices=False), g, *ctx.options)
            (first,) = torch.autograd.grad(moved, wide, h, create_graph=True)
            second = torch.autograd.grad(first, (x, g, h), cotangents[0])
        return (*second, None, None, None, None, None)


def _pull(frames: _Frames, h: Tensor, g: Tensor, depth: float, normalized: bool) -> Tensor:
    """Return the gradient in X of ``<H, A_X(G)>``, shape (..., m, n)."""
    u, s, vh = frames
    if u.shape[-2] < vh.shape[-1]:
        return _pull((vh.mT, s, u.mT), h.mT, g.mT, depth, normalized).mT
    weights, zero_row, zero_column = _weights(s.log(), depth, normalized)
    (hc, ho), (gc, go) = _split(u, vh, h), _split(u, vh, g)
    core = _pull_core(weights, hc, gc) + _pull_core(weights, hc.mT, gc.mT).mT
    outside = None
    if u.shape[-2] > vh.shape[-1]:
        both = go.mT @ ho
        core = core + zero_column * (both + both.mT)
        outside = ho @ (zero_row * gc).mT + go @ (zero_row * hc).mT
    return _join(u, vh, core, outside)


def _push(frames: _Frames, y: Tensor, g: Tensor, depth: float, normalized: bool) -> Tensor:
    """Return the derivative of ``A_X(G)`` along Y, shape (..., m, n)."""
    u, s, vh = frames
    if u.shape[-2] < vh.shape[-1]:
        return _push((vh.mT, s, u.mT), y.mT, g.mT, depth, normalized).mT
    weights, zero_row, zero_column = _weights(s.log(), depth, normalized)
    (yc, yo), (gc, go) = _split(u, vh, y), _split(u, vh, g)
    core = _push_core(weights, yc, gc) + _push_core(weights, yc.mT, gc.mT).mT
    outside = None
    if u.shape[-2] > vh.shape[-1]:
        core = core + zero_row * (yo.mT @ go)
        turn = zero_column * yc
        outside = yo @ (zero_row * gc) + go @ (turn + turn.mT)
    return _join(u, vh, core, outside)


def _pull_core(weights: Tensor, h: Tensor, g: Tensor) -> Tensor:
    """Return ``sum_j w_ikj (H_ij G_kj + G_ij H_kj)``."""
    pairs = h.unsqueeze(-2) * g.unsqueeze(-3)
    return (weights * (pairs + pairs.transpose(-3, -2))).sum(-1)


def _push_core(weights: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """Return ``sum_k (w_ikj Y_ik + w_kij Y_ki) G_kj``."""
    turn = weights * y.unsqueeze(-1)
    return ((turn + turn.transpose(-3, -2)) * g.unsqueeze(-3)).sum(-2)


def _split(u: Tensor, vh: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``U^T G V`` and ``(1 - U U^T) G V``, the latter in the standard basis."""
    gv = g @ vh.mT
    core = u.mT @ gv
    return core, gv - u @ core


def _join(u: Tensor, vh: Tensor, core: Tensor, outside: Tensor | None) -> Tensor:
    moved = u @ core
    return (moved if outside is None else moved + outside) @ vh


def _weights(x: Tensor, depth: float, normalized: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``s_k phi[p_i, p_k; p_j]`` from ``x = log s``, and what it is for zeros.

    Shape (..., r, r, r) in the order i, k, j; of shape (..., r, r) are those for ``p_i = 0``, in
    the order k, j, and for ``p_j = 0``, in the order k, i. A zero ``s_k`` has weight 0: only
    ``p_i = p_k = 0`` makes phi infinite, and there nothing moves along the matrices of one rank.
    """
    inverse = 1.0 / depth
    scale = 1.0 if normalized else depth
    zero = torch.isneginf(x)
    # Zeros keep out of the differences; where they are meant, they are put in last.
    safe = torch.where(zero, 0.0, x)
    xk, xl = safe.unsqueeze(-1), safe.unsqueeze(-2)
    larger = torch.maximum(xk, xl)
    ratio = torch.log(_ratio(2.0 * (xk - xl).abs(), inverse))
    kernel = log_kernel_of_pairs(xk, xl, depth, True)
    alive = ~zero.unsqueeze(-1)
    lone = torch.exp((1.0 - 2.0 * inverse) * xk) * inverse
    # phi[p, 0; 0] = p^{-1/N}/N where the second value is a zero, too.
    other = zero.unsqueeze(-2)
    column = inverse * torch.exp(xk - 2.0 * inverse * larger + ratio)
    column = torch.where(alive, torch.where(other, lone, column), 0.0)
    smaller = torch.minimum(xk, xl)
    row = xk + kernel + 2.0 * ((1.0 - inverse) * (xl - smaller) - larger) + ratio
    row = torch.where(alive, torch.where(other, lone, torch.exp(row)), 0.0)

    xi, xk, xj = safe[..., :, None, None], safe[..., None, :, None], safe[..., None, None, :]
    log_weight = log_second_difference(2.0 * xi, 2.0 * xk, 2.0 * xj, depth)
    log_weight = log_weight + xk + kernel.unsqueeze(-2) + kernel.unsqueeze(-3)
    weights = torch.exp(log_weight)
    if bool(zero.any()):
        weights = torch.where(zero[..., None, :, None], 0.0, weights)
        weights = torch.where(zero[..., None, None, :], column.mT.unsqueeze(-1), weights)
        weights = torch.where(zero[..., :, None, None], row.unsqueeze(-3), weights)
    return scale * weights, scale * row, scale * column


def _ratio(t: Tensor, inverse: float) -> Tensor:
    """Return ``(1 - e^{-(1-1/N)t}) / (1 - e^{-t})`` for ``t >= 0``."""
    apart = t > 0
    t = torch.where(apart, t, 1.0)
    ratio = torch.expm1((inverse - 1.0) * t) / torch.expm1(-t)
    return torch.where(apart, ratio, 1.0 - inverse)


def log_second_difference(xi: Tensor, xj: Tensor, xk: Tensor, depth: float) -> Tensor:
    r"""Return ``log(-g[p_i, p_j, p_k])`` of ``g(p) = N p^{1/N}`` from ``x = log p``, finite.

    The second divided difference, of ``log p`` at infinite depth; the arguments broadcast. With
    the middle value y as unit, ``u`` and ``w`` the logarithmic gaps above and below it, it is the
    recursion ``y^{1/N-2} (g[1, e^{-w}] - g[e^u, 1]) / (e^u - e^{-w})``; for N < 2 with
    ``N (p - p^{1/N})`` for -g, whose second differences are the same and which does not cancel
    as N tends to 1. Where the values are close it is the Taylor series about the mean c of the
    outer two, ``-sum_k binom(1/N, k+2) N c^{1/N-2} h_k``, with h the complete homogeneous
    symmetric polynomials of ``p/c - 1``.
    """
    a = 1.0 / depth
    low, high = torch.minimum(xi, xj), torch.maximum(xi, xj)
    top, bottom = torch.maximum(high, xk), torch.minimum(low, xk)
    middle = torch.maximum(low, torch.minimum(high, xk))
    near = top - bottom < _NEAR

    t = torch.where(near, top - bottom, 0.0)
    delta = torch.tanh(0.5 * t)
    centre = 0.5 * (top + bottom) + torch.log(torch.cosh(0.5 * t))
    close = _close_difference(delta, torch.expm1(torch.where(near, middle - centre, 0.0)), a)
    close = (a - 2.0) * centre + torch.log(close)

    u = torch.where(near, 1.0, top - middle)
    w = torch.where(near, 1.0, middle - bottom)
    if a > 0.5:
        step = depth * (_ratio(u, a) - torch.exp(-a * w) * _ratio(w, a))
    else:
        step = _power_slope(w, a) - torch.exp((a - 1.0) * u) * _power_slope(u, a)
    span = u + torch.log(-torch.expm1(-(u + w)))
    return torch.where(near, close, (a - 2.0) * middle + torch.log(step) - span)


def _power_slope(t: Tensor, a: float) -> Tensor:
    """Return ``(1 - e^{-at}) / (a (1 - e^{-t}))`` for ``t >= 0``; ``t/(1 - e^{-t})`` at a = 0."""
    apart = t > 0
    t = torch.where(apart, t, 1.0)
    numerator = -t if a == 0.0 else torch.expm1(-a * t) / a
    return torch.where(apart, numerator / torch.expm1(-t), 1.0)


def _close_difference(delta: Tensor, eta: Tensor, a: float) -> Tensor:
    """Return the series at the nodes ``1 + delta``, ``1 - delta`` and ``1 + eta``."""
    bound = math.tanh(0.5 * _NEAR)
    terms = 2 + math.ceil(math.log(torch.finfo(delta.dtype).eps) / math.log(bound))
    coefficient = 0.5 * (1.0 - a)
    polynomial = torch.ones_like(delta)
    even, square = torch.ones_like(delta), delta.square()
    total = coefficient * polynomial
    for k in range(1, terms):
        coefficient *= (a - k - 1.0) / (k + 2.0)
        polynomial = eta * polynomial
        if k % 2 == 0:
            even = even * square
            polynomial = polynomial + even
        total = total + coefficient * polynomial
    return total


# Logarithmic width of the nodes below which the series is taken: above, the recursion loses at
# most a digit; below, a term of the series is at most a quarter of the one before.
_NEAR = 0.5
