r"""Derivatives of functions of a point that hold where singular values are equal.

Singular vectors have no derivative there; functions of the matrix have one. Near the point
``X_0 = U S V^T`` of rank r a matrix of that rank is, with ``D = X - X_0``, ``c = U^T D V``,
``B = (1 - U U^T) D V (S + c)^{-1}`` and ``C = (1 - V V^T) D^T U (S + c)^{-T}``, exactly
``(U + B) (S + c) (V + C)^T``. A `model` is a function of D in these terms that agrees with the
function to first or second order; autograd differentiates the model and `smooth` returns the value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dln_geometry.support import as_double, is_differentiated

Frames = tuple[Tensor, Tensor, Tensor]  # U, s, V^T
# Singular values with a smaller relative gap count as equal in derivatives: a gap of g costs
# digits like 1/g in their frames.
_CLOSE = 1e-5
_ROUNDING = 1e-14
Model = Callable[..., tuple[Tensor, ...]]


class Nearby(NamedTuple):
    """A matrix next to a point, to second order, in units of its largest singular value.

    ``X = left core right^T`` with orthonormal columns `left` (m x r) and `right` (n x r), and
    ``core = S + move``.
    """

    left: Tensor
    move: Tensor
    right: Tensor

    @classmethod
    def of(cls, x: Tensor, frames: Frames) -> Nearby:
        """Return the matrix `x` next to the point of which `frames` is the decomposition."""
        u, s, vh = frames
        d = (as_double(x) - as_double(x.detach())) / s[..., :1, None]
        s = s / s[..., :1]
        dv = d @ vh.mH
        c = u.mH @ dv
        left, right, move = u, vh.mH, c
        if u.shape[-2] > u.shape[-1]:
            b = (dv - u @ c) / s.unsqueeze(-2)
            square = 0.5 * b.mH @ b
            left = u + b - (b @ c) / s.unsqueeze(-2) - u @ square
            move = move + square * s.unsqueeze(-2)
        if vh.shape[-1] > vh.shape[-2]:
            b = ((u.mH @ d - c @ vh) / s.unsqueeze(-1)).mH
            square = 0.5 * b.mH @ b
            right = vh.mH + b - (b @ c.mH) / s.unsqueeze(-2) - vh.mH @ square
            move = move + s.unsqueeze(-1) * square
        return cls(left, move, right)

    def decomposed(self, s: Tensor, order: int, close: float = _CLOSE) -> Nearby:
        """Return the matrix in frames in which the core moves among nearly equal values only.

        To first or second order. Elsewhere the frames are those of singular vectors; among nearly
        equal values, which have no such frames, they turn oppositely, and the core is symmetric.
        """
        left, move, right = self
        rows, columns = s.unsqueeze(-1), s.unsqueeze(-2)
        tied, gap = nearly_equal(s, close), columns.square() - rows.square()
        gap = torch.where(tied, torch.inf, gap)
        opposite = torch.where(tied, 0.5, 0.0) / (rows + columns)
        one = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        for _ in range(order):
            odd = opposite * (move - move.mH)
            turns = (move * columns + move.mH * rows) / gap, (rows * move + move.mH * columns) / gap
            turn, other = (one + w + 0.5 * w @ w for w in (turns[0] + odd, turns[1] - odd))
            left, right = left @ turn, right @ other
            values = torch.diag_embed(s)
            move = turn.mH @ (values + move) @ other - values
        return Nearby(left, move, right)


def nearly_equal(s: Tensor, close: float = _CLOSE) -> Tensor:
    """Tell which pairs of singular values, shape (..., r, r), are too close to be told apart."""
    rows, columns = s.unsqueeze(-1), s.unsqueeze(-2)
    return (rows - columns).abs() <= close * torch.maximum(rows, columns)


def decomposition_model(order: int) -> Model:
    """Return the model of U, s, V^T next to a point of separate singular values; see `smooth`."""

    def model(x: Tensor, frames: Frames) -> tuple[Tensor, ...]:
        u, s, vh = (as_double(part) for part in frames)
        scale = s[..., :1]
        left, move, right = Nearby.of(x, (u, s, vh)).decomposed(s / scale, order, _ROUNDING)
        values = s + scale * move.diagonal(dim1=-2, dim2=-1).real
        return (left.to(x.dtype), values.to(x.real.dtype), right.mH.to(x.dtype))

    return model


def separate(model: Callable[..., tuple[Tensor, ...]], what: str) -> Model:
    """Return the model of a function of U, s, V^T and other inputs, by its own derivatives."""

    def composed(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        *inputs, frames = others
        refuse_equal(frames[1], what, _CLOSE)
        return model(*decomposition_model(2)(only_finite(x), frames), *inputs)

    return composed


def refuse_equal(s: Tensor, what: str, close: float) -> None:
    """Raise an error if two singular values of a point are equal."""
    tied = nearly_equal(s, close).sum((-2, -1)) > s.shape[-1]
    if bool(tied.any()):
        raise ValueError(
            f"{what} has no derivative where singular values are equal, got two that differ by a "
            f"relative {close:.0e} at most"
        )


def only_finite(x: Tensor) -> Tensor:
    """Return x; raise an error if its gradient, as of singular vectors, is not finite."""
    return _OnlyFinite.apply(x)


class _OnlyFinite(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        if not bool(torch.isfinite(cotangents[0]).all()):
            raise ValueError(
                "the derivative asked for must be finite, got NaN or infinite numbers: singular "
                "vectors have none where singular values are equal, roots none at zero, and those "
                "at very small or large values leave the range of the type"
            )
        return cotangents[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].clone()


def smooth(
    values: Sequence[Tensor], models: Sequence[Model], inputs: Sequence[Tensor], frames: Frames
) -> Any:
    """Return values with the derivatives of a model of the inputs, next to a point.

    `models` map the inputs and `frames`, which are constants, to as many tensors as there are
    values; the first is right to first order, the second, called by second derivatives, to second.
    """
    constants = tuple(part.detach() for part in frames)
    values = tuple(value.detach() for value in values)
    return _Smooth.apply(tuple(models), len(values), *values, *constants, *inputs)


class _Smooth(torch.autograd.Function):
    @staticmethod
    def forward(models: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.models, ctx.count = inputs[:2]
        ctx.save_for_backward(*inputs[2 + ctx.count :])
        ctx.save_for_forward(*inputs[2 + ctx.count :])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        found = _Slope.apply(ctx.models, ctx.count, *ctx.saved_tensors, *cotangents)
        return (None,) * (5 + ctx.count) + found

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        frames, inputs = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        moves = tuple(
            torch.zeros_like(x) if move is None else move
            for x, move in zip(inputs, tangents[5 + ctx.count :], strict=True)
        )
        # Forward mode does not nest: the adjoint of the adjoint.
        values, pull, *_ = torch.func.vjp(lambda *x: ctx.models[0](*x, frames), *inputs)
        zeros = tuple(torch.zeros_like(value) for value in values)
        return torch.func.vjp(lambda *h: pull(h), *zeros)[1](moves)


class _Slope(torch.autograd.Function):
    """The gradient of `_Smooth` in its inputs, from frames, inputs and cotangents."""

    @staticmethod
    def forward(models: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _slope(models[0], tensors[:3], tensors[3:-count], tensors[-count:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.models, ctx.count = inputs[:2]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        frames, tensors = ctx.saved_tensors[:3], ctx.saved_tensors[3:]

        def slope(*both: Tensor) -> tuple[Tensor, ...]:
            return _slope(ctx.models[1], frames, both[: -ctx.count], both[-ctx.count :])

        with torch.no_grad():
            found = torch.func.vjp(slope, *tensors)[1](cotangents)
        return (None,) * 5 + last_derivatives(found, *tensors, *cotangents)


def _slope(
    model: Model, frames: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the gradient in the inputs of ``<cotangents, model(inputs)>``."""
    return torch.func.vjp(lambda *x: model(*x, frames), *inputs)[1](tuple(cotangents))


def last_derivatives(found: Sequence[Tensor], *origin: Tensor) -> tuple[Tensor, ...]:
    """Return derivatives found in a backward pass; further ones raise an error, not nothing."""
    if not is_differentiated(*origin):
        return tuple(found)
    return tuple(_Last.apply(x, *origin) for x in found)


class _Last(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, *origin: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        raise ValueError(
            "the function has no derivative of this order: geodesics and slopes have first ones, "
            "functions of a point second ones"
        )
