"""Runs that get no further: chattering at a jump of the field, rest, and stalls at rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dln_geometry.ode.methods import fetch, upload

if TYPE_CHECKING:
    from dln_geometry.ode.loop import Integration

EVERY = 64  # trial steps from one look to the next; fewer if they take PATIENCE evaluations
FREE = 8  # the same for a method whose steps may double time
VOTES = 3  # looks that find a jump before a run counts as chattering
PATIENCE = 1000  # evaluations at a velocity of rounding alone before a run counts as stalled


class Watch:
    """Look at a run of an autonomous field every few trial steps.

    Chattering: where the field jumps, the error of a step falls only like its length, so that
    steps shrink to the tolerance over the jump. A sample counts as chattering if its steps are that
    short, the change of the field along its direction does not grow in proportion to the distance,
    and at this pace the evaluations left do not bring it to the end (without one, to twice its
    time). Without an end time, rest and stalls are noticed too: the velocity is exactly zero, or
    was no larger than the effect of rounding during the last third of the evaluations, or from one
    look to the next while time grew tenfold.
    """

    def __init__(self, batch: int) -> None:
        self.votes = np.zeros(batch, dtype=np.int64)
        self.t, self.evaluations = np.zeros(batch), 0  # at the last look
        self.noisy_since = np.full(batch, np.inf)
        """Evaluations (B,) after which every look found a velocity of rounding alone.

        Minus infinity where that has stopped the sample.
        """

    def is_due(self, trials: int, evaluations: int, free: bool) -> bool:
        """Tell whether to look before the next trial step; `free` if stability bounds no step."""
        every = FREE if free else EVERY
        return trials % every == every - 1 or evaluations - self.evaluations >= PATIENCE

    def look(self, run: Integration) -> None:
        """Stop the samples that chatter, rest or have stalled."""
        end, first, endless = run.options.t_end, run.control.first, np.isinf(run.options.t_end)
        # The only evaluations come first: what an interrupt leaves is unchanged.
        jumps, noisy = self._jumps(run), noise_alone(run) if endless else None
        if noisy is not None:
            rest(run, (run.code < 0) & (fetch([run.norms.lengths(run.stepper.f)]) == 0))
            again = np.isfinite(self.noisy_since) & (run.t >= 10.0 * self.t)
            since = np.minimum(self.noisy_since, run.evaluations)
            self.noisy_since = np.where(noisy, since, np.inf)
            stalled = run.evaluations - since >= np.maximum(PATIENCE, 0.5 * since)
            over = noisy & (stalled | again) & (run.code < 0)
            run.code[over], self.noisy_since[over] = run.names.index("stalled"), -np.inf
        self.votes = np.where(jumps, self.votes + 1, np.maximum(self.votes - 1, 0))
        done = max(run.evaluations - self.evaluations, 1)
        left = max(run.options.limits["evaluations"] - run.evaluations, 0)
        reach = run.t + (run.t - self.t) / done * left
        hopeless = reach < (np.maximum(2 * run.t, 10 * first) if endless else end)
        run.code[(self.votes >= VOTES) & hopeless & (run.code < 0)] = run.names.index("nonsmooth")
        self.t, self.evaluations = run.t.copy(), run.evaluations

    def stop_again(self, run: Integration) -> None:
        """Stop the samples of a stored run that had stalled: without an end they still do."""
        if np.isinf(run.options.t_end):
            had = (self.noisy_since == -np.inf) & (run.code < 0)
            run.code[had] = run.names.index("stalled")

    def _jumps(self, run: Integration) -> np.ndarray:
        """Return the samples (B,) with tiny steps along which the field jumps."""
        h, f = run.control.h, run.stepper.f
        speed, size = fetch([run.norms.lengths(f), run.norms.lengths(run.y)]).reshape(2, -1)
        # The longer probe stays within a tenth of the state, where smooth fields are nearly linear.
        tiny = (run.code < 0) & (1e3 * h * speed <= 0.1 * size) & (speed > 0)
        if not tiny.any():
            return tiny
        # Between two steps the new state and its velocity are free.
        slope, moved = run.stepper.f_new, run.stepper.y_new
        norms, t = [], upload(run.t, run.y)
        for factor in (10.0, 1e3):
            step = upload(np.where(tiny, factor * h, 0.0), run.y).unsqueeze(-1)
            torch.mul(f, step, out=moved).add_(run.y)
            run.field(t, moved, slope)
            norms.append(run.norms.lengths(slope.sub_(f)))
        run.count(2)
        near, far = fetch(norms).reshape(2, -1)
        # A smooth field gives near = far/100; NaN, outside of its domain, counts as smooth.
        return tiny & (near >= 0.2 * far) & (near >= 0.01 * speed)

    def state(self) -> dict[str, Any]:
        """Return a copy of all that the next looks depend on."""
        arrays = {n: torch.from_numpy(getattr(self, n).copy()) for n in self.ARRAYS}
        return {"arrays": arrays, "evaluations": self.evaluations}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        vars(self).update({n: x.numpy().copy() for n, x in state["arrays"].items()})
        self.evaluations = state["evaluations"]

    ARRAYS = ("votes", "t", "noisy_since")


def look_for_rest(run: Integration, norms: np.ndarray) -> None:
    """Stop the samples that rest at the start, given norms of state and velocity there."""
    size, speed = np.linalg.norm(norms, axis=1)
    run.resting = (speed == 0) & (run.code < 0)
    rest(run, run.resting)
    if ((speed <= torch.finfo(run.y.dtype).eps ** (1 / 3) * size) & (run.code < 0)).any():
        run.noisy = noise_alone(run)


def rest(run: Integration, samples: np.ndarray) -> None:
    """Give samples (B,) without velocity their rows at all later times, and stop them."""
    while (due := samples & np.isfinite(run.recorder.next)).any():
        run.t = np.where(due, run.recorder.next, run.t)
        run.recorder.save(run.t, due, run.y, run.obs)
    if samples.any():
        end = run.options.t_end
        later = samples & (run.t < end) & np.isfinite(end)
        run.t = np.where(later, end, run.t)
        run.recorder.save(run.t, later, run.y, run.obs)
        run.code[samples] = run.names.index("stationary")


def noise_alone(run: Integration) -> np.ndarray:
    """Return the samples (B,) whose velocity changes by a quarter when y changes by 16 eps."""
    f, y, slope, moved = run.stepper.f, run.y, run.stepper.f_new, run.stepper.y_new
    index = run.norms.places(y)
    # Fractional parts of multiples of the golden ratio: no two neighbours are alike.
    pattern = index.mul_(0.6180339887498949).frac_().sub_(0.5).to(y.dtype)
    torch.mul(y, pattern.mul_(32 * torch.finfo(y.dtype).eps).add_(1.0), out=moved)
    run.field(upload(run.t, y), moved, slope)
    run.count(1)
    lengths = run.norms.lengths(slope.sub_(f)), run.norms.lengths(f)
    change, speed = fetch([*lengths]).reshape(2, -1)
    return (run.code < 0) & (change >= 0.25 * speed) & (speed > 0)
