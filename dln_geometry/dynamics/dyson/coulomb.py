"""Coulomb repulsion: Dyson Brownian motion of infinite index, an ordinary differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.laws import hermite_zeros, laguerre_zeros
from dln_geometry.dynamics.noise import time_grid
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.ode import integrate

_EARLY = 1e-10
"""Time, over the square of the distance to the next cluster, until which clusters are alone."""

_TIED = 1e-12
"""Gap, over the largest position, below which two particles are taken to coincide."""


def deterministic_path(
    path: Callable[[Tensor, list[float]], Tensor], x: Tensor, t_end: Any, save_at: Any
) -> Trajectory:
    """Follow particles of infinite index; `path` takes a batch of them and the times."""
    times = time_grid(t_end, None, save_at, device=x.device).times
    at = times_to_end(times, t_end)
    with torch.no_grad():
        rows = path(x.reshape(-1, x.shape[-1]).double(), at).to(x.dtype)
    rows = rows.reshape(len(at), *x.shape)
    stats = {"scheme": "ode"}
    return Trajectory(t=times, states=rows[: len(times)], final=rows[-1], stats=stats)


def repulsion(x: Tensor) -> Tensor:
    """Return ``sum_{j != i} 1/(x_i - x_j)``, shape (..., n)."""
    gaps = x.unsqueeze(-1) - x.unsqueeze(-2)
    gaps.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
    return gaps.reciprocal_().sum(-1)


def singular_repulsion(s: Tensor, excess: int) -> Tensor:
    """Return ``[(excess + 1)/s_i + sum_{j != i} 2 s_i/(s_i^2 - s_j^2)]/2``, shape (..., n)."""
    w = s.square()
    return 0.5 * (excess + 1) / s + s * repulsion(w)


def coulomb_path(x0: Tensor, times: list[float], confinement: float, rtol: float) -> Tensor:
    """Return the solutions of ``dx_i = sum dt/(x_i - x_j) - c x_i dt`` at increasing times.

    Shape (T, B, n) for `x0` of shape (B, n), ascending. Coinciding particles leave as ``sqrt(t)``
    times the zeros of a Hermite polynomial; if all coincide, this holds for ever.
    """
    n = x0.shape[-1]
    # Around the mean, which moves alone, gaps are best resolved.
    mean = x0.mean(-1, keepdim=True)
    x = x0 - mean
    if bool((x.amax(-1) == x.amin(-1)).all()):
        zeros = hermite_zeros(n, dtype=x.dtype, device=x.device)
        rows = [math.sqrt(early(t, confinement)) * zeros.expand_as(x) for t in times]
    else:
        first = _early_time(x, times)
        x = torch.stack([_separated(row, first, _hermite_cluster) for row in x])

        def field(y: Tensor) -> Tensor:
            return repulsion(y) - confinement * y

        rows = _rows_after(field, x, x0 - mean, times, first, rtol)
    return torch.stack(
        [r + mean * math.exp(-confinement * t) for t, r in zip(times, rows, strict=True)]
    )


def singular_coulomb_path(
    s0: Tensor, times: list[float], *, excess: int, confinement: float, rtol: float
) -> Tensor:
    """Return the solutions of ``ds = singular_repulsion(s) dt - c s dt``, as `coulomb_path`."""
    n = s0.shape[-1]
    if bool((s0 == 0).all()):
        zeros = laguerre_zeros(n, excess, dtype=s0.dtype, device=s0.device).sqrt()
        rows = [math.sqrt(early(t, confinement)) * zeros.expand_as(s0) for t in times]
        return torch.stack(rows)
    mirrored = torch.cat((-s0.flip(-1), s0), -1)
    first = _early_time(mirrored, times)

    def cluster(value: float, k: int, t: float) -> Tensor:
        if value == 0:
            return (t * laguerre_zeros(k, excess)).sqrt()
        return _hermite_cluster(value, k, 0.5 * t)

    def field(s: Tensor) -> Tensor:
        return singular_repulsion(s, excess) - confinement * s

    s = torch.stack([_separated(row, first, cluster) for row in s0])
    return torch.stack(_rows_after(field, s, s0, times, first, rtol))


def early(t: float, confinement: float) -> float:
    """Return ``(1 - e^{-2ct})/(2c)``, the time at which a free motion from 0 has the same law."""
    return t if confinement == 0 else -math.expm1(-2 * confinement * t) / (2 * confinement)


def _early_time(x: Tensor, times: list[float]) -> float:
    """Return the time until which coinciding particles see no others; 0 if none coincide."""
    gaps = x.diff(dim=-1)
    scale = x.abs().amax()
    apart = gaps[gaps > _TIED * scale]
    if apart.numel() == gaps.numel():
        return 0.0
    least = float(apart.min()) if apart.numel() else float(scale)
    return _EARLY * min([least**2, *(t for t in times if t > 0)])


def _hermite_cluster(value: float, k: int, t: float) -> Tensor:
    """Return k particles that were at one place a short time ago."""
    return value + math.sqrt(t) * hermite_zeros(k)


def _separated(
    x: Tensor,
    t: float,
    cluster: Callable[[float, int, float], Tensor],
) -> Tensor:
    """Return the particles (n,) a short time t later, coinciding ones on their own solution."""
    scale = float(x.abs().amax())
    wide = x.double()
    marks = (wide.diff() > _TIED * scale).nonzero().flatten() + 1
    groups = torch.tensor_split(wide, marks.cpu())
    moved = [cluster(float(g[0]), len(g), t) if t > 0 else g.cpu() for g in groups]
    return torch.cat(moved).to(x)


def _rows_after(
    field: Callable[[Tensor], Tensor],
    x: Tensor,
    x0: Tensor,
    times: list[float],
    first: float,
    rtol: float,
) -> list[Tensor]:
    """Integrate from x at the time `first`; until then the rows are the start x0."""
    rows, later = [x0.sort(-1).values for t in times if t <= first], [t for t in times if t > first]
    return (
        [*rows, *ascending_rows(field, x, [t - first for t in later], rtol)[0]] if later else rows
    )


def ascending_rows(
    field: Callable[[Tensor], Tensor], x: Tensor, times: list[float], rtol: float
) -> tuple[Tensor, dict[str, Any]]:
    """Integrate ``x' = field(x)``, x of shape (B, n); return (T, B, n), sorted, and statistics."""

    def write(t: Tensor, y: Tensor, out: Tensor) -> None:
        out.copy_(field(y))

    path = integrate(
        write, x, t_end=times[-1], rtol=rtol, save_at=times, record=lambda y, obs: {"y": y}
    )
    return path.saved["y"].sort(-1).values, path.stats


def times_to_end(times: Tensor, t_end: Any) -> list[float]:
    """Return saved times, and `t_end` if it is none of them."""
    at = times.tolist()
    return at if at[-1] == t_end else [*at, float(t_end)]
