"""The choice of the method during a run, by its cost per unit of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.methods.chebyshev import RKC, SAFETY, Chebyshev, ChebyshevStepper
from dln_geometry.ode.methods.jacobians import Jacobian
from dln_geometry.ode.methods.norms import BlockNorms
from dln_geometry.ode.methods.repeated import RepeatedStepper, repeats
from dln_geometry.ode.methods.rosenbrock import (
    MOST_COST,
    MOST_NUMBERS,
    RODAS,
    Projection,
    Rosenbrock,
    RosenbrockStepper,
    step_cost,
)
from dln_geometry.ode.methods.runge_kutta import METHODS, ExplicitStepper, Field, RungeKutta
from dln_geometry.ode.methods.transfers import fetch
from dln_geometry.support import shown

Array = np.ndarray
Method = str | RungeKutta | Chebyshev | Rosenbrock

MANY_STAGES = 10
"""Stages of the stabilised method from which stability, not accuracy, makes a step dear."""

Stepper = ExplicitStepper | ChebyshevStepper | RosenbrockStepper


class StepSizes(Protocol):
    """What a change of method changes in the control of the steps."""

    h: Array
    err_old: Array


@dataclass(frozen=True)
class Methods:
    """The methods that a run may use: one, or an explicit one and one or two for stiff phases."""

    explicit: RungeKutta | None = None
    stabilised: Chebyshev | None = None
    implicit: Rosenbrock | None = None

    def fitting(self, y: Tensor, system: KnownField) -> Methods:
        """Return the explicit method and the better one of the others for a batch of states."""
        if self.stabilised is None or self.implicit is None:
            return self
        batch, n = y.shape
        small = n <= MOST_NUMBERS and step_cost(n, batch) <= MOST_COST
        if system.jacobian is not None and small:
            return Methods(self.explicit, None, self.implicit)
        return Methods(self.explicit, self.stabilised, None)


def methods_of(method: Method, rtol: float, dtype: torch.dtype, *, shared: bool = False) -> Methods:
    """Return the method of this name, or those that `auto` chooses among."""
    if method == "auto":
        # In single precision round-off, not the order, would set the steps of the eighth order.
        fine = rtol <= 1e-6 and torch.finfo(dtype).eps < 1e-10
        return Methods(METHODS["rk8" if fine else "rk5"], RKC, RODAS)
    named = {**METHODS, RKC.name: RKC, RODAS.name: RODAS}
    value = named.get(method) if isinstance(method, str) else method
    if isinstance(value, RungeKutta):
        return Methods(explicit=value)
    if isinstance(value, Chebyshev):
        return Methods(stabilised=value)
    if isinstance(value, Rosenbrock):
        if shared:
            required = "explicit or stabilised where several processes hold the state"
            raise ValueError(f"method must be {required}, got {value.name!r}")
        return Methods(implicit=value)
    names = ["auto", *named]
    raise ValueError(f"method must be one of {names} or a method value, got {shown(method)}")


@dataclass(frozen=True)
class KnownField:
    """A field, and what is known of it: its Jacobian, and how its invariants are restored.

    Examples
    --------
    >>> def decay(t, y, out):
    ...     torch.neg(y, out=out)
    >>> dln.ode.KnownField(decay, autonomous=True).jacobian is None
    True
    """

    field: Field
    jacobian: Jacobian | None = None
    project: Projection | None = None
    shift: Projection | None = None
    outside: Callable[[Tensor], Tensor] | None = None
    autonomous: bool = False
    narrowed: Callable[[Tensor], KnownField | None] | None = None
    """``narrowed(samples (k,))`` returns the field of some samples alone, None if it cannot."""
    steady: bool = False
    """Whether the field makes the same operations of torch at every state."""


class StiffnessSwitch:
    """Choose between an explicit method and one for stiff problems by their cost per unit of time.

    To the latter after `patience` steps in which ``h rho`` of the samples with most of the
    remaining steps reached 0.7 of the explicit stability interval (4 others in a row reset the
    count). Back after 4 steps in a row that cost more per unit of time than the explicit method at
    its stability limit; a stay of less than 25 steps doubles the patience.
    """

    def __init__(self, explicit: RungeKutta, stiff: Chebyshev | Rosenbrock) -> None:
        self.explicit, self.stiff, limit = explicit, stiff, explicit.real_stability
        self._cost, self._limit = explicit.evaluations / limit, 0.7 * limit
        self.patience, self.votes, self.against, self.stay, self.failures = 8, 0, 0, 0, 0

    def wants_stiff(self, hrho: Array, work: Array) -> bool:
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

    def wants_explicit(self, hrho: Array, cost: Array | float, work: Array) -> bool:
        """Count a step of the other method, worth `cost` evaluations."""
        self.stay += 1
        dear = 2 * float(work @ (cost > self._cost * hrho)) > float(work.sum())
        self.against = self.against + 1 if dear else 0
        if self.against < 4:
            return False
        self.patience = min(2 * self.patience, 512) if self.stay < 25 else 8
        self.votes = self.against = 0
        return True

    def gives_up(self, moved: bool) -> bool:
        """Count a trial of a linearly implicit method: where many in a row fail, it has no use.

        Its order needs more derivatives than a field has where singular values vanish.
        """
        self.failures = 0 if moved else self.failures + 1
        if self.failures < 6:
            return False
        self.patience = min(8 * self.patience, 512)
        self.votes = self.against = self.failures = 0
        return True

    def state(self) -> dict[str, int]:
        """Return the counters."""
        names = ("patience", "votes", "against", "stay", "failures")
        return {n: getattr(self, n) for n in names}


class MethodChoice:
    """Hold the steppers of a run, the one that steps now, and the spectral radius of each sample.

    With two methods the run starts with the explicit one and switches.
    """

    def __init__(self, methods: Methods, system: KnownField, y: Tensor, norms: BlockNorms) -> None:
        fit = methods.fitting(y, system)
        explicit, stiff = fit.explicit, fit.stabilised or fit.implicit
        self._methods = {m.name: m for m in (explicit, stiff) if m is not None}
        self.system, self._y, self._norms = system, y, norms
        self._steppers: dict[str, Stepper] = {}
        self._switch = StiffnessSwitch(explicit, stiff) if explicit and stiff else None
        self.rho, self.switches = np.zeros(len(y)), 0
        self.bound = np.zeros(len(y), dtype=bool)
        """Samples (B,) whose last step stability bounded."""
        self._take(next(iter(self._methods)))

    def _take(self, name: str) -> None:
        if name not in self._steppers:
            method, system = self._methods[name], self.system
            given: Any = method, system.field, self._y, self._norms
            if isinstance(method, Rosenbrock):
                known = {n: getattr(system, n) for n in ("jacobian", "project", "shift")}
                made = RosenbrockStepper(*given, **known, autonomous=system.autonomous)
            elif isinstance(method, Chebyshev):
                made = ChebyshevStepper(*given)
            else:
                made = (RepeatedStepper if repeats(system, self._y) else ExplicitStepper)(*given)
            self._steppers[name] = made
        self.stepper = self._steppers[name]

    def _change(self, name: str, control: StepSizes) -> None:
        f = self.stepper.f.clone()
        # Let the stages of the other method go first: they are most of the memory.
        self._steppers.clear()
        del self.stepper
        self._take(name)
        self.stepper.f.copy_(f)
        # Forget the old error, which is that of the other method.
        control.err_old = np.full_like(control.err_old, 1e-4)
        self.switches += 1

    def narrow(self, system: KnownField, y: Tensor, state: dict[str, Any]) -> None:
        """Go on with a batch of fewer samples, given their part of the state of the stepper."""
        name = self.stepper.name
        self.system, self._y = system, y
        self._steppers.clear()
        del self.stepper
        self._take(name)
        self.stepper.load(state)

    def update(
        self,
        trial: Array,
        norms: Array,
        radii: Array | None,
        moved: bool,
        rejected: bool,
        work: Callable[[], Array],
        control: StepSizes,
    ) -> None:
        """Update the spectral radius after a trial step and choose the method of the next one.

        `trial` (B,) are its step sizes; `moved` and `rejected` tell whether a sample did or was;
        ``work()`` returns the steps (B,) still to take, up to a factor. A change of method may
        limit the next steps.
        """
        stepper, switch = self.stepper, self._switch
        if isinstance(stepper, ExplicitStepper):
            hrho = stepper.stiffness(norms)
            if hrho is not None:
                self.bound = (hrho >= 0.5 * stepper.method.real_stability) & (trial > 0)
            if switch and hrho is not None and switch.wants_stiff(hrho, work()):
                direction = stepper.df
                del stepper
                self._change(switch.stiff.name, control)
                rho = np.divide(hrho, trial, out=np.zeros_like(hrho), where=trial > 0)
                self.rho = np.nan_to_num(rho, posinf=0.0)
                if isinstance(self.stepper, ChebyshevStepper):
                    self.stepper.seed(direction)
                elif isinstance(self.stepper, RosenbrockStepper):
                    self.stepper.commit(True)
            return
        if isinstance(stepper, RosenbrockStepper):
            stepper.commit(moved)
            self.bound[:] = False
            cost: Any = step_cost(self._y.shape[-1], len(self._y))
            if radii is not None:
                self.rho = np.where(np.isfinite(radii[1]), radii[1], self.rho)
            if switch and switch.gives_up(moved):
                self._explicit_again(switch, control)
                return
        else:
            stepper.commit()
            if radii is not None:
                self.settle(radii, work() > 0)
            if rejected:
                stepper.age = stepper.due
            stages = np.ceil(np.sqrt(1 + 1.54 * SAFETY * control.h * self.rho))
            self.bound = (stages >= MANY_STAGES) & (trial > 0)
            cost = np.maximum(stages, 2)
        if switch and switch.wants_explicit(control.h * self.rho, cost, work()):
            self._explicit_again(switch, control)

    def _explicit_again(self, switch: StiffnessSwitch, control: StepSizes) -> None:
        self._change(switch.explicit.name, control)
        reach = 0.8 * switch.explicit.real_stability
        with np.errstate(divide="ignore"):
            control.h = np.minimum(control.h, reach / self.rho)

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
