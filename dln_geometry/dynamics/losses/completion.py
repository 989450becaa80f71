"""The loss of matrix completion, and products with a sparsity pattern."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from dln_geometry.dynamics.losses.loss import DataLoss, Thin, as_text, half_square
from dln_geometry.dynamics.losses.products import in_coordinates
from dln_geometry.support import as_float_tensor, as_matrix_shape, read_array, sparse_places

KEPT = 4
"""Number of batch shapes whose patterns are kept; a flow needs one."""


class Completion(DataLoss):
    """The squared error on observed entries, ``E(X) = 1/2 sum_e (X[rows_e, cols_e] - v_e)^2``.

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

    Examples
    --------
    >>> import torch
    >>> loss = Completion([0, 1], [0, 1], [1.0, 3.0], (2, 2))
    >>> loss.value(torch.ones(2, 2)), loss.gradient(torch.ones(2, 2)).to_dense()
    (tensor(2.), tensor([[ 0.,  0.],
            [ 0., -2.]]))
    """

    _caches = (*DataLoss._caches, "_kept")

    def __init__(self, rows: Any, cols: Any, values: Any, shape: Sequence[int]) -> None:
        m, n = as_matrix_shape(shape)
        values = as_float_tensor(values, "values")
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
        self._fill((m, n), rows[order], cols[order], values[..., order])

    @classmethod
    def from_matrix(cls, x: Any) -> Self:
        """Return the loss of completing a matrix (m, n) whose unknown entries are NaN.

        Entries that a mask hides (`numpy.ma`) and missing values of pandas are unknown too. Of a
        sparse matrix of scipy or torch the stored entries are known, zeros among them, and all
        others unknown.

        Examples
        --------
        >>> nan = float("nan")
        >>> Completion.from_matrix([[1.0, nan], [nan, 4.0]]).values
        tensor([1., 4.])
        """
        sparse = sparse_places(x, "x")
        if sparse is not None:
            (rows, cols), stored, shape = sparse
            values = read_array(stored, "x", holes=True)[0]
            known = ~torch.isnan(values)
            return cls(rows[known], cols[known], _some(values[known]), shape)
        x = read_array(x, "x", holes=True)[0]
        if x.ndim != 2:
            raise ValueError(f"x must have shape (m, n), got {tuple(x.shape)}")
        known = ~torch.isnan(x)
        rows, cols = known.nonzero(as_tuple=True)
        return cls(rows, cols, _some(x[known]), tuple(x.shape))

    @property
    def mask(self) -> Tensor:
        """Where entries are observed: a dense boolean matrix (m, n)."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[self.rows, self.cols] = True
        return mask

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, pattern, target = self._placed(left.shape[:-2])
        if batch:
            left, right = _stacked(left, batch), _stacked(right, batch)
        residual = pattern.residual(target, left, right)
        gr, gl = pattern.products(residual, left, right)
        if not batch:
            return half_square(residual, 1), gr, gl
        value = half_square(residual.view(*batch, -1), 1)
        m, n = self.shape
        return value, gr.unflatten(0, (*batch, m)), gl.unflatten(0, (*batch, n))

    def _residual(self, x: Tensor | Thin) -> Tensor:
        if isinstance(x, Tensor):
            return x[..., self.rows, self.cols] - self.values
        batch, pattern, target = self._placed(x.left.shape[:-2])
        residual = pattern.residual(target, _stacked(x.left, batch), _stacked(x.right, batch))
        return residual.view(*batch, -1)

    def _adjoint(self, residual: Tensor) -> Tensor:
        gradient = residual.new_zeros(*residual.shape[:-1], *self.shape)
        gradient[..., self.rows, self.cols] = residual
        return gradient

    def _gradient(self, x: Tensor | Thin) -> Tensor:
        residual = self._residual(x)
        batch = residual.shape[:-1]
        if not batch and has_compressed_kernels(self.dtype, self.device.type):
            return self._placed(batch)[1].matrix(residual)
        count, k = math.prod(batch), residual.shape[-1]
        block = torch.arange(count, device=self.device).repeat_interleave(k)
        places = self.rows.repeat(count), self.cols.repeat(count)
        index = torch.stack((*torch.unravel_index(block, batch), *places))
        return in_coordinates(index, residual.reshape(-1), (*batch, *self.shape))

    def _placed(self, batch: torch.Size) -> tuple[torch.Size, Pattern, Tensor]:
        """Return the broadcast batch, the pattern of its blocks, and the data on the pattern."""
        if self.values.ndim > 1:
            batch = torch.broadcast_shapes(batch, self.values.shape[:-1])
        placed = self._kept.get(batch)
        if placed is None:
            # Called first because it silences the warning about compressed matrices.
            has_compressed_kernels(self.dtype, self.device.type)
            pattern = Pattern(self.rows, self.cols, self.shape, math.prod(batch))
            values = self.values.expand(*batch, -1).reshape(-1)
            placed = (batch, pattern, pattern.matrix(values))
            while len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[batch] = placed
        return placed

    def __repr__(self) -> str:
        count, batch = len(self.rows), self.values.shape[:-1]
        return as_text(self, f"{count} {'entry' if count == 1 else 'entries'}", batch=batch)

    def _fill(self, shape: tuple[int, int], rows: Tensor, cols: Tensor, values: Tensor) -> None:
        super().__init__(shape, values)
        self.rows, self.cols, self.values = rows, cols, values
        self._kept: dict[torch.Size, tuple[torch.Size, Pattern, Tensor]] = {}

    def _to(self, dtype: torch.dtype, device: torch.device) -> Self:
        copy = object.__new__(type(self))  # Without sorting and checking the entries again.
        rows, cols = self.rows.to(device), self.cols.to(device)
        copy._fill(self.shape, rows, cols, self.values.to(device, dtype))
        return copy


