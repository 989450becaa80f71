"""The cometric with its derivative in the point, in closed form, for autograd.

Autograd through a singular value decomposition is NaN at equal singular values and loses digits
next to them; the first variations of `blocks` do neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import Differences
from dln_geometry.geometry.metric.blocks import (
    Blocks,
    Frames,
    apply_kernel,
    blocks_of,
    pull,
    push,
    tangent_matrix,
)
from dln_geometry.geometry.metric.kernel_moves import kernel_model
from dln_geometry.geometry.points import last_derivatives, only_finite
from dln_geometry.support import Depth, broadcast_shapes


def cometric_of_matrix(
    x: Tensor, g: Tensor, depth: Depth, normalized: bool, frames: Frames | None = None
) -> Tensor:
    """Return ``A_X(G)``, shape (..., m, n), with the derivatives in `x` and `g` in closed form.

    The first derivative is right at equal and at nearly equal singular values. Second derivatives
    go through the singular value decomposition: right at distinct values, NaN at equal ones.
    Where X loses rank, the derivative is the one along the matrices of the same rank; across ranks
    ``A`` has none: its slopes are infinite, with ``s^{2-2/N}`` or ``s^{2/N}``, or kinks at N = 2.

    `x` and `g` broadcast; `frames` is the thin SVD of `x`, of rank ``min(m, n)``, if at hand.
    """
    if depth == 1.0:
        return g.expand(broadcast_shapes(g.shape, x.shape))
    if frames is None:
        u, s, vh = torch.linalg.svd(x.detach(), full_matrices=False)
    else:
        u, s, vh = (part.detach() for part in frames)
    return _Cometric.apply(x, g, u, s, vh, depth, normalized)


class _Cometric(torch.autograd.Function):
    """``A_X(G)`` from X, G and, as constants, ``U, s, V^T`` of X, the depth and `normalized`."""

    @staticmethod
    def forward(x: Tensor, g: Tensor, *parts: Any) -> Tensor:
        return apply_kernel(parts[:3], g, *parts[3:])

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
        moved = torch.zeros_like(g @ vh.mH @ vh)
        if y is not None:
            moved = moved + _varied_by(push, (u, s, vh), y, g, *ctx.options)
        if dg is not None:
            moved = moved + apply_kernel((u, s, vh), dg, *ctx.options)
        return moved


class _Gradient(torch.autograd.Function):
    """The gradient in X of ``<H, A_X(G)>``; its derivatives go through the SVD."""

    @staticmethod
    def forward(x: Tensor, g: Tensor, h: Tensor, *parts: Any) -> Tensor:
        return _varied_by(pull, parts[:3], h, g, *parts[3:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:6])
        ctx.options = inputs[6:]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, g, h, *frames = ctx.saved_tensors
        if bool((frames[1] > 0).all()):
            model = kernel_model(ctx.options[0], ctx.options[1], 1.0, 2)

            def slope(x: Tensor, g: Tensor, h: Tensor) -> Tensor:
                return torch.func.vjp(lambda y: model(y, g, frames)[0], x)[1](h)[0]

            # Sums over a broadcast batch are taken outside: here X has the full batch.
            wide = x.expand(broadcast_shapes(x.shape, g.shape, h.shape))
            with torch.no_grad():
                in_x, in_g, in_h = torch.func.vjp(slope, wide, g, h)[1](cotangents[0])
            second = in_x.sum_to_size(x.shape), in_g, in_h
            return last_derivatives(second, x, g, h, *cotangents) + (None,) * 5
        with torch.enable_grad():
            x, g, h = (part.detach().requires_grad_() for part in (x, g, h))
            wide = only_finite(x.expand(broadcast_shapes(x.shape, g.shape)))
            moved = apply_kernel(torch.linalg.svd(wide, full_matrices=False), g, *ctx.options)
            (first,) = torch.autograd.grad(moved, wide, h, create_graph=True)
            second = torch.autograd.grad(first, (x, g, h), cotangents[0])
        return last_derivatives(second, *ctx.saved_tensors[:3], *cotangents) + (None,) * 5


def _varied_by(
    variation: Callable[..., Blocks], frames: Frames, z: Tensor, g: Tensor, *options: Any
) -> Tensor:
    """Return the matrix of `push` or `pull` of two matrices."""
    u, s, vh = frames
    k = Differences(s, *options)
    return tangent_matrix(u, vh, variation(k, blocks_of(u, vh, z), blocks_of(u, vh, g)))
