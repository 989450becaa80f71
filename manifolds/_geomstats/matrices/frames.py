"""Matrices between two fixed spaces, and their square cores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manifolds._geomstats.arrays import as_tensor, gram_schmidt


@dataclass(frozen=True)
class Frames:
    """Orthonormal bases U (m, r) and V (n, r) of two spaces: ``X = U Y V^T`` has the core Y."""

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, left: Any, right: Any) -> Frames:
        """Return the frames of the spans of the columns of two matrices, in double precision."""
        one, two = _independent(left, "left"), _independent(right, "right")
        if one.shape[1] != two.shape[1]:
            raise ValueError(
                "left and right must have one number of columns, got shapes "
                f"{tuple(one.shape)} and {tuple(two.shape)}"
            )
        return cls(gram_schmidt(one), gram_schmidt(two))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the matrices."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def rank(self) -> int:
        """Number r of dimensions of either space."""
        return self.left.shape[1]

    def core(self, x: Tensor) -> Tensor:
        """Return ``U^T X V``, shape (..., r, r)."""
        return self.left.to(x).mT @ x @ self.right.to(x)

    def embed(self, y: Tensor) -> Tensor:
        """Return ``U Y V^T``, shape (..., m, n)."""
        return self.left.to(y) @ y @ self.right.to(y).mT

    def outside(self, x: Tensor) -> Tensor:
        """Return ``X - U U^T X V V^T``, shape (..., m, n)."""
        return x - self.embed(self.core(x))

    def core_within(self, x: Tensor, name: str, roundings: Tensor | float = 0.0) -> Tensor:
        """Return the core of a matrix between the spaces, and refuse others.

        A part outside may have the norm `roundings`, or a root of eps of that of the matrix.
        """
        outside, size = (torch.linalg.matrix_norm(y) for y in (self.outside(x), x))
        if bool((outside > math.sqrt(torch.finfo(x.dtype).eps) * size + roundings).any()):
            worst = float((outside / size.clamp_min(torch.finfo(x.dtype).tiny)).max())
            raise ValueError(
                f"{name} must lie between the column and row spaces of the space, got a relative "
                f"part {worst:.1e} outside"
            )
        return self.core(x)

    def spread(self, tensor: Tensor, axes: int) -> Tensor:
        """Extend a tensor on flattened cores, its last `axes` dimensions, by zero to matrices."""
        flat = torch.kron(self.left, self.right).to(tensor)
        for axis in range(-axes, 0):
            tensor = (tensor.movedim(axis, -1) @ flat.mT).movedim(-1, axis)
        return tensor


def _independent(x: Any, name: str) -> Tensor:
    """Return a matrix in double precision, and refuse one with dependent columns."""
    tensor = as_tensor(x, name=name).double()
    if tensor.ndim != 2 or not 1 <= tensor.shape[1] <= tensor.shape[0]:
        raise ValueError(
            f"{name} must be a matrix with at least one column and no more than rows, got shape "
            f"{tuple(tensor.shape)}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got an infinite entry or NaN")
    # The lengths of the columns do not matter.
    size = tensor.norm(dim=0)
    s = torch.linalg.svdvals(tensor / torch.where(size > 0, size, 1.0))
    if float(s[-1]) <= tensor.shape[0] * torch.finfo(tensor.dtype).eps:
        raise ValueError(
            f"{name} must have independent columns, got a smallest singular value "
            f"{float(s[-1]):.1e} of the columns of unit length"
        )
    return tensor