def _stacked(x: Tensor, batch: torch.Size) -> Tensor:
    """Return the matrices of a batch stacked below one another."""
    return x.expand(*batch, *x.shape[-2:]).reshape(-1, x.shape[-1])


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
    if values.numel() == 0:
        raise ValueError("x must have a known entry, got NaN alone or nothing")
    return values


class Pattern:
    """Places ``rows, cols`` (k,), in row-major order, in each of the blocks of a block diagonal."""

    def __init__(self, rows: Tensor, cols: Tensor, shape: tuple[int, int], blocks: int = 1) -> None:
        block = torch.arange(blocks, device=rows.device).unsqueeze(-1)
        self.rows = (rows + shape[0] * block).flatten()
        self.cols = (cols + shape[1] * block).flatten()
        self.shape = (blocks * shape[0], blocks * shape[1])
        self._starts = _starts(self.rows, self.shape[0])
        # The order by columns too: a product with the transposed view of a row-compressed matrix
        # is several times slower than one with the transpose compressed by its own rows.
        self._order = torch.argsort(self.cols, stable=True)
        self._col_starts = _starts(self.cols, self.shape[1])
        self._rows_by_col = self.rows[self._order]

    def matrix(self, values: Tensor) -> Tensor:
        """Return the row-compressed matrix with these entries, ``values`` of shape (blocks k,)."""
        return _compressed(self._starts, self.cols, values, self.shape)

    def residual(self, target: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left right^T - target`` on the pattern, shape (blocks k,).

        `target` is a `matrix` of this pattern, ``left`` (blocks m, r) and ``right`` (blocks n, r).
        """
        rank, on_cpu = left.shape[-1], left.device.type == "cpu"
        # In double precision on the CPU gathering is faster than the kernel at small rank.
        gathers = on_cpu and left.dtype == torch.float64 and rank <= 16
        if gathers or not self._is_fused(left, right):
            return self.entries(left, right) - target.values()
        gap = -rank % 16
        if gap and on_cpu and left.dtype == torch.float32:
            # Rows that do not fill the kernel's vectors are up to ten times slower.
            left, right = (torch.nn.functional.pad(w, (0, gap)) for w in (left, right))
        return torch.sparse.sampled_addmm(target, left, right.mT, beta=-1.0).values()

    def entries(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left right^T`` on the pattern by gathering rows; differentiable."""
        # Pieces that stay in the cache are ten times faster than all entries at once.
        budget = 2**15 if left.device.type == "cpu" else 2**24
        size = max(256, budget // left.shape[-1])
        places = zip(self.rows.split(size), self.cols.split(size), strict=True)
        pairs = ((left.index_select(0, i), right.index_select(0, j)) for i, j in places)
        return torch.cat([(a * b).sum(-1) for a, b in pairs])

    def products(self, values: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(S right, S^T left)`` for the matrix S with these entries."""
        if self._is_fused(values, left, right):
            by_col = values.index_select(0, self._order)
            s, places = self.matrix(values), (self._col_starts, self._rows_by_col)
            return s @ right, _compressed(*places, by_col, self.shape[::-1]) @ left
        s = in_coordinates(torch.stack((self.rows, self.cols)), values, self.shape)
        return s @ right, s.mT @ left

    @staticmethod
    def _is_fused(*tensors: Tensor) -> bool:
        """Tell whether to use the compressed kernels: they exist and no gradient is recorded."""
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return False
        return has_compressed_kernels(tensors[0].dtype, tensors[0].device.type)


@functools.cache
def has_compressed_kernels(dtype: torch.dtype, device_type: str) -> bool:
    """Tell whether torch has kernels for row-compressed matrices: not on a CPU without MKL."""
    starts = torch.tensor([0, 1], device=device_type)
    zero = torch.zeros(1, dtype=torch.int64, device=device_type)
    one = torch.ones(1, 1, dtype=dtype, device=device_type)
    with warnings.catch_warnings():
        # torch warns once in a process, at the first compressed matrix: the one made here.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        try:
            s = _compressed(starts, zero, one[0], (1, 1))
            torch.matmul(torch.sparse.sampled_addmm(s, one, one, beta=-1.0), one)
        except (RuntimeError, NotImplementedError):
            return False
    return True


def _starts(places: Tensor, count: int) -> Tensor:
    """Return the offsets at which rows 0..count start, from the row of every entry."""
    filled = torch.bincount(places, minlength=count)
    return torch.cat((filled.new_zeros(1), filled.cumsum(0)))


def _compressed(starts: Tensor, places: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.sparse_csr_tensor(starts, places, values, shape, check_invariants=False)
