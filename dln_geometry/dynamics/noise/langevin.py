"""Brownian motion and Langevin dynamics of end-to-end matrices and of their networks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.flows import free_energy_flow
from dln_geometry.dynamics.losses import Loss, prepared
from dln_geometry.dynamics.noise.grids import Grid, time_grid
from dln_geometry.dynamics.noise.network_steps import NetworkSteps, network_start
from dln_geometry.dynamics.noise.product_steps import (
    Gaussians,
    PlainSteps,
    ProductSteps,
    Thermostat,
)
from dln_geometry.dynamics.noise.simulation import Show, State, Stepper, simulate
from dln_geometry.dynamics.noise.splitting_steps import SplittingSteps
from dln_geometry.dynamics.store import opened, resumable
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import hidden_excess
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point
from dln_geometry.support import (
    EVERY,
    Every,
    as_choice,
    as_count,
    as_flag,
    as_float_tensor,
    as_generator,
    as_positive,
    field_dimension,
)


@resumable("observe")
def langevin(
    loss: Loss | None,
    start: Collapsed | EndToEnd | Sequence[Any],
    *,
    beta: float,
    kappa: float = 1.0,
    entropy: bool = True,
    t_end: float,
    dt: float | None = None,
    generator: torch.Generator | int | None = None,
    increments: Any = None,
    save_at: Any = None,
    chains: int | None = None,
    widths: Sequence[int] | int | None = None,
    method: str = "product",
    upstairs: bool = False,
    keep_points: bool = False,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    progress: Show = False,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
) -> Trajectory:
    r"""Simulate Riemannian Langevin dynamics of end-to-end matrices.

    ``dX = -A(E') dt + (1/beta) grad_{g^N} S dt + (kappa/beta)(N-1) U Sigma^{1-2/N} V^T dt
    + sqrt(2 kappa/beta) U (sqrt(a_ij) dB_ij) V^T``, whose equilibrium is
    ``exp(-(beta/kappa) F_beta) dvol_g``. With ``kappa = 0`` downstairs it is deterministic and is
    integrated adaptively (`free_energy_flow`; `dt`, `generator` and `method` are not used).

    Real and imaginary parts of complex B are independent, the entropy is that of the unitary
    groups, and the third term vanishes. Without entropy a complex representation of a quaternion
    matrix stays one, if the `increments` are such representations.

    Square matrices of full rank pass through ``det X = 0`` at odd and at fractional depths; at even
    depths the sign of the determinant is conserved, as it is by networks of balanced layers, and
    the equilibrium is that on one component. At infinite depth zero is infinitely far.

    There is no equilibrium, and chains drift off without a warning, where ``exp(-(beta/kappa) F)``
    has an infinite integral: in a loss that does not grow with X in every direction fast enough for
    the volume (at least like a power of ``|X|``; on directions on which it does not depend, unless
    the density falls faster than their dimension: `sample_gibbs` has the criterion and warns), and
    at infinite depth, if the loss is finite where a singular value vanishes, unless there is
    entropy and ``kappa < (r-1)/(2r)``, r the rank.

    Parameters
    ----------
    loss : Loss or None
        The energy E.
    start : Collapsed, EndToEnd or factors
        A point of any depth and rank; leading dimensions are independent chains. With
        ``upstairs`` also balanced factors ``(W_1, ..., W_N)``.
    beta : float
        Inverse temperature.
    kappa : float
        Ratio of the noise across the orbits of the balanced manifold to that along them.
    entropy : bool
        Let noise along the orbits act: ``False`` drops the drift ``grad S / beta``.
    t_end, dt : float
        End of time, and the largest step; steps are equal between saved times. A warning tells if
        a step along the gradient is as long as the point is from zero.
    generator : torch.Generator or int, optional
        Source of randomness, or its seed; by default a fresh one.
    increments : array_like, shape (steps, ..., m, n), optional
        Increments of the Brownian motion B, variance ``t_end / steps``, in place of `generator` and
        `dt`; sums of consecutive ones follow the same path. Only for product steps downstairs.
    save_at : array_like, shape (T,), optional
        Increasing times to save; by default 101 equally spaced ones, or every step.
    chains : int, optional
        Repeat the start this many times, along a new first dimension.
    widths : sequence of int or int, optional
        Hidden widths, for the entropy. By default ``min(m, n)``, or those of the factors.
    method : {"product", "splitting"}
        ``"product"``: the layers move along a horizontal line and are multiplied out; weak order 1
        (``2 E_{h/2} - E_h`` of two runs removes the leading error of an expectation), one SVD a
        step. ``"splitting"``: a flat Brownian motion of ``sqrt(N) U s^{1/N} V^T`` and random
        rotations of U and V; weak order 2, two SVDs a step and the time of 2 to 4 product steps.
        Without a loss it takes one SVD, and without entropy too every step is exact in the law of
        the singular values at full rank.
    upstairs : bool
        Move the balanced factors themselves by noise on their tangent space; the law of the
        products is the same. The depth must be an integer.
    keep_points : bool
        Store points at the saved times in `Trajectory.points`.
    observe : mapping of str to callable, optional
        Observables ``f(point) -> numbers (..., *k)`` of all chains at the saved times, kept by name
        in `Trajectory.observed`, see `gradient_flow`.
    progress : bool or callable
        Show a progress bar, or call this function with the fraction done at saved times.
    store : path, optional
        Folder in the format of zarr from which a killed run continues, to the same bits, and which
        ``xarray.open_zarr`` reads while the run goes on. A run that differs in anything is
        refused: loss, start, options, and the state of the generator when the run begins.
    every : float or mapping
        When rows and state are written, as in `gradient_flow`.

    Returns
    -------
    Trajectory
        ``final`` has the type of the start; upstairs it is the tuple of factors.

    Raises
    ------
    ValueError
        If a singular value of the start is zero, at lower than full rank or at infinite depth.
    FlowError
        If the loss or the matrices of a chain overflow. The error names these chains (status
        ``"failed"``, else ``"unfinished"``) and carries the last finite points of all chains.

    References
    ----------
    arXiv 2411.09004 (Menon), 2509.09088v3 (Menon, Yu), 2602.12257 (Menon, Stromme, Vacher).

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> start = dln.Collapsed.random((3, 3), 3, depth=4, generator=g)
    >>> path = dln.langevin(dln.losses.Quadratic(torch.eye(3)), start, beta=5.0, t_end=1.0, dt=0.01,
    ...                 generator=g, chains=20)
    >>> path.singular_values.shape
    torch.Size([101, 20, 3])
    """
    beta, entropy = as_positive(beta, "beta"), as_flag(entropy, "entropy")
    kappa = as_positive(kappa, "kappa", zero=entropy)
    as_choice(method, ("product", "splitting"), "method")
    upstairs, keep_points = as_flag(upstairs, "upstairs"), as_flag(keep_points, "keep_points")
    if method != "product" and (upstairs or increments is not None):
        raise ValueError(f'method must be "product" upstairs and with increments, got {method!r}')
    frames: list[Tensor] = []
    if upstairs:
        point, frames, widths = network_start(start, widths)
    elif isinstance(start, Collapsed | EndToEnd):
        point = as_point(start, complex=True)
    else:
        raise TypeError(
            "start must be a Collapsed or an EndToEnd (factors with upstairs=True), got "
            f"{type(start).__name__}"
        )
    point = point.detach()
    if generator is not None:
        generator = as_generator(generator, point.device)
    if loss is not None:
        loss = prepared(loss, point.shape, dtype=point.dtype, device=point.device)
    if chains is not None:
        count = as_count(chains, "chains")
        point = point.expand((count, *point.batch_shape))
        frames = [q.expand(count, *q.shape) for q in frames]
    if point.depth.infinite or (point.depth > 1.0 and point.rank < min(point.shape)):
        zeros = int((point.s <= torch.finfo(point.dtype).tiny).sum(-1).max())
        if zeros:
            raise ValueError(
                f"start must have the rank {point.rank} of its manifold, got {zeros} singular "
                "values that are zero: give the rank when making the point"
            )
    shown: dict[str, Any] = {"keep_points": keep_points, "observe": observe, "progress": progress}
    if kappa == 0 and not upstairs:
        if increments is not None:
            raise ValueError("increments must be None at kappa = 0: there is no noise downstairs")
        energy, times = _NoEnergy() if loss is None else loss, time_grid(t_end, dt, save_at).times
        shown |= {"t_end": t_end, "save_at": times, "store": store}
        return free_energy_flow(energy, point, beta=beta, widths=widths, **shown)
    entropy, excess = entropy and point.depth > 1, 0.0
    # At full rank hidden layers of the default width are as wide as the rank.
    if entropy and (widths is not None or point.rank < min(point.shape)):
        f = field_dimension(None, point.dtype)
        excess = hidden_excess(point.shape, point.rank, point.depth, widths, f)[1]
    drive = Thermostat(loss, beta, kappa, entropy, excess)
    grid, noise = _randomness(point, t_end, dt, save_at, generator, increments, upstairs)
    stepper: Stepper
    state: State = (point.u, point.s, point.vh)
    if upstairs:
        stepper, state = NetworkSteps(drive, noise, len(frames) - 1), (point.s, *frames)
    elif point.depth == 1.0:
        stepper, state = PlainSteps(drive, noise, heun=method == "splitting"), (point.matrix,)
    elif method == "splitting":
        stepper = SplittingSteps(drive, noise, point, isinstance(start, Collapsed))
        state = (*state, torch.zeros(1, dtype=torch.float64, device="cpu"))
    else:
        stepper = ProductSteps(drive, noise, point, isinstance(start, Collapsed))
    shown["store"] = opened(store)
    label = "brownian motion" if loss is None else "langevin"
    return simulate(stepper, state, grid, label=label, generator=noise.generator, **shown)


def brownian_motion(
    start: Collapsed | EndToEnd | Sequence[Any],
    *,
    t_end: float,
    dt: float | None = None,
    generator: torch.Generator | int | None = None,
    upstairs: bool = False,
    **options: Any,
) -> Trajectory:
    r"""Simulate Brownian motion on the matrices of rank r with the metric ``g^N``.

    ``dX = 1/2 (N-1) U Sigma^{1-2/N} V^T dt + U (sqrt(a_ij) dB_ij) V^T``, half the Laplace-Beltrami
    operator. The singular values in ``rho = sqrt(N) s^{1/N}`` have the same law at every finite
    depth, that of a Brownian motion of m x n matrices at full rank; at infinite depth ``log s`` is
    Dyson's motion of index 1.

    With `upstairs` it is Brownian motion on the balanced manifold instead: pushed down, it has the
    additional drift ``1/2 grad_{g^N} S``, the mean curvature of the orbits. References and all
    parameters, with ``increments, save_at, chains, widths, method, keep_points, progress, store``
    and ``every``, as in `langevin`.

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> start = dln.Collapsed.random((3, 2), 2, depth=5, generator=g)
    >>> path = dln.brownian_motion(start, t_end=0.5, dt=0.1, generator=g)
    >>> path.t
    tensor([0.0000, 0.1000, 0.2000, 0.3000, 0.4000, 0.5000], dtype=torch.float64)
    """
    upstairs = as_flag(upstairs, "upstairs")
    options |= {"t_end": t_end, "dt": dt, "generator": generator, "upstairs": upstairs}
    return langevin(None, start, beta=2.0, entropy=upstairs, **options)


def _randomness(
    point: EndToEnd,
    t_end: float,
    dt: float | None,
    save_at: Any,
    generator: torch.Generator | int | None,
    increments: Any,
    upstairs: bool,
) -> tuple[Grid, Gaussians]:
    """Return the grid of times and the source of noise."""
    if increments is None:
        if dt is None:
            raise ValueError("dt must be given where there are no increments")
        grid = time_grid(t_end, dt, save_at, device=point.device)
        return grid, Gaussians(as_generator(generator, point.device))
    if upstairs or generator is not None or dt is not None:
        raise ValueError("increments must come without upstairs, generator and dt, got both")
    kind: Any = {"dtype": point.dtype, "device": point.device}
    given = as_float_tensor(increments, "increments", **kind, complex=point.dtype.is_complex)
    shape = (*point.batch_shape, *point.shape)
    if given.shape[1:] != shape or given.shape[0] == 0:
        raise ValueError(
            f"increments must have shape (steps, {', '.join(map(str, shape))}), got "
            f"{tuple(given.shape)}"
        )
    grid = time_grid(t_end, None, save_at, steps=given.shape[0], device=point.device)
    return grid, Gaussians(None, given)


class _NoEnergy:
    """The loss that is zero everywhere."""

    def value(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-2])

    def gradient(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)
