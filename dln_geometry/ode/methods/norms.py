"""Norms of the blocks of states, and sums over the stages of a large one, made in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.methods.transfers import fetch
from dln_geometry.support import as_size

Piece = tuple[int, slice, slice]
"""Block, sample and columns of a part of one block of one sample."""


class BlockNorms:
    """Take 2-norms over consecutive blocks of the last axis, blocks of equal size together.

    It is all that an integration asks of a whole state: where processes hold a part of the numbers
    each, a subclass adds up over them.

    Examples
    --------
    >>> norms = dln.ode.BlockNorms([2, 1])
    >>> [view.shape for view in norms.views(torch.zeros(5, 3))]
    [torch.Size([5, 1, 2]), torch.Size([5, 1, 1])]
    """

    is_shared = False
    """Whether other processes hold further numbers of the same states."""

    def __init__(self, sizes: Sequence[int], *, together: bool = True) -> None:
        self.count, self.size, start = len(sizes), sum(sizes), 0
        self._runs: list[tuple[int, int, int]] = []
        for size, run in groupby(sizes) if together else ((size, [size]) for size in sizes):
            number = len(list(run))
            self._runs.append((start, number, size))
            start += number * size

    def views(self, x: Tensor) -> list[Tensor]:
        """Return views of shape (..., number, size), one per run of equal blocks."""
        return [x[..., a : a + k * size].unflatten(-1, (k, size)) for a, k, size in self._runs]

    def bounds(self) -> list[tuple[int, int]]:
        """Return where every block starts and ends."""
        each = [(a + i * size, size) for a, k, size in self._runs for i in range(k)]
        return [(a, a + size) for a, size in each]

    def runs(self) -> list[int]:
        """Return the number of blocks of every run."""
        return [k for _, k, _ in self._runs]

    @staticmethod
    def of(views: list[Tensor]) -> list[Tensor]:
        """Return the norms of such views, (..., number) each."""
        return [torch.linalg.vector_norm(view, dim=-1) for view in views]

    def lengths(self, x: Tensor) -> Tensor:
        """Return the norms of whole rows (B, n), shape (B,)."""
        return torch.linalg.vector_norm(x, dim=-1)

    def places(self, x: Tensor) -> Tensor:
        """Return the places of the numbers of a row, from 1, in double precision."""
        return torch.arange(1, x.shape[-1] + 1, dtype=torch.float64, device=x.device)

    def fetch(self, pieces: list[Tensor], count: int | None = None) -> np.ndarray:
        """Return numbers on the host; the first `count` pieces are from `of`, by default all."""
        return fetch(pieces)

    def agreed(self, *numbers: float) -> tuple[float, ...]:
        """Return numbers on which all processes act alike, such as those of a clock."""
        return numbers

    def unpack(self, flat: np.ndarray, rows: int, batch: int) -> np.ndarray:
        """Return norms of shape (rows, blocks, B) from the flattened, concatenated ones."""
        parts, at = [], 0
        for _, k, _ in self._runs:
            part = flat[at : at + rows * batch * k].reshape(rows, batch, k)
            parts.append(part.transpose(0, 2, 1))
            at += rows * batch * k
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def norms_of(blocks: Sequence[int] | BlockNorms | None, n: int) -> BlockNorms:
    """Return the norms of states of n numbers, given those or the sizes of their blocks."""
    if isinstance(blocks, BlockNorms):
        if blocks.size != n:
            raise ValueError(f"blocks must sum to {n}, got {blocks.size}")
        return blocks
    sizes = [n] if blocks is None else as_size(blocks, "blocks")
    if sum(sizes) != n:
        raise ValueError(f"blocks must be positive and sum to {n}, got {sizes}")
    return BlockNorms(sizes)


def pieces_of(y: Tensor, bounds: Sequence[tuple[int, int]]) -> list[Piece]:
    """Cut a large state (B, n) with these blocks; return [] for a small one."""
    on_cpu, threads = y.device.type == "cpu", torch.get_num_threads()
    size = 2**14 * (1 if threads == 1 else 2 * threads) if on_cpu else 2**22
    if y.shape[-1] < 4 * size:
        return []
    cuts = [
        (block, slice(a, min(a + size, end)))
        for block, (start, end) in enumerate(bounds)
        for a in range(start, end, size)
    ]
    return [(block, slice(i, i + 1), cols) for i in range(len(y)) for block, cols in cuts]


def move_pieces(
    pieces: list[Piece], stages: Tensor, weights: Tensor, step: Tensor, y: Tensor, out: Tensor
) -> None:
    """Write ``y + step sum_j weights_j stages_j``; `step` is (B, 1)."""
    for _, sample, cols in pieces:
        moved = torch.mv(stages[:, sample.start, cols].T, weights)
        torch.addcmul(y[sample, cols], moved, step[sample], out=out[sample, cols])


def norms_by_pieces(
    pieces: list[Piece], stages: Tensor, weights: Tensor, y_new: Tensor, runs: Sequence[int]
) -> list[Tensor]:
    """Return the norms of the last stage, of ``weights stages`` and of `y_new`.

    Shapes (rows, B, number), one for each of the `runs` of equal blocks, as `BlockNorms.of`.
    """
    parts: dict[tuple[int, int], list[Tensor]] = {}
    for block, sample, cols in pieces:
        made = stages[:, sample.start, cols]
        seen = (made[-1:], weights @ made, y_new[sample, cols])
        norm = torch.cat([torch.linalg.vector_norm(x, dim=-1) for x in seen])
        parts.setdefault((sample.start, block), []).append(norm)
    norms = [torch.linalg.vector_norm(torch.stack(x), dim=0) for x in parts.values()]
    # Samples follow one another, and in them the blocks.
    whole = torch.stack(norms, dim=-1).view(len(norms[0]), len(y_new), -1)
    return [x.contiguous() for x in whole.split(list(runs), dim=-1)]
