"""Flows of the factors of a fixed X towards balanced ones, by hidden changes of basis."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.engines import MomentEngine
from dln_geometry.dynamics.flows.balancing_path import (
    LATE,
    SNAP,
    BalancingPath,
    Stack,
    balancing_generator,
)
from dln_geometry.dynamics.flows.run import run_flow
from dln_geometry.dynamics.observing import observed_rows, split_rows
from dln_geometry.dynamics.store import opened, resumable
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Network, by_power_of_two, exponent_of, is_ordinary
from dln_geometry.ode import end_or_rules, until_rules
from dln_geometry.support import (
    EVERY,
    Every,
    Observables,
    Progress,
    ProgressCallback,
    as_double,
    as_factors,
    as_observables,
    read_array,
)


def balancing_velocity(factors: Sequence[Any]) -> tuple[Tensor, ...]:
    """Return the velocity of `balancing_flow`: minus W, projected on the orbit's tangent space.

    ``dW_k = c_k W_k - W_k c_{k-1}``, ``c_0 = c_N = 0``, with c a solution of

        ``c_k W_k W_k^T - W_k c_{k-1} W_k^T
        + W_{k+1}^T W_{k+1} c_k - W_{k+1}^T c_{k+1} W_{k+1} = G_k``

    and the moments ``G_k = W_{k+1}^T W_{k+1} - W_k W_k^T``; c is not symmetric in general.
    Factors as in `balancing_flow`; returns one matrix for every layer, of its shape. Computed in
    double precision.

    References
    ----------
    Lindsey, Menon, arXiv 2511.01137.

    Examples
    --------
    >>> dln.balancing_velocity(([[1.0]], [[3.0]]))
    (tensor([[0.8000]]), tensor([[-2.4000]]))
    """
    layers = as_factors(factors, complex=True)
    if len(layers) == 1 or layers[0].numel() == 0:
        return tuple(torch.zeros_like(w) for w in layers)
    # Roundings grow with the condition of the layers: compute in double precision.
    stack = Stack([as_double(w) for w in _flat(layers)])
    c = balancing_generator(stack.tensor)
    velocity = torch.zeros_like(stack.tensor)
    velocity[:, :-1] = c @ stack.tensor[:, :-1]
    velocity[:, 1:] -= stack.tensor[:, 1:] @ c
    return _shaped(stack.layers(velocity), layers)


@overload
def balancing_flow(
    factors: Sequence[Any],
    t: float | Sequence[float] | Tensor,
    *,
    observe: None = None,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
    progress: bool | ProgressCallback = False,
) -> tuple[Tensor, ...] | list[tuple[Tensor, ...]]: ...
@overload
def balancing_flow(
    factors: Sequence[Any],
    t: float | Sequence[float] | Tensor,
    *,
    observe: Mapping[str, Callable[[Any], Any]],
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
    progress: bool | ProgressCallback = False,
) -> Trajectory: ...
@resumable("observe")
def balancing_flow(
    factors: Sequence[Any],
    t: float | Sequence[float] | Tensor,
    *,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
    progress: bool | ProgressCallback = False,
) -> tuple[Tensor, ...] | list[tuple[Tensor, ...]] | Trajectory:
    """Return the factors after a time t of the gradient flow of ``1/2 sum |W_p|^2`` on the fibre.

    X is held fixed, the moments decay like ``G_p(t) = e^{-2t} G_p(0)``, both exactly up to
    rounding, and at infinite time the factors are balanced. The place among the factors with
    these moments has an error of about 1e-8.

    Parameters
    ----------
    factors : sequence of array_like
        Layers ``(W_1, ..., W_N)``, W_p of shape (..., d_p, d_{p-1}).
    t : float or sequence of float, shape (T,)
        Time, at least 0, or ``math.inf``; or increasing times, which give a list of factors at
        the cost of one pass and of a step (12 evaluations of the velocity) for each time.
    observe : mapping of str to callable, optional
        Functions of the factors by name, as in `gradient_flow`. The result is then a `Trajectory`
        with their values at the times; its ``points`` are the factors, ``loss`` is
        ``1/2 sum |W_p|^2``, ``singular_values`` those of X, ``defect`` the drift of X relative to
        its norm.
    store, every
        As in `gradient_flow`. The variable ``stack`` holds the layers in the form in which they are
        integrated, before the moments are restored.
    progress : bool or callable
        Show a progress bar; or call ``progress(fraction_done, info)``, at most ten times a second
        (at infinite time, the fraction of the longest way).

    Raises
    ------
    ValueError
        If 20 000 evaluations of the velocity do not reach a time: neighbouring layers have singular
        values below about 1e-8 of their largest, but not zero.

    Notes
    -----
    The velocity is that of `balancing_velocity`. The changes of basis g_k are integrated in
    double precision, ``dg_k/dt = c_k g_k``, so that X is kept whatever the error; then Newton's
    method ``W_k -> e^{x_k} W_k e^{-x_{k-1}}`` restores the moments. On one core, to infinite
    time: 0.7 s for 4 layers of 10 x 10, 1.2 s for 8 of 6 x 6, 4.5 s for 3 of 20 x 20.

    References
    ----------
    Lindsey, Menon, arXiv 2511.01137.

    Examples
    --------
    >>> import math
    >>> dln.balancing_flow(([[1.0]], [[4.0]]), math.inf)
    (tensor([[2.]]), tensor([[2.]]))
    >>> path = dln.balancing_flow(([[1.0]], [[4.0]]), [0.0, 1.0], observe={"first": lambda w: w[0]})
    >>> path.observed["first"].flatten()
    tensor([1.0000, 1.7640])
    """
    layers, observables = as_factors(factors, complex=True), as_observables(observe)
    times = _checked_times(t)
    small, size = layers, None
    if not is_ordinary(layers):
        # The flow scales with the layers, whose squares are in range then.
        size = exponent_of(*layers)
        small = tuple(by_power_of_two(w, -size) for w in layers)
    states = _states_at(small, times, progress, store)
    if size is not None:
        states = [tuple(by_power_of_two(w, size) for w in state) for state in states]
    if observe is not None:
        return _record_of(layers, times, states, observables)
    return states if np.ndim(t) else states[0]


def _states_at(
    layers: Sequence[Tensor], times: list[float], progress: bool | ProgressCallback, store: Any
) -> list[tuple[Tensor, ...]]:
    """Return the factors at times that do not decrease, in one pass."""
    states = []

    def copy() -> tuple[Tensor, ...]:
        return tuple(w.clone() for w in layers)

    with Progress(progress, "balancing") as bar:
        moves = len(layers) > 1 and layers[0].numel() > 0
        flow = BalancingPath(_flat(layers), bar.callback, opened(store)) if moves else None
        if flow is None:
            return [copy() for _ in times]
        flow.until = max(min(times[-1], SNAP if math.isinf(times[-1]) else LATE), 1e-300)
        on_the_way = flow.layers_at([time for time in times if 0 < time < math.inf])
        for time in times:
            if time == 0:
                states.append(copy())
            else:
                moved = flow.balanced() if math.isinf(time) else next(on_the_way)
                states.append(_shaped(moved, layers))
    return states


def _record_of(
    layers: Sequence[Tensor],
    times: list[float],
    states: Sequence[Sequence[Tensor]],
    observables: Observables,
) -> Trajectory:
    """Return the factors at the times as a run, with the values of the observables."""
    points, start = [Network(w).detach() for w in states], Network(layers).detach()
    batch, device = start.batch_shape, start.matrix.device
    size = torch.linalg.matrix_norm(start.matrix)
    rows = []
    for point in points:
        gap = torch.linalg.matrix_norm(point.matrix - start.matrix)
        row = {
            "loss": 0.5 * sum(w.abs().square().sum((-2, -1)) for w in point),
            "singular_values": point.singular_values,
            "defect": gap / torch.where(size > 0, size, 1.0),
        }
        rows.append(row | observed_rows(observables, point, tuple(batch), device))
    series = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    own, observed = split_rows(series)
    return Trajectory(
        t=torch.tensor(times, dtype=torch.float64, device=device),
        loss=own["loss"],
        singular_values=own["singular_values"],
        defect=own["defect"],
        final=points[-1],
        status=["t_end"] * batch.numel() if batch else "t_end",
        points=tuple(points),
        depth=float(len(layers)),
        observed=observed,
    )


@resumable("t_end", "until", "observe")
def kirwan_ness_flow(
    factors: Sequence[Any],
    t_end: float | None = None,
    *,
    until: Mapping[str, float] | None = None,
    save_at: Any = None,
    rtol: float = 1e-8,
    atol: float | None = None,
    method: Any = None,
    keep_points: bool = False,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    dense: bool = False,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
    progress: bool | ProgressCallback = False,
) -> Trajectory:
    r"""Integrate the gradient flow of ``1/2 sum_p |G_p|^2``, which ends at balanced factors.

    ``dW_k/dt = 2 (G_k W_k - W_k G_{k-1})`` with ``G_k = W_{k+1}^T W_{k+1} - W_k W_k^T`` and
    ``G_0 = G_N = 0``: hidden changes of basis by symmetric matrices, so that X is conserved. Near
    the balanced factors of a square X of full rank the slowest mode decays at the rate
    ``16 s_min^{2/N} sin^2(pi/2N)`` while the fastest ones go like ``|W|^2``: a stiff flow.

    Parameters and errors as in `gradient_flow`, the factors in place of the start, without the
    rule ``"gradient"``. In the trajectory ``loss`` is ``1/2 sum |G_p|^2``, ``singular_values`` are
    those of X, ``defect`` the drift of X relative to its norm, ``final`` the factors.

    Notes
    -----
    Lindsey and Menon write ``2 (W_k G_{k-1} - G_k W_k)``, with moments of the opposite sign.

    References
    ----------
    Lindsey, Menon, arXiv 2511.01137.

    Examples
    --------
    >>> path = dln.kirwan_ness_flow(([[2.0]], [[0.5]]), t_end=50.0)
    >>> dln.is_balanced(path.final, rtol=1e-6)
    tensor(True)
    >>> path.final.matrix.round(decimals=4)
    tensor([[1.]])
    """
    engine = MomentEngine(Network(factors).detach())
    rules = until_rules(until, ("loss", "steps", "evaluations", "seconds"))
    t_end = end_or_rules(t_end, rules)
    return run_flow(
        engine,
        t_end,
        rules,
        save_at=save_at,
        rtol=rtol,
        atol=atol,
        method=method,
        progress=progress,
        store=store,
        keep_points=keep_points,
        observe=observe,
        dense=dense,
        label="moments",
    )


def _flat(layers: Sequence[Tensor]) -> list[Tensor]:
    """Return detached layers with one batch dimension."""
    return [w.detach().reshape(-1, *w.shape[-2:]) for w in layers]


def _shaped(moved: Sequence[Tensor], layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Give moved layers the shapes and the dtype of the given ones."""
    return tuple(w.reshape(x.shape).to(x.dtype) for w, x in zip(moved, layers, strict=True))


def _checked_times(t: Any) -> list[float]:
    """Return one or several times, which must not decrease."""
    if isinstance(t, bool):
        raise TypeError(f"t must be a time or a sequence of times, got {t}")
    values = read_array(t, "t")[0].detach().to("cpu", torch.float64).numpy()
    if values.ndim > 1 or values.size == 0:
        raise ValueError(f"t must be a time or a sequence of times, got shape {values.shape}")
    if not (values >= 0).all():
        raise ValueError(f"t must be at least 0, got {values.tolist()}")
    if values.ndim and (np.diff(values) < 0).any():
        raise ValueError(f"t must not decrease, got {values.tolist()}")
    return np.atleast_1d(values).tolist()
