r"""Derivatives of the exponential map and of the logarithm, as variations of geodesics.

The flow of ``H(X, P) = 1/2 <P, A_X P>`` is symplectic: its adjoint is its inverse. So the gradient
of ``<h, exp_X(Z)>`` comes from one family of geodesics, those that run back from the end Y with the
momentum changed by h there: with a and b the changes of X and P, and ``alpha = A^{-1} a``,

``grad_Z = -alpha``, ``grad_X = b + d_X <alpha, A_X P>`` (alpha and P held fixed).

The gradient of ``<k, log_X(Y)>`` comes from the family from ``X - e A k`` to Y: minus the above in
X, with ``alpha = -k``, and the change of the momentum at Y. Changes are central differences of
order 6 in double precision, whose error is about that of the geodesics over the step, 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.geodesics.hamilton import follow_geodesic
from dln_geometry.geometry.metric import (
    Box,
    apply_kernel,
    blocks_of,
    kernel_model,
    tangent_matrix,
)
from dln_geometry.geometry.points import EndToEnd, last_derivatives
from dln_geometry.support import broadcast_shapes

_STEP = 0.02
_ORDER = ((1.0, 0.75), (2.0, -0.15), (3.0, 1.0 / 60.0))
_RTOL = 1e-13

# From points and cotangents of the result to the gradients in two matrices.
_Gradients = Callable[..., tuple[Tensor, Tensor]]


class Varied(torch.autograd.Function):
    """A value with given gradients in two matrices, once differentiable."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, two: Tensor, value: Tensor, gradients: _Gradients) -> Tensor:
        ctx.gradients = gradients
        ctx.save_for_backward(one, two)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (h,) = cotangents
        with torch.no_grad():
            found = (g.to(h.dtype) for g in ctx.gradients(h.double()))
            found = [g.sum_to_size(x.shape) for g, x in zip(found, ctx.saved_tensors, strict=True)]
        return (*last_derivatives(found, *ctx.saved_tensors, h), None, None)


def exponential_gradients(p: EndToEnd, z: Tensor) -> _Gradients:
    """Return the gradients in X and Z of the exponential map, from a cotangent at its end."""
    p, z = p.detach().to(torch.float64), z.detach().double()
    batch = broadcast_shapes(p.batch_shape, z.shape[:-2])
    p, z = p.expand(batch), z.expand(*batch, *z.shape[-2:])

    def gradients(h: Tensor) -> tuple[Tensor, Tensor]:
        q, v = _travelled(p, z)
        turned = _with_power(q, h, 1.0)

        def back(steps: Tensor) -> tuple[Tensor, ...]:
            start, velocity = _travelled(q, -(v + steps * turned))
            return start.matrix, _with_power(start, -velocity, -1.0)

        a, b = _finite_differences(back, _step_length(p, q, turned))
        alpha = _with_power(p, a, -1.0)
        return _tangential(p, b) + _pulled(p, alpha, _with_power(p, z, -1.0)), -alpha

    return gradients


def logarithm_gradients(
    p: EndToEnd, q: EndToEnd, velocity: Tensor, logarithm: Callable[..., Tensor]
) -> _Gradients:
    """Return the gradients in X and Y of the logarithm, from a cotangent at X."""
    p, q, z = p.detach().to(torch.float64), q.detach().to(torch.float64), velocity.double()

    def gradients(k: Tensor) -> tuple[Tensor, Tensor]:
        a = -_with_power(p, k, 1.0)

        def family(steps: Tensor) -> tuple[Tensor, ...]:
            start = EndToEnd.of(p.matrix + steps * a, p.depth, rank=p.rank, normalized=p.normalized)
            ahead, back = logarithm(start, q), logarithm(q, start)
            return _with_power(start, ahead, -1.0), -_with_power(q, back, -1.0)

        b, end = _finite_differences(family, _step_length(p, q, a))
        moved = _tangential(p, b) + _pulled(p, -k, _with_power(p, z, -1.0))
        return -moved, _tangential(q, end)

    return gradients


def _travelled(p: EndToEnd, z: Tensor) -> tuple[EndToEnd, Tensor]:
    """Return the ends of geodesics, and their velocities there."""
    box = Box.around(p, z)
    (inside,) = box.vectors
    ends, (w,), lost = follow_geodesic(Box(box.point, (inside, inside), None, None), [1.0], _RTOL)
    lost.refuse(1.0)
    return box.embed(ends[0].point(box.point)), box.embed_matrix(w)


def _with_power(p: EndToEnd, g: Tensor, power: float) -> Tensor:
    """Apply the cometric, or the metric at power -1."""
    return apply_kernel((p.u, p.s, p.vh), g, p.depth, p.normalized, power)


def _tangential(p: EndToEnd, g: Tensor) -> Tensor:
    """Project on the tangent space; at infinite depth on that of the frozen spaces."""
    return tangent_matrix(p.u, p.vh, blocks_of(p.u, p.vh, g, p.depth.infinite))


def _pulled(p: EndToEnd, alpha: Tensor, momentum: Tensor) -> Tensor:
    """Return the gradient in X of ``<alpha, A_X(P)>``."""
    model = kernel_model(p.depth, p.normalized, 1.0, 1)
    frames = (p.u, p.s, p.vh)
    return torch.func.vjp(lambda x: model(x, momentum, frames)[0], p.matrix)[1](alpha)[0]


def _step_length(p: EndToEnd, q: EndToEnd, move: Tensor) -> Tensor:
    """Return the step of the differences along a move: small against the way to lower rank."""
    length = (move * _with_power(q, move, -1.0)).sum((-2, -1)).abs().sqrt()
    least = torch.minimum(p.s[..., -1], q.s[..., -1])
    size = least**p.depth.inverse * p.depth.unit(False) ** 0.5
    return (_STEP * size / length.clamp_min(1e-300))[..., None, None]


def _finite_differences(
    f: Callable[[Tensor], tuple[Tensor, ...]], step: Tensor
) -> tuple[Tensor, ...]:
    """Return derivatives at zero by central differences, all steps in one batch."""
    sides = [sign * k for k, _ in _ORDER for sign in (1.0, -1.0)]
    weights = [sign * w for _, w in _ORDER for sign in (1.0, -1.0)]
    values = f(torch.stack([k * step for k in sides]))
    return tuple(sum(w * value[i] for i, w in enumerate(weights)) / step for value in values)
