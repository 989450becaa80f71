"""Which method takes the next step: explicit, or stabilised where the problem is stiff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.chebyshev import SAFETY, Chebyshev, ChebyshevStepper
from dln_geometry.ode.runge_kutta import RungeKutta
from dln_geometry.ode.step_size import StepControl
from dln_geometry.ode.stepper import BlockNorms, ExplicitStepper, Field


class StiffnessSwitch:
    """Choose between an explicit method and the stabilised one by their cost per unit of time.

    To the stabilised one: when ``h rho`` of the samples that hold most of the remaining steps has
    reached 0.7 of the explicit stability interval in `patience` steps, without a run of 4 steps
    that did not. Trying it is cheap, since at equal step sizes it needs fewer evaluations.
    Back: when in 4 steps running its cost ``s/h`` has exceeded that of the explicit method at its
    stability limit. A stay of less than 25 steps doubles the patience.

    Parameters
    ----------
    evaluations : int
        Evaluations per step of the explicit method.
    real_stability : float
        Length of its stability interval on the negative real axis.
    safety : float
        Factor that the stabilised method puts on the spectral radius.
    """

    def __init__(self, evaluations: int, real_stability: float, safety: float) -> None:
        self._cost, self._limit = evaluations / real_stability, 0.7 * real_stability
        self._safety = safety
        self.patience, self.votes, self.against, self.stay = 8, 0, 0, 0

    def wants_stabilised(self, hrho: np.ndarray, work: np.ndarray) -> bool:
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

    def wants_explicit(self, hrho: np.ndarray, work: np.ndarray) -> bool:
        """Count a step of the stabilised method."""
        self.stay += 1
        stages = np.maximum(np.ceil(np.sqrt(1 + 1.54 * self._safety * hrho)), 2)
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

    def load(self, state: dict[str, int]) -> None:
        """Continue from stored counters."""
        for name, value in state.items():
            setattr(self, name, value)


class MethodChoice:
    """Hold the steppers of a run, the one that steps now, and the spectral radius of each sample.

    Parameters
    ----------
    explicit, stabilised : RungeKutta and Chebyshev, or None
        With both, the run starts with the first and switches; with one, it stays.
    field, y, norms : as for a stepper
    """

    def __init__(
        self,
        explicit: RungeKutta | None,
        stabilised: Chebyshev | None,
        field: Field,
        y: Tensor,
        norms: BlockNorms,
    ) -> None:
        self._methods = {m.name: m for m in (explicit, stabilised) if m is not None}
        self._explicit, self._stabilised = explicit, stabilised
        self._field, self._y, self._norms = field, y, norms
        self._steppers: dict[str, ExplicitStepper | ChebyshevStepper] = {}
        self._switch: StiffnessSwitch | None = None
        if explicit and stabilised:
            self._switch = StiffnessSwitch(explicit.evaluations, explicit.real_stability, SAFETY)
        self.rho, self.switches = np.zeros(len(y)), 0
        self._take(next(iter(self._methods)))

    def _take(self, name: str) -> None:
        if name not in self._steppers:
            method = self._methods[name]
            make: Any = ChebyshevStepper if isinstance(method, Chebyshev) else ExplicitStepper
            self._steppers[name] = make(method, self._field, self._y, self._norms)
        self.stepper = self._steppers[name]

    def _change(self, name: str, control: StepControl) -> None:
        f = self.stepper.f
        self._take(name)
        self.stepper.f.copy_(f)
        # The old error belongs to another method.
        control.err_old = np.full_like(control.err_old, 1e-4)
        self.switches += 1

    def follow(
        self,
        trial: np.ndarray,
        norms: np.ndarray,
        radii: np.ndarray | None,
        rejected: bool,
        work: Callable[[], np.ndarray],
        control: StepControl,
    ) -> None:
        """Follow the spectral radius after a trial step and choose the method of the next one.

        Parameters
        ----------
        trial : ndarray, shape (B,)
            Step sizes of the trial.
        norms, radii : ndarray
            What the trial sent to the host.
        rejected : bool
            Whether a sample was rejected.
        work : callable
            Returns the steps (B,) still to take, up to a factor; 0 for finished samples.
        control : StepControl
            The step sizes, which a change of method may limit.
        """
        stepper = self.stepper
        if isinstance(stepper, ChebyshevStepper):
            stepper.commit()
            if radii is not None:
                self.settle(radii, work() > 0)
            if rejected:
                stepper.age = stepper.due
            if self._switch and self._switch.wants_explicit(control.h * self.rho, work()):
                assert self._explicit is not None
                self._change(self._explicit.name, control)
                reach = 0.8 * self._explicit.real_stability
                with np.errstate(divide="ignore"):
                    control.h = np.minimum(control.h, reach / self.rho)
        elif self._switch is not None:
            hrho = stepper.stiffness(norms)
            if hrho is not None and self._switch.wants_stabilised(hrho, work()):
                assert self._stabilised is not None
                self._change(self._stabilised.name, control)
                assert isinstance(self.stepper, ChebyshevStepper)
                self.stepper.seed(stepper.df)
                rho = np.divide(hrho, trial, out=np.zeros_like(hrho), where=trial > 0)
                self.rho = np.nan_to_num(rho, posinf=0.0)

    def settle(self, radii: np.ndarray, running: np.ndarray) -> bool:
        """Take over the last of two iterates of the spectral radius.

        Unless it has settled to 5 %, the next step estimates it again.
        """
        assert isinstance(self.stepper, ChebyshevStepper)
        last = radii[1]
        self.rho = np.where(np.isfinite(last), last, self.rho)
        settled = bool(((np.abs(last - radii[0]) <= 0.05 * last) | ~running).all())
        self.stepper.age = 0 if settled else self.stepper.due
        return settled

    def state(self) -> dict[str, Any]:
        """Return a copy of what the next step depends on."""
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
            raise ValueError(
                f"resume must be given with the method of the stored run, {state['method']!r}, "
                f"got {sorted(self._methods)}"
            )
        self._take(state["method"])
        self.stepper.load(state["stepper"])
        self.rho, self.switches = state["rho"].numpy().copy(), state["switches"]
        if self._switch is not None:
            self._switch.load(state["switch"])
