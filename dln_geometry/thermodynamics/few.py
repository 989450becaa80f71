"""Partition functions of at most three singular values, by quadrature: any energy, any kappa."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import log_kernel_of_pairs
from dln_geometry.thermodynamics.energies import Energy
from dln_geometry.thermodynamics.measure import SpectralMeasure
from dln_geometry.thermodynamics.nodes import gauss_panels, support, unit_nodes

MOST = 3


def quadrature(measure: SpectralMeasure, energy: Energy, b: float) -> dict[str, float]:
    """Return log Z, its error, and moments: nodes in the largest value and in quotients."""
    r, n, value = measure.rank, float(measure.depth), energy.value
    assert value is not None
    powers, high = (0.0, measure.dimension(r)), 0.0
    for k in range(1, r + 1):
        mask = (torch.arange(r, device="cpu") < k).to(torch.float64)
        # k values s, and the others small beside them.
        rows = mask + 1e-9 * (1 - mask)

        def log_weight(x: Tensor, rows: Tensor = rows) -> Tensor:
            return -b * value((n * x).exp().unsqueeze(-1) * rows)

        high = max(high, support(log_weight, powers)[1])
    u, v = unit_nodes()
    last, count = None, 3
    while True:
        nodes, weights, _ = gauss_panels(0.0, high, count)
        found = _moments(measure, value, b, (nodes, weights), (u, v))
        if last is not None:
            move = abs(found["log_z"] - last)
            if move <= 1e-12 * max(1.0, abs(last)) or count > (800 if r < 3 else 100):
                return found | {"error": move if move > 1e-9 * max(1.0, abs(last)) else 0.0}
        last, count = found["log_z"], 2 * count


def _moments(measure: Any, value: Any, b: float, largest: Any, quotient: Any) -> dict[str, float]:
    r, n, f = measure.rank, float(measure.depth), measure.index
    (t, w), (u, v) = largest, quotient
    grids = torch.meshgrid(t.log(), *[u.log()] * (r - 1), indexing="ij")
    logs = torch.meshgrid(w.log(), *[v.log()] * (r - 1), indexing="ij")
    x = torch.stack(grids, -1).cumsum(-1)
    log_w = torch.stack(logs, -1).sum(-1)
    # The Jacobian of (t, u) -> (t, t u_1, t u_1 u_2).
    log_w = log_w + x[..., :-1].sum(-1) + measure.power * x.sum(-1)
    pairs = torch.zeros_like(log_w)
    for i in range(r):
        for j in range(i + 1, r):
            gap = torch.log(-torch.expm1(2 * (x[..., j] - x[..., i])))
            log_w = log_w + f * (2 * x[..., i] + gap)
            pairs = pairs + log_kernel_of_pairs(n * x[..., i], n * x[..., j], measure.depth, False)
    energy = value((n * x).exp())
    log_w = log_w + f * measure.nu * pairs - b * energy
    keep = torch.isfinite(log_w)
    log_w, energy = log_w[keep], energy[keep]
    volume = measure.log_orbit + (0.5 * f * pairs + measure.log_single(x).sum(-1))[keep]
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
