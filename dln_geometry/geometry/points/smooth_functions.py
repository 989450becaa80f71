"""Frames, roots and truncations of matrices, with derivatives where singular values are equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import (
    log_kernel_of_pairs,
    log_second_difference,
    power_divided_difference,
    power_second_difference,
)
from dln_geometry.geometry.points.smooth import (
    Frames,
    Model,
    Nearby,
    decomposition_model,
    nearly_equal,
    only_finite,
    refuse_equal,
    smooth,
)
from dln_geometry.support import Depth, as_double, is_differentiated


def frames_and_root(x: Tensor, frames: Frames, depth: Depth) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, ``Sigma^{1/N}`` (r x r) and V of a point that is differentiated in its matrix x.

    Where singular values are nearly equal their frames have no derivative; functions of the result
    that do not depend on the choice of frames have the right one.
    """

    def model(order: int) -> Model:
        def at(x: Tensor, frames: Frames) -> tuple[Tensor, ...]:
            u, s, vh = (as_double(part) for part in frames)
            scale, power = s[..., :1], depth.inverse
            left, move, right = Nearby.of(x, (u, s, vh)).decomposed(s / scale, order)
            y = (s / scale).log()
            rows, columns = y.unsqueeze(-1), y.unsqueeze(-2)
            slope = torch.exp(-log_kernel_of_pairs(0.5 * rows, 0.5 * columns, depth, True))
            root = torch.diag_embed((power * y).exp()) + power * slope * move
            if order == 2 and depth > 1.0:
                nodes = y[..., :, None, None], y[..., None, :, None], y[..., None, None, :]
                bend = torch.exp(log_second_difference(*nodes, depth))
                bent = (bend * move.unsqueeze(-1) * move.unsqueeze(-3)).sum(-2)
                root = root - power * bent
            root = root * (scale**power).unsqueeze(-1)
            return tuple(part.to(x.dtype) for part in (left, root, right))

        return at

    u, s, vh = frames
    root = torch.diag_embed(s**depth.inverse).to(u.dtype)
    return smooth((u, root, vh.mH), (model(1), model(2)), (x,), frames)


def differentiable_frames(x: Tensor, frames: Frames) -> Frames:
    """Return U, s, V^T with their derivatives in x; refuse those of U and V at equal values."""
    u, s, vh = frames
    r = s.shape[-1]
    if r == min(x.shape[-2:]) or not bool((s > 0).all()):
        u, s, vh = torch.linalg.svd(only_finite(x), full_matrices=False)
        return separated_frames(u[..., :r], s[..., :r], vh[..., :r, :])
    found = smooth((u, s, vh), (decomposition_model(1), decomposition_model(2)), (x,), frames)
    return separated_frames(*found)


def _rounding(s: Tensor) -> float:
    """Return the relative gap of singular values that rounding errors make."""
    return 100.0 * torch.finfo(s.dtype).eps


def separated_frames(u: Tensor, s: Tensor, vh: Tensor) -> Frames:
    """Return a decomposition whose backward refuses derivatives of U and V at equal values."""
    return _Separate.apply(u, s, vh)


class _Separate(torch.autograd.Function):
    """U, s and V^T; an error if derivatives of U or V are asked at equal singular values."""

    @staticmethod
    def forward(u: Tensor, s: Tensor, vh: Tensor) -> Frames:
        return u.clone(), s.clone(), vh.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        if cotangents[0] is not None or cotangents[2] is not None:
            refuse_equal(
                ctx.saved_tensors[0], "u or vh of a point", _rounding(ctx.saved_tensors[0])
            )
        return cotangents

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        # All tangents are asked for here, whatever they serve: NaN is the refusal of those of U, V.
        tied = nearly_equal(ctx.saved_tensors[0], _rounding(ctx.saved_tensors[0]))
        tied = (tied.sum((-2, -1)) > tied.shape[-1])[..., None, None]
        u, s, vh = tangents
        return torch.where(tied, torch.nan, u), s.clone(), torch.where(tied, torch.nan, vh)


