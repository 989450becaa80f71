"""The isospectral flow: Brownian motion along the orbits of Hermitian matrices, and across them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dyson.coulomb import coulomb_path
from dln_geometry.dynamics.dyson.eigenvalues import signed_modulus
from dln_geometry.dynamics.dyson.paths import particle_grid
from dln_geometry.dynamics.noise import OVERFLOW, Diverged, State, Stepper, simulate
from dln_geometry.dynamics.store import opened, resumable
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.kernel import small_eigh
from dln_geometry.support import (
    EVERY,
    Every,
    as_flag,
    as_generator,
    as_index,
    as_matrix,
    as_rtol,
    chi,
    normal,
    on_device,
    read_array,
)


@resumable("observe")
def isospectral_flow(
    start: Any,
    *,
    dyson_index: float,
    t_end: float,
    dt: float,
    generator: torch.Generator | int | None = None,
    save_at: Any = None,
    keep_points: bool = False,
    rtol: float = 1e-9,
    progress: bool = False,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
) -> Trajectory:
    r"""Simulate ``dM = P dH + sqrt(2/b) P_perp dH`` on Hermitian or real symmetric matrices.

    P projects to the tangent space of the orbit ``{Q M Q*}``: in an eigenframe of M the matrices
    with zero diagonal. There ``E|dH_ij|^2 = dt`` for all entries, so that the eigenvalues are a
    Dyson Brownian motion of index b over either field, and M a Gaussian process at b = 2 (complex)
    and b = 1 (real). At infinite index the noise is tangent to the orbit, whose eigenvalues move
    deterministically: over the complex numbers by minus one half of its mean curvature, over the
    reals, where noise along unit tangent vectors has variance 2 dt, by minus its mean curvature.

    Parameters
    ----------
    start : array_like, shape (..., n, n)
        Real symmetric or complex Hermitian; the field is that of its dtype.
    dyson_index : float
        Index b in (0, inf].
    t_end, dt, generator, save_at, rtol, progress, observe, store, every
        As in `dyson`, which warns of the same. The eigenvalues have weak order 2 (exact at
        infinity, where they are those of `dyson`), the eigenvectors weak order 1.
    keep_points : bool
        Keep the matrices at the saved times in `Trajectory.points`.

    Returns
    -------
    Trajectory
        ``states (T, ..., n)``, the eigenvalues, ascending; ``final`` the matrix at `t_end`.

    References
    ----------
    Huang, Inauen, Menon, Motion by mean curvature and Dyson Brownian motion, arXiv 2210.11347.

    Examples
    --------
    >>> import math
    >>> zero = torch.zeros(2, 2, dtype=torch.complex128)
    >>> path = dln.isospectral_flow(zero, dyson_index=math.inf, t_end=1.0, dt=0.1, save_at=[1.0])
    >>> path.states
    tensor([[-1.,  1.]], dtype=torch.float64)
    """
    matrix, index = _as_hermitian(start), as_index(dyson_index)
    keep_points = as_flag(keep_points, "keep_points")
    rtol = as_rtol(rtol, torch.float64, default=1e-9)
    exact = index == (2 if matrix.is_complex() else 1)
    grid = particle_grid(matrix, t_end, dt, save_at, "the isospectral flow", exact=exact)
    x, q = torch.linalg.eigh(matrix.detach())
    generator = as_generator(generator, x.device)
    q = q @ _random_rotation(x, matrix.dtype, generator)
    ladder = None
    if math.isinf(index):
        times, flat = grid.step_times(), x.reshape(-1, x.shape[-1]).double()
        ladder = coulomb_path(flat, times, 0.0, rtol).to(x.dtype).reshape(-1, *x.shape)
    steps = IsospectralSteps(index, generator, ladder)
    return simulate(
        steps,
        (x, q),
        grid,
        label="isospectral flow",
        keep_points=keep_points,
        observe=observe,
        progress=progress,
        generator=generator,
        store=opened(store),
    )


class IsospectralSteps(Stepper):
    """States ``(x, Q)``; at infinite index `ladder` (steps, ..., n) holds the future x."""

    def __init__(self, index: float, generator: torch.Generator, ladder: Tensor | None) -> None:
        self.index, self.generator, self.ladder = index, generator, ladder

    def advance(self, state: State, h: float, index: int) -> State:
        x, frame = state
        noise = math.sqrt(h) * _tangent_noise(x, self.index, frame.dtype, self.generator)
        across = normal(x.shape, self.generator, x.dtype, x.device)
        main = x if self.ladder is not None else x + math.sqrt(2 * h / self.index) * across
        try:
            values, turn = small_eigh(noise + main.diag_embed())
        except torch.linalg.LinAlgError:
            raise Diverged(OVERFLOW, torch.ones_like(x[..., 0], dtype=torch.bool)) from None
        if on_device(values) and not self.passed(finite := torch.isfinite(values).all(-1)):
            raise Diverged(OVERFLOW, ~finite)
        return (values if self.ladder is None else self.ladder[index]), frame @ turn

    def observe(self, state: State) -> dict[str, Tensor]:
        return {"states": state[0]}

    def point(self, state: State) -> Tensor:
        x, frame = state
        return (frame * x.unsqueeze(-2).to(frame.dtype)) @ frame.mH


def _as_hermitian(start: Any) -> Tensor:
    """Return an exactly Hermitian matrix (..., n, n)."""
    raw, _ = read_array(start, "start", complex=True)
    if not raw.is_complex():
        raw = as_matrix(start, "start")
    if raw.ndim < 2 or raw.shape[-1] != raw.shape[-2] or raw.shape[-1] == 0:
        raise ValueError(f"start must have shape (..., n, n), got {tuple(raw.shape)}")
    if not bool(torch.isfinite(raw).all()):
        raise ValueError("start must be finite, got NaN or infinite entries")
    defect, size = (x.abs().amax((-2, -1)) for x in (raw - raw.mH, raw))
    if bool((defect > 1000 * torch.finfo(raw.dtype).eps * size).any()):
        raise ValueError(f"start must be Hermitian, got a deviation of {float(defect.max()):.1e}")
    return 0.5 * (raw + raw.mH)


def _tangent_noise(
    x: Tensor, index: float, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Draw the strict lower triangle of noise along the orbit.

    Gaussian where M is; else with the moments of `signed_modulus`: eigenvalues of order 2.
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
