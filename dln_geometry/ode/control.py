"""Options of a run, and its decisions between steps: each sample's step size, and the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.chebyshev import SAFETY, Chebyshev, ChebyshevStepper
from dln_geometry.ode.monitoring import Monitor
from dln_geometry.ode.runge_kutta import BlockNorms, ExplicitStepper, Field, RungeKutta, fetch

Array = np.ndarray
SHRINK, GROW = 0.2, 10.0
TINY, EPS = float(np.finfo(np.float64).tiny), float(np.finfo(np.float64).eps)
RESERVED = (
    *("t_end", "steps", "evaluations", "seconds", "failed", "unfinished"),
    *("nonsmooth", "stationary", "stalled", "patience"),
)
"""Status names that no stopping rule may take."""


@dataclass(frozen=True)
class Options:
    """The checked arguments of an integration."""

    t_end: float
    rtol: float
    atol: Array | None
    explicit: RungeKutta | None
    stabilised: Chebyshev | None
    rules: dict[str, tuple[int, float]]
    limits: dict[str, float]
    correct: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None
    autonomous: bool = False
    monitor: Monitor | None = None


def first_step(d0: Array, h0: Array, d1: Array, d2: Array, order: int) -> Array:
    """Return the first step size of Hairer, Solving ODEs I, II.4, in a form that scales with time.

    ``min(100 h0, (0.01/d0)^(1/order) / r)``, ``r = max(d1/d0, sqrt(d2/d0))``; ``d0, d1, d2`` are
    the sizes of y and of its first two derivatives in units of the tolerance, `h0` the trial step.
    """
    rate = np.maximum(d1 / d0, np.sqrt(d2 / d0))
    # A rate of zero, or next to it, sets no limit.
    with np.errstate(divide="ignore", over="ignore"):
        h1 = np.where(rate > 0, (0.01 / d0) ** (1 / order) / rate, h0)
    return np.maximum(np.minimum(100 * h0, h1), TINY)


class StepControl:
    """Control one step size per sample, as the PI controller of Hairer, Solving ODEs II, IV.2.

    After an accepted step ``h_new = h clip(0.9 err^(-0.85/k) err_old^(0.2/k), 0.2, 10)``, where
    ``k`` is one more than the order of the error estimate, and no growth right after a rejection;
    after a rejected one ``h clip(0.9 err^(-1/k), 0.2, 0.9)``, ``0.2 h`` if it is not finite.
    """

    def __init__(self, h: Array) -> None:
        self.h, self.first = h, h.copy()
        self.err_old = np.full_like(h, 1e-4)
        self.after_rejection = np.zeros(len(h), dtype=bool)

    def propose(self, t: Array, stop: Array, running: Array) -> tuple[Array, Array]:
        """Return the steps to try, 0 for finished samples, and which of them end at `stop`."""
        hits = (t + 1.01 * self.h >= stop) & running
        trial = np.where(running, self.h, 0.0)
        if np.count_nonzero(hits):
            # Subtracted only where a stop is hit: stops may be infinite.
            trial[hits] = stop[hits] - t[hits]
        return trial, hits

    def update(
        self, err: Array, accepted: Array, trial: Array, hits: Array, running: Array, order: int
    ) -> None:
        """Set the next step sizes from errors (B,) of an order; those of failed trials are NaN."""
        k = order + 1
        with np.errstate(all="ignore"):
            size = np.maximum(err, 1e-10)
            grow = 0.9 * size ** (-0.85 / k) * self.err_old ** (0.2 / k)
            grow = np.minimum(np.maximum(grow, SHRINK), GROW)
            if np.count_nonzero(self.after_rejection):
                grow = np.where(self.after_rejection, np.minimum(grow, 1.0), grow)
            h, keep = trial * grow, accepted
            if np.count_nonzero(hits):
                # If a save time shortened this step, keep the previous step size.
                h = np.where(hits & (grow >= 1), np.maximum(self.h, h), h)
                keep = accepted & (trial >= 0.5 * self.h)
            if np.count_nonzero(accepted) == len(accepted):
                self.h = h
            else:
                shrink = np.minimum(np.maximum(0.9 * size ** (-1 / k), SHRINK), 0.9)
                shrink = trial * np.where(np.isfinite(err), shrink, SHRINK)
                self.h = np.where(accepted, h, np.where(running, shrink, self.h))
            self.err_old = np.where(keep, np.maximum(err, 1e-4), self.err_old)
        self.after_rejection = running & ~accepted

    def underflow(self, t: Array) -> Array:
        """Return the samples whose step is lost in the rounding of time."""
        return self.h < 16 * EPS * np.maximum(t, np.minimum(self.first, 1.0))

    def state(self) -> dict[str, Any]:
        """Return a copy of the controller's arrays as tensors."""
        return {name: torch.from_numpy(value.copy()) for name, value in vars(self).items()}

    @classmethod
    def load(cls, state: dict[str, Any]) -> StepControl:
        """Return the controller of a stored state."""
        control = cls(state["h"].numpy().copy())
        vars(control).update({name: value.numpy().copy() for name, value in state.items()})
        return control


