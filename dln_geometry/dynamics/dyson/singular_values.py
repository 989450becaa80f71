"""Dyson Brownian motion of singular values, any shape and index, order always kept."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dyson.coulomb import singular_coulomb_path
from dln_geometry.dynamics.dyson.eigenvalue_steps import Step
from dln_geometry.dynamics.dyson.singular_value_steps import real_singular_values, singular_step
from dln_geometry.dynamics.noise import (
    as_confinement,
    as_particles,
    as_singular_values,
    deterministic,
    simulate,
)
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.support import as_generator, as_index, as_sides

__all__ = ["singular_dyson"]


@torch.no_grad()
def singular_dyson(
    start: Any,
    shape: tuple[int, int],
    *,
    dyson_index: float = 1.0,
    t_end: float,
    dt: float | None = None,
    generator: torch.Generator | None = None,
    save_at: Any = None,
    confinement: float = 0.0,
    signed: bool = False,
    rtol: float = 1e-9,
    progress: bool = False,
) -> Trajectory:
    r"""Simulate the singular values of an m x n matrix Brownian motion, any index.

    ``ds_i = [(m-n+1 - 1/b)/s_i + sum_{j != i} (1/(s_i-s_j) + 1/(s_i+s_j))]/2 dt
    - c s_i dt + dB_i/sqrt(b)`` with m >= n. At b = 1, 2, 4 the entries of the matrix are real,
    complex or quaternion Brownian motions with ``E|dX_ij|^2 = dt``, so that the drift does not
    grow with the index; the motion at the time ``b t`` has noise ``dB_i`` and the drift times b.

    Parameters
    ----------
    start : array_like, shape (..., min(m, n))
        Singular values, in any order (they are sorted); zeros are allowed.
    shape : (int, int)
        Shape (m, n) of the matrix, in either order.
    dyson_index : float
        Index b in (0, inf]. Exact in law at 1; of weak order 2 otherwise (complex matrices above
        1; below 1 real ones and Bessel processes of dimension 0); infinity is deterministic.
    signed : bool
        Let the smallest singular value of a real square matrix carry the sign of the
        determinant: it then moves through 0 smoothly. Without it the value is the modulus of
        that motion, which is reflected at 0. A start may have one negative value then.
    t_end, dt, generator, save_at, confinement, rtol, progress
        As in `dyson`.

    Returns
    -------
    Trajectory
        ``states (T, ..., n)`` ascending; ``final (..., n)`` at `t_end`.

    Raises
    ------
    TypeError, ValueError
        If the start does not fit the shape or is negative, or an argument is not as described.

    Warns
    -----
    UserWarning
        If a scheme that is not exact has less than 8 steps.

    References
    ----------
    Dumitriu, Edelman, arXiv math-ph/0206043, for the law from 0; Menon, arXiv 2411.09004.

    Examples
    --------
    >>> path = singular_dyson([0.0], (3, 1), dyson_index=math.inf, t_end=3.0, save_at=[3.0])
    >>> path.states
    tensor([[3.]])
    """
    m, n = as_sides(shape)
    index, rate = as_index(dyson_index), as_confinement(confinement)
    if signed and (m != n or index != 1):
        raise ValueError(
            f"signed must go with a square shape and dyson_index 1, got {shape} and {index:g}"
        )
    s = _signed_start(start) if signed else as_singular_values(start)
    if s.shape[-1] != n:
        raise ValueError(f"start must have shape (..., {n}) for {m} x {n}, got {tuple(s.shape)}")
    if math.isinf(index):
        path = partial(singular_coulomb_path, excess=m - n, confinement=rate, rtol=rtol)
        return deterministic(path, s, t_end, save_at)
    generator = as_generator(generator, s.device)
    step = _signed_step(generator) if signed else singular_step(m - n, index, generator)
    options = {"exact": index == 1, "rate": rate, "progress": progress, "scheme": "isospectral"}
    return simulate(s, step, t_end, dt, save_at, **options)


def _signed_step(generator: torch.Generator) -> Step:
    """Return the step of real square matrices that keeps the sign of the determinant."""
    return lambda s, h: real_singular_values(s, h, 0, generator, signed=True)


def _signed_start(start: Any) -> Tensor:
    """Return singular values of which the smallest may be negative."""
    s = as_particles(start)
    if s.shape[-1] > 1 and bool((s[..., 0] + s[..., 1] < 0).any()):
        raise ValueError("start must be non-negative but for the smallest singular value")
    return s
