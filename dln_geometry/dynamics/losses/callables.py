"""Any function of the matrix as a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses.loss import as_dense
from dln_geometry.dynamics.losses.products import products


def from_callable(f: Callable[[Tensor], Tensor], *, name: str | None = None) -> CallableLoss:
    """Return the loss ``E(X) = f(X)``, its gradient by automatic differentiation.

    Parameters
    ----------
    f : callable
        Takes one matrix (m, n) and returns a tensor without dimensions, by functions of torch
        that can be differentiated; batches go through ``torch.func.vmap``.
    name : str, optional
        Name by which the store of a run knows the function. Without one a store compares its value
        and gradient at fixed matrices to the last digit, which other machines may round otherwise.

    Examples
    --------
    >>> import torch
    >>> loss = dln.losses.from_callable(lambda x: (x[0, 0] * x[1, 1] - 1) ** 2)
    >>> loss.gradient(torch.eye(2) * 2)
    tensor([[12.,  0.],
            [ 0., 12.]])
    """
    if not callable(f):
        raise TypeError(f"f must be a function of one matrix, got {type(f).__name__}")
    if not isinstance(name, str | None):
        raise TypeError(f"name must be a str, got {type(name).__name__}")
    return CallableLoss(f, name)


class CallableLoss:
    """The loss ``E(X) = f(X)``; made by `from_callable`."""

    def __init__(self, f: Callable[[Tensor], Tensor], name: str | None = None) -> None:
        self.f, self.name = f, name
        self._grad_and_value = torch.func.grad_and_value(self._scalar)

    def __reduce__(self) -> tuple[Any, ...]:
        # A function that torch has made cannot be copied; it is made again.
        return type(self), (self.f, self.name)

    def __repr__(self) -> str:
        known = self.name or getattr(self.f, "__name__", type(self.f).__name__)
        return f"{type(self).__name__}({known})"

    def fingerprint(self) -> str | None:
        """Return the name, if there is one."""
        return self.name

    def narrowed(self, batch: Any, samples: Tensor) -> CallableLoss:
        """Return the loss itself: the function knows one matrix alone."""
        return self

    def value(self, x: Any) -> Tensor:
        """Return ``E(X)``, shape (...)."""
        x = as_dense(x)
        if x.ndim == 2:
            return self._scalar(x)
        return torch.func.vmap(self._scalar)(x.flatten(0, -3)).unflatten(0, x.shape[:-2])

    def gradient(self, x: Any) -> Tensor:
        """Return the Euclidean gradient ``G = E'(X)``, shape (..., m, n)."""
        return self.evaluate(as_dense(x))[1]

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(E(X), G)`` at a matrix."""
        if x.ndim == 2:
            gradient, value = self._grad_and_value(x)
            return value, gradient
        gradient, value = torch.func.vmap(self._grad_and_value)(x.flatten(0, -3))
        return value.unflatten(0, x.shape[:-2]), gradient.unflatten(0, x.shape[:-2])

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(E, G R, G^T L)`` at ``X = L R^T``."""
        value, gradient = self.evaluate(left @ right.mH)
        return value, *products(gradient, left, right)

    def _scalar(self, x: Tensor) -> Tensor:
        y = self.f(x)
        if not isinstance(y, Tensor):
            raise TypeError(f"f must return a tensor, got {type(y).__name__}")
        if not y.is_floating_point():
            raise TypeError(f"f must return a real floating tensor, got {y.dtype}")
        if y.ndim != 0:
            raise ValueError(
                f"f must return a scalar for one matrix (m, n), got shape {tuple(y.shape)}"
            )
        return y
