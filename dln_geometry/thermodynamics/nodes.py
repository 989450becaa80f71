"""Quadrature on the half line: where a weight is worth anything, and nodes there."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# Logarithm of the share of the largest value below which a weight is nothing.
_NOTHING = 80.0
_POINTS = 16


def support(
    log_weight: Callable[[Tensor], Tensor], powers: tuple[float, float]
) -> tuple[float, float]:
    """Return (low, high) outside which ``lam^k weight`` is negligible, k between two powers."""
    x = torch.linspace(-60.0, 60.0, 4801, dtype=torch.float64, device="cpu")
    w = log_weight(x)
    ends = []
    for k in powers:
        total = (w + (k + 1) * x).nan_to_num(-math.inf, neginf=-math.inf)
        if int(total.argmax()) == len(x) - 1:
            raise ValueError("loss must grow at infinity, got one whose weight does not fall off")
        inside = (total > total.max() - _NOTHING).nonzero().flatten()
        ends.append((float(x[max(int(inside[0]) - 1, 0)]), float(x[int(inside[-1]) + 1])))
    low, high = math.exp(ends[0][0]), math.exp(ends[1][1])
    return (0.0 if low < 0.05 * high else low), high


def gauss_panels(low: float, high: float, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return nodes and weights of Gauss-Legendre panels, and the matrix of one's integrals.

    Row a of the matrix integrates, from the left end of a panel of length 2 to its node a, what has
    the values of the columns at its nodes. Panels get shorter towards 0, where logarithms diverge.
    """
    points = _POINTS
    x, w = np.polynomial.legendre.leggauss(points)
    # Integrals of Legendre polynomials: (P_{k+1} - P_{k-1})/(2k+1).
    vander = np.polynomial.legendre.legvander(x, points)
    whole = np.empty((points, points))
    whole[:, 0] = x + 1
    for k in range(1, points):
        whole[:, k] = (vander[:, k + 1] - vander[:, k - 1]) / (2 * k + 1)
    values = vander[:, :points] * w[:, None] * (np.arange(points) + 0.5)
    edges = np.linspace(low, high, count + 1)
    if low == 0.0:
        edges = np.concatenate([[0.0], edges[1] * 4.0 ** np.arange(-12, 0), edges[1:]])
    half = 0.5 * np.diff(edges)[:, None]
    nodes = edges[:-1, None] + half * (x + 1)
    parts = nodes.ravel(), (half * w).ravel(), whole @ values.T
    first, second, third = (torch.from_numpy(p) for p in parts)
    return first, second, third


def running(values: Tensor, weights: Tensor, matrix: Tensor) -> Tensor:
    """Return integrals of functions (k, n) from the left end up to each node, (k, n)."""
    pieces, w = (a.unflatten(-1, (-1, _POINTS)) for a in (values, weights))
    sums = (pieces * w).sum(-1)
    before = sums.cumsum(-1) - sums
    half = 0.5 * w.sum(-1, keepdim=True)
    return (half * (pieces @ matrix.T) + before.unsqueeze(-1)).flatten(-2)


def unit_nodes() -> tuple[Tensor, Tensor]:
    """Return nodes in (0, 1) that crowd at both ends (double exponential), and weights."""
    y = torch.linspace(-3.6, 3.6, 97, dtype=torch.float64, device="cpu")
    u = torch.sigmoid(math.pi * y.sinh())
    return u, u * torch.sigmoid(-math.pi * y.sinh()) * math.pi * y.cosh() * (y[1] - y[0])
