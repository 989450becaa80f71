"""Quadrature on the half line: where a weight is worth anything, and nodes there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Logarithm of the share of the largest value below which a weight is nothing.
_NOTHING = 80.0
_POINTS = 16


def support(
    log_weight: Callable[[Tensor], Tensor], powers: tuple[float, float]
) -> tuple[float, float]:
    """Return (low, high) outside which ``lam^k weight`` is negligible, k between two powers.

    Raises ValueError if the weight does not fall off, or is nothing between e^-60 and e^60.
    """
    x = torch.linspace(-60.0, 60.0, 4801, dtype=torch.float64, device="cpu")
    w = log_weight(x)
    ends = []
    for k in powers:
        total = (w + (k + 1) * x).nan_to_num(-math.inf, neginf=-math.inf)
        # A weight whose logarithm is so large that nothing beside its maximum counts is a step.
        if not bool(torch.isfinite(total.max())) or bool(total.max() - _NOTHING == total.max()):
            raise ValueError(
                "beta must leave a weight where lam = s^(1/N) is between e^-60 and e^60, got one "
                "whose logarithm overflows there: choose units in which the loss is about 1"
            )
        if int(total.argmax()) == len(x) - 1:
            raise ValueError("loss must grow at infinity, got one whose weight does not fall off")
        inside = (total > total.max() - _NOTHING).nonzero().flatten()
        ends.append((float(x[max(int(inside[0]) - 1, 0)]), float(x[int(inside[-1]) + 1])))
    low, high = math.exp(ends[0][0]), math.exp(ends[1][1])
    return (0.0 if low < 0.05 * high else low), high


def wide_support(
    log_weight: Callable[[Tensor], Tensor], powers: tuple[float, float], order: float
) -> tuple[float, float]:
    """Return (low, high) outside which ``e^{k u} (1 + |u|)^order weight`` is negligible."""
    u = 300.0 * torch.linspace(-5.0, 5.0, 6001, dtype=torch.float64, device="cpu").sinh() / 74.2
    w, inside = log_weight(u) + order * torch.log1p(u.abs()), []
    for k in powers:
        total = (w + k * u).nan_to_num(-math.inf, neginf=-math.inf)
        inside.append((total > total.max() - _NOTHING).nonzero().flatten())
    first, last = int(inside[0][0]), int(inside[1][-1])
    if first == 0 or last == len(u) - 1:
        raise ValueError(
            "loss must confine log s to -300 ... 300 at infinite depth, got one whose weight "
            "does not fall off there"
        )
    return float(u[first - 1]), float(u[last + 1])


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


def panel_ends(nodes: Tensor, weights: Tensor) -> Tensor:
    """Return the ends of the panels of these nodes, (panels + 1,)."""
    middle, half = nodes.view(-1, _POINTS).mean(-1), 0.5 * weights.view(-1, _POINTS).sum(-1)
    return torch.cat(((middle - half)[:1], middle + half))


def running(values: Tensor, weights: Tensor, matrix: Tensor) -> Tensor:
    """Return integrals of functions (k, n) from the left end up to each node, (k, n)."""
    pieces, w = (a.unflatten(-1, (-1, _POINTS)) for a in (values, weights))
    sums = (pieces * w).sum(-1)
    before = sums.cumsum(-1) - sums
    half = 0.5 * w.sum(-1, keepdim=True)
    return (half * (pieces @ matrix.T) + before.unsqueeze(-1)).flatten(-2)


def invert(
    panels: tuple[Tensor, Tensor, Tensor],
    density: Tensor,
    share: Tensor,
    more: tuple[Tensor, Callable[[Tensor, Any], Tensor]] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return where distribution functions reach shares (k,) of their mass, and the places.

    Densities on the nodes of `gauss_panels`, (n,) or (k, n), not normalised, are polynomials in
    every panel. A place is the number of a panel and the weights (k, 16) of its nodes with which
    functions are interpolated there. `more` is mass that is known in closed form, beside that of
    the density: at the ends of all panels (k, panels + 1), and at points (k,) and their places.
    """
    nodes, weights, _ = panels
    pieces, w = (
        density.expand(len(share), -1).unflatten(-1, (-1, _POINTS)),
        weights.view(-1, _POINTS),
    )
    masses = (pieces * w).sum(-1)
    sums = masses.cumsum(-1)
    before = sums - masses
    if more is not None:
        sums, before = sums + more[0][:, 1:], before + more[0][:, :-1]
    target = share * sums[:, -1]
    panel = torch.searchsorted(sums, target.unsqueeze(-1)).squeeze(-1).clamp_max(len(w) - 1)
    rows = torch.arange(len(share), device="cpu")
    half = 0.5 * w.sum(-1)
    rest = target - before[rows, panel]
    if more is not None:
        rest = rest + more[0][rows, panel]
    rest = rest / half[panel]
    x, gauss = np.polynomial.legendre.leggauss(_POINTS)
    order = np.arange(_POINTS)
    to_series = np.polynomial.legendre.legvander(x, _POINTS - 1) * gauss[:, None] * (order + 0.5)
    series = pieces[rows, panel] @ torch.from_numpy(to_series)
    first = nodes.view(-1, _POINTS)[:, 0] - half * (float(x[0]) + 1)
    low, high = -torch.ones_like(rest), torch.ones_like(rest)
    for _ in range(54):
        z = 0.5 * (low + high)
        p = _legendre(z)
        integral = (p[2:] - p[:-2]).T / torch.from_numpy(2.0 * order[1:] + 1)
        mass = series[:, 0] * (z + 1) + (series[:, 1:] * integral).sum(-1)
        if more is not None:
            basis = p[:_POINTS].T @ torch.from_numpy(to_series).T
            y = first[panel] + half[panel] * (z + 1)
            mass = mass + more[1](y, (panel, basis)) / half[panel]
        left = mass < rest
        low, high = torch.where(left, z, low), torch.where(left, high, z)
    basis = _legendre(high)[:_POINTS].T @ torch.from_numpy(to_series).T
    return first[panel] + half[panel] * (high + 1), (panel, basis)


def interpolate(values: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
    """Return functions (r, n) at places of `invert`, (k, r)."""
    panel, basis = place
    return (values.unflatten(-1, (-1, _POINTS))[:, panel] * basis).sum(-1).T


def _legendre(z: Tensor) -> Tensor:
    """Return Legendre polynomials of degree 0 to 16, (17, k)."""
    found = [torch.ones_like(z), z]
    for k in range(1, _POINTS):
        found.append(((2 * k + 1) * z * found[k] - k * found[k - 1]) / (k + 1))
    return torch.stack(found)


def gap_nodes(end: float, step: float) -> tuple[Tensor, Tensor]:
    """Return nodes in ``(0, e^end)`` that crowd at 0 (Takahasi, Mori: ``exp(y - e^-y)``), weights.

    Errors are small for functions that fall off like powers or like exponentials.
    """
    y = torch.arange(-3.9, end + 2 * step, step, dtype=torch.float64, device="cpu")
    fall = (-y).exp()
    u = (y - fall).exp()
    return u, u * (1 + fall) * step
