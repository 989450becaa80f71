"""Observed entries in the order of the compiled pass, and the calls of it."""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from dln_geometry.dynamics.entries.compiled import library
from dln_geometry.ode import Tape

LEAST_WORK, WORK_OF_A_THREAD = 2**11, 2**19
"""Entries times rank from which the pass is compiled, and for which a further thread is woken."""

SMALL, SHORTEST = 20_000, 64
"""Entries below which there is one tile, and the fewest rows of a tile."""

_NUMBERS = (
    *("rank", "m", "n", "count", "samples", "shared"),
    *("row_bands", "col_bands", "height", "width"),
)
_ARRAYS = (
    *("starts", "rows", "cols", "places", "values", "weights", "left", "right"),
    *("row_shifts", "col_shifts", "slopes", "g_right", "g_left", "energies"),
)


class Job(ctypes.Structure):
    """The arguments of a pass, as `tiles.c` declares them."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in (*_ARRAYS, "finished")),
        ("next", ctypes.c_int64),
    ]


def is_compiled(work: int, *tensors: Tensor | None) -> bool:
    """Tell whether the compiled pass takes these tensors: plain numbers on a CPU, no derivatives.

    `work` is the number of entries times the rank; dtype and rank are those of the first tensor.
    """
    first = tensors[0]
    if first is None or work < LEAST_WORK or torch.compiler.is_compiling():
        return False
    if not all(t is None or (_is_bare(t) and t.dtype == first.dtype) for t in tensors):
        return False
    return library(first.dtype, first.shape[-1]) is not None


def _is_bare(x: Tensor) -> bool:
    """Tell whether the memory of a tensor holds its numbers and nothing records what is done."""
    if type(x) is not Tensor or x.device.type != "cpu" or x.layout != torch.strided or x.is_neg():
        return False
    if is_functorch_wrapped_tensor(x):
        return False
    if x.requires_grad and torch.is_grad_enabled():
        return False
    # Outside of a level of forward derivatives, asking for a tangent costs more.
    level = forward_ad._current_level
    return level < 0 or forward_ad.unpack_dual(x, level=level).tangent is None


class Tiles:
    """Places ``rows, cols`` (k,), in row-major order, cut into tiles of a matrix of this shape."""

    def __init__(self, rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> None:
        k, (m, n) = len(rows), shape
        self.count, self.shape = k, shape
        self.height, self.width = _side(m, k / n, k), _side(n, k / m, k)
        self.bands = -(-m // self.height), -(-n // self.width)
        tiles = self.bands[0] * self.bands[1]
        self.order: Tensor | None = None
        starts = torch.tensor([0, k])
        if tiles > 1:
            key = (rows // self.height) * self.bands[1] + cols // self.width
            # Narrow keys sort faster; equal ones keep the order by rows.
            key = key.to(torch.int16 if tiles < 2**15 else torch.int32)
            key, order = torch.sort(key, stable=True)
            starts = torch.searchsorted(key, torch.arange(tiles + 1, dtype=key.dtype))
            rows, cols, self.order = rows[order], cols[order], order.to(torch.int32)
        self._starts = starts
        self._rows, self._cols = rows.to(torch.int32), cols.to(torch.int32)
        tensors = (starts, self._rows, self._cols, self.order)
        numbers = {
            "m": m,
            "n": n,
            "count": k,
            "row_bands": self.bands[0],
            "col_bands": self.bands[1],
        }
        self._known: dict[str, Any] = {**numbers, "height": self.height, "width": self.width}
        self._known |= dict(zip(_ARRAYS, map(address, tensors), strict=False))

    def ordered(self, x: Tensor) -> Tensor:
        """Return numbers of the entries (..., k) in the order of the tiles."""
        return (x if self.order is None else x.index_select(-1, self.order)).contiguous()

    def contract(
        self,
        values: Tensor,
        weights: Tensor | None,
        left: Tensor,
        right: Tensor,
        shifts: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(E, G R, G^T L)`` of half the weighted squares, for matrices below one another.

        `values` (k,) or (samples, k) and `weights` (k,) are `ordered`; `left` is (samples m, r) and
        `right` (samples n, r). E has shape (samples,). `shifts` of the rows (samples m,) and of the
        columns (samples n,) are added to X.
        """
        left, right = left.contiguous(), right.contiguous()
        gr, gl = torch.empty_like(left), torch.empty_like(right)
        samples = len(left) // self.shape[0]
        energies = np.zeros((samples, self.bands[0] * self.bands[1]))
        at = {"g_right": gr, "g_left": gl, "weights": weights}
        if shifts is not None:
            at |= {"row_shifts": shifts[0].contiguous(), "col_shifts": shifts[1].contiguous()}
        value = left.new_empty(samples)
        written = value.numpy()

        def contracted() -> None:
            energies.fill(0.0)
            self._run("contract", values, left, right, energies=energies, **at)
            # Added on one thread: torch would split a long sum by the number of threads.
            with np.errstate(over="ignore"):  # trial steps may leave the range of the type
                np.multiply(energies.sum(-1), 0.5, written, casting="same_kind")

        contracted()
        if (tape := Tape.noting()) is not None:
            tape.add((contracted, ()), (left, right), (value, gr, gl))
        return value, gr, gl

    def sums(
        self, values: Tensor, weights: Tensor | None, left: Tensor, right: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted residuals summed over rows (samples m,) and columns (samples n,)."""
        left, right = left.contiguous(), right.contiguous()
        by_row, by_col = (x.new_empty(len(x)) for x in (left, right))
        self._run("sums", values, left, right, g_right=by_row, g_left=by_col, weights=weights)
        return by_row, by_col

    def residual(self, values: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left right^T - values`` on the entries, (samples k,), in row-major order."""
        left, right = left.contiguous(), right.contiguous()
        out = left.new_empty(len(left) // self.shape[0] * self.count)
        self._run("sample", values, left, right, slopes=out)
        return out

    def products(self, slopes: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(S right, S^T left)`` for the matrices S with these entries, (samples k,)."""
        left, right, slopes = left.contiguous(), right.contiguous(), slopes.contiguous()
        gr, gl = (x.new_empty(len(x), left.shape[-1]) for x in (left, right))
        self._run("spread", None, left, right, slopes=slopes, g_right=gr, g_left=gl)
        return gr, gl

    def _run(
        self, task: str, values: Tensor | None, left: Tensor, right: Tensor, **more: Any
    ) -> None:
        samples, rank = len(left) // self.shape[0], left.shape[-1]
        loaded = library(left.dtype, rank)
        assert loaded is not None
        finished = np.zeros((samples, self.bands[1]), dtype=np.int32)
        arrays = {"values": values, "left": left, "right": right, "finished": finished, **more}
        shared = values is None or values.ndim == 1
        job = Job(**self._known, rank=rank, samples=samples, shared=shared)
        for name, x in arrays.items():
            setattr(job, name, address(x))
        parallel = samples * self.bands[0]
        if task != "sample" and samples == 1:
            parallel = min(self.bands)
        wanted = min(parallel, self.count * samples * rank // WORK_OF_A_THREAD)
        run_together(getattr(loaded, task), job, min(torch.get_num_threads(), wanted))


def _side(size: int, entries: float, k: int) -> int:
    """Return the rows of a tile in a matrix of `size` rows; a column of X has so many `entries`.

    A row of a factor that is fetched into the cache should serve four entries; eight bands keep
    eight threads busy. Short bands and small problems are not worth their tiles.
    """
    if k < SMALL:
        return size
    bands = min(max(8, round(entries / 4)), 64, max(1, size // SHORTEST))
    return -(-size // bands)


def address(x: Tensor | np.ndarray | None) -> int | None:
    """Return where the numbers lie."""
    if x is None:
        return None
    return x.data_ptr() if isinstance(x, Tensor) else x.ctypes.data


def run_together(call: Any, job: Job, threads: int) -> None:
    """Call with the same job on several threads, of which this one is the first."""
    others = []
    if threads > 1:
        pool = _thread_pool(os.getpid())
        others = [pool.submit(call, ctypes.byref(job)) for _ in range(threads - 1)]
    try:
        call(ctypes.byref(job))
    finally:
        # The job and its arrays must outlive every thread, after an interrupt too.
        for other in others:
            if not other.cancel():
                other.result()


@functools.cache
def _thread_pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process: a fork has none of its parent's."""
    del process
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="dln-entries")
