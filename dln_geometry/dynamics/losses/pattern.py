"""A sparsity pattern in both orders: entries of a thin product on it, and products with it."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from dln_geometry.dynamics.losses.loss import in_coordinates


class Pattern:
    """The places of the entries of equally filled sparse matrices, down a block diagonal.

    Parameters
    ----------
    rows, cols : Tensor, shape (k,)
        Places in row-major order, without repetitions.
    shape : tuple of int
        Shape (m, n) of one matrix.
    blocks : int
        Number of matrices.
    """

    def __init__(self, rows: Tensor, cols: Tensor, shape: tuple[int, int], blocks: int = 1) -> None:
        block = torch.arange(blocks, device=rows.device).unsqueeze(-1)
        self.rows = (rows + shape[0] * block).flatten()
        self.cols = (cols + shape[1] * block).flatten()
        self.shape = (blocks * shape[0], blocks * shape[1])
        self._starts = _starts(self.rows, self.shape[0])
        # A product with the transposed view of a row-compressed matrix is several times slower
        # than one with the same matrix compressed anew, so the second order is kept as well.
        self._order = torch.argsort(self.cols, stable=True)
        self._col_starts = _starts(self.cols, self.shape[1])
        self._rows_by_col = self.rows[self._order]

    def matrix(self, values: Tensor) -> Tensor:
        """Return the row-compressed matrix with these entries, ``values`` of shape (blocks k,)."""
        return _compressed(self._starts, self.cols, values, self.shape)

    def residual(self, target: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left right^T - target`` on the pattern, shape (blocks k,).

        `target` is a `matrix` of this pattern; `left` and `right` are stacked, of shapes
        (blocks m, r) and (blocks n, r).
        """
        # In double precision the kernel takes the same time for an entry at every rank, twice as
        # long as gathering where the rank is small.
        gathers = left.dtype == torch.float64 and left.device.type == "cpu"
        if not self._is_fused(left, right) or (gathers and left.shape[-1] <= 16):
            return self.entries(left, right) - target.values()
        if left.dtype == torch.float32 and left.device.type == "cpu":
            # The kernel works entry by entry; rows that do not fill its vectors are up to ten
            # times slower than rows padded by zeros.
            gap = -left.shape[-1] % 16
            if gap:
                left = torch.nn.functional.pad(left, (0, gap))
                right = torch.nn.functional.pad(right, (0, gap))
        return torch.sparse.sampled_addmm(target, left, right.mT, beta=-1.0).values()

    def entries(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left right^T`` on the pattern by gathering rows; differentiable."""
        # Pieces that stay in the cache are ten times faster than all entries at once.
        budget = 2**15 if left.device.type == "cpu" else 2**24
        size = max(256, budget // left.shape[-1])
        return torch.cat(
            [
                (left.index_select(0, i) * right.index_select(0, j)).sum(-1)
                for i, j in zip(self.rows.split(size), self.cols.split(size), strict=True)
            ]
        )

    def products(self, values: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(S right, S^T left)`` for the matrix S with these entries."""
        if self._is_fused(values, left, right):
            by_col = values.index_select(0, self._order)
            transposed = self.shape[::-1]
            return (
                self.matrix(values) @ right,
                _compressed(self._col_starts, self._rows_by_col, by_col, transposed) @ left,
            )
        s = in_coordinates(torch.stack((self.rows, self.cols)), values, self.shape)
        return s @ right, s.mT @ left

    @staticmethod
    def _is_fused(*tensors: Tensor) -> bool:
        """Whether to use the compressed kernels: they exist here, and no derivative is asked."""
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return False
        return has_compressed_kernels(tensors[0].dtype, tensors[0].device.type)


@functools.cache
def has_compressed_kernels(dtype: torch.dtype, device_type: str) -> bool:
    """Whether torch can sample a product on a compressed pattern, and multiply with it.

    Builds of torch without MKL cannot on the CPU.
    """
    starts = torch.tensor([0, 1], device=device_type)
    zero = torch.zeros(1, dtype=torch.int64, device=device_type)
    one = torch.ones(1, 1, dtype=dtype, device=device_type)
    with warnings.catch_warnings():
        # torch warns once in a process, at the first compressed matrix: this one.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        try:
            s = _compressed(starts, zero, one[0], (1, 1))
            torch.matmul(torch.sparse.sampled_addmm(s, one, one, beta=-1.0), one)
        except (RuntimeError, NotImplementedError):
            return False
    return True


def _starts(places: Tensor, count: int) -> Tensor:
    """Return the offsets of rows 0..count in sorted (or counted) places."""
    filled = torch.bincount(places, minlength=count)
    return torch.cat((filled.new_zeros(1), filled.cumsum(0)))


def _compressed(starts: Tensor, places: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.sparse_csr_tensor(starts, places, values, shape, check_invariants=False)
