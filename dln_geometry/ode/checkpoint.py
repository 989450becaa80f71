"""The stored state of an integration: made, checked, and taken up again to the same bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.control import StepControl
from dln_geometry.ode.loop import Integration
from dln_geometry.ode.methods import upload
from dln_geometry.ode.narrowing import narrow, whole_run
from dln_geometry.ode.watch import rest
from dln_geometry.support import Growing, Numbers, check_form, merged

VERSION = 2

_ARRAYS = ("t", "code", "y_norms", "atol", "obs_host", "obs_first", "resting", "noisy")


class ResumeError(ValueError):
    """A stored state is not one of the run that is to be continued from it.

    Its message says what differs: version, shapes, dtype, method, times or rules.

    Examples
    --------
    >>> def decay(t, y, out):
    ...     torch.neg(y, out=out)
    >>> states = []
    >>> _ = dln.ode.integrate(decay, torch.ones(1, 2), t_end=1.0, checkpoint=states.append)
    >>> try:
    ...     dln.ode.integrate(decay, torch.ones(1, 3), t_end=1.0, resume=states[-1])
    ... except dln.ode.ResumeError as error:
    ...     print(error)
    resume must match y0 of shape (1, 3), torch.float32; got (1, 2), torch.float32
    """


class Keeper(ABC):
    """Where an integration saves its state, given as its `checkpoint`; a store is one.

    Examples
    --------
    >>> def decay(t, y, out):
    ...     torch.neg(y, out=out)
    >>> class Told(dln.ode.Keeper):
    ...     def keep(self, state, rows):
    ...         print(float(state["arrays"]["t"]))
    >>> _ = dln.ode.integrate(decay, torch.ones(1, 2), t_end=1.0, checkpoint=Told())
    1.0
    """

    is_alone = True
    """Whether this process can save a state while others do something else."""

    @abstractmethod
    def keep(self, state: dict[str, Any], rows: dict[tuple[str, ...], Growing]) -> None:
        """Save a state; `rows` belong into it at their places, and are not copies."""


def save_state(run: Integration, checkpoint: Keeper | Callable[[dict[str, Any]], None]) -> None:
    """Hand over all that the next steps depend on, as tensors and plain numbers.

    A function is given a copy of everything. A `Keeper` is given the rows apart.
    """
    live = np.ones(len(whole_run(run).t), dtype=bool)
    if run.live is not None:
        live[:] = False
        live[run.live] = True
    run = whole_run(run)
    monitor = run.options.monitor
    state = {
        "version": VERSION,
        "live": torch.from_numpy(live),
        "y": run.y.clone(),
        "obs": None if run.obs is None else run.obs.clone(),
        "arrays": {n: torch.from_numpy(np.array(getattr(run, n))) for n in _ARRAYS},
        "counts": {n: getattr(run, n) for n in (*run.COUNTS, "seconds")},
        "by_method": dict(run.by_method),
        "control": run.control.state(),
        "method": run.choice.state(),
        "recorder": run.recorder.state(),
        "watch": None if run.watch is None else run.watch.state(),
        "monitor": None if monitor is None else monitor.state(),
    }
    rows = {("recorder", *place): x for place, x in run.recorder.growing().items()}
    if monitor is not None:
        rows |= {("monitor", *place): x for place, x in monitor.growing().items()}
    if isinstance(checkpoint, Keeper):
        checkpoint.keep(state, rows)
    else:
        whole = {place: x.part(0, len(x.rows)).clone() for place, x in rows.items()}
        checkpoint(merged(state, whole))


def resume_from(run: Integration, state: dict[str, Any]) -> None:
    """Continue from a stored state; limits and the end of time may have moved since.

    Tensors move to the device of the start. `ResumeError` if the state is not one of this run.
    """
    try:
        _check(run, state)
        run.choice.load(state["method"])
        run.y.copy_(state["y"])
        run.obs = None if state["obs"] is None else state["obs"].to(run.y.device).clone()
        for name, value in state["arrays"].items():
            setattr(run, name, value.numpy().copy())
        vars(run).update(state["counts"])
        run.by_method = dict(state["by_method"])
        run.control = StepControl.load(state["control"])
        run.recorder.load(state["recorder"], run.y.device)
        if run.watch is not None:
            run.watch.load(state["watch"])
        if run.options.monitor is not None:
            run.options.monitor.load(state["monitor"], run.y)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        known = str(error).startswith("resume")
        text = str(error) if known else f"resume must be a state of this run: {error}"
        raise ResumeError(text) from None
    if (run.t > run.options.t_end).any():
        reached = f"what the stored run has reached, {run.t.max():g}"
        raise ValueError(f"t_end must not lie before {reached}, got {run.options.t_end:g}")
    # The stopping rules may have changed since the run was stored: check them again.
    run.code = np.full(len(run.t), -1)
    run.stop(np.full(len(run.t), True))
    rest(run, run.resting & (run.code <= 0))
    if run.watch is not None:
        run.watch.stop_again(run)
    # The batch of the stored run, to the same bits; files of version 0.1.0 hold whole batches.
    live = np.ones(len(run.t), dtype=bool) if "live" not in state else state["live"].numpy()
    if not live.all() and (run.code[~live] >= 0).all():
        narrow(run, run, np.flatnonzero(live))


def _check(run: Integration, state: Any) -> None:
    """Raise ValueError unless a state has the form of those of `state_of`."""
    y, batch = run.y, len(run.y)
    if not (isinstance(state, dict) and state.get("version") == VERSION):
        raise ValueError(f"it must be one that checkpoint was given, of version {VERSION}")
    whole, each = Numbers.like(y, finite=True), Numbers(torch.float64, (batch,))
    if isinstance(got := state.get("y"), Tensor) and (got.shape, got.dtype) != (y.shape, y.dtype):
        want, given = (f"{tuple(x.shape)}, {x.dtype}" for x in (y, got))
        raise ValueError(f"resume must match y0 of shape {want}; got {given}")
    check_form(got, whole, "y")
    times = state.get("arrays", {}).get("t")
    check_form(times, Numbers(torch.float64, (batch,), finite=True), "arrays.t")
    # What the field observes and the recorder keeps, to compare with.
    now = state["y"].to(y.device)
    obs = run.field(upload(times.numpy(), y), now, torch.empty_like(y))
    columns = 0 if obs is None else obs.shape[-1]
    if any(column >= columns for column, _ in run.options.rules.values()):
        raise ValueError(f"stop must name one of {columns} observables, got {run.options.rules}")
    seen = Numbers(torch.float64, (columns, batch))
    marks = Numbers(torch.bool, (batch,))
    votes = {"votes": Numbers(torch.int64, (batch,)), "t": each, "noisy_since": each}
    stepper = {"f": whole}, {"f": whole, "eigenvector": whole, "age": int}
    switch = dict.fromkeys(("patience", "votes", "against", "stay", "failures"), int)
    form = {
        "version": int,
        "y": whole,
        "obs": None if obs is None else Numbers(obs.dtype, (batch, columns)),
        "arrays": {
            "t": each,
            "code": Numbers(torch.int64, (batch,)),
            "y_norms": Numbers(torch.float64, (run.norms.count, batch)),
            "atol": each,
            "obs_host": seen,
            "obs_first": seen,
            "resting": marks,
            "noisy": marks,
        },
        "counts": {**dict.fromkeys(run.COUNTS, int), "seconds": float},
        "by_method": {str: int},
        "control": {
            **dict.fromkeys(("h", "first", "err_old"), each),
            "after_rejection": marks,
        },
        "method": {
            "method": str,
            "stepper": stepper,
            "rho": each,
            "switches": int,
            "switch": ({}, switch),
        },
        "recorder": run.recorder.form(state.get("recorder"), now, obs),
        "watch": None if run.watch is None else {"arrays": votes, "evaluations": int},
        "monitor": None if run.options.monitor is None else run.options.monitor.form(y),
    }
    if "live" in state:
        form["live"] = marks
    check_form(state, form, "state")
    if not bool((times >= 0).all() and (state["control"]["h"] > 0).all()):
        raise ValueError("times must be at least 0 and step sizes positive")
