"""The cometric with its derivative in the point, in closed form, for autograd.

Autograd through a singular value decomposition is NaN at equal singular values and loses digits
next to them; the first variation of `variation` is not, and does not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dln_geometry.geometry.kernel import Differences, log_kernel_of_log, log_mixed_kernel
from dln_geometry.geometry.metric.variation import blocks_of, pull, push, tangent_matrix

__all__ = ["apply_kernel", "cometric_of_matrix"]

_Frames = tuple[Tensor, Tensor, Tensor]


def cometric_of_matrix(
    x: Tensor, g: Tensor, depth: float, normalized: bool, frames: _Frames | None = None
) -> Tensor:
    """Return ``A_X(G)`` with the derivatives in `x` and `g` in closed form.

    The first derivative is right at equal and at nearly equal singular values. Second derivatives
    go through the singular value decomposition: right at distinct values, NaN at equal ones.
    Where X loses rank, the derivative is the one along the matrices of the same rank; across ranks
    ``A`` has none: its slopes are infinite, with ``s^{2-2/N}`` or ``s^{2/N}``, or kinks at N = 2.

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
    k = Differences(s, depth, normalized)
    return tangent_matrix(u, vh, pull(k, blocks_of(u, vh, h), blocks_of(u, vh, g)))


def _push(frames: _Frames, y: Tensor, g: Tensor, depth: float, normalized: bool) -> Tensor:
    """Return the derivative of ``A_X(G)`` along Y, shape (..., m, n)."""
    u, s, vh = frames
    k = Differences(s, depth, normalized)
    return tangent_matrix(u, vh, push(k, blocks_of(u, vh, y), blocks_of(u, vh, g)))
