"""Losses that are no squares, entry by entry of a dense residual: powers, and Huber's."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from dln_geometry.dynamics.losses.dense import Regression
from dln_geometry.dynamics.losses.loss import DataLoss, as_text
from dln_geometry.dynamics.losses.products import Thin, products
from dln_geometry.geometry.kernel import quick_product
from dln_geometry.support import as_matrix, as_positive, as_real, common_batch


class ElementwiseLoss(Regression):
    """A loss ``E(X) = sum l(r)`` over the entries of ``R = X - Y`` or ``R = Z X^T - Y``.

    The base of `LpNorm` and `Huber`. Another loss of this kind defines `_of`, ``l`` and ``l'`` of
    every entry of a residual, and `_fact`, the name and the value of its number.

    Examples
    --------
    The logarithm of the hyperbolic cosine, round at zero and straight far away:

    >>> class LogCosh(dln.losses.ElementwiseLoss):
    ...     def __init__(self, target, width=1.0, *, inputs=None, reduction="sum"):
    ...         self.width = width
    ...         super().__init__(target, inputs, reduction)
    ...     def _of(self, residual):
    ...         slope = (residual / self.width).tanh()
    ...         return self.width**2 * (residual / self.width).cosh().log(), self.width * slope
    ...     def _fact(self):
    ...         return "width", self.width
    >>> LogCosh([[0.0]]).gradient([[20.0]])
    tensor([[1.]])
    """

    _derived = (*DataLoss._derived, "_inputs", "_outputs")
    complex_numbers = False
    _own: ClassVar = {"target": 2, **Regression._own}
    # Without inputs the outputs are the rows of X.
    by_row: ClassVar = {"target": -2, "_outputs": -2}

    def __init__(self, target: Any, inputs: Any, reduction: str) -> None:
        given: Any = None if inputs is None else as_matrix(inputs, "inputs")
        kind: Any = {} if given is None else {"dtype": given.dtype, "device": given.device}
        self.inputs, self.target = given, as_matrix(target, "target", **kind)
        self._outputs = self.target
        self._unreachable, m, n = None, *self.target.shape[-2:]
        if self.inputs is not None:
            if self.inputs.shape[-2] != m:
                raise ValueError(
                    f"target must have as many rows as inputs, {self.inputs.shape[-2]}, got {m}"
                )
            common_batch(inputs=self.inputs.shape[:-2], target=self.target.shape[:-2])
            self._inputs, m, n = self.inputs, n, self.inputs.shape[-1]
            self.by_row = dict.fromkeys(ElementwiseLoss.by_row, -1)  # pyright: ignore
        DataLoss.__init__(self, (m, n), self.target)
        self._reduce(reduction, self.target.shape[-2] * self.target.shape[-1])

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.inputs is not None:
            return super().contract(left, right)
        value, slope = self._measured(quick_product(left, right.mH) - self.target)
        return value, *products(slope, left, right)

    def _residual(self, x: Tensor | Thin) -> Tensor:
        if self.inputs is not None:
            return super()._residual(x)
        return (x if isinstance(x, Tensor) else x.dense) - self.target

    def _adjoint(self, residual: Tensor) -> Tensor:
        return residual if self.inputs is None else super()._adjoint(residual)

    def _measured(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        energy, slope = self._of(residual)
        return self._reduced(energy.sum((-2, -1)), slope)

    @abstractmethod
    def _of(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``l(r)`` and ``l'(r)`` of every entry."""

    @abstractmethod
    def _fact(self) -> tuple[str, float]:
        """Return the name and the value of the loss's number."""

    def __repr__(self) -> str:
        name, number = self._fact()
        pairs = () if self.inputs is None else (f"{self.target.shape[-2]} pairs",)
        return as_text(self, *pairs, f"{name} {number:g}", batch=self.target.shape[:-2])

    def _to(self, dtype: torch.dtype, device: torch.device) -> Any:
        inputs = None if self.inputs is None else self.inputs.to(device, dtype)
        target = self.target.to(device, dtype)
        make: Any = type(self)
        return make(target, self._fact()[1], inputs=inputs, reduction=self.reduction)


class LpNorm(ElementwiseLoss):
    """The p-th power of the l_p distance, ``E(X) = 1/p sum |X_ij - Y_ij|^p``.

    At p = 2 it is `Quadratic`, or with `inputs` `Regression`. Below p = 2 its gradient is not
    smooth where an entry is met, and at p = 1 it jumps there: flows end with a warning.

    Parameters
    ----------
    target : array_like, shape (..., m, n), or (..., k, m) with inputs
        The matrix Y, or the outputs ``y_k``, one a row.
    p : float
        The power, at least 1.
    inputs : array_like, shape (..., k, n), optional
        Inputs ``x_k``, one a row: then ``E(X) = 1/p sum_k |X x_k - y_k|_p^p``.
    reduction : {"sum", "mean"}
        ``"mean"`` divides by the number of the summands of a matrix.

    Examples
    --------
    >>> loss = dln.losses.LpNorm([[1.0, 0.0]], 4)
    >>> loss.value([[3.0, 0.0]]), loss.gradient([[3.0, 0.0]])
    (tensor(4.), tensor([[8., 0.]]))
    """

    def __init__(
        self, target: Any, p: float, *, inputs: Any = None, reduction: str = "sum"
    ) -> None:
        self.p = as_real(p, "p")
        if not 1 <= self.p < float("inf"):
            raise ValueError(f"p must be finite and at least 1, got {self.p:g}")
        super().__init__(target, inputs, reduction)

    def _of(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        size = residual.abs()
        power = size ** (self.p - 1.0)
        return power * size / self.p, power * residual.sign()

    def _fact(self) -> tuple[str, float]:
        return "p", self.p


class Huber(ElementwiseLoss):
    """Huber's loss: ``r^2/2`` for small ``r = X_ij - Y_ij``, else ``delta |r| - delta^2/2``.

    Few wrong entries of the target pull X no harder than `delta` each.

    Parameters
    ----------
    target, inputs, reduction
        As in `LpNorm`.
    delta : float
        Size of a residual, positive, above which the loss grows linearly.

    Examples
    --------
    >>> loss = dln.losses.Huber([[0.0, 0.0]], delta=1.0)
    >>> loss.value([[3.0, 1.0]]), loss.gradient([[3.0, 1.0]])
    (tensor(3.), tensor([[1., 1.]]))
    """

    def __init__(
        self, target: Any, delta: float = 1.0, *, inputs: Any = None, reduction: str = "sum"
    ) -> None:
        self.delta = as_positive(delta, "delta")
        super().__init__(target, inputs, reduction)

    def _of(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        slope = residual.clamp(-self.delta, self.delta)
        return slope * (residual - 0.5 * slope), slope

    def _fact(self) -> tuple[str, float]:
        return "delta", self.delta
