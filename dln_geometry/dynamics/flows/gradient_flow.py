"""The Riemannian gradient flow of end-to-end matrices, for every start, rank and depth."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics import engines
from dln_geometry.dynamics.flows.choice import engine_for, is_spread, sharded_engine
from dln_geometry.dynamics.flows.precision import products_in
from dln_geometry.dynamics.flows.run import run_flow
from dln_geometry.dynamics.losses import Loss, ranks_of
from dln_geometry.dynamics.store import opened, resumable
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.ode import end_or_rules, until_rules
from dln_geometry.support import (
    EVERY,
    Every,
    ProgressCallback,
    as_count,
    as_flag,
    as_float_tensor,
    as_positive,
    warn,
)

COLLAPSED = 1e-3
"""Below this share of its start, the largest singular value of a flow with decay has collapsed."""
LOWEST = 1e-6
"""Below this share of the largest, a singular value at a depth between 1 and 2 has reached zero."""


FIXED_POINT = (
    "a zero matrix above depth 1, a critical point of the loss, or singular vectors on which its "
    "gradient does not act; it will not move, or only as rounding decides. Start from a small "
    "random network instead, such as Collapsed.random(..., scale=1e-3)"
)


@resumable("t_end", "until", "observe")
def gradient_flow(
    loss: Loss,
    start: Collapsed | EndToEnd | Sequence[Any],
    *,
    t_end: float | None = None,
    until: Mapping[str, float] | None = None,
    decay: Any = 0.0,
    save_at: Any = None,
    rtol: float = 1e-8,
    atol: float | None = None,
    method: Any = None,
    engine: str = "auto",
    rebalance: float | None = None,
    keep_points: bool = False,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    dense: bool = False,
    monitor: Callable[[Any], Tensor] | None = None,
    patience: int | None = None,
    improvement: float = 0.0,
    precision: str | None = None,
    progress: bool | ProgressCallback = False,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
) -> Trajectory:
    r"""Integrate ``dX/dt = -A_{N,X}(E'(X))``.

    Points of any depth and rank are integrated as two or three thin matrices; factors layer by
    layer, at the width of their rank where they are balanced. Ten layers of full rank take 3 times
    as long as ``Collapsed.of(factors)``, whose end does not tell how the hidden layers have turned:
    that depends on the whole path of X. Depth 1 keeps a rank that was given below full rank. At
    infinite depth (normalised metric) only an r x r core of X moves, between fixed row and column
    spaces.

    Parameters
    ----------
    loss : Loss
        The loss E; see `dln_geometry.losses`.
    start : Collapsed, EndToEnd or sequence of array_like
        A point, or the factors ``(W_1, ..., W_N)``. Leading dimensions are a batch of
        independent runs, each with its own step sizes.
    t_end : float, optional
        Time at which every run ends; optional if `until` is given.
    until : mapping, optional
        Stopping rules, the first that is met ends a run: ``"loss"`` (value at or below),
        ``"gradient"`` (norm of the Riemannian gradient, ``sqrt(-dE/dt)``, at or below),
        ``"steps"`` (tried steps), ``"evaluations"`` (of the flow's right-hand side; 200 000 by
        default, ``math.inf`` for no bound), ``"seconds"`` (of wall clock).
    decay : float or array_like, shape (...)
        Weight decay k >= 0: the flow is that of ``E + (k/2) sum_p |W_p|^2``, which downstairs is
        ``E + (k N/2) sum_i s_i^{2/N}``, at infinite depth ``E + k sum_i log s_i`` (its limit up to
        a constant). The trajectory's loss is E alone, the gradient that of the sum.
    save_at : array_like of shape (T,) or int, optional
        Increasing times to save, hit exactly; or how many, equally spaced. By default every step
        of a single run is saved, and 101 equally spaced times of a batch (start and end if there
        is no `t_end`).
    rtol : float
        Tolerated local error of each matrix of the state relative to its Frobenius norm.
    atol : float, optional
        Absolute tolerance; by default ``1e-3 rtol`` times the norm of the start.
    method : str or method value, optional
        ``"auto"`` (default: explicit; where the flow is stiff, linearly implicit for states of up
        to 200 numbers, stabilised for others), ``"rk3"``, ``"rk5"``, ``"rk8"``, ``"rodas"``
        (implicit, order 5; a step never ends beyond a rank drop, which the flow does not cross),
        ``"rkc"`` (stabilised), or a method of `dln_geometry.ode`.
    engine : {"auto", "spectral", "products", "layers"}
        Integrate a balanced start with an `eigh` of an r x r matrix, with matrix products alone
        (integer depth), or by all its layers. The default is the faster of the first two for
        points, and the layers at the width of their rank for factors.
    rebalance : float, optional
        Restore the invariants (keeping X) when their defect passes this bound, at one more
        evaluation each time. By default they are only monitored and drift within the tolerance.
    keep_points : bool
        Keep the whole point at every saved time in `Trajectory.points`: (m + n) r numbers each.
    observe : mapping of str to callable, optional
        Observables ``f(point) -> numbers``, called at every saved time and kept under their names
        in `Trajectory.observed`, shape (T, ..., *k). A single run gives its point, a batch all of
        its points with their leading dimensions, which the result must have too. A store knows
        them by their names.
    dense : bool
        Keep state and velocity after every step, so that `Trajectory.at` gives the point and all
        series at any time, whatever was saved, with an error of the eighth order in the steps: 2
        (m + n) r numbers a step, and three evaluations of the flow and the observables.
    monitor : callable, optional
        ``monitor(point) -> Tensor (...)``, an observable of the (batched) point, called at the
        start and after every accepted step; less is better, NaN is worst. The trajectory's `final`
        is then the best point, and its `monitored` holds the curve and the last point. A
        `Validation` watches held-out entries.
    patience : int, optional
        A sample stops, with the status ``"patience"``, after so many of its accepted steps in which
        the least value of the monitor fell by less than `improvement`; by default it does not.
    improvement : float
        Decrease, relative to the least value, that renews the patience; by default any.
    precision : {"float32", "tf32", "bf16"}, optional
        Digits of the factors in products of a float32 flow, on hardware that has such products: 24,
        11 or 8 bits, summed in single precision. By default as
        ``torch.set_float32_matmul_precision`` says. Measured with rounded factors on a
        quadratic loss at depths 2 to infinity, the matrix is within 4 units of their last place
        (2^-11, 2^-8) of the flow in double precision, relative to its norm; rules below that are
        not met.
    progress : bool or callable
        Show a progress bar; or call ``progress(fraction_done, info)``, at most ten times a second;
        `info` has ``"loss"`` (the largest of a batch), ``"t"``, ``"h"``, ``"steps"``,
        ``"evaluations"`` and ``"method"``.
    store : path, optional
        Folder in the format of zarr that holds the rows and the state of the run;
        ``xarray.open_zarr`` reads the series while the run goes on. If it exists, the run
        continues from it, with the results of an uninterrupted run. A run that differs in anything
        that decides the result is refused: loss, start, options. `t_end` may be raised unless saved
        times depend on it, and `until` may be changed, but for the presence of ``"gradient"``.
    every : float or mapping
        When rows and state are written: after so many seconds, or ``{"steps": n}`` steps, or the
        first of both. A checkpoint adds what is new.

    Returns
    -------
    Trajectory
        ``status`` is ``"t_end"`` or the rule that was met. A warning tells of the others:
        ``"evaluations"`` (the default bound), ``"nonsmooth"`` (steps shrink at a jump of the
        gradient, as of ``|x|``, and the end is out of reach), ``"stationary"`` (the velocity is
        zero, or its square below the range of the type, at the start or, without `t_end`, later: in
        float64 velocities below 1e-154) and ``"stalled"`` (without `t_end`:
        the flow moves by rounding alone, and the rules are not met). Rows of a sample that stopped
        early repeat its last state. At depths between 1 and 2 singular values reach zero in finite
        time, where the flow ceases to be unique: a warning tells of runs that went past that in the
        rows that are kept.
        ``final`` of a run from factors is always a `Network`: the layers of the layered flow
        (those of `balanced_factors` if an engine on two matrices was asked for). From a point it is
        a `Collapsed`, but an `EndToEnd` at full rank and depth 1, and for an `EndToEnd` of a depth
        above 100, whose N-th roots would lose digits.

    Raises
    ------
    FlowError
        If the flow blows up on the way; the error carries the trajectory so far.

    References
    ----------
    Menon, arXiv 2411.09004; Arora, Cohen, Hazan 2018.

    Examples
    --------
    The end-to-end entry of a 1 x 1 network of depth 2, pulled towards 1:

    >>> loss, start = dln.losses.Quadratic([[1.0]]), dln.EndToEnd.of([[0.5]], 2)
    >>> path = dln.gradient_flow(loss, start, t_end=1.0)
    >>> round(float(path.final.matrix), 4)
    0.8808
    """
    keep_points = as_flag(keep_points, "keep_points")
    rules = until_rules(until, ("loss", "gradient", "steps", "evaluations", "seconds"))
    t_end = end_or_rules(t_end, rules)
    watch, shared = "gradient" in rules, ranks_of(loss) is not None or is_spread(start)
    if shared:
        from dln_geometry.dynamics import sharded  # Its imports take half a second.

        options = {"t_end": t_end, "until": rules, "decay": decay, "save_at": save_at, "rtol": rtol}
        options |= {"atol": atol, "method": method, "engine": engine, "rebalance": rebalance}
        options |= {"keep_points": keep_points, "dense": dense, "precision": precision}
        options |= {"patience": patience, "improvement": improvement, "store": store}
        options |= {"observe": observe, "monitor": monitor, "progress": progress}
        progress, monitor, observe = sharded.shared_options(loss, start, options)
        chosen = sharded_engine(loss, start, engine, watch, opened(store))
    else:
        chosen = engine_for(loss, start, engine, watch)
    chosen.decay = _decay_of(decay, chosen)
    monitor, patience = _checked_monitor(monitor, patience)
    # The flow of the metric divided by N is N times as slow.
    point = isinstance(start, Collapsed | EndToEnd)
    slow = start.depth.unit(start.normalized) if point else 1.0
    with products_in(precision, chosen.rows().dtype):
        path = run_flow(
            chosen,
            t_end,
            rules,
            save_at=save_at,
            rtol=rtol,
            atol=atol,
            method=method,
            progress=progress,
            store=store,
            slow=slow,
            rebalance=rebalance,
            keep_points=keep_points,
            observe=observe,
            dense=dense,
            fixed_point=FIXED_POINT,
            monitor=monitor,
            patience=patience,
            improvement=as_positive(improvement, "improvement", zero=True),
        )
    if chosen.decay is not None:
        _tell_of_collapse(path, chosen.decay)
    if 1.0 < path.depth < 2.0:
        _tell_of_rank_drop(path)
    return path


def _tell_of_collapse(path: Trajectory, decay: Tensor) -> None:
    """Warn of samples whose decay won against a loss that zero does not minimise.

    From depth 3 on zero attracts: near it the loss pulls with ``s^{2-2/N}``, the decay with s.
    """
    assert path.singular_values is not None
    first, last = (path.singular_values[k].amax(-1) for k in (0, -1))
    lost = (last < COLLAPSED * first) & (decay.view(first.shape) > 0)
    if path.depth > 2 and bool(lost.any()):
        count = f" in {int(lost.sum())} of {lost.numel()} samples" if lost.ndim else ""
        warn(
            f"decay drove X to zero{count}, which attracts small matrices at depths above 2: "
            "start larger, or take a smaller decay",
            UserWarning,
        )


def _tell_of_rank_drop(path: Trajectory) -> None:
    """Warn of samples that went past a rank drop at a depth between 1 and 2.

    There a singular value moves with ``s^{2-2/N}``, which is not Lipschitz at zero: it gets there
    in finite time, and may leave at any later time, as rounding decides.
    """
    assert path.singular_values is not None
    share = path.singular_values / path.singular_values[..., :1].clamp_min(
        torch.finfo(path.singular_values.dtype).tiny
    )
    low = share.amin(0)
    past = (share[0] > LOWEST) & (low < LOWEST) & (share[-1] > 100.0 * low)
    if bool((hit := past.any(-1)).any()):
        count = f" in {int(hit.sum())} of {hit.numel()} samples" if hit.ndim else ""
        warn(
            f"a singular value reached zero{count} and grew again: at depth {path.depth:g}, "
            "between 1 and 2, a flow is not unique beyond a rank drop, rounding decides its course"
        )


def _checked_monitor(
    monitor: Callable[[Any], Tensor] | None, patience: int | None
) -> tuple[Callable[[Any], Tensor] | None, int | None]:
    """Check that the monitor is a function, and that patience waits for one."""
    if monitor is not None and not callable(monitor):
        raise TypeError(f"monitor must be a function of a point, got {type(monitor).__name__}")
    if patience is None:
        return monitor, None
    if monitor is None:
        raise ValueError(f"patience needs a monitor to wait for, got {patience!r} and no monitor")
    return monitor, as_count(patience, "patience")


def _decay_of(decay: Any, engine: engines.Engine) -> Tensor | None:
    """Return the factor of the decay of every sample, shape (B,), None without any."""
    like = engine.rows()
    k = as_float_tensor(decay, "decay", dtype=like.dtype, device=like.device)
    try:
        k = k.expand(engine.batch).reshape(-1)
    except RuntimeError:
        raise ValueError(
            f"decay must be a number or have the shape of the batch {tuple(engine.batch)}, got "
            f"{tuple(k.shape)}"
        ) from None
    if bool((k < 0).any()):
        raise ValueError(f"decay must be at least 0, got {float(k.min()):g}")
    return k if bool((k > 0).any()) else None
