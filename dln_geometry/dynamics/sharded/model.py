"""A paper model of a flow on several processes: arithmetic, memory and messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dln_geometry.dynamics.sharded.rows import width_of
from dln_geometry.support import as_count, as_depth, as_matrix_shape, as_positive, as_rank

STATES = {"rk3": 7, "rk5": 10, "rk8": 16, "rkc": 14}
"""States that a method of `gradient_flow` keeps: its stages, the state, the new one, and others.

The stabilised method keeps 11, but takes more to find the rate of the fastest mode.
"""

EVALUATIONS = {"rk3": 3, "rk5": 6, "rk8": 12}
"""Evaluations of the flow in a step; the stabilised method takes as many as stability wants."""


@dataclass(frozen=True)
class EvaluationCost:
    """What one evaluation of a flow asks of each process; `evaluation_cost` makes it.

    Attributes
    ----------
    products : float
        Additions and multiplications of dense products of matrices.
    entries : float
        Those of the passes over observed entries, and `entry_bytes`, which they read and write
        unless rows of the factors stay in a cache: one product on the pattern and two with it.
    gathered, scattered, summed : float
        Bytes that a process gives to the all-gather of R, to the reduce-scatter of ``G^T L``, and
        to all-reduces of r x r matrices and of the loss, `messages` in all.
    wire : float
        Bytes that leave a process if all of them are rings.
    memory : float
        Bytes at most: of the states of the method, of the start and the products of an
        evaluation, of R and ``G^T L`` as wholes, and of the data, which are sorted at first.

    Examples
    --------
    >>> cost = dln.sharded.evaluation_cost((100, 100), 5, processes=4)
    >>> cost.seconds(flops=1e9, bandwidth=1e9, latency=0.0) > cost.products / 1e9
    True
    """

    products: float
    entries: float
    entry_bytes: float
    gathered: float
    scattered: float
    summed: float
    messages: int
    wire: float
    memory: float

    def seconds(
        self, flops: float, bandwidth: float, latency: float, memory_bandwidth: float | None = None
    ) -> float:
        """Return the time of an evaluation of a machine, without overlap.

        `flops` and the bandwidths of the links and of the memory are per second and process,
        `latency` is that of a message in seconds. Passes over entries take the longer of their
        arithmetic and, given its bandwidth, of their way through the memory.
        """
        rate = as_positive(flops, "flops")
        link = as_positive(bandwidth, "bandwidth")
        waits = self.messages * as_positive(latency, "latency", zero=True)
        passes = self.entries / rate
        if memory_bandwidth is not None:
            through = self.entry_bytes / as_positive(memory_bandwidth, "memory_bandwidth")
            passes = max(passes, through)
        return self.products / rate + passes + self.wire / link + waits


def evaluation_cost(
    shape: Sequence[int],
    rank: int,
    *,
    entries: int | None = None,
    processes: int = 1,
    depth: float = 3,
    dtype: torch.dtype = torch.float32,
    method: str = "rk5",
) -> EvaluationCost:
    """Return what an evaluation of the flow costs the process with the most rows.

    Parameters
    ----------
    shape, rank : tuple of int and int
        Shape (m, n) of X, and its rank r.
    entries : int, optional
        Number of observed entries, equally many in every process; without it the loss is
        `Quadratic`.
    processes : int
    depth : float
        Products or an ``eigh`` of r x r matrices are not counted. At depth 1 the rank must be
        below m and n: else the flow has X itself as its state.
    dtype : torch.dtype
    method : {"rk3", "rk5", "rk8", "rkc"}

    Examples
    --------
    A million rows and columns of rank 100 and 1e9 entries on 64 devices: an evaluation sends
    0.8 GB, whatever the number of devices.

    >>> cost = dln.sharded.evaluation_cost((10**6, 10**6), 100, entries=10**9, processes=64)
    >>> round(cost.wire / 1e9, 2), round(cost.memory / 1e9, 1)
    (0.79, 1.9)
    """
    (m, n), count = as_matrix_shape(shape), as_count(processes, "processes")
    r, depth = as_rank(rank, min(m, n), "min(m, n)"), as_depth(depth)
    if method not in STATES:
        raise ValueError(f"method must be one of {[*STATES]}, got {method!r}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype, got {dtype!r}")
    word = dtype.itemsize
    rows, cols = width_of(m, count), width_of(n, count)
    # The thin products of an engine: C, K, turns, the gauge and the two velocities.
    thin = _thin_products(float(depth))
    products = (thin[0] * rows + thin[1] * cols) * r**2
    matrices = 0 if depth == 2.0 else 1 if depth.infinite else 2
    if entries is None:
        products += 6.0 * rows * n * r
        # The target, and the residual; on a CPU blocks of it alone at small rank.
        passes, through, data = 0.0, 0.0, 2 * rows * n * word
    else:
        own = as_count(entries, "entries") / count
        # A dot product, and a row of each velocity: four rows, four places and six values.
        passes, through = 6.0 * own * r, own * (4 * r * word + 32 + 6 * word)
        # The kernels keep places and values in a second order too, and sort them.
        data = own * (40 + 4 * word)
    gathered, scattered = cols * r * word, count * cols * r * word
    summed = (matrices * r**2 + 1) * word
    factors = (rows + cols) * r * word
    state = r * r * word if depth.infinite else factors
    wholes = 2 * count * cols * r * word
    ring = (count - 1) / count * (2 * scattered + 2 * summed)
    memory = STATES[method] * state + 5 * factors + wholes + data
    messages = matrices + 3
    return EvaluationCost(
        *(products, passes, through, gathered, scattered, summed, messages, ring, memory)
    )


def _thin_products(depth: float) -> tuple[int, int]:
    """Return the operations of an engine for each row of L and of R, over r^2.

    The rule is that of `gradient_flow` without an `engine`, at ranks of some hundreds and below.
    """
    if depth in (2.0, 3.0):
        return (0, 0) if depth == 2.0 else (6, 0)
    if depth == math.inf:
        return 4, 0
    if depth > 100:
        return 8, 4
    return (8, 2) if depth.is_integer() and depth > 3 else (8, 6)
