"""Products of thin matrices with a sparsity pattern, by the kernels of torch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.entries.tiles import Tiles, is_compiled
from dln_geometry.support import entries_of_product


class Pattern:
    """Places ``rows, cols`` (k,), in row-major order, in each of the blocks of a block diagonal.

    Examples
    --------
    >>> from dln_geometry.dynamics.entries import Pattern
    >>> pattern = Pattern(torch.tensor([0, 1]), torch.tensor([2, 0]), (2, 3))
    >>> pattern.shape
    (2, 3)
    """

    def __init__(self, rows: Tensor, cols: Tensor, shape: tuple[int, int], blocks: int = 1) -> None:
        self._places, self._block, self.blocks = (rows, cols), shape, blocks
        self.shape = (blocks * shape[0], blocks * shape[1])
        self.count = blocks * len(rows)

    @cached_property
    def tiles(self) -> Tiles:
        """The places of a block in the order of the compiled pass."""
        return Tiles(*self._places, self._block)

    def work(self, factor: Tensor) -> int:
        """Return entries times rank of a pass; 0 if the compiled one cannot count so far."""
        fits = max(self.count // self.blocks, *self._block) < 2**31
        return self.count * factor.shape[-1] if fits else 0

    @cached_property
    def rows(self) -> Tensor:
        """The rows of all blocks."""
        return self._repeated(0)

    @cached_property
    def cols(self) -> Tensor:
        """The columns of all blocks."""
        return self._repeated(1)

    def _repeated(self, side: int) -> Tensor:
        places = self._places[side]
        if self.blocks == 1:
            return places
        block = torch.arange(self.blocks, device=places.device).unsqueeze(-1)
        return (places + self._block[side] * block).flatten()

    @cached_property
    def _starts(self) -> Tensor:
        return _starts(self.rows, self.shape[0])

    # The order by columns too: a product with the transposed view of a row-compressed matrix is
    # several times slower than one with the transpose compressed by its own rows.
    @cached_property
    def _by_col(self) -> tuple[Tensor, Tensor, Tensor]:
        """The order by columns, where each column starts in it, and the rows in it."""
        order = torch.argsort(self.cols, stable=True)
        return order, _starts(self.cols, self.shape[1]), self.rows[order]

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
            return entries_of_product(left, right, self.rows, self.cols) - target.values()
        gap = -rank % 16
        if gap and on_cpu and left.dtype == torch.float32:
            # Rows that do not fill the kernel's vectors are up to ten times slower.
            left, right = (torch.nn.functional.pad(w, (0, gap)) for w in (left, right))
        return torch.sparse.sampled_addmm(target, left, right.mT, beta=-1.0).values()

    def products(self, values: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(S right, S^T left)`` for the matrix S with these entries."""
        if is_compiled(self.work(left), left, right, values):
            return self.tiles.products(values, left, right)
        s, transposed = self.matrices(values)
        return s @ right, transposed @ left

    def matrices(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sparse matrix S with these entries and its transpose, for quick products."""
        if self._is_fused(values):
            order, starts, rows = self._by_col
            by_col = values.index_select(0, order)
            return self.matrix(values), _compressed(starts, rows, by_col, self.shape[::-1])
        s = in_coordinates(torch.stack((self.rows, self.cols)), values, self.shape)
        return s, s.mT

    @staticmethod
    def _is_fused(*tensors: Tensor) -> bool:
        """Tell whether to use the compressed kernels: they exist and no gradient is recorded."""
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return False
        return has_compressed_kernels(tensors[0].dtype, tensors[0].device.type)


@functools.cache
def has_compressed_kernels(dtype: torch.dtype, device_type: str) -> bool:
    """Tell whether torch has kernels for row-compressed matrices: not on a CPU without MKL.

    It tries them once for each dtype and kind of device (``"cpu"``, ``"cuda"``) and remembers.

    Examples
    --------
    Without these kernels the same product takes the coordinates of the entries:

    >>> from dln_geometry.dynamics.entries import has_compressed_kernels
    >>> sparse = torch.eye(3).to_sparse()
    >>> if has_compressed_kernels(torch.float32, "cpu"):
    ...     sparse = sparse.to_sparse_csr()
    >>> sparse @ torch.ones(3, 1)
    tensor([[1.],
            [1.],
            [1.]])
    """
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
    # By default torch would make it on the default device.
    kind: Any = {"device": values.device, "check_invariants": False}
    return torch.sparse_csr_tensor(starts, places, values, shape, **kind)


def in_coordinates(places: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the sparse tensor with these values at distinct places in row-major order."""
    # By default torch would make it on the default device.
    kind: Any = {"device": values.device, "is_coalesced": True, "check_invariants": False}
    return torch.sparse_coo_tensor(places, values, tuple(shape), **kind)
