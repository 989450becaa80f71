"""`integrate`: adaptive integration of a batch of ordinary differential equations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.checkpoint import Keeper, resume_from, save_state
from dln_geometry.ode.control import RESERVED, Options, limits_of
from dln_geometry.ode.loop import Integration
from dln_geometry.ode.methods import (
    BlockNorms,
    Field,
    Jacobian,
    KnownField,
    Method,
    Projection,
    methods_of,
    norms_of,
)
from dln_geometry.ode.monitoring import Monitor, Observable
from dln_geometry.ode.narrowing import whole_run
from dln_geometry.ode.recording import (
    MOST_EVALUATIONS,
    Record,
    Recorder,
    Solution,
    save_times,
)
from dln_geometry.support import (
    EVERY,
    Every,
    Schedule,
    as_flag,
    as_float_tensor,
    as_real,
    as_rtol,
    read_array,
    shown,
)


@torch.no_grad()
def integrate(
    field: Field,
    y0: Tensor,
    *,
    t_end: float,
    rtol: float = 1e-8,
    atol: float | Tensor | None = None,
    blocks: Sequence[int] | BlockNorms | None = None,
    method: Method = "auto",
    save_at: Any = None,
    record: Record | None = None,
    stop: Mapping[str, tuple[int, float]] | None = None,
    max_steps: int | None = None,
    max_evaluations: float | None = None,
    max_seconds: float | None = None,
    autonomous: bool = False,
    correct: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None,
    monitor: Observable | None = None,
    patience: int | None = None,
    improvement: float = 0.0,
    keep_steps: bool = False,
    progress: Callable[[float, dict[str, Any]], None] | None = None,
    checkpoint: Callable[[dict[str, Any]], None] | Keeper | None = None,
    checkpoint_every: Every | Schedule = EVERY,
    resume: dict[str, Any] | None = None,
    jacobian: Jacobian | None = None,
    project: Projection | None = None,
    shift: Projection | None = None,
    outside: Observable | None = None,
    narrowed: Callable[[Tensor], KnownField | None] | None = None,
    steady: bool = False,
    overwrite: bool = False,
) -> Solution:
    """Integrate ``dy/dt = field(t, y)`` from 0 to `t_end`, every sample with its own steps.

    A step is accepted where ``max_b |e_b| / (atol + rtol max(|y_b|, |y_new_b|)) <= 1`` over the
    blocks b of the state, in 2-norms (Hairer, Norsett, Wanner, Solving ODEs I, II.4-II.5). The host
    waits for the device once a step.

    Parameters
    ----------
    field : callable
        ``field(t, y, out)`` writes the derivative of the whole batch at ``t (B,)``, ``y (B, n)``
        into ``out (B, n)`` and returns observables (B, k) of that point, or None.
    y0 : Tensor, shape (B, n)
    t_end : float
        May be infinite if there is a stopping rule, or a limit other than the default.
    rtol : float
        Relative tolerance; a warning tells if it is moved between 4 eps of the dtype and 1.
    atol : float or Tensor of shape (B,), optional
        Absolute tolerance; by default ``1e-3 rtol |y0|`` of each sample, `rtol` where y0 = 0.
    blocks : sequence of int or BlockNorms, optional
        Sizes of the blocks that make up the n numbers, or their norms; by default one block.
    method : str or method value
        ``"rk3"``, ``"rk5"``, ``"rk8"``; for stiff problems ``"rkc"``, stabilised, or ``"rodas"``,
        linearly implicit, for small states; ``"auto"`` starts with rk8 in double precision at
        rtol <= 1e-6, otherwise with rk5, and switches to rodas (if `jacobian` is given and a state
        has at most 200 numbers) or rkc and back, to the one that costs less per unit of time.
    save_at : array_like, shape (T,), optional
        Increasing times in [0, t_end], met exactly. By default every accepted step of a single
        sample, start and end of a batch.
    record : callable, optional
        ``record(y (b, n), obs (b, k)) -> dict of tensors (b, ...)`` to save, called for samples at
        a save time, and for the last states; by default ``{"y": y}``.
    stop : dict, optional
        ``{name: (column, threshold)}``: a sample stops where ``obs[:, column] <= threshold``.
    max_steps, max_evaluations, max_seconds : int, int and float, optional
        Limits on trial steps of the batch, evaluations of the field (200 000 by default, infinity
        for none; the step that passes it is finished) and the wall clock.
    autonomous : bool
        The field does not depend on t. Then a sample also ends with the status ``"stationary"``
        where the velocity is exactly zero at the start (its rows are its state at all their times),
        ``"nonsmooth"`` where steps shrink at a jump of the field so far that the end is out of
        reach; and, if `t_end` is infinite, ``"stationary"`` where it comes to rest, ``"stalled"``
        where it moves by rounding alone without meeting a rule.
    correct : pair of callables, optional
        ``(when(obs) -> mask (B,), fix(y (b, n)) -> y)``: an accepted step replaces the samples in
        the mask by their fix and evaluates the field again.
    monitor, patience, improvement : callable, optional, int, optional, and float
        ``monitor(y (B, n)) -> (B,)`` is called at the start and after every accepted step; the
        solution's `monitored` holds its values and the state of the least one. A sample stops with
        ``"patience"`` after so many of its steps in which the least value
        fell by less than `improvement` times its size; by default it does not stop.
    keep_steps : bool
        Keep the state at the start and after every step, in the solution's `steps`.
    progress : callable, optional
        ``progress(fraction_done, info)``, at most ten times a second, and at the end.
    checkpoint, checkpoint_every : callable, optional, and float or mapping
        ``checkpoint(state)`` every so many seconds, or ``{"steps": n}`` trial steps, at the end,
        and when a keyboard interrupt or an exit ends the run; the state holds tensors and plain
        numbers. A store of a run is given the rows apart, not copied.
    resume : dict, optional
        A state that `checkpoint` received: continue from there, to the same bits.
    jacobian : callable, optional
        ``jacobian(t (B,), y (B, n)) -> (B, n, n)``, counted as n evaluations; without it rodas
        takes central differences, 2 n evaluations.
    project, shift : callable, optional
        ``project(y, y_new) -> (B, n)`` restores the invariants of the new states of rodas, which
        may not be finite. Its move counts as an error of the step, in the distance
        ``shift(a, b) -> (B,)``, by default the norm of the difference.
    outside : callable, optional
        ``outside(y_new (B, n)) -> mask (B,)`` tells which states of the other methods left the set
        that the flow never leaves; `project`, then required, brings them back.
    narrowed : callable, optional
        ``narrowed(samples (k,)) -> KnownField or None``, the field of some samples alone: those
        that have stopped then leave the batch.
    steady, overwrite : bool
        The field makes the same operations at every state: numpy may repeat those of small states.
        The state takes the memory of `y0`, which changes.

    Raises
    ------
    IntegrationError
        If a step size underflows; its `solution` holds the rows up to there.
    ResumeError
        If `resume` is not a state of this run.

    Examples
    --------
    >>> y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    >>> rates = torch.tensor([[1.0], [10.0]], dtype=torch.float64)
    >>> def decay(t, y, out):
    ...     torch.mul(y, -rates, out=out)
    >>> solution = dln.ode.integrate(decay, y0, t_end=1.0, save_at=[0.0, 0.5, 1.0])
    >>> [round(x, 6) for x in solution.saved["y"][:, 0, 0].tolist()]
    [1.0, 0.606531, 0.367879]
    """
    _check_state(y0, may_be_empty=isinstance(blocks, BlockNorms) and blocks.is_shared)
    optional: dict[str, Any] = {"record": record, "progress": progress, "narrowed": narrowed}
    optional |= {} if isinstance(checkpoint, Keeper) else {"checkpoint": checkpoint}
    optional |= {"jacobian": jacobian, "project": project, "shift": shift, "outside": outside}
    _check_calls(field=field, **{name: f for name, f in optional.items() if f is not None})
    if correct is not None:
        if not isinstance(correct, Sequence) or len(correct) != 2:
            raise TypeError(f"correct must be a pair of functions, got {shown(correct)}")
        _check_calls(**{"correct[0]": correct[0], "correct[1]": correct[1]})
    schedule = checkpoint_every
    if not isinstance(schedule, Schedule):
        schedule = Schedule(schedule, "checkpoint_every")
    batch, n = y0.shape
    norms, rules = norms_of(blocks, n), _stopping_rules(stop)
    limits = limits_of(steps=max_steps, evaluations=max_evaluations, seconds=max_seconds)
    t_end = _end_of_time(t_end, bool(rules or limits))
    limits.setdefault("evaluations", MOST_EVALUATIONS)
    rtol = as_rtol(rtol, y0.dtype, default=1e-8)
    methods = methods_of(method, rtol, y0.dtype, shared=norms.is_shared)
    tolerance = _absolute(atol, batch)
    watch = None if monitor is None else Monitor(monitor, patience, improvement)
    options = Options(t_end, rtol, tolerance, methods, rules, limits, correct, autonomous, watch)
    stops, record = save_times(save_at, t_end, batch), record or (lambda y, obs: {"y": y})
    every, steady = as_flag(keep_steps, "keep_steps"), as_flag(steady, "steady")
    recorder = Recorder(record, stops, batch, moves_end=save_at is None, every=every)
    # All steps, or all values of a monitor, are those of the whole batch.
    narrowed = None if every or watch is not None else narrowed
    if outside is not None and project is None:
        raise ValueError("outside needs project, which brings states back, got none")
    known = jacobian, project, shift, outside, autonomous, narrowed
    system = KnownField(field, *known, steady)
    start = y0 if as_flag(overwrite, "overwrite") else y0.clone()
    integration = Integration(system, start, norms, recorder, options)
    integration.start() if resume is None else resume_from(integration, resume)
    return _run(integration, progress, checkpoint, schedule)


def _run(
    integration: Integration,
    progress: Callable[[float, dict[str, Any]], None] | None,
    checkpoint: Callable[[dict[str, Any]], None] | Keeper | None,
    schedule: Schedule,
) -> Solution:
    """Advance until every sample has stopped, reporting on the way."""
    begun, before, reported = time.perf_counter(), integration.seconds, -np.inf
    schedule.restart(integration.trials)
    try:
        while integration.unfinished:
            if limit := integration.limit():
                integration.close(limit)
                break
            integration.advance(begun, before)
            now = time.perf_counter()
            due = checkpoint is not None and schedule.due(integration.trials)
            # Where processes share the state, all go by the clock of one.
            took, due = integration.norms.agreed(before + now - begun, due)
            integration.seconds = took
            if progress is not None and now - reported >= 0.1:
                reported = now
                progress(whole_run(integration).fraction(), _info(whole_run(integration)))
            if checkpoint is not None and due:
                schedule.restart(integration.trials)
                save_state(integration, checkpoint)
    except (KeyboardInterrupt, SystemExit):
        # Inside a trial the state is still that of the last whole step.
        alone = not isinstance(checkpoint, Keeper) or checkpoint.is_alone
        if checkpoint is not None and alone and not integration.committing:
            save_state(integration, checkpoint)
        raise
    if checkpoint is not None:
        save_state(integration, checkpoint)
    integration = whole_run(integration)
    if progress is not None:
        progress(integration.fraction(), _info(integration))
    return integration.solution()


def _info(integration: Integration) -> dict[str, Any]:
    return {
        "t": float(integration.t.min()),
        "h": float(integration.control.h.min()),
        "steps": integration.steps,
        "evaluations": integration.evaluations,
        "method": integration.stepper.name,
        "obs": integration.obs_host.T.tolist(),
    }


def _check_state(y0: Tensor, *, may_be_empty: bool) -> None:
    if not (isinstance(y0, Tensor) and y0.is_floating_point()):
        got = getattr(y0, "dtype", type(y0).__name__)
        raise TypeError(f"y0 must be a floating tensor, got {got}")
    if may_be_empty and y0.ndim == 2 and y0.numel() == 0:
        return
    read_array(y0, "y0")
    if y0.ndim != 2 or y0.numel() == 0:
        raise ValueError(f"y0 must have shape (B, n) with B, n >= 1, got {tuple(y0.shape)}")


def _check_calls(**calls: Any) -> None:
    for name, f in calls.items():
        if not callable(f) or isinstance(f, type):
            raise TypeError(f"{name} must be a function, got {shown(f)}")


def _stopping_rules(stop: Mapping[str, tuple[int, float]] | None) -> dict[str, tuple[int, float]]:
    if not isinstance(stop, Mapping | None):
        raise TypeError(f"stop must be a mapping of names to rules, got {shown(stop)}")
    rules = {}
    for name, rule in (stop or {}).items():
        if name in RESERVED:
            raise ValueError(f"stop must not use the reserved name {name!r}")
        pair = isinstance(rule, Sequence) and len(rule) == 2
        column, threshold = rule if pair else (-1, math.nan)
        threshold = as_real(threshold, f"the threshold of stop[{name!r}]")
        if not (isinstance(column, int) and column >= 0) or math.isnan(threshold):
            got = shown(rule)
            raise ValueError(f"stop[{name!r}] must be (column >= 0, threshold), got {got}")
        rules[name] = (column, threshold)
    return rules


def _end_of_time(t_end: float, limited: bool) -> float:
    """Return the end of time; it may be infinite if something else ends the run."""
    t_end = as_real(t_end, "t_end")
    if not t_end >= 0:
        raise ValueError(f"t_end must be at least 0, got {t_end}")
    if math.isinf(t_end) and not limited:
        raise ValueError("t_end must be finite without a stopping rule or a limit, got inf")
    return t_end


def _absolute(atol: float | Tensor | None, batch: int) -> np.ndarray | None:
    if atol is None:
        return None
    tensor = as_float_tensor(atol, "atol", dtype=torch.float64, device="cpu")
    if isinstance(atol, bool):
        raise TypeError(f"atol must be a number, got {atol}")
    values = tensor.detach().numpy()
    if values.shape not in ((), (batch,)):
        raise ValueError(f"atol must be a number or have shape ({batch},), got {values.shape}")
    if not (values >= 0).all():
        raise ValueError(f"atol must be finite and at least 0, got {values.tolist()}")
    return np.broadcast_to(values, (batch,)).copy()
