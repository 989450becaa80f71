"""Brownian motion and Langevin dynamics of end-to-end matrices, downstairs and upstairs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.flows import free_energy_flow
from dln_geometry.dynamics.losses import Loss, prepared
from dln_geometry.dynamics.noise.chains import check_rank, randomness, repeated, trace
from dln_geometry.dynamics.noise.deep_split_steps import DeepSplitting
from dln_geometry.dynamics.noise.network_steps import Upstairs, upstairs_start
from dln_geometry.dynamics.noise.plain_steps import PlainStepper
from dln_geometry.dynamics.noise.product_steps import Downstairs, Thermostat
from dln_geometry.dynamics.noise.simulation import Stepper, time_grid, walk
from dln_geometry.dynamics.noise.splitting_steps import Splitting
from dln_geometry.dynamics.store import Store
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import hidden_excess
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point
from dln_geometry.support import as_flag, as_positive

__all__ = ["brownian_motion", "langevin"]

METHODS = ("product", "splitting")

Show = bool | Callable[[float, dict[str, Any]], None]


def langevin(
    loss: Loss | None,
    start: Collapsed | EndToEnd | Sequence[Any],
    *,
    beta: float,
    kappa: float = 1.0,
    entropy: bool = True,
    t_end: float,
    dt: float | None = None,
    generator: torch.Generator | None = None,
    increments: Any = None,
    save_at: Any = None,
    chains: int | None = None,
    widths: Sequence[int] | int | None = None,
    method: str = "product",
    upstairs: bool = False,
    keep_points: bool = False,
    progress: Show = False,
    store: str | os.PathLike[str] | None = None,
) -> Trajectory:
    r"""Simulate Riemannian Langevin dynamics of end-to-end matrices.

    ``dX = -A(E') dt + (1/beta) grad_{g^N} S dt + (kappa/beta)(N-1) U Sigma^{1-2/N} V^T dt
    + sqrt(2 kappa/beta) U (sqrt(a_ij) dB_ij) V^T``, whose equilibrium is
    ``exp(-(beta/kappa) F_beta) dvol_g``. With ``kappa = 0`` downstairs it is deterministic and is
    integrated adaptively (`free_energy_flow`; `dt`, `generator` and `method` are not used).

    Square matrices of full rank pass through ``det X = 0`` at odd and at fractional depths; at even
    depths the sign of the determinant is conserved, as it is by networks of balanced layers, and
    the equilibrium is that on one component. At infinite depth zero is infinitely far.

    Parameters
    ----------
    loss : Loss or None
        The energy E; `None` for none.
    start : Collapsed, EndToEnd or factors
        A point of any depth and rank; leading dimensions are independent chains. With
        ``upstairs`` also balanced factors ``(W_1, ..., W_N)``.
    beta : float
        Inverse temperature, positive.
    kappa : float
        Ratio of the noise across the orbits of the balanced manifold to that along them.
    entropy : bool
        Whether noise along the orbits acts: ``False`` drops the drift ``grad S / beta``.
    t_end : float
        End of time, positive.
    dt : float
        Largest step; steps are equal between saved times.
    generator : torch.Generator
        The source of randomness.
    increments : array_like, shape (steps, ..., m, n), optional
        In place of `generator` (and `dt`): independent Gaussians of variance ``t_end / steps``, the
        increments of the Brownian motion B of matrices; sums of consecutive ones refine to the same
        path. Of product steps downstairs only.
    save_at : array_like, shape (T,), optional
        Increasing times to save; by default 101 equally spaced ones, or every step.
    chains : int, optional
        Repeat the start that many times, along a new first dimension.
    widths : sequence of int or int, optional
        Hidden widths: they enter the entropy. By default ``min(m, n)``, or those of the factors.
    method : {"product", "splitting"}
        ``"product"``: the layers move along a horizontal line and are multiplied out; weak order 1
        (``2 E_{h/2} - E_h`` of two runs removes the leading error of an expectation), no drift
        correction, one SVD a step. ``"splitting"``: a flat Brownian motion of
        ``sqrt(N) U s^{1/N} V^T`` and random rotations of U and V; weak order 2, two SVDs a step and
        the time of 2 to 4 product steps. Without a loss it takes one SVD, and without entropy the
        law of the singular values is exact for every step at full rank. Both go smoothly through
        ``det X = 0``.
    upstairs : bool
        Move the balanced factors themselves by noise on their tangent space; the law of the
        products is the same. Needs an integer depth.
    keep_points : bool
        Keep the point at every saved time in `Trajectory.points`.
    progress : bool
        Show a progress bar.
    store : path, optional
        File from which a killed run continues, to the same bits.

    Returns
    -------
    Trajectory
        ``final`` has the type of the start; upstairs it is the tuple of factors.

    Raises
    ------
    TypeError
        If `start` is no point, or an option no number.
    ValueError
        If `beta`, `kappa`, `t_end` or `dt` is not positive, the start has singular values that are
        zero where the rank should be smaller, shapes do not fit, there is no source of randomness,
        or the method is unknown, or upstairs another than product steps.
    FlowError
        If the loss or the matrices of a chain cease to be finite: the error names the chains and
        carries what was reached, with the last finite points of all chains and the status
        ``"failed"`` of those, ``"unfinished"`` of the others.

    Warns
    -----
    UserWarning
        If `dt` is so large that a step along the gradient leaves the region of the point.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088v3; Menon, Stromme, Vacher, arXiv
    2602.12257.

    Examples
    --------
    >>> from dln_geometry.dynamics import losses
    >>> g = torch.Generator().manual_seed(0)
    >>> start = Collapsed.random((3, 3), 3, depth=4, generator=g)
    >>> path = langevin(losses.Quadratic(torch.eye(3)), start, beta=5.0, t_end=1.0, dt=0.01,
    ...                 generator=g, chains=20)
    >>> path.singular_values.shape
    torch.Size([101, 20, 3])
    """
    beta, entropy = as_positive(beta, "beta"), as_flag(entropy, "entropy")
    kappa = as_positive(kappa, "kappa", zero=entropy)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method != "product" and (upstairs or increments is not None):
        raise ValueError(f'method must be "product" upstairs and with increments, got {method!r}')
    if upstairs:
        point, frames, widths = upstairs_start(start, widths, generator)
    elif isinstance(start, Collapsed | EndToEnd):
        point, frames = as_point(start), None
    else:
        raise TypeError(
            "start must be a Collapsed or an EndToEnd (factors with upstairs=True), got "
            f"{type(start).__name__}"
        )
    if loss is not None:
        loss = prepared(loss, point.shape, dtype=point.s.dtype, device=point.s.device)
    point, frames = repeated(point, frames, chains)
    check_rank(point)
    if kappa == 0 and not upstairs:
        if increments is not None:
            raise ValueError("increments must be None at kappa = 0: there is no noise downstairs")
        grid = time_grid(t_end, dt if dt is not None else t_end / 100, save_at)
        return free_energy_flow(
            _Nothing() if loss is None else loss,
            point,
            beta=beta,
            widths=widths,
            t_end=t_end,
            save_at=grid.times,
            keep_points=keep_points,
            progress=progress,
            store=store,
        )
    excess = 0.0
    if entropy and point.depth > 1:
        excess = hidden_excess(point.shape, point.rank, point.depth, widths)[1]
    drive = Thermostat(loss, beta, kappa, entropy and point.depth > 1, excess)
    grid, noise = randomness(point, t_end, dt, save_at, generator, increments, upstairs)
    stepper: Stepper
    if frames is not None:
        stepper = Upstairs(drive, noise, len(frames) - 1)
        state = (point.s, *frames)
    elif point.depth == 1.0:
        stepper, state = PlainStepper(drive, noise, heun=method == "splitting"), (point.matrix,)
    else:
        kind = Downstairs
        if method == "splitting":
            kind = DeepSplitting if math.isinf(point.depth) else Splitting
        stepper = kind(drive, noise, point, isinstance(start, Collapsed))
        state = (point.u, point.s, point.vh)
        if method == "splitting":
            state = (*state, torch.zeros(1, dtype=torch.float64))
    saved = None
    if store is not None:
        identity = {
            "start": list(state),
            "times": grid.times,
            "options": [
                beta,
                kappa,
                entropy,
                excess,
                grid.counts,
                keep_points,
                type(stepper).__name__,
                method,
            ],
            "loss": trace(loss, point),
            "increments": "none" if increments is None else noise.increments,
        }
        saved = Store(store, identity)
    label = "langevin" if loss is not None else "brownian motion"
    return walk(
        stepper,
        state,
        grid,
        label=label,
        generator=noise.generator,
        keep_points=keep_points,
        progress=progress,
        store=saved,
    )


def brownian_motion(
    start: Collapsed | EndToEnd | Sequence[Any],
    *,
    t_end: float,
    dt: float | None = None,
    generator: torch.Generator | None = None,
    upstairs: bool = False,
    **options: Any,
) -> Trajectory:
    r"""Simulate Brownian motion on the matrices of rank r with the metric ``g^N``.

    ``dX = 1/2 (N-1) U Sigma^{1-2/N} V^T dt + U (sqrt(a_ij) dB_ij) V^T``, half the Laplace-Beltrami
    operator. The singular values in ``rho = sqrt(N) s^{1/N}`` have the same law at every finite
    depth, that of a Brownian motion of m x n matrices at full rank; at infinite depth ``log s`` is
    Dyson's motion of index 1.

    Parameters
    ----------
    start : Collapsed, EndToEnd or factors
        Where it starts; leading dimensions are independent paths.
    t_end, dt, generator
        As in `langevin`.
    upstairs : bool
        Brownian motion on the balanced manifold instead: pushed down, it has the additional drift
        ``1/2 grad_{g^N} S``, the mean curvature of the orbits.
    **options
        ``increments``, ``save_at``, ``chains``, ``widths``, ``method``, ``keep_points``,
        ``progress`` and ``store`` of `langevin`.

    Returns
    -------
    Trajectory

    Raises
    ------
    TypeError, ValueError
        As in `langevin`.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088v3.

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> start = Collapsed.random((3, 2), 2, depth=5, generator=g)
    >>> path = brownian_motion(start, t_end=0.5, dt=0.1, generator=g)
    >>> path.t
    tensor([0.0000, 0.1000, 0.2000, 0.3000, 0.4000, 0.5000], dtype=torch.float64)
    """
    return langevin(
        None,
        start,
        beta=2.0,
        entropy=upstairs,
        t_end=t_end,
        dt=dt,
        generator=generator,
        upstairs=upstairs,
        **options,
    )


class _Nothing:
    """The energy that is zero everywhere."""

    def value(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-2])

    def gradient(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)
