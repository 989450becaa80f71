"""Terms of the velocities of engines, and writing them into rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import small_svd
from dln_geometry.support import absolute_square


def minus(out: Tensor, x: Tensor) -> None:
    """Write ``-x`` into a view of the state."""
    # Automatic differentiation does not follow `out=`.
    if torch.is_grad_enabled():
        out.copy_(-x)
    else:
        torch.neg(x, out=out)


def minus_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Write ``-a b`` into a view of the state."""
    if out.ndim == 2 and not torch.is_grad_enabled():
        torch.addmm(out, a, b, beta=0, alpha=-1, out=out)
    else:
        out.copy_(torch.matmul(a, b).neg_())


def squares(a: Tensor) -> Tensor:
    """Return the squared Frobenius norm."""
    return absolute_square(a).sum((-2, -1))


def observables(value: Tensor, squared: Tensor | None = None) -> Tensor:
    """Return the columns of `field`; `squared` is the squared norm of the gradient, if watched."""
    if squared is None:
        return value.reshape(-1, 1)
    norm = squared.clamp_min(0.0).sqrt()
    return torch.stack((value.reshape(-1), norm.reshape(-1)), dim=-1)


def side_of(a: Tensor) -> Tensor:
    """Return the sign of the determinant, by columns of unit length: they differ in scale."""
    length = torch.linalg.vector_norm(a, dim=-2, keepdim=True)
    return torch.linalg.det(a / torch.where(length > 0, length, 1.0)).sign()


def orientation(old: Tensor, new: Tensor) -> Tensor:
    """Return the sign of the determinant of the map from the columns of one matrix to another's."""
    if old.shape[-2] != old.shape[-1]:
        q = torch.linalg.qr(new)[0].mH
        old, new = q @ old, q @ new
    return side_of(old) * side_of(new)


def complex_view(part: Tensor, shape: Sequence[int]) -> Tensor:
    """Return some columns of rows as complex matrices of this shape."""
    return torch.view_as_complex(part.view(*shape, 2))


def balanced_pair(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return a balanced pair (L, R) of orthogonal columns near a nearly balanced one."""
    u, a, qh = small_svd(left)
    v, b, ph = small_svd(right)
    root = (a * b).sqrt().unsqueeze(-2)
    return u * root, (v @ (ph @ qh.mH)) * root


def turned_back(a: Tensor) -> Tensor:
    """Return a matrix with the sign of its smallest singular value changed."""
    u, s, vh = small_svd(a)
    return a - 2.0 * s[..., -1, None, None] * u[..., -1:] * vh[..., -1:, :]
