"""Partition functions of at most three singular values, by quadrature: any energy, any kappa."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.measure import SpectralMeasure
from dln_geometry.thermodynamics.nodes import (
    gap_nodes,
    gauss_panels,
    support,
    wide_support,
)

MOST = 3


def quadrature(measure: SpectralMeasure, energy: Energy, b: float) -> dict[str, float]:
    """Return log Z, its error, and moments: nodes in the largest value and in gaps."""
    value = energy.value
    assert value is not None
    low, high = extent(measure, value, b)
    # At finite depth the density falls at least like e^-gap.
    end = _depth_of_falloff(measure, value, b, high) if measure.deep else math.log(80.0)
    quotient = gap_nodes(end, 0.0625 if measure.rank < 3 else 0.1)
    last, count = None, 3
    while True:
        nodes, weights, _ = gauss_panels(low, high, count)
        found = _moments(measure, value, b, (nodes, weights), quotient)
        if last is not None:
            move = abs(found["log_z"] - last)
            if move <= 1e-12 * max(1.0, abs(last)) or count > (800 if measure.rank < 3 else 100):
                return found | {"error": move if move > 1e-9 * max(1.0, abs(last)) else 0.0}
        last, count = found["log_z"], 2 * count


def extent(measure: SpectralMeasure, value: Any, b: float) -> tuple[float, float]:
    """Return where the largest value lies, in the variable of integration."""
    r, n = measure.rank, measure.span
    powers, low, high = (0.0, measure.dimension(r)), math.inf, -math.inf
    for k in range(1, r + 1):
        mask = (torch.arange(r, device="cpu") < k).to(torch.float64)
        # k values s, and the others small beside them.
        rows = mask + 1e-9 * (1 - mask)

        def log_weight(x: Tensor, rows: Tensor = rows) -> Tensor:
            return -b * value((n * x).exp().unsqueeze(-1) * rows)

        if measure.deep:
            # However far the others are below it, the largest value has this power.
            least = measure.power + 2 * measure.index * measure.nu * (r - 1)
            ends = wide_support(log_weight, (least, powers[1]), 3.0 * r)
            low, high = min(low, ends[0]), max(high, ends[1])
        else:
            low, high = 0.0, max(high, support(log_weight, powers)[1])
    return low, high


def _depth_of_falloff(measure: SpectralMeasure, value: Any, b: float, high: float) -> float:
    """Return the log of the largest gap at infinite depth that counts."""
    far = [math.inf]
    for k in range(1, measure.rank):
        # The k smallest values fall; where the loss stays finite, by a power of the gap.
        u = -torch.linspace(0.0, 300.0, 3001, dtype=torch.float64, device="cpu")
        rows = u.new_ones(len(u), measure.rank)
        rows[:, measure.rank - k :] = u.exp().unsqueeze(-1)
        w = -b * value(rows) + measure.power * u
        w = (w - w.max()).nan_to_num(-math.inf, neginf=-math.inf)
        lost = (w < -100.0).nonzero()
        far.append(high - float(u[lost[0]]) if len(lost) else math.inf)
    if math.isfinite(far[-1]) and len(far) > 1:
        return math.log(max(far[1:]) + 1.0)
    power = (measure.rank - 1) * measure.index * (measure.nu - 1.0) - 1.0
    return min(40.0 / max(power, 0.1), 350.0)


def _moments(measure: Any, value: Any, b: float, largest: Any, quotient: Any) -> dict[str, float]:
    r, (t, w), (gaps, speed) = measure.rank, largest, quotient
    grids = torch.meshgrid(measure.coordinates(t), *[-gaps] * (r - 1), indexing="ij")
    logs = torch.meshgrid(w.log(), *[speed.log()] * (r - 1), indexing="ij")
    x = torch.stack(grids, -1).cumsum(-1)
    log_w = torch.stack(logs, -1).sum(-1) + measure.power * x.sum(-1)
    if not measure.deep:
        # dlam of all but the largest, whose nodes are in lam.
        log_w = log_w + x[..., 1:].sum(-1)
    pairs = torch.zeros_like(log_w)
    for i in range(r):
        for j in range(i + 1, r):
            log_w = log_w + measure.log_gap(x[..., i], x[..., i] - x[..., j])
            pairs = pairs + measure.log_pair(x[..., i], x[..., j])
    energy = value((measure.span * x).exp())
    log_w = log_w + 2 * measure.nu * pairs - b * energy
    keep = torch.isfinite(log_w)
    log_w, energy = log_w[keep], energy[keep]
    volume = measure.log_orbit + (pairs + measure.log_single(x).sum(-1))[keep]
    top = log_w.max()
    p = (log_w - top).exp()
    total = p.sum()
    p = p / total
    mean = float((p * energy).sum())
    return {
        "log_z": float(top + total.log()) + measure.log_constant,
        "energy": mean,
        "heat_capacity": b * b * float((p * (energy - mean) ** 2).sum()),
        "entropy": float((p * volume).sum()),
    }
