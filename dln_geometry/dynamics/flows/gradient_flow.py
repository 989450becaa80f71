"""The Riemannian gradient flow of end-to-end matrices, for every start, rank and depth."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.dynamics.engines import GRADIENT, LOSS, Engine, Watched, engine_for, map_point
from dln_geometry.dynamics.losses import Loss
from dln_geometry.dynamics.store import Store
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.ode import IntegrationError, Solution, end_or_rules, integrate, until_rules
from dln_geometry.support import Progress

__all__ = ["FlowError", "gradient_flow"]

RULES = ("loss", "gradient", "steps", "evaluations", "seconds")


class FlowError(ValueError):
    """Tell that a flow could not go on; `trajectory` is what was reached."""

    def __init__(self, message: str, trajectory: Trajectory) -> None:
        super().__init__(message)
        self.trajectory = trajectory


def gradient_flow(
    loss: Loss,
    start: Collapsed | EndToEnd | Sequence[Any],
    *,
    t_end: float | None = None,
    until: Mapping[str, float] | None = None,
    save_at: Any = None,
    rtol: float = 1e-8,
    atol: float | None = None,
    method: Any = None,
    engine: str = "auto",
    rebalance: float | None = None,
    keep_points: bool = False,
    progress: bool | Callable[[float, dict[str, Any]], None] = False,
    store: str | os.PathLike[str] | None = None,
) -> Trajectory:
    r"""Integrate ``dX/dt = -A_{N,X}(E'(X))``.

    Balanced starts of any depth and rank are integrated as two or three thin matrices;
    unbalanced factors layer by layer; depth 1 is the plain flow of X; at infinite depth
    (normalised metric) the row and column spaces stand still and an r x r core moves.

    Parameters
    ----------
    loss : Loss
        What is minimised; see `dln_geometry.losses`.
    start : Collapsed, EndToEnd or sequence of array_like
        A point, or the factors ``(W_1, ..., W_N)``. Leading dimensions are a batch of
        independent runs, each with its own step sizes.
    t_end : float, optional
        Time at which every run ends; may be left out if `until` is given.
    until : mapping, optional
        Stopping rules, the first that is met ends a run: ``"loss"`` (value at or below),
        ``"gradient"`` (norm of the Riemannian gradient, ``sqrt(-dE/dt)``, at or below),
        ``"steps"`` (tried steps), ``"evaluations"`` (of the flow's right-hand side; 200 000 if
        there is no `t_end`, since the other rules may never be met), ``"seconds"`` (of wall
        clock).
    save_at : array_like of shape (T,) or int, optional
        Increasing times to save, hit exactly; or how many, equally spaced. By default every step
        of a single run is saved, and 101 equally spaced times of a batch (start and end if there
        is no `t_end`).
    rtol : float
        Tolerated local error of each matrix of the state relative to its Frobenius norm.
    atol : float, optional
        Absolute tolerance for the Frobenius norms; by default ``1e-3 rtol`` times the norm of
        the start.
    method : str or method value, optional
        ``"auto"`` (default: explicit Runge-Kutta, switching to the stabilised method where the
        flow is stiff), ``"rk5"``, ``"rk8"``, ``"rkc"``, or a value of `dynamics.methods`.
    engine : {"auto", "spectral", "products", "layers"}
        How a balanced start is held: as two matrices with an `eigh` of an r x r matrix, or by
        matrix products alone (integer depth), whichever was measured to be faster; or as all its
        layers.
    rebalance : float, optional
        Restore the invariants (keeping X) when their defect passes this bound, which costs
        r x r work and one more evaluation each time. By default they are only monitored: they
        drift no more than the tolerance lets them.
    keep_points : bool
        Keep the whole point at every saved time in `Trajectory.points`: (m + n) r numbers each.
    progress : bool or callable
        Show a progress bar; or call ``progress(fraction_done, info)``, at most ten times a second.
    store : path, optional
        File that holds the state of the run, renewed every few seconds. If it exists, the run
        continues from it, and gives what an uninterrupted one would have given. `t_end` may be
        raised unless saved times depend on it, and `until` may be changed.

    Returns
    -------
    Trajectory
        ``final`` is a `Collapsed` for collapsed runs, the factors for layered runs, an `EndToEnd`
        at depth 1 and where an `EndToEnd` of a depth above 100 was given, whose N-th roots would
        lose digits.

    Raises
    ------
    TypeError
        If `start` is neither a point nor factors.
    ValueError
        If neither `t_end` nor `until` is given, a time is negative or NaN, a rule is unknown,
        the shapes of loss and start differ, or the loss is not finite at the start.
    FlowError
        If the flow blows up on the way; the error carries the trajectory so far.

    References
    ----------
    Menon, arXiv 2411.09004; Arora, Cohen, Hazan 2018.

    Examples
    --------
    The end-to-end entry of a 1 x 1 network of depth 2, pulled towards 1:

    >>> from dln_geometry import losses
    >>> path = gradient_flow(losses.Quadratic([[1.0]]), EndToEnd.of([[0.5]], 2), t_end=1.0)
    >>> round(float(path.final.matrix), 4)
    0.8808
    """
    rules = until_rules(until, RULES)
    t_end = end_or_rules(t_end, rules)
    chosen, batch = engine_for(loss, start, engine, watch="gradient" in rules)
    y0 = chosen.rows()
    times = _save_times(save_at, t_end, y0.shape[0])
    # In the metric divided by N everything happens N times as slowly, and nothing else changes.
    slow = 1.0
    if isinstance(start, Collapsed | EndToEnd) and start.normalized and start.depth < math.inf:
        slow = start.depth
    saved = None
    if store is not None:
        identity = {
            "start": y0,
            "save_at": None if times is None else torch.as_tensor(times, dtype=torch.float64),
            "options": [rtol, atol, repr(method), rebalance, keep_points, slow],
            "engine": type(chosen).__name__,
            "loss": [type(loss).__name__, _trace(chosen, y0)],
        }
        saved = Store(store, identity)

    def record(y: Tensor, obs: Tensor) -> dict[str, Tensor]:
        row = {
            "loss": obs[:, LOSS],
            "singular_values": chosen.singular_values(y),
            "defect": chosen.defect(y, obs),
        }
        return {**row, "state": y} if keep_points else row

    correct = None
    if rebalance is not None:
        if not rebalance > 0:
            raise ValueError(f"rebalance must be positive, got {rebalance}")
        chosen = Watched(chosen)
        bound = float(rebalance)
        correct = (lambda obs: obs[:, -1] > bound, chosen.rebalanced)
    stop = {}
    if "loss" in rules:
        stop["loss"] = (LOSS, rules["loss"])
    if "gradient" in rules:
        stop["gradient"] = (GRADIENT, slow**0.5 * rules["gradient"])
    with Progress(progress) as bar:
        try:
            solution = integrate(
                chosen.field,
                y0,
                t_end=t_end / slow,
                rtol=rtol,
                atol=atol,
                blocks=chosen.sizes,
                method="auto" if method is None else method,
                save_at=times if times is None else torch.as_tensor(times) / slow,
                record=record,
                stop=stop,
                max_steps=None if "steps" not in rules else int(rules["steps"]),
                max_evaluations=None if "evaluations" not in rules else int(rules["evaluations"]),
                max_seconds=rules.get("seconds"),
                correct=correct,
                progress=bar.callback,
                checkpoint=None if saved is None else saved.save,
                resume=None if saved is None else saved.load(),
            )
        except IntegrationError as error:
            reached = _trajectory(error.solution, chosen, batch, keep_points, slow)
            raise FlowError(str(error), reached) from error
    return _trajectory(solution, chosen, batch, keep_points, slow)


@torch.no_grad()
def _trace(engine: Engine, y: Tensor) -> str:
    """Return what tells a loss from another one: its figures at the start, to six digits."""
    velocity = torch.empty_like(y)
    observed = engine.field(y.new_zeros(y.shape[0]), y, velocity)
    return f"{float(observed[:, LOSS].sum()):.5e} {float(torch.linalg.vector_norm(velocity)):.5e}"


def _save_times(save_at: Any, t_end: float, samples: int) -> Any:
    """Return the times to save; `None` is every step of a single run."""
    if isinstance(save_at, numbers.Integral) and not isinstance(save_at, bool):
        if save_at < 2 or math.isinf(t_end) or t_end == 0:
            raise ValueError(
                f"save_at must be times, or a number >= 2 up to a finite t_end > 0, got {save_at}"
            )
        return torch.linspace(0.0, t_end, int(save_at), dtype=torch.float64)
    if save_at is not None:
        return np.asarray(save_at, dtype=np.float64) if not torch.is_tensor(save_at) else save_at
    if samples == 1 or math.isinf(t_end) or t_end == 0:
        return None
    return torch.linspace(0.0, t_end, 101, dtype=torch.float64)


def _trajectory(
    solution: Solution, engine: Engine, batch: tuple[int, ...], keep: bool, slow: float
) -> Trajectory:
    """Give the rows of a solution the shape of the batch, and the last ones that of a point."""

    def shaped(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *batch, *x.shape[2:])

    def unbatched(point: Any) -> Any:
        return map_point(point, lambda x: x.reshape(*batch, *x.shape[1:]))

    points = None
    if keep:
        points = tuple(unbatched(engine.point(row)) for row in solution.saved["state"])
    return Trajectory(
        t=solution.t * slow,
        loss=shaped(solution.saved["loss"]),
        singular_values=shaped(solution.saved["singular_values"]),
        defect=shaped(solution.saved["defect"]),
        final=unbatched(engine.point(solution.y)),
        status=solution.status if batch else solution.status[0],
        stats=solution.stats,
        points=points,
        depth=engine.depth,
    )
