"""The driver of every adaptive flow: saved times, the store, progress, and the trajectory."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dense import Dense, shaped_point
from dln_geometry.dynamics.engines import GRADIENT, LOSS, Engine
from dln_geometry.dynamics.monitored import monitored_of
from dln_geometry.dynamics.observing import observed_rows, split_rows
from dln_geometry.dynamics.store import foreign_state, opened
from dln_geometry.dynamics.trajectory import FlowError, Trajectory
from dln_geometry.ode import (
    MOST_EVALUATIONS,
    MOST_NUMBERS,
    IntegrationError,
    KnownField,
    ResumeError,
    Solution,
    integrate,
)
from dln_geometry.support import (
    EVERY,
    Observables,
    Progress,
    ProgressCallback,
    as_count,
    as_flag,
    as_observables,
    as_positive,
    read_array,
    warn,
)


def run_flow(
    engine: Engine,
    t_end: float,
    rules: dict[str, float],
    *,
    save_at: Any,
    rtol: float,
    atol: float | None,
    method: Any,
    progress: bool | ProgressCallback,
    store: Any,
    slow: float = 1.0,
    rebalance: float | None = None,
    keep_points: bool = False,
    monitor: Callable[[Any], Tensor] | None = None,
    patience: int | None = None,
    improvement: float = 0.0,
    observe: Any = None,
    dense: bool = False,
    label: str = "flow",
    fixed_point: str | None = None,
) -> Trajectory:
    """Integrate the flow of an engine and return its trajectory.

    Options as in `gradient_flow`, with `t_end` and `rules` checked, and a `Store` or None. The flow
    takes `slow` times as long as the engine's. A warning tells of samples that end neither at
    `t_end` nor by a rule that was given; `fixed_point` is what it says of starts that do not move
    (nothing if None).
    """
    start, observables, dense = engine.rows(), as_observables(observe), as_flag(dense, "dense")
    batched = bool(engine.batch)
    times = _save_times(save_at, t_end, len(start))
    saved = opened(store)
    if saved is not None:
        # The rule on the gradient decides what the engine watches, and so what the state holds.
        watched = ["gradient" in rules, engine.kind]
        saved.know(until=watched, state=start, save_at=times, observe=sorted(observables))
        saved.slow, saved.times, saved.batch = slow, times, 1 if batched else None
    system, correct = _known(engine, engine if rebalance is not None else None), None
    if rebalance is not None:
        bound = as_positive(rebalance, "rebalance")
        correct = (lambda obs: obs[:, -1] > bound, engine.rebalanced)

    def record(y: Tensor, obs: Tensor) -> dict[str, Tensor]:
        row = {"loss": obs[:, LOSS], "singular_values": engine.singular_values(y)}
        row["defect"] = engine.defect(y, obs)
        if observables and not batched:
            found = observed_rows(observables, shaped_point(engine, y), (), y.device)
            row |= {name: x.unsqueeze(0) for name, x in found.items()}
        # Engines read the rows of a batch only all together: its observables come at the end.
        return {**row, "state": y} if keep_points or (observables and batched) else row

    columns = {"loss": (LOSS, 1.0), "gradient": (GRADIENT, slow**0.5)}
    stop = {n: (k, scale * rules[n]) for n, (k, scale) in columns.items() if n in rules}
    limits: dict[str, Any] = {
        f"max_{n}": x if n == "seconds" or math.isinf(x) else int(x)
        for n, x in rules.items()
        if n not in columns
    }
    with Progress(progress, label) as bar:
        try:
            solution = integrate(
                system.field,
                start,
                t_end=t_end / slow,
                rtol=rtol,
                atol=atol,
                blocks=engine.blocks,
                method="auto" if method is None else method,
                save_at=None if times is None else times / slow,
                record=record,
                stop=stop,
                **limits,
                autonomous=True,
                correct=correct,
                monitor=None if monitor is None else lambda y: monitor(engine.point(y)),
                patience=patience,
                improvement=improvement,
                keep_steps=dense,
                progress=bar.callback,
                checkpoint=saved,
                checkpoint_every=EVERY if saved is None else saved.schedule,
                resume=None if saved is None else saved.load(),
                jacobian=system.jacobian,
                project=system.project,
                shift=system.shift,
                outside=system.outside,
                narrowed=system.narrowed,
                steady=system.steady,
                # A store names the run by its start, perhaps later.
                overwrite=saved is None,
            )
        except ResumeError as error:
            raise foreign_state(saved, error) from None
        except IntegrationError as error:
            reached = _trajectory_of(error.solution, engine, slow, keep_points, observables)
            raise FlowError(str(error), reached) from error
    _tell(solution, rules, slow, fixed_point)
    path = _trajectory_of(solution, engine, slow, keep_points, observables)
    return replace(path, dense=_dense_of(solution, engine, slow, observables)) if dense else path


def _known(engine: Engine, reader: Engine | None) -> KnownField:
    """Return the field of an engine; of the engine of all samples, its last observable the defect.

    That engine knows where every sample started.
    """

    def field(t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        assert reader is not None
        observed = engine.field(t, y, out)
        return torch.cat((observed, reader.defect(y, observed).reshape(-1, 1)), dim=1)

    def narrowed(samples: Tensor) -> KnownField | None:
        small = engine.narrowed(samples)
        return None if small is None else _known(small, reader)

    own = engine.field if reader is None else field
    known = engine.jacobian, engine.restored, engine.shift, engine.outside
    return KnownField(own, *known, True, narrowed, engine.is_steady and reader is None)


def _tell(
    solution: Solution, rules: dict[str, float], slow: float, fixed_point: str | None
) -> None:
    """Warn of samples that ended otherwise than the user asked for, once for every reason."""
    now, status = solution.obs, solution.status
    assert now is not None
    goals = " and ".join(f"{n} {rules[n]:.3g}" for n in ("loss", "gradient") if n in rules)
    in_double = solution.y.dtype == torch.float64
    unmet = f"the rule for {goals} cannot be met in {solution.y.dtype}: " if goals else ""
    raise_it = ". Raise the threshold" if goals else ""
    reasons = {
        "nonsmooth": "the loss looks nonsmooth near t = {t:.6g}: steps shrink at a jump of its "
        "gradient, and the end is out of reach; the run stopped there. Smooth the loss (a Huber "
        "loss for |x|, a softplus for a hinge, a log-sum-exp for a maximum), or loosen rtol",
        "stalled": f"{unmet}at t = {{t:.6g}} the flow moves by rounding alone{{seen}}; the run "
        f"stopped there{raise_it}" + (", or use float64" if raise_it and not in_double else ""),
        "stationary": "the flow came to rest at t = {t:.6g}{seen}"
        + (f" without meeting the rule for {goals}: raise the threshold, or start elsewhere")
        * bool(goals),
        "evaluations": f"the bound of {MOST_EVALUATIONS} evaluations ended the run at "
        "t = {t:.6g}{seen}: {stiff}ask for less, or raise it by until={{'evaluations': ...}}",
    }
    resting, noisy = solution.start.tolist()
    if fixed_point is not None:
        for words, samples in (("is zero", resting), ("is rounding alone", noisy)):
            if any(samples):
                count = f"{sum(samples)} of {len(samples)} samples: " if len(samples) > 1 else ""
                warn(f"{count}the velocity of the flow {words} at the start: {fixed_point}")
    for name, reason in reasons.items():
        where = [k for k, ended in enumerate(status) if ended == name and not resting[k]]
        if not where or (name == "evaluations" and name in rules):
            continue
        k = where[0]
        count = f"{len(where)} of {len(status)} samples: " if len(status) > 1 else ""
        seen = f", where the loss is {float(now[k, LOSS]):.6g}"
        if "gradient" in rules:
            seen += f" and the gradient {float(now[k, GRADIENT]) / slow**0.5:.3g}"
        stiff = stiffness_bound(solution) if bool(solution.bound[k]) else ""
        warn(count + reason.format(t=float(solution.t_final[k]) * slow, seen=seen, stiff=stiff))


def stiffness_bound(solution: Solution) -> str:
    """Say what would help a run whose steps stability bounds."""
    (batch, n), most = solution.y.shape, MOST_NUMBERS
    if n <= most and "rodas" not in solution.stats["by_method"]:
        advice = 'take method="rodas"'
    elif n <= most and batch == 1:
        advice = 'its steps of method="rodas" failed or cost more: loosen rtol'
    else:
        advice = (
            f'method="rodas" fits states of up to some {most} numbers, this one has {n}'
            f"{f' in {batch} samples' if batch > 1 else ''}: take a smaller rank, a point instead "
            "of layers, or fewer samples at once"
        )
    return f"its steps are bound by stiffness, the fastest mode decays far within them; {advice}; "


def _save_times(save_at: Any, t_end: float, samples: int) -> Tensor | None:
    """Return the times to save; None stands for every step of a single run, or start and end."""
    if save_at is None:
        if samples == 1 or math.isinf(t_end):
            return None
        save_at = 101
    if isinstance(save_at, bool) or not isinstance(save_at, numbers.Integral):
        return read_array(save_at, "save_at")[0].detach().to("cpu", torch.float64)
    if as_count(save_at, "save_at", 2) < 2 or math.isinf(t_end):
        raise ValueError(
            f"save_at must be times, or, with a finite t_end, a number >= 2, got {save_at}"
        )
    return torch.linspace(
        0.0, t_end, int(save_at) if t_end > 0 else 1, dtype=torch.float64, device="cpu"
    )


@torch.no_grad()
def _dense_of(
    solution: Solution, engine: Engine, slow: float, observables: Observables
) -> Dense | None:
    """Return the steps with velocities, and all series with slopes by differences along them."""
    assert solution.steps is not None
    t, states = solution.steps
    gaps = torch.cat((t.diff(dim=0), torch.zeros_like(t[:1])))
    before = torch.cat((torch.zeros_like(t[:1]), t.diff(dim=0)))
    size = torch.where(gaps > 0, gaps, torch.where(before > 0, before, 1.0))

    def series(time: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        f = torch.empty_like(y)
        obs = engine.field(time.to(y), y, f)
        row = {"loss": obs[:, LOSS].clone(), "defect": engine.defect(y, obs)}
        batch = tuple(engine.batch)
        found = observed_rows(observables, shaped_point(engine, y), batch, y.device)
        own = {k: x.reshape(len(y), *x.shape[len(batch) :]) for k, x in found.items()}
        return row | own, f

    velocities, rows, slopes = [], [], []
    for time, y, h in zip(t, states, size, strict=True):
        row, f = series(time, y)
        # A share of the step: its error is that share squared, the rounding eps over it.
        share = torch.finfo(y.dtype).eps ** 0.25 * h.to(y)
        ahead, behind = (
            series(time + sign * share.to(time), y + sign * share[:, None] * f)[0]
            for sign in (1, -1)
        )
        velocities.append(f / slow)
        rows.append(row)
        slopes.append(
            {
                k: (x - behind[k]) / (2 * slow * share.view(-1, *(1,) * (x.ndim - 1)).to(x))
                for k, x in ahead.items()
            }
        )
    values, rates = (
        {k: torch.stack([r[k] for r in part]) for k in rows[0]} for part in (rows, slopes)
    )
    everyone = torch.arange(states.shape[1], device="cpu")
    reader = engine.picked(everyone, tuple(engine.batch))
    return Dense(t * slow, states, torch.stack(velocities), values, rates, reader)


def _trajectory_of(
    solution: Solution, engine: Engine, slow: float, keep: bool, observables: Observables
) -> Trajectory:
    """Give the rows of a solution the shape of the batch, and turn states into points."""
    batch = engine.batch
    point = partial(shaped_point, engine)
    rows = {n: x.reshape(len(x), *batch, *x.shape[2:]) for n, x in solution.saved.items()}
    if batch and observables:
        every = [
            observed_rows(observables, point(y), tuple(batch), y.device)
            for y in solution.saved["state"]
        ]
        rows |= {name: torch.stack([row[name] for row in every]) for name in every[0]}
    seen, last = solution.monitored, point(solution.y)
    return Trajectory(
        t=solution.t * slow,
        loss=rows["loss"],
        singular_values=rows["singular_values"],
        defect=rows["defect"],
        final=last if seen is None else point(seen.y),
        status=solution.status if batch else solution.status[0],
        stats=solution.stats,
        points=tuple(map(point, solution.saved["state"])) if keep else None,
        depth=engine.depth,
        monitored=monitored_of(seen, batch, slow, last),
        observed=split_rows(rows)[1],
    )