class StiffnessSwitch:
    """Choose between an explicit method and the stabilised one by their cost per unit of time.

    To the stabilised one after `patience` steps in which ``h rho`` of the samples with most of the
    remaining steps reached 0.7 of the explicit stability interval (4 others in a row reset the
    count). Back after 4 steps in a row whose cost ``s/h`` exceeds that of the explicit method at
    its stability limit; a stay of less than 25 steps doubles the patience.
    """

    def __init__(self, explicit: RungeKutta, stabilised: Chebyshev) -> None:
        self.explicit, self.stabilised, limit = explicit, stabilised, explicit.real_stability
        self._cost, self._limit = explicit.evaluations / limit, 0.7 * limit
        self.patience, self.votes, self.against, self.stay = 8, 0, 0, 0

    def wants_stabilised(self, hrho: Array, work: Array) -> bool:
        """Count a step of the explicit method; `work` (B,) weighs the samples."""
        # The negation counts NaN, a sample that does not move, as not stiff.
        if 2 * float(work @ (hrho > self._limit)) > float(work.sum()):
            self.votes, self.against = self.votes + 1, 0
        else:
            self.against += 1
            if self.against >= 4:
                self.votes = 0
        if self.votes < self.patience:
            return False
        self.votes = self.against = self.stay = 0
        return True

    def wants_explicit(self, hrho: Array, work: Array) -> bool:
        """Count a step of the stabilised method."""
        self.stay += 1
        stages = np.maximum(np.ceil(np.sqrt(1 + 1.54 * SAFETY * hrho)), 2)
        dear = 2 * float(work @ (stages > self._cost * hrho)) > float(work.sum())
        self.against = self.against + 1 if dear else 0
        if self.against < 4:
            return False
        self.patience = min(2 * self.patience, 512) if self.stay < 25 else 8
        self.votes = self.against = 0
        return True

    def state(self) -> dict[str, int]:
        """Return the counters."""
        return {n: getattr(self, n) for n in ("patience", "votes", "against", "stay")}


