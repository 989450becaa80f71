"""Adaptive integration of batches of ordinary differential equations, one step size per sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode import options as door
from dln_geometry.ode.chebyshev import ChebyshevStepper
from dln_geometry.ode.loop import Integration
from dln_geometry.ode.recording import IntegrationError, Record, Recorder, Solution
from dln_geometry.ode.stepper import BlockNorms, ExplicitStepper, Field

__all__ = ["Field", "IntegrationError", "Record", "Solution", "fixed_steps", "integrate"]


@torch.no_grad()
def integrate(
    field: Field,
    y0: Tensor,
    *,
    t_end: float,
    rtol: float = 1e-8,
    atol: float | Tensor | None = None,
    blocks: Sequence[int] | None = None,
    method: door.Method = "auto",
    save_at: Any = None,
    record: Record | None = None,
    stop: Mapping[str, tuple[int, float]] | None = None,
    max_steps: int | None = None,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
    correct: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None,
    progress: Callable[[float, dict[str, Any]], None] | None = None,
    checkpoint: Callable[[dict[str, Any]], None] | None = None,
    checkpoint_every: float = 5.0,
    resume: dict[str, Any] | None = None,
) -> Solution:
    """Integrate ``dy/dt = field(t, y)`` from 0 to `t_end`, every sample with its own steps.

    A step is accepted where, over the blocks b of the state,
    ``max_b |e_b| / (atol + rtol max(|y_b|, |y_new_b|)) <= 1`` with 2-norms: rotating a matrix
    that is a block changes nothing. The host waits for the device once a step.

    Parameters
    ----------
    field : callable
        ``field(t, y, out)`` writes the derivative at ``t (B,)``, ``y (B, n)`` into
        ``out (B, n)`` and returns observables (B, k) of that point, or None. It is always called
        with the whole batch.
    y0 : Tensor, shape (B, n)
        Start, of any floating dtype on any device.
    t_end : float
        End of time; may be infinite if there is a stopping rule or a limit.
    rtol : float
        Relative tolerance; raised to 4 eps of the dtype.
    atol : float or Tensor of shape (B,), optional
        Absolute tolerance; by default ``1e-3 rtol |y0|`` of each sample, `rtol` where y0 = 0.
    blocks : sequence of int, optional
        Sizes of the blocks that make up the n numbers; by default one block.
    method : str or method value
        ``"auto"``; ``"rk3"``, ``"rk5"``, ``"rk8"``; ``"rkc"``, the stabilised one for stiff
        problems. Auto starts with rk8 in double precision at rtol <= 1e-6, otherwise with rk5,
        and goes to rkc and back as the cost per unit of time tells.
    save_at : array_like, shape (T,), optional
        Increasing times in [0, t_end], met exactly. By default every accepted step of a single
        sample, start and end of a batch.
    record : callable, optional
        ``record(y (b, n), obs (b, k)) -> dict of tensors (b, ...)``, called for the samples that
        stand at a save time and, to end the rows, for the last states; by default ``{"y": y}``.
    stop : dict, optional
        ``{name: (column, threshold)}``: a sample stops where ``obs[:, column] <= threshold``.
    max_steps : int, optional
        Limit on the number of trial steps of the batch.
    max_evaluations : int, optional
        Limit on the evaluations of the field; the step that passes it is finished.
    max_seconds : float, optional
        Limit on the wall clock.
    correct : pair of callables, optional
        ``(when(obs) -> mask (B,), fix(y (b, n)) -> y)``: after an accepted step the samples in
        the mask are replaced by their fix and the field is evaluated anew.
    progress : callable, optional
        ``progress(fraction_done, info)``, at most ten times a second, and at the end.
    checkpoint : callable, optional
        ``checkpoint(state)`` every `checkpoint_every` seconds, at the end, and on a keyboard
        interrupt; the state holds tensors and plain numbers.
    checkpoint_every : float
        Seconds between checkpoints.
    resume : dict, optional
        A state that `checkpoint` was given: continue from there, to the same bits.

    Returns
    -------
    Solution

    Raises
    ------
    IntegrationError
        If a step size underflows; its `solution` holds what was reached.
    TypeError, ValueError
        If an argument is not as described, or the field is not finite at the start.

    References
    ----------
    E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.4-II.5.

    Examples
    --------
    >>> import torch
    >>> y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    >>> rates = torch.tensor([[1.0], [10.0]], dtype=torch.float64)
    >>> def decay(t, y, out):
    ...     torch.mul(y, -rates, out=out)
    >>> solution = integrate(decay, y0, t_end=1.0, save_at=[0.0, 0.5, 1.0])
    >>> [round(x, 6) for x in solution.saved["y"][:, 0, 0].tolist()]
    [1.0, 0.606531, 0.367879]
    """
    door.check_state(y0)
    batch, n = y0.shape
    sizes = door.block_sizes(blocks, n)
    rules = door.stopping_rules(stop)
    limits = (max_steps, max_evaluations, max_seconds)
    t_end = door.end_of_time(t_end, bool(rules) or any(x is not None for x in limits))
    rtol = door.relative(rtol, y0.dtype)
    explicit, stabilised = door.methods_of(method, rtol, y0.dtype)
    options = door.Options(
        t_end=t_end,
        rtol=rtol,
        atol=door.absolute(atol, batch),
        explicit=explicit,
        stabilised=stabilised,
        rules=rules,
        max_steps=door.limit("max_steps", max_steps),
        max_evaluations=door.limit("max_evaluations", max_evaluations),
        max_seconds=door.limit("max_seconds", max_seconds),
        correct=correct,
    )
    stops = door.save_times(save_at, t_end, batch)
    recorder = Recorder(record or _states, stops, batch, moves_end=save_at is None)
    integration = Integration(field, y0, BlockNorms(sizes), recorder, options)
    if resume is None:
        integration.start()
    else:
        door.check_resume(resume, y0)
        integration.load(resume)
    return _run(integration, progress, checkpoint, checkpoint_every)


@torch.no_grad()
def fixed_steps(field: Field, y0: Tensor, t_end: float, n: int, method: door.Method) -> Tensor:
    """Integrate to `t_end` in `n` equal steps of a method, without error control.

    Parameters
    ----------
    field : callable
        As for `integrate`.
    y0 : Tensor, shape (B, n)
        Start.
    t_end : float
        Finite end of time.
    n : int
        Number of steps, at least 1.
    method : str or method value
        An explicit method, or ``Chebyshev(stages)`` with its number of stages.

    Returns
    -------
    Tensor, shape (B, n)
        The state at `t_end`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """
    door.check_state(y0)
    t_end = door.end_of_time(t_end, False)
    if not (isinstance(n, int) and n >= 1):
        raise ValueError(f"n must be an integer >= 1, got {n!r}")
    explicit, stabilised = door.methods_of(method, 1.0, y0.dtype)
    if stabilised and (explicit or stabilised.stages is None):
        raise ValueError(f"method must have a fixed number of stages, got {method!r}")
    y, norms = y0.detach().clone(), BlockNorms([y0.shape[1]])
    if stabilised:
        stepper: ExplicitStepper | ChebyshevStepper = ChebyshevStepper(stabilised, field, y, norms)
        stepper.stages = stabilised.stages or 2
    else:
        assert explicit is not None
        stepper = ExplicitStepper(explicit, field, y, norms)
    field(y.new_zeros(len(y)), y, stepper.f)
    h = np.full(len(y), t_end / n)
    for step in range(n):
        stepper.step(np.full(len(y), step * t_end / n), h, y)
        y.copy_(stepper.y_new)
        stepper.f.copy_(stepper.f_new)
    return y


def _states(y: Tensor, obs: Tensor | None) -> dict[str, Tensor]:
    return {"y": y}


def _run(
    integration: Integration,
    progress: Callable[[float, dict[str, Any]], None] | None,
    checkpoint: Callable[[dict[str, Any]], None] | None,
    checkpoint_every: float,
) -> Solution:
    """Advance until every sample has stopped, reporting on the way."""
    begun, before = time.perf_counter(), integration.seconds
    reported, stored = -np.inf, begun
    try:
        while integration.unfinished:
            if limit := integration.limit():
                integration.close(limit)
                break
            integration.advance()
            now = time.perf_counter()
            integration.seconds = before + now - begun
            if progress is not None and now - reported >= 0.1:
                reported = now
                progress(integration.fraction(), _info(integration))
            if checkpoint is not None and now - stored >= checkpoint_every:
                stored = now
                checkpoint(integration.state())
    except KeyboardInterrupt:
        # Inside a trial the state is still that of the last whole step.
        if checkpoint is not None and not integration.committing:
            checkpoint(integration.state())
        raise
    if checkpoint is not None:
        checkpoint(integration.state())
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