def gram_power(c: Tensor, exponent: float) -> Tensor:
    """Return ``C^e`` of a symmetric C >= 0, shape (..., r, r), differentiable at equal eigenvalues.

    A zero to a negative power counts as 0.
    """
    values, q = torch.linalg.eigh(c.detach())
    values = values.clamp_min(0.0)
    power = torch.where(values > 0, values**exponent, 0.0) if exponent < 0 else values**exponent
    power = (q * power.unsqueeze(-2)) @ q.mH
    if not is_differentiated(c):
        return power
    if bool((values <= 0).any()):
        values, q = torch.linalg.eigh(only_finite(c))
        values = values.clamp_min(0.0)
        roots = torch.where(values > 0, torch.where(values > 0, values, 1.0) ** exponent, 0.0)
        return (q * roots.unsqueeze(-2)) @ q.mH

    def model(order: int) -> Model:
        def at(c: Tensor, frames: Frames) -> tuple[Tensor, ...]:
            q, values, _ = (as_double(part) for part in frames)
            scale = values[..., -1:]
            d = (q.mH @ (as_double(c) - as_double(c.detach())) @ q) / scale.unsqueeze(-1)
            values = values / scale
            moved = torch.diag_embed(values**exponent)
            moved = moved + power_divided_difference(values, exponent) * d
            if order == 2:
                second = power_second_difference(values, exponent)
                moved = moved + (second * d.unsqueeze(-1) * d.unsqueeze(-3)).sum(-2)
            return ((q @ (moved * scale.unsqueeze(-1) ** exponent) @ q.mH).to(c.dtype),)

        return at

    return smooth((power,), (model(1), model(2)), (c,), (q, values, q))[0]


def truncated(x: Tensor, frames: Frames, rank: int) -> Tensor:
    """Return a matrix of thin decomposition `frames` without its singular values below the first r.

    Infinite derivatives, where the last value kept equals the first one dropped, are refused.
    """
    u, s, vh = frames
    gap = s[..., rank - 1] - s[..., rank]
    if bool((gap <= _rounding(s) * s[..., rank - 1]).any()):
        raise ValueError(
            "rank must end at a gap of the singular values of x for a derivative, got a value kept "
            "that equals one dropped"
        )

    def model(order: int) -> Model:
        return lambda x, frames: (_truncation(x, frames, rank, order).to(x.dtype),)

    value = (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]
    return smooth((value,), (model(1), model(2)), (x,), frames)[0]


def _truncation(x: Tensor, frames: Frames, rank: int, order: int) -> Tensor:
    """Return `truncated` to first or second order, by Newton's method for the singular spaces.

    ``U + B`` and ``V + C`` with B and C beyond U and V span them: ``X (V + C)`` is in the first
    and ``X^T (U + B)`` in the second.
    """
    u, s, vh = (as_double(part) for part in frames)
    x = as_double(x)
    # Exactly the decomposition, so that residuals vanish at the point.
    x = (u * s.unsqueeze(-2)) @ vh + (x - x.detach())
    (left, away), (right, aside) = ((a[..., :rank], a[..., rank:]) for a in (u, vh.mH))
    kept, dropped = s[..., None, :rank], s[..., rank:, None]
    gap = (kept - dropped) * (kept + dropped)
    b, c = torch.zeros_like(left), torch.zeros_like(right)
    for _ in range(order):
        moved, back = x @ (right + c), x.mH @ (left + b)
        one = moved - (left + b) @ (left.mH @ moved)
        two = back - (right + c) @ (right.mH @ back)
        first, second = away.mH @ one, aside.mH @ two
        b = b + away @ ((kept * first + dropped * second) / gap) + (one - away @ first) / kept
        c = c + aside @ ((kept * second + dropped * first) / gap) + (two - aside @ second) / kept
    left = left + b
    return (left - left @ (b.mH @ b)) @ (left.mH @ x)