class MethodChoice:
    """Hold the steppers of a run, the one that steps now, and the spectral radius of each sample.

    With two methods the run starts with the explicit one and switches.
    """

    def __init__(self, options: Options, field: Field, y: Tensor, norms: BlockNorms) -> None:
        explicit, stabilised = options.explicit, options.stabilised
        self._methods = {m.name: m for m in (explicit, stabilised) if m is not None}
        self._field, self._y, self._norms = field, y, norms
        self._steppers: dict[str, ExplicitStepper | ChebyshevStepper] = {}
        self._switch = StiffnessSwitch(explicit, stabilised) if explicit and stabilised else None
        self.rho, self.switches = np.zeros(len(y)), 0
        self._take(next(iter(self._methods)))

    def _take(self, name: str) -> None:
        if name not in self._steppers:
            method = self._methods[name]
            make: Any = ChebyshevStepper if isinstance(method, Chebyshev) else ExplicitStepper
            self._steppers[name] = make(method, self._field, self._y, self._norms)
        self.stepper = self._steppers[name]

    def _change(self, name: str, control: StepControl) -> None:
        f = self.stepper.f.clone()
        # Let the stages of the other method go first: they are most of the memory.
        self._steppers.clear()
        del self.stepper
        self._take(name)
        self.stepper.f.copy_(f)
        # Forget the old error, which is that of the other method.
        control.err_old = np.full_like(control.err_old, 1e-4)
        self.switches += 1

    def update(
        self,
        trial: Array,
        norms: Array,
        radii: Array | None,
        rejected: bool,
        work: Callable[[], Array],
        control: StepControl,
    ) -> None:
        """Update the spectral radius after a trial step and choose the method of the next one.

        `trial` (B,) are its step sizes; `rejected` tells whether a sample was; ``work()`` returns
        the steps (B,) still to take, up to a factor. A change of method may limit the next steps.
        """
        stepper, switch = self.stepper, self._switch
        if isinstance(stepper, ChebyshevStepper):
            stepper.commit()
            if radii is not None:
                self.settle(radii, work() > 0)
            if rejected:
                stepper.age = stepper.due
            if switch and switch.wants_explicit(control.h * self.rho, work()):
                self._change(switch.explicit.name, control)
                reach = 0.8 * switch.explicit.real_stability
                with np.errstate(divide="ignore"):
                    control.h = np.minimum(control.h, reach / self.rho)
        elif switch is not None:
            hrho = stepper.stiffness(norms)
            if hrho is not None and switch.wants_stabilised(hrho, work()):
                direction = stepper.df
                del stepper
                self._change(switch.stabilised.name, control)
                assert isinstance(self.stepper, ChebyshevStepper)
                self.stepper.seed(direction)
                rho = np.divide(hrho, trial, out=np.zeros_like(hrho), where=trial > 0)
                self.rho = np.nan_to_num(rho, posinf=0.0)

    def first_radius(self, running: Array) -> int:
        """Iterate until the spectral radii have settled; return the evaluations that it took."""
        stepper, y = self.stepper, self._y
        assert isinstance(stepper, ChebyshevStepper)
        stepper.seed(stepper.f)
        stepper.iterations, evaluations = 5, 0
        for _ in range(10):
            evaluations += stepper.iterations
            radii = fetch(stepper.power(y.new_zeros(len(y)), y)).reshape(2, -1)
            stepper.commit()
            if self.settle(radii, running):
                break
        return evaluations

    def settle(self, radii: Array, running: Array) -> bool:
        """Adopt the last of two radii; if they differ by more than 5 %, iterate again next step."""
        assert isinstance(self.stepper, ChebyshevStepper)
        last = radii[1]
        self.rho = np.where(np.isfinite(last), last, self.rho)
        settled = bool(((np.abs(last - radii[0]) <= 0.05 * last) | ~running).all())
        self.stepper.age = 0 if settled else self.stepper.due
        return settled

    def state(self) -> dict[str, Any]:
        """Return a copy of all that the next step needs."""
        return {
            "method": self.stepper.name,
            "stepper": self.stepper.state(),
            "rho": torch.from_numpy(self.rho.copy()),
            "switches": self.switches,
            "switch": self._switch.state() if self._switch else {},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a stored state."""
        if state["method"] not in self._methods:
            stored = f"the method of the stored run, {state['method']!r}"
            raise ValueError(f"resume must be given with {stored}, got {sorted(self._methods)}")
        self._take(state["method"])
        self.stepper.load(state["stepper"])
        self.rho, self.switches = state["rho"].numpy().copy(), state["switches"]
        if self._switch is not None:
            vars(self._switch).update(state["switch"])
