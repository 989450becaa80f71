"""Samples that have stopped leave the batch of a run, and come back in what it returns."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dln_geometry.ode.loop import Integration

SHARE = 0.75
"""Share of a batch that runs below which those samples go on alone."""

LEAST = 16
"""Samples from which it is worth it."""

_RUN = ("t", "code", "y_norms", "atol", "obs_host", "obs_first", "resting", "noisy", "moves")
_CONTROL = ("h", "first", "err_old", "after_rejection")


def let_leave(run: Integration) -> None:
    """Let the samples that have stopped leave the batch, if they are many."""
    running = int(np.count_nonzero(run.code < 0))
    if len(run.code) >= LEAST and 0 < running <= SHARE * len(run.code) and run.system.narrowed:
        wide = whole_run(run)
        narrow(run, wide, np.flatnonzero(wide.code < 0))


def narrow(run: Integration, wide: Integration, live: np.ndarray) -> None:
    """Go on with some samples of a whole run (B,) alone."""
    make = run.system.narrowed
    samples = torch.from_numpy(live)
    system = None if make is None else make(samples)
    if system is None:
        return
    at = samples.to(wide.y.device, non_blocking=True)
    wide = _apart(wide)
    state = wide.choice.stepper.state()
    rest = {k: x for k, x in state.items() if isinstance(x, Tensor)}
    parts = {k: x[at] if isinstance(x, Tensor) else x for k, x in state.items()}
    # The buffers of the whole batch go.
    vars(wide.choice).update(stepper=None, _steppers={})
    run.committing = True
    run.away, run.live = (wide, rest), live
    for owner, full, names in _owners(run, wide):
        for name in names:
            x = getattr(full, name)
            setattr(owner, name, x[at] if isinstance(x, Tensor) else x[..., live])
    run.recorder.live, run.field = live, system.field
    run.choice.narrow(system, run.y, parts)
    run.committing = False


def whole_run(run: Integration) -> Integration:
    """Return a run of all samples, in which those that left stand as they did; to read alone."""
    if run.live is None:
        return run
    full, live = _apart(run), run.live
    away, rest = run.away
    at = torch.from_numpy(live).to(run.y.device, non_blocking=True)
    for owner, before, names in _owners(full, away):
        for name in names:
            setattr(owner, name, _spread(getattr(before, name), getattr(owner, name), live, at))
    full.choice.stepper = stepper = copy.copy(run.stepper)
    for name in ("f", "eigenvector"):
        if (part := getattr(stepper, name, None)) is not None:
            # Another method may have been taken since.
            before = rest.get(name, full.y.new_zeros(full.y.shape))
            setattr(stepper, name, _spread(before, part, live, at))
    full.live = None
    return full


def _apart(run: Integration) -> Integration:
    """Return a copy of a run whose arrays may be replaced."""
    other = copy.copy(run)
    other.control, other.choice = copy.copy(run.control), copy.copy(run.choice)
    other.watch = copy.copy(run.watch)
    return other


def _owners(run: Integration, full: Integration) -> list[tuple[Any, Any, tuple[str, ...]]]:
    """Return who holds arrays of every sample, of two runs, and their names."""
    tensors = ("y",) if full.obs is None else ("y", "obs")
    owners: list[tuple[Any, Any, tuple[str, ...]]] = [
        (run, full, _RUN + tensors),
        (run.control, full.control, _CONTROL),
        (run.choice, full.choice, ("rho", "bound")),
    ]
    if run.watch is not None:
        owners.append((run.watch, full.watch, run.watch.ARRAYS))
    return owners


def _spread(full: Any, part: Any, live: np.ndarray, at: Tensor) -> Any:
    """Return an array of all samples with the new part: the last axis, the first of tensors."""
    if isinstance(part, Tensor):
        out = full.clone()
        out[at] = part
        return out
    out = full.copy()
    out[..., live] = part
    return out
