"""The isospectral flow: Brownian motion along the orbits of Hermitian matrices, and across them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dyson.coulomb import coulomb_path
from dln_geometry.dynamics.dyson.eigenvalue_steps import signed_modulus
from dln_geometry.dynamics.noise import follow, schedule, stacked, warn_if_coarse
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.support import as_generator, as_index, as_matrix, chi, normal

__all__ = ["isospectral_flow"]


@torch.no_grad()
def isospectral_flow(
    start: Any,
    *,
    dyson_index: float,
    t_end: float,
    dt: float,
    generator: torch.Generator | None = None,
    save_at: Any = None,
    keep_points: bool = False,
    rtol: float = 1e-9,
    progress: bool = False,
) -> Trajectory:
    r"""Simulate ``dM = P dH + sqrt(2/b) P_perp dH`` on Hermitian or real symmetric matrices.

    P projects to the tangent space of the orbit ``{Q M Q*}``: in an eigenframe of M the matrices
    with zero diagonal. In that frame ``E|dH_ij|^2 = dt`` for all entries, so that the eigenvalues
    are a Dyson Brownian motion of index b over either field, and M itself a Gaussian process at
    b = 2 (complex) and b = 1 (real). At infinite index the noise is tangent to the orbit, and the
    orbit, known by its eigenvalues, moves deterministically: over the complex numbers by minus
    one half of its mean curvature, over the reals, where the noise along unit tangent vectors has
    variance 2 dt, by minus its mean curvature.

    Parameters
    ----------
    start : array_like, shape (..., n, n)
        Real symmetric or complex Hermitian; the field is that of its dtype.
    dyson_index : float
        Index b in (0, inf].
    t_end, dt, generator, save_at, progress
        As in `dyson`. The eigenvalues have weak order 2 (exact at infinity, where they are those
        of `dyson`), the eigenvectors weak order 1.
    keep_points : bool
        Keep the matrices at the saved times in `Trajectory.points`.
    rtol : float
        Relative tolerance of the eigenvalues at infinite index.

    Returns
    -------
    Trajectory
        ``states (T, ..., n)``, the eigenvalues, ascending; ``final`` the matrix at `t_end`.

    Raises
    ------
    TypeError, ValueError
        If the start is not Hermitian or an argument is not as described.

    Warns
    -----
    UserWarning
        If there are less than 8 steps.

    References
    ----------
    Huang, Inauen, Menon, Motion by mean curvature and Dyson Brownian motion, arXiv 2210.11347.

    Examples
    --------
    >>> zero = torch.zeros(2, 2, dtype=torch.complex128)
    >>> path = isospectral_flow(zero, dyson_index=math.inf, t_end=1.0, dt=0.1, save_at=[1.0])
    >>> path.states
    tensor([[-1.,  1.]], dtype=torch.float64)
    """
    matrix, index = _as_hermitian(start), as_index(dyson_index)
    plan = schedule(t_end, dt, save_at)
    exact = index == (2 if matrix.is_complex() else 1)
    if not exact:
        warn_if_coarse(t_end, dt, "the isospectral flow")
    x, frame = torch.linalg.eigh(matrix)
    generator = as_generator(generator, x.device)
    frame = frame @ _random_rotation(x, matrix.dtype, generator)
    ladder = None
    if math.isinf(index):
        ladder = _eigenvalue_ladder(x, plan, t_end, rtol)

    def step(state: tuple[Tensor, Tensor], h: float) -> tuple[Tensor, Tensor]:
        x, frame = state
        noise = _tangent_noise(x, index, matrix.dtype, generator)
        across = normal(x.shape, generator, x.dtype, x.device)
        main = x if math.isinf(index) else x + math.sqrt(2 * h / index) * across
        values, turn = torch.linalg.eigh(math.sqrt(h) * noise + main.diag_embed())
        return (values if ladder is None else next(ladder)), frame @ turn

    states, points, final = [], [], matrix
    run = follow((x, frame), step, plan, t_end, progress=progress, label="isospectral flow")
    for values, q in run:
        final = (q * values.unsqueeze(-2).to(q.dtype)) @ q.mH
        states.append(values)
        points.append(final if keep_points else None)
    return Trajectory(
        t=torch.tensor(plan[0], dtype=torch.float64, device=x.device),
        states=stacked(states[:-1], x),
        final=final,
        stats={"steps": sum(plan[1])},
        points=tuple(points[:-1]) if keep_points else None,
    )


def _as_hermitian(start: Any) -> Tensor:
    """Return a Hermitian matrix (..., n, n), exactly so."""
    try:
        raw = torch.as_tensor(start)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"start must be a matrix, got {type(start).__name__}: {error}") from None
    if not raw.is_complex():
        raw = as_matrix(raw, "start")
    if raw.ndim < 2 or raw.shape[-1] != raw.shape[-2] or raw.shape[-1] == 0:
        raise ValueError(f"start must have shape (..., n, n), got {tuple(raw.shape)}")
    if not bool(torch.isfinite(raw).all()):
        raise ValueError("start must be finite, got NaN or infinite entries")
    half = 0.5 * (raw + raw.mH)
    defect = float((raw - raw.mH).abs().max())
    if defect > 1000 * torch.finfo(raw.dtype).eps * float(raw.abs().max()):
        raise ValueError(f"start must be Hermitian, got a deviation of {defect:.1e}")
    return half


def _tangent_noise(
    x: Tensor, index: float, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Draw noise along the orbit, diagonal zero, of which `eigh` reads the lower triangle.

    Its moduli are those of `dyson_steps`, which make the eigenvalues of order 2; where M is
    Gaussian, Gaussian ones.
    """
    n = x.shape[-1]
    if not dtype.is_complex:
        g = normal((*x.shape, n), generator, x.dtype, x.device)
        return signed_modulus(g, index, generator).tril(-1)
    g = normal((2, *x.shape, n), generator, x.dtype, x.device)
    z = torch.complex(g[0], g[1])
    if index == 2:
        return (z / math.sqrt(2.0)).tril(-1)
    phase = z / z.abs()
    if math.isinf(index):
        return phase.tril(-1)
    freedom = torch.full((n, n), index, dtype=x.dtype, device=x.device)
    modulus = chi(freedom, x.shape[:-1], generator) / math.sqrt(index)
    return (modulus * phase).tril(-1)


