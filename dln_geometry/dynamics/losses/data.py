"""What the losses on data have in common: their door, and half a sum of squares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import as_matrix


@dataclass(frozen=True)
class Thin:
    """A matrix ``X = left right^T`` that is not formed."""

    left: Tensor
    right: Tensor

    @property
    def dense(self) -> Tensor:
        """The matrix itself, shape (..., m, n)."""
        return self.left @ self.right.mT


class DataLoss(ABC):
    """A loss ``E(X) = 1/2 |residual(X)|^2`` with a residual that is affine in X.

    The dtype and the device of the point rule: data of another dtype or device are converted
    once and kept.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def __init__(self, shape: tuple[int, int], data: Tensor) -> None:
        self.shape = shape
        self.dtype = data.dtype
        self.device = data.device
        self._converted: dict[tuple[torch.dtype, torch.device], Self] = {}

    def value(self, x: Any) -> Tensor:
        """Return ``E(X)``, shape (...).

        Parameters
        ----------
        x : Collapsed, EndToEnd or array_like, shape (..., m, n)

        Raises
        ------
        TypeError
            If `x` is not a real array.
        ValueError
            If `x` is not of the loss's shape.
        """
        loss, point = self._enter(x)
        return loss._value(point)

    def gradient(self, x: Any) -> Tensor:
        """Return the Euclidean gradient ``G = E'(X)``, shape (..., m, n).

        Parameters
        ----------
        x : Collapsed, EndToEnd or array_like, shape (..., m, n)

        Raises
        ------
        TypeError
            If `x` is not a real array.
        ValueError
            If `x` is not of the loss's shape.
        """
        loss, point = self._enter(x)
        return loss._gradient(point)

    @abstractmethod
    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(E(X), G)`` at a matrix, the gradient dense. Nothing is checked."""

    @abstractmethod
    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(E, G R, G^T L)`` at ``X = L R^T``. Nothing is checked."""

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Self:
        """Return the loss on data of this dtype and device (itself if they are)."""
        dtype = self.dtype if dtype is None else dtype
        device = self.device if device is None else torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if (dtype, device) == (self.dtype, self.device):
            return self
        if (dtype, device) not in self._converted:
            self._converted[dtype, device] = self._to(dtype, device)
        return self._converted[dtype, device]

    @abstractmethod
    def _to(self, dtype: torch.dtype, device: torch.device) -> Self: ...

    @abstractmethod
    def _value(self, x: Tensor | Thin) -> Tensor: ...

    @abstractmethod
    def _gradient(self, x: Tensor | Thin) -> Tensor: ...

    def _enter(self, x: Any) -> tuple[Self, Tensor | Thin]:
        if isinstance(x, Collapsed):
            point, like, shape = Thin(x.L @ x.M, x.R), x.L, x.shape
        elif isinstance(x, EndToEnd):
            point, like, shape = Thin(x.u * x.s.unsqueeze(-2), x.vh.mT), x.s, x.shape
        else:
            # Nested sequences have no dtype of their own.
            own = hasattr(x, "dtype")
            if not (isinstance(x, Tensor) and x.dtype in (torch.float32, torch.float64)):
                x = as_matrix(x, "x", dtype=None if own else self.dtype)
            point, like, shape = x, x, tuple(x.shape[-2:])
        if shape != self.shape:
            raise ValueError(
                f"x must have shape (..., {self.shape[0]}, {self.shape[1]}), got "
                f"{tuple(like.shape) if isinstance(point, Tensor) else shape}"
            )
        return self.to(dtype=like.dtype, device=like.device), point


def half_square(residual: Tensor, ndim: int) -> Tensor:
    """Return ``1/2 |residual|^2`` over the last `ndim` dimensions."""
    if torch.is_grad_enabled() and residual.requires_grad:
        return 0.5 * residual.square().sum(tuple(range(-ndim, 0)))
    flat = residual.flatten(-ndim)
    if flat.ndim == 1:
        return 0.5 * torch.dot(flat, flat)
    # One pass without a temporary. The norm of a batch is the only such reduction.
    return 0.5 * torch.linalg.vector_norm(flat, dim=-1).square()
