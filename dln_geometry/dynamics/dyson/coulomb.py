"""Coulomb repulsion: Dyson Brownian motion of infinite index, an ordinary differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.laws import hermite_zeros, laguerre_zeros
from dln_geometry.dynamics.noise import time_grid
from dln_geometry.dynamics.store import Store, foreign_state
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.ode import MOST_EVALUATIONS, ResumeError, integrate

Field = Callable[[Tensor], Tensor]

# Until this time, over the square of the distance to the next cluster, a cluster moves alone.
_EARLY = 1e-10

# Two particles with a smaller gap, over the largest position, coincide.
_TIED = 1e-12


def deterministic_path(
    path: Callable[..., Tensor], x: Tensor, t_end: Any, save_at: Any, store: Store | None
) -> Trajectory:
    """Follow particles of infinite index; `path` takes a batch of them, the times and a store."""
    times = time_grid(t_end, None, save_at, device=x.device).times
    at = times_to_end(times, t_end)
    with torch.no_grad():
        flat = x.reshape(-1, x.shape[-1]).double()
        rows = path(flat, at, store=stored_rows(store, x)).to(x.dtype)
    rows, stats = rows.reshape(len(at), *x.shape), {"scheme": "ode"}
    return Trajectory(t=times, states=rows[: len(times)], final=rows[-1], stats=stats)


def repulsion(x: Tensor) -> Tensor:
    """Return ``sum_{j != i} 1/(x_i - x_j)``, shape (..., n)."""
    gaps = x.unsqueeze(-1) - x.unsqueeze(-2)
    gaps.diagonal(dim1=-2, dim2=-1).fill_(math.inf)
    return gaps.reciprocal_().sum(-1)


def singular_repulsion(s: Tensor, excess: int) -> Tensor:
    """Return ``[(excess + 1)/s_i + sum_{j != i} 2 s_i/(s_i^2 - s_j^2)]/2``, shape (..., n)."""
    return 0.5 * (excess + 1) / s + s * repulsion(s.square())


def stored_rows(store: Store | None, x: Tensor) -> Store | None:
    """Tell a store whether the particles (..., n) are a batch."""
    if store is not None:
        store.batch = None if x.ndim == 1 else 1
    return store


def coulomb_path(
    x0: Tensor,
    times: list[float],
    confinement: float,
    rtol: float,
    store: Store | None = None,
) -> Tensor:
    """Return the solutions of ``dx_i = sum dt/(x_i - x_j) - c x_i dt`` at increasing times.

    Shape (T, B, n) for `x0` of shape (B, n), ascending. Coinciding particles leave as ``sqrt(t)``
    times the zeros of a Hermite polynomial, exactly if all coincide.
    """
    # The mean moves alone; subtract it to resolve gaps best.
    mean = x0.mean(-1, keepdim=True)
    x = x0 - mean
    if bool((x.amax(-1) == x.amin(-1)).all()):
        zeros = hermite_zeros(x.shape[-1], dtype=x.dtype, device=x.device)
        rows = [math.sqrt(early(t, confinement)) * zeros.expand_as(x) for t in times]
    else:
        first = _early_time(x, times)
        x = torch.stack([_separated(row, first, _hermite_cluster) for row in x])

        def field(y: Tensor) -> Tensor:
            return repulsion(y) - confinement * y

        rows = _rows_after(field, x, x0 - mean, times, first, rtol, store)
    means = [mean * math.exp(-confinement * t) for t in times]
    return torch.stack([r + c for r, c in zip(rows, means, strict=True)])


def singular_coulomb_path(
    s0: Tensor,
    times: list[float],
    *,
    excess: int,
    confinement: float,
    rtol: float,
    store: Store | None = None,
) -> Tensor:
    """Return the solutions of ``ds = singular_repulsion(s) dt - c s dt``, as `coulomb_path`."""
    n = s0.shape[-1]
    if bool((s0 == 0).all()):
        zeros = laguerre_zeros(n, excess, dtype=s0.dtype, device=s0.device).sqrt()
        rows = [math.sqrt(early(t, confinement)) * zeros.expand_as(s0) for t in times]
        return torch.stack(rows)
    first = _early_time(torch.cat((-s0.flip(-1), s0), -1), times)

    def cluster(value: float, k: int, t: float) -> Tensor:
        if value == 0:
            return (t * laguerre_zeros(k, excess)).sqrt()
        return _hermite_cluster(value, k, 0.5 * t)

    def field(s: Tensor) -> Tensor:
        return singular_repulsion(s, excess) - confinement * s

    s = torch.stack([_separated(row, first, cluster) for row in s0])
    return torch.stack(_rows_after(field, s, s0, times, first, rtol, store))


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
    """Return k particles at the time t after they left one place."""
    return value + math.sqrt(t) * hermite_zeros(k)


def _separated(x: Tensor, t: float, cluster: Callable[[float, int, float], Tensor]) -> Tensor:
    """Return the particles (n,) a short time t later, coinciding ones on their own solution."""
    wide = x.double()
    marks = (wide.diff() > _TIED * float(x.abs().amax())).nonzero().flatten() + 1
    groups = torch.tensor_split(wide, marks.cpu())
    moved = [cluster(float(g[0]), len(g), t) if t > 0 else g.cpu() for g in groups]
    return torch.cat(moved).to(x)


def _rows_after(
    field: Field,
    x: Tensor,
    x0: Tensor,
    times: list[float],
    first: float,
    rtol: float,
    store: Store | None,
) -> list[Tensor]:
    """Integrate from x at the time `first`; until then the rows are the start x0."""
    rows = [x0.sort(-1).values for t in times if t <= first]
    later = [t - first for t in times if t > first]
    return [*rows, *ascending_rows(field, x, later, rtol, store, first)[0]] if later else rows


def ascending_rows(
    field: Field,
    x: Tensor,
    times: list[float],
    rtol: float,
    store: Store | None = None,
    begun: float = 0.0,
) -> tuple[Tensor, dict[str, Any]]:
    """Integrate ``x' = field(x)``, x of shape (B, n); return (T, B, n), sorted, and statistics.

    The store holds the rows, unsorted, from the time `begun` on.
    """

    def write(t: Tensor, y: Tensor, out: Tensor) -> None:
        out.copy_(field(y))

    kept: dict[str, Any] = {}
    if store is not None:
        store.times = begun + torch.tensor(times, dtype=torch.float64, device="cpu")
        kept = {"checkpoint": store, "checkpoint_every": store.schedule, "resume": store.load()}
    try:
        path = integrate(
            write,
            x,
            t_end=times[-1],
            rtol=rtol,
            save_at=times,
            record=lambda y, obs: {"states": y},
            **kept,
        )
    except ResumeError as error:
        raise foreign_state(store, error) from None
    if any(status != "t_end" for status in path.status):
        raise ValueError(
            f"t_end must be within reach of {MOST_EVALUATIONS} evaluations, got {times[-1]:g}: the "
            f"motion came to t = {float(path.t_final.min()):.3g}; end earlier or loosen rtol"
        )
    return path.saved["states"].sort(-1).values, path.stats


def times_to_end(times: Tensor, t_end: Any) -> list[float]:
    """Return the saved times, and `t_end` after them."""
    at = times.tolist()
    return at if at[-1] == t_end else [*at, float(t_end)]