def _random_rotation(x: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return a random frame inside the eigenspaces, where `eigh` made an arbitrary one."""
    n = x.shape[-1]
    scale = x.abs().amax(-1, keepdim=True)
    apart = x.diff(dim=-1) > 100 * n * torch.finfo(x.dtype).eps * scale
    cluster = torch.nn.functional.pad(apart.to(x.dtype).cumsum(-1), (1, 0))
    g = normal((2, *x.shape, n), generator, x.dtype, x.device)
    z = torch.complex(g[0], g[1]) if dtype.is_complex else g[0]
    # Eigenvectors of Gaussian blocks, kept apart by far more than their eigenvalues.
    inside = cluster.unsqueeze(-1) == cluster.unsqueeze(-2)
    block = torch.where(inside, z + z.mH, 0.0)
    size = torch.linalg.matrix_norm(block).unsqueeze(-1) + 1.0
    turn = torch.linalg.eigh(block + (4.0 * size * cluster).diag_embed().to(dtype))[1]
    return torch.where(inside, turn, 0.0)


def _eigenvalue_ladder(
    x: Tensor, plan: tuple[list[float], list[int]], t_end: float, rtol: float
) -> Any:
    """Return an iterator over the deterministic eigenvalues after each step."""
    edges = [0.0, *plan[0], t_end]
    times = [
        edges[k] + (edges[k + 1] - edges[k]) * (i + 1) / count
        for k, count in enumerate(plan[1])
        for i in range(count)
    ]
    flat = x.reshape(-1, x.shape[-1]).double()
    return iter(coulomb_path(flat, times, 0.0, rtol).to(x.dtype).reshape(len(times), *x.shape))
