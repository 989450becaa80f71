"""The loss of matrix completion."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dln_geometry.dynamics.entries import PlacedEntries, has_compressed_kernels, in_coordinates
from dln_geometry.dynamics.losses.loss import DataLoss, as_text
from dln_geometry.dynamics.losses.products import Thin, half_square
from dln_geometry.support import (
    as_float_tensor,
    as_matrix_shape,
    broadcast_shapes,
    entries_of_product,
    read_array,
    real_product,
    sparse_places,
)

DENSE = 4096
"""Entries of X up to which `contract` forms X, if a sixteenth of them is observed."""

KEPT = 4
"""Number of batch shapes whose patterns are kept; a flow needs one."""


class Completion(DataLoss):
    """The squared error on observed entries, ``E(X) = 1/2 sum_e w_e (X[rows_e, cols_e] - v_e)^2``.

    At a `Collapsed` or `EndToEnd`, work and memory are linear in entries times rank. The gradient
    is sparse: row-compressed for one matrix, in coordinates for a batch.

    Parameters
    ----------
    rows, cols : array_like of int, shape (k,)
        Places of the observed entries, from 0, each at most once; kept in row-major order.
    values : array_like, shape (..., k)
        The entries; leading dimensions broadcast against those of X.
    shape : tuple of int
        Shape (m, n) of X.
    weights : array_like, shape (k,), optional
        Weights of the entries, at least 0; 1 by default.
    reduction : {"sum", "mean"}
        ``"mean"`` divides by the number of entries, or the sum of their weights.

    Examples
    --------
    >>> import torch
    >>> loss = dln.losses.Completion([0, 1], [0, 1], [1.0, 3.0], (2, 2))
    >>> loss.value(torch.ones(2, 2)), loss.gradient(torch.ones(2, 2)).to_dense()
    (tensor(2.), tensor([[ 0.,  0.],
            [ 0., -2.]]))
    """

    _caches = (*DataLoss._caches, "_kept")
    complex_numbers = True
    _own: ClassVar = {"values": 1}
    entries: ClassVar = ("rows", "cols", "values", "weights")
    """Data of every entry; its row is that of X."""

    def __init__(
        self,
        rows: Any,
        cols: Any,
        values: Any,
        shape: Sequence[int],
        *,
        weights: Any = None,
        reduction: str = "sum",
    ) -> None:
        self._arrange(rows, cols, values, shape, weights, reduction)

    def _arrange(
        self, rows: Any, cols: Any, values: Any, shape: Any, weights: Any, reduction: str
    ) -> Tensor:
        """Check the entries, keep them in row-major order, and return that order."""
        m, n = as_matrix_shape(shape)
        values = as_float_tensor(values, "values", complex=self.complex_numbers)
        rows = _as_places(rows, "rows", m, values.device)
        cols = _as_places(cols, "cols", n, values.device)
        lengths = (rows.shape[0], cols.shape[0], values.shape[-1] if values.ndim else 1)
        if values.ndim == 0 or len(set(lengths)) != 1:
            raise ValueError(
                "rows, cols and values must have shapes (k,), (k,) and (..., k), got "
                f"{tuple(rows.shape)}, {tuple(cols.shape)} and {tuple(values.shape)}"
            )
        if values.numel() == 0:
            raise ValueError("values must hold at least one entry, got none")
        key, order = torch.sort(rows * n + cols)
        repeated = (key[1:] == key[:-1]).nonzero()
        if repeated.numel():
            i, j = divmod(int(key[repeated[0]]), n)
            raise ValueError(f"entries must be given once each, got ({i}, {j}) repeatedly")
        weights = as_weights(weights, values)
        weights = None if weights is None else weights[order]
        self._fill((m, n), rows[order], cols[order], values[..., order], weights)
        self._reduce(reduction, len(rows) if weights is None else float(weights.sum()))
        return order

    @classmethod
    def from_matrix(cls, x: Any, *, reduction: str = "sum") -> Self:
        """Return the loss of completing a matrix (m, n) whose unknown entries are NaN.

        Entries that a mask hides (`numpy.ma`) and missing values of pandas are unknown too. Of a
        sparse matrix of scipy or torch the stored entries are known, zeros among them, and all
        others unknown. `reduction` as in the class.

        Examples
        --------
        >>> nan = float("nan")
        >>> dln.losses.Completion.from_matrix([[1.0, nan], [nan, 4.0]]).values
        tensor([1., 4.])
        """
        sparse = sparse_places(x, "x")
        if sparse is not None:
            (rows, cols), stored, shape = sparse
            values = as_float_tensor(stored, "x", holes=True, complex=cls.complex_numbers)
            known = ~torch.isnan(values)
            kept = rows[known], cols[known], _some(values[known])
            return cls(*kept, shape, reduction=reduction)
        x = as_float_tensor(x, "x", holes=True, complex=cls.complex_numbers)
        if x.ndim != 2:
            raise ValueError(f"x must have shape (m, n), got {tuple(x.shape)}")
        known = ~torch.isnan(x)
        rows, cols = known.nonzero(as_tuple=True)
        return cls(rows, cols, _some(x[known]), tuple(x.shape), reduction=reduction)

    def of_rows(self, first: int, last: int) -> Self:
        """Return the loss of the entries in some rows of X alone, their rows counted from there."""
        ends = torch.tensor([first, last], device=self.device)
        i, j = torch.searchsorted(self.rows, ends).tolist()
        held = {name: x for name in self.entries if (x := getattr(self, name)) is not None}
        alone = copy.copy(self)
        cut = {name: x[..., i:j].clone() for name, x in held.items()}
        vars(alone).update(shape=(last - first, self.shape[1]), **cut)
        alone.rows -= first
        return alone

    @property
    def mask(self) -> Tensor:
        """Where entries are observed: a dense boolean matrix (m, n)."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[self.rows, self.cols] = True
        return mask

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if math.prod(self.shape) <= min(DENSE, 16 * len(self.rows)):
            return super().contract(left, right)
        if left.is_complex():
            return self._contract_complex(left, right)
        batch, placed = self._placed(left.shape[:-2])
        left, right = _stacked(left, batch), _stacked(right, batch)
        own = type(self)._measured is not Completion._measured
        done = None if own else placed.contract(left, right)
        if done is None:
            residual = placed.residual(left, right)
            value, slope = self._measured(residual.view(*batch, -1))
            done = value, *placed.products(slope.reshape(-1), left, right)
        value, gr, gl = done
        (m, n), r = self.shape, gr.shape[-1]
        return value.reshape(batch), gr.view(*batch, m, r), gl.view(*batch, n, r)

    def _contract_complex(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `contract` entry by entry: the compiled products are real."""
        residual = self._residual(Thin(left, right))
        value, slope = self._measured(residual)
        weights = slope.unsqueeze(-1)
        (m, n), shape = self.shape, (*weights.shape[:-1], right.shape[-1])
        gr, gl = (weights.new_zeros(*shape[:-2], d, shape[-1]) for d in (m, n))
        gr.index_add_(-2, self.rows, (weights * right[..., self.cols, :]).expand(shape))
        gl.index_add_(-2, self.cols, (weights.conj() * left[..., self.rows, :]).expand(shape))
        return value, gr, gl

    def _residual(self, x: Tensor | Thin) -> Tensor:
        if isinstance(x, Tensor):
            return x[..., self.rows, self.cols] - self._target()
        if x.left.is_complex():
            seen = entries_of_product(x.left, x.right.conj(), self.rows, self.cols)
            return seen - self._target()
        batch, placed = self._placed(x.left.shape[:-2])
        residual = placed.residual(_stacked(x.left, batch), _stacked(x.right, batch))
        return residual.view(*batch, -1)

    def _adjoint(self, residual: Tensor) -> Tensor:
        gradient = residual.new_zeros(*residual.shape[:-1], *self.shape)
        gradient[..., self.rows, self.cols] = residual
        return gradient

    def _target(self) -> Tensor:
        """Return what X is compared with, shape (..., k)."""
        return self.values

    def _measured(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        if self.weights is None:
            return self._reduced(half_square(residual, 1), residual)
        slope = self.weights * residual
        return self._reduced(0.5 * real_product(slope, residual).sum(-1), slope)

    def _gradient(self, x: Tensor | Thin) -> Tensor:
        residual = self._measured(self._residual(x))[1]
        batch = residual.shape[:-1]
        plain = not batch and not residual.is_complex()
        if plain and has_compressed_kernels(self.dtype, self.device.type):
            return self._placed(batch)[1].pattern.matrix(residual)
        count, k = math.prod(batch), residual.shape[-1]
        block = torch.arange(count, device=self.device).repeat_interleave(k)
        places = self.rows.repeat(count), self.cols.repeat(count)
        index = torch.stack((*torch.unravel_index(block, batch), *places))
        return in_coordinates(index, residual.reshape(-1), (*batch, *self.shape))

    def _placed(self, batch: torch.Size) -> tuple[torch.Size, PlacedEntries]:
        """Return the broadcast batch, and the data on the pattern of its blocks."""
        if self.values.ndim > 1:
            batch = broadcast_shapes(batch, self.values.shape[:-1])
        placed = self._kept.get(batch)
        if placed is None:
            # Called first because it silences the warning about compressed matrices.
            has_compressed_kernels(self.dtype, self.device.type)
            values = self._target()
            if values.ndim > 1:
                values = values.expand(*batch, -1).reshape(-1, values.shape[-1])
            data = (self.rows, self.cols, self.shape, values, self.weights)
            placed = PlacedEntries(*data, math.prod(batch))
            while len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[batch] = placed
        return batch, placed

    def __repr__(self) -> str:
        count, batch = len(self.rows), self.values.shape[:-1]
        return as_text(self, f"{count} {'entry' if count == 1 else 'entries'}", batch=batch)

    def _fill(
        self,
        shape: tuple[int, int],
        rows: Tensor,
        cols: Tensor,
        values: Tensor,
        weights: Tensor | None,
    ) -> None:
        super().__init__(shape, values)
        self.rows, self.cols, self.values, self.weights = rows, cols, values, weights
        self._kept: dict[torch.Size, PlacedEntries] = {}

    def _to(self, dtype: torch.dtype, device: torch.device) -> Self:
        copy = object.__new__(type(self))  # Without sorting and checking the entries again.
        rows, cols = self.rows.to(device), self.cols.to(device)
        weights = None if self.weights is None else self.weights.to(device, dtype.to_real())
        copy._fill(self.shape, rows, cols, self.values.to(device, dtype), weights)
        if self._share is not None:
            copy.reduction, copy._share = self.reduction, self._share
        return copy


def as_weights(weights: Any, values: Tensor) -> Tensor | None:
    """Return the weights of entries, shape (k,), at least 0 and not all 0; None stands for 1."""
    if weights is None:
        return None
    kind: Any = {"dtype": values.dtype.to_real(), "device": values.device}
    given = as_float_tensor(weights, "weights", **kind)
    if given.shape != values.shape[-1:]:
        raise ValueError(
            f"weights must have shape {tuple(values.shape[-1:])} like the entries, got "
            f"{tuple(given.shape)}"
        )
    if bool((given < 0).any()) or not bool((given > 0).any()):
        least, most = float(given.min()), float(given.max())
        raise ValueError(f"weights must be >= 0 and not all 0, got {least:g} to {most:g}")
    return given


def _stacked(x: Tensor, batch: torch.Size) -> Tensor:
    """Return the matrices of a batch stacked below one another."""
    return x.expand(*batch, *x.shape[-2:]).reshape(-1, x.shape[-1]) if batch else x


def _as_places(x: Any, name: str, count: int, device: torch.device) -> Tensor:
    places = read_array(x, name)[0].to(device)
    if places.ndim != 1:
        raise ValueError(f"{name} must have shape (k,), got {tuple(places.shape)}")
    if places.numel() == 0:
        raise ValueError(f"{name} must hold at least one place, got none")
    if places.is_floating_point() or places.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {places.dtype}")
    places = places.to(torch.int64)
    outside = ((places < 0) | (places >= count)).nonzero()
    if outside.numel():
        e = int(outside[0])
        raise ValueError(
            f"{name} must lie between 0 and {count - 1}, got {int(places[e])} at position {e}"
        )
    return places


def _some(values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values.detach()).all()):
        raise ValueError("x must be finite or unknown (NaN), got infinite entries")
    if values.numel() == 0:
        raise ValueError("x must have a known entry, got NaN alone or nothing")
    return values
