"""`RepeatedStepper`: explicit Runge-Kutta steps of a small state whose field is a tape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.methods.calls import Call, TapeError
from dln_geometry.ode.methods.norms import BlockNorms
from dln_geometry.ode.methods.runge_kutta import ExplicitStepper
from dln_geometry.ode.methods.tape import Tape, moved

if TYPE_CHECKING:
    from dln_geometry.ode.methods.choice import KnownField

MOST = 2**17
"""Numbers of a batch of states up to which the calls of numpy are the quicker ones."""

ALONE = 2**13
"""The same where torch has several threads, which numpy has not."""


def repeats(system: KnownField, y: Tensor) -> bool:
    """Tell whether a tape of the field pays, and nothing asks for the operations of torch."""
    if not (system.steady and y.device.type == "cpu" and y.dtype in (torch.float32, torch.float64)):
        return False
    whole = y.dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest"
    most = MOST if torch.get_num_threads() == 1 else ALONE
    # Products of batches of matrices smaller than 4 x 4 are quicker in torch.
    return (
        whole
        and y.numel() <= most
        and len(y) <= 4 * y.shape[-1]
        # Of this thread: is_in_torch_dispatch_mode() tells of all, and rounding would depend on it.
        and torch._C._len_torch_dispatch_stack() == 0
    )


SMALL = 2**12
"""Numbers up to which a call costs more than a pass over the state."""


class RepeatedStepper(ExplicitStepper):
    """Take the steps of the base class, to rounding; numpy repeats the operations of the field.

    They are recorded at the first step. Where the field branches otherwise later, torch evaluates
    it; where it cannot be recorded, torch always does.

    Examples
    --------
    >>> import math
    >>> import numpy as np
    >>> y, norms = torch.ones(1, 1, dtype=torch.float64), dln.ode.BlockNorms([1])
    >>> def decay(t, y, out):
    ...     torch.neg(y, out=out)
    >>> stepper = dln.ode.RepeatedStepper(dln.ode.METHODS["rk5"], decay, y, norms)
    >>> decay(None, y, stepper.f)
    >>> _ = stepper.step(np.array([0.0]), np.array([0.1]), y)
    >>> abs(float(stepper.y_new) / math.exp(-0.1) - 1) < 1e-8
    True
    """

    _calls: list[tuple[np.ndarray, np.ndarray, list[Call]]] | None = None
    """Weights, the stages that they weigh, and the calls of the field, for every stage."""
    _fails = False

    def step(self, t: np.ndarray, h: np.ndarray, y: Tensor) -> list[Tensor]:
        """Try a step of sizes h (B,) from (t, y); rows: f_new, estimates, y_new."""
        if self._calls is None and not self._fails:
            self._note(y)
        if self._calls is None:
            return super().step(t, h, y)
        times = t + self._nodes[:-1] * h
        step, start, argument = h[:, None].astype(self._now.dtype), y.numpy(), self._argument
        small, alone, wide = self._small, self._alone, torch.from_numpy(step)
        dot, multiply, add, total = np.dot, np.multiply, np.add, self._total
        with np.errstate(all="ignore"):
            if alone:
                multiply(self._weights, step, self._scaled)
            for i, (weights, stages, calls) in enumerate(self._calls, start=1):
                if alone:
                    dot(weights, stages, total[0])
                    add(total[1], start, argument)
                elif small:
                    dot(weights, stages, total[0])
                    multiply(total[1], step, argument)
                    add(argument, start, argument)
                else:
                    dot(weights, stages, total[0])
                    torch.addcmul(y, self._sum_wide, wide, out=self.y_new)
                if self._reads_time:
                    self._now[...] = times[i]
                try:
                    for f, arguments in calls:
                        f(*arguments)
                    self.obs_new = self._seen
                except (TapeError, np.linalg.LinAlgError):
                    self._now[...] = times[i]
                    self.obs_new = self.field(self._time, self.y_new, self._slopes[i])
            if not small:
                torch.mm(self._tableau.weights, self._all_stages, out=self._estimates)
                return BlockNorms.of(self._views)
            dot(*self._of_estimates)
            multiply(self._rows, self._rows, self._squares)
            add.reduceat(self._squares, self._starts, 2, None, self._sizes)
            np.sqrt(self._sizes, self._sizes)
        return list(self._norms_of_rows)

    def _note(self, y: Tensor) -> None:
        """Make the tape, at a state where the field is known to be fine."""
        self.y_new.copy_(y)
        # A copy of a small slope costs less than calls for every place of one.
        self._small = y.numel() <= SMALL
        self._time = y.new_zeros(len(y))
        slope = y.new_zeros(y.shape) if self._small else self._slopes[1]
        try:
            if self._pieces:
                raise TapeError("a large state")
            with Tape(self._time, self.y_new) as tape:
                self._seen = self.field(self._time, self.y_new, slope)
        except TapeError:
            self._fails = True
            return
        stages, (spans, rows) = self._all_stages.numpy(), self._tableau[1:3]
        made, slopes = slope.numpy(), [x.numpy() for x in self._slopes[1:]]
        # Observables are those of the last stage.
        inner, last = tape.calls_for(slope), tape.calls
        if self._small:
            within = [[*inner, (np.copyto, (out, made))] for out in slopes[:-1]]
            programs = [*within, [*last, (np.copyto, (slopes[-1], made))]]
        else:
            programs = moved(inner, made, slopes[:-1]) + moved(last, made, slopes[-1:])
        weights = [row.numpy() for row in rows]
        self._alone = self._small and len(y) == 1
        if self._alone:
            # Scaled by the step once, for all stages.
            self._weights = np.concatenate(weights)
            self._scaled = np.empty((1, len(self._weights)), self._weights.dtype)
            weights = np.split(self._scaled[0], np.cumsum([len(row) for row in weights])[:-1])
        self._calls = [
            (row, stages[span], calls)
            for row, span, calls in zip(weights, spans, programs, strict=True)
        ]
        self._tape = tape  # Its tensors are the memory of the calls.
        self._reads_time = tape.reads(self._time)
        self._now, self._argument = self._time.numpy(), self.y_new.numpy()
        self._total = self._sum.numpy(), self._sum_wide.numpy()
        self._of_estimates = self._tableau.weights.numpy(), stages, self._estimates.numpy()
        if self._small:
            # f_new, the estimates and y_new lie one after the other.
            self._rows = self._buffer.numpy()[len(stages) - 1 :]
            self._squares = np.empty_like(self._rows)
            self._starts = np.array([start for start, _ in self._norms.bounds()])
            sizes = y.new_empty((*self._rows.shape[:2], len(self._starts)))
            self._sizes, runs = sizes.numpy(), self._norms.runs()
            self._norms_of_rows = list(sizes.split(runs, dim=-1))
