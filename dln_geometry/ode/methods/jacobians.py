"""Jacobians: whole, in parts or by differences, and the linear systems of implicit steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dln_geometry.ode.methods.runge_kutta import Field


class Parts(NamedTuple):
    """A Jacobian ``direct + outer inner``, whose product rounding would spoil.

    Where `outer` and `inner` are large, the product drowns slow modes in its rounding; a linear
    system in which ``z = inner u`` is an unknown of its own does not.

    Examples
    --------
    >>> dln.ode.Parts(torch.zeros(1, 2, 2), torch.ones(1, 2, 1), torch.ones(1, 1, 2)).whole
    tensor([[[1., 1.],
             [1., 1.]]])
    """

    direct: Tensor  # (B, n, n)
    outer: Tensor  # (B, n, k)
    inner: Tensor  # (B, k, n)

    @property
    def whole(self) -> Tensor:
        """The Jacobian, shape (B, n, n)."""
        return self.direct + self.outer @ self.inner

    def times(self, v: Tensor) -> Tensor:
        """Return the product with vectors (B, n, 1)."""
        return self.direct @ v + self.outer @ (self.inner @ v)


Jacobian = Callable[[Tensor, Tensor], "Tensor | Parts"]
"""``jacobian(t (B,), y (B, n))`` returns the derivative of the field in y, (B, n, n) or parts."""


def solver(matrix: Tensor | Parts, h: Tensor, gamma: float) -> Callable[[Tensor], Tensor]:
    """Return the solution of ``(1 - gamma h J) u = right`` as a function of rows (B, n)."""
    split = isinstance(matrix, Parts)
    direct = matrix.direct if split else matrix
    n = direct.shape[-1]
    system = torch.eye(n, dtype=direct.dtype, device=direct.device) - gamma * (h * direct)
    if not split:
        factors, pivots, _ = torch.linalg.lu_factor_ex(system)
        return lambda x: torch.linalg.lu_solve(factors, pivots, x.unsqueeze(-1)).squeeze(-1)
    k = matrix.inner.shape[-2]
    eye = torch.eye(k, dtype=direct.dtype, device=direct.device).expand(len(direct), k, k)
    above = torch.cat((system, -gamma * (h * matrix.outer)), -1)
    system = torch.cat((above, torch.cat((-matrix.inner, eye), -1)), -2)
    # The rows differ by the length of the step: let pivots be chosen among rows of one size.
    size = system.abs().amax(-1)
    factors, pivots, _ = torch.linalg.lu_factor_ex(system / size.unsqueeze(-1))

    def solve(right: Tensor) -> Tensor:
        wide = right.new_zeros(size.shape)
        torch.div(right, size[:, :n], out=wide[:, :n])
        return torch.linalg.lu_solve(factors, pivots, wide.unsqueeze(-1)).squeeze(-1)[:, :n]

    return solve


def differences(field: Field, t: Tensor, y: Tensor) -> Tensor:
    """Return the Jacobian by central differences, shape (B, n, n): 2 n evaluations.

    Its relative error is about ``eps^{2/3}``.

    Examples
    --------
    >>> def decay(t, y, out):
    ...     torch.mul(y, -2.0, out=out)
    >>> dln.ode.differences(decay, torch.zeros(1), torch.ones(1, 1)).round(decimals=2)
    tensor([[[-2.]]])
    """
    n = y.shape[-1]
    size = torch.linalg.vector_norm(y, dim=-1, keepdim=True) / n**0.5
    size = torch.where(size > 0, size, 1.0)
    distance = torch.finfo(y.dtype).eps ** (1 / 3) * torch.maximum(y.abs(), size)
    columns, high, low = [], torch.empty_like(y), torch.empty_like(y)
    for k in range(n):
        ends = []
        for sign, out in ((1.0, high), (-1.0, low)):
            moved = y.clone()
            moved[:, k] += sign * distance[:, k]
            field(t, moved, out)
            ends.append(moved[:, k])
        columns.append((high - low) / (ends[0] - ends[1]).unsqueeze(-1))
    return torch.stack(columns, -1)
