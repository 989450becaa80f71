"""Losses on dense data: a target, linear measurements, input-output pairs."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dln_geometry.dynamics.losses.loss import DataLoss, as_text
from dln_geometry.dynamics.losses.products import Thin, half_square, products
from dln_geometry.geometry.kernel import quick_product
from dln_geometry.support import as_float_tensor, as_matrix, common_batch

# Measured on CPUs with one and two threads: below this size in bytes, or above this rank, one
# residual is faster than blocks of rows; at 32 MB and rank 10 the blocks save a third.
LARGE, THIN, BLOCK = 2**24, 64, 2**20


class Quadratic(DataLoss):
    """The squared distance from a target, ``E(X) = 1/2 |X - Y|^2``.

    Parameters
    ----------
    target : array_like, shape (..., m, n)
        The matrix Y, real or complex; leading dimensions broadcast against those of X.
    reduction : {"sum", "mean"}
        ``"mean"`` divides by the number of the summands of a matrix.

    Examples
    --------
    >>> loss = dln.losses.Quadratic([[1.0, 0.0], [0.0, 3.0]])
    >>> loss.value([[1.0, 2.0], [0.0, 1.0]])
    tensor(4.)
    """

    residual_dimensions = 2
    complex_numbers = True
    _own: ClassVar = {"target": 2}
    by_row: ClassVar = {"target": -2}

    def __init__(self, target: Any, *, reduction: str = "sum") -> None:
        self.target = as_matrix(target, "target", complex=True)
        m, n = self.target.shape[-2:]
        super().__init__((m, n), self.target)
        self._reduce(reduction, m * n)

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._is_streamed(left):
            return self._streamed(left, right)
        target, residual = self.target, quick_product(left, right.mH)
        # In place if possible: at small rank, passes over the residual dominate the cost.
        fits = target.ndim <= 2 or residual.shape == target.shape
        residual = residual.sub_(target) if fits else residual - target
        value, slope = self._measured(residual)
        return value, *products(slope, left, right)

    def _is_streamed(self, left: Tensor) -> bool:
        """Tell whether to go by blocks: the residual exceeds the caches and the rank is small."""
        target = self.target
        return (
            target.numel() * target.element_size() > LARGE
            and left.shape[-1] <= THIN
            and left.ndim == target.ndim == 2
            and left.device.type == "cpu"
            and not (torch.is_grad_enabled() and (left.requires_grad or target.requires_grad))
        )

    def _streamed(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Contract by blocks of rows, so that the residual never leaves the cache."""
        (m, n), r = self.shape, right.shape[-1]
        rows = max(1, BLOCK // (n * left.element_size()))
        buffer = left.new_empty(rows, n)
        value, gr, gl = left.real.new_zeros(()), left.new_empty(m, r), left.new_zeros(r, n)
        for start in range(0, m, rows):
            block = slice(start, min(start + rows, m))
            residual = buffer[: block.stop - start]
            torch.mm(left[block], right.mH, out=residual)
            residual.sub_(self.target[block])
            value += half_square(residual, 2)
            torch.mm(residual, right, out=gr[block])
            gl.addmm_(left[block].mH, residual)
        if self._share is not None:
            value, gr, gl = (x * self._share for x in (value, gr, gl))
        return value, gr, gl.mH

    def _residual(self, x: Tensor | Thin) -> Tensor:
        return (x if isinstance(x, Tensor) else x.dense) - self.target

    def _adjoint(self, residual: Tensor) -> Tensor:
        return residual

    def __repr__(self) -> str:
        return as_text(self, batch=self.target.shape[:-2])

    def _to(self, dtype: torch.dtype, device: torch.device) -> Quadratic:
        return Quadratic(self.target.to(device, dtype), reduction=self.reduction)


class Sensing(DataLoss):
    """Linear measurements, ``E(X) = 1/2 sum_k (<A_k, X> - y_k)^2``.

    Complex ones are ``E(X) = 1/2 sum_k |tr(A_k* X) - y_k|^2``.

    Parameters
    ----------
    operators : array_like, shape (k, m, n)
        The matrices ``A_k``.
    values : array_like, shape (..., k)
        The measurements ``y_k``; leading dimensions broadcast against those of X.
    reduction : {"sum", "mean"}
        ``"mean"`` divides by the number of the summands of a matrix.

    Examples
    --------
    >>> import torch
    >>> loss = dln.losses.Sensing([[[1.0, 0.0], [0.0, 1.0]]], [3.0])
    >>> loss.value(torch.eye(2)), loss.gradient(torch.eye(2))
    (tensor(0.5000), tensor([[-1.,  0.],
            [ 0., -1.]]))
    """

    _derived = (*DataLoss._derived, "_rows")
    complex_numbers = True
    _own: ClassVar = {"values": 1}

    def __init__(self, operators: Any, values: Any, *, reduction: str = "sum") -> None:
        self.operators = like = as_matrix(operators, "operators", complex=True)
        if like.ndim != 3 or like.shape[0] == 0:
            raise ValueError(f"operators must have shape (k, m, n), got {tuple(like.shape)}")
        kind: Any = {"dtype": like.dtype, "device": like.device, "complex": like.is_complex()}
        self.values = as_float_tensor(values, "values", **kind)
        if self.values.shape[-1:] != like.shape[:1]:
            raise ValueError(
                f"values must have shape (..., {like.shape[0]}), one for each operator, got "
                f"{tuple(self.values.shape)}"
            )
        self._rows = like.flatten(1)
        super().__init__((like.shape[1], like.shape[2]), like)
        self._reduce(reduction, len(like))

    def _residual(self, x: Tensor | Thin) -> Tensor:
        dense = x if isinstance(x, Tensor) else x.dense
        return dense.flatten(-2) @ self._rows.mH - self.values

    def _adjoint(self, residual: Tensor) -> Tensor:
        return (residual @ self._rows).unflatten(-1, self.shape)

    def __repr__(self) -> str:
        batch = self.values.shape[:-1]
        return as_text(self, f"{len(self.operators)} measurements", batch=batch)

    def _to(self, dtype: torch.dtype, device: torch.device) -> Sensing:
        data = (x.to(device, dtype) for x in (self.operators, self.values))
        return Sensing(*data, reduction=self.reduction)


class Regression(DataLoss):
    """Linear regression on data, ``E(X) = 1/2 sum_k |X x_k - y_k|^2``.

    More data than inputs' dimensions are compressed once by ``Z = Q P`` (thin QR of the inputs):
    ``E(X) = 1/2 |X P^T - Y^T Q|^2 + 1/2 |Y - Q Q^T Y|^2``, exactly, and without the loss of
    accuracy near zero that moment matrices would bring. Data may be complex: ``X x_k`` is then the
    plain product, and transposes are conjugate.

    Parameters
    ----------
    inputs : array_like, shape (..., k, n)
        The ``x_k``, one a row; leading dimensions broadcast against those of X.
    outputs : array_like, shape (..., k, m)
        The ``y_k``, one a row.
    reduction : {"sum", "mean"}
        ``"mean"`` divides by the number of the summands, k m.

    Examples
    --------
    >>> import torch
    >>> loss = dln.losses.Regression(inputs=[[1.0, 2.0]], outputs=[[3.0, 0.0]])
    >>> loss.value(torch.eye(2)), loss.gradient(torch.eye(2))
    (tensor(4.), tensor([[-2., -4.],
            [ 2.,  4.]]))
    """

    residual_dimensions = 2
    complex_numbers = True
    _derived = (*DataLoss._derived, "_inputs", "_outputs", "_unreachable")
    _own: ClassVar = {"inputs": 2, "outputs": 2, "_inputs": 2, "_outputs": 2, "_unreachable": 0}
    by_row: ClassVar = {"outputs": -1, "_outputs": -1}

    def __init__(self, inputs: Any, outputs: Any, *, reduction: str = "sum") -> None:
        self.inputs = like = as_matrix(inputs, "inputs", complex=True)
        kind: Any = {"dtype": like.dtype, "device": like.device, "complex": like.is_complex()}
        self.outputs = as_matrix(outputs, "outputs", **kind)
        k, n = like.shape[-2:]
        if self.outputs.shape[-2] != k:
            raise ValueError(
                f"outputs must have as many rows as inputs, {k}, got {self.outputs.shape[-2]}"
            )
        common_batch(inputs=like.shape[:-2], outputs=self.outputs.shape[:-2])
        super().__init__((self.outputs.shape[-1], n), like)
        self._reduce(reduction, k * self.outputs.shape[-1])
        self._inputs, self._outputs = self.inputs, self.outputs
        self._unreachable = None
        if k > n:
            q, self._inputs = torch.linalg.qr(self.inputs)
            self._outputs = q.mH @ self.outputs
            self._leave(q)

    def _leave(self, q: Tensor) -> None:
        """Set the loss that no X avoids, of the outputs outside of the column space of q."""
        rest = self.outputs - q @ self._outputs
        self._unreachable = self._reduced(half_square(rest, 2), rest)[0]

    def of_rows(self, first: int, last: int) -> Self:
        alone = super().of_rows(first, last)
        if self._unreachable is not None:
            alone._leave(torch.linalg.qr(self.inputs)[0])
        return alone

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # X = L R* and residual rows X x_k - y_k: of real matrices nothing is conjugate.
        features = self._inputs @ right.conj()
        residual = features @ left.mT - self._outputs
        value, slope = self._measured(residual)
        gr, gl = slope.mT @ features.conj(), self._inputs.mT @ (slope.conj() @ left)
        return value, gr, gl

    def _residual(self, x: Tensor | Thin) -> Tensor:
        if isinstance(x, Thin):
            return (self._inputs @ x.right.conj()) @ x.left.mT - self._outputs
        return self._inputs @ x.mT - self._outputs

    def _measured(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = super()._measured(residual)
        return (value if self._unreachable is None else value + self._unreachable), slope

    def _adjoint(self, residual: Tensor) -> Tensor:
        return residual.mT @ self._inputs.conj()

    def __repr__(self) -> str:
        *batch, count, _ = self.outputs.shape
        return as_text(self, f"{count} pairs", batch=batch)

    def _to(self, dtype: torch.dtype, device: torch.device) -> Regression:
        data = (x.to(device, dtype) for x in (self.inputs, self.outputs))
        return Regression(*data, reduction=self.reduction)
