"""Save times and stopping rules of a run, the recorder of its rows, and `Solution`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.ode.monitoring import Watched
from dln_geometry.support import Growing, Numbers, as_real, read_array, shown

Record = Callable[[Tensor, Any], dict[str, Tensor]]
"""``record(y (b, n), obs (b, k))`` returns the tensors (b, ...) to save."""

MOST_EVALUATIONS = 200_000
"""The bound on the evaluations of a run that is given none."""


@dataclass(frozen=True)
class Solution:
    """The result of an integration: rows (T, B, ...), and the last state of each sample.

    Rows that a sample of a larger batch did not reach hold its last state; a single sample has one
    row more instead, at the time it stopped. `stats` counts ``evaluations`` of the field for the
    batch, ``steps`` in which a sample advanced, ``rejected`` trials and ``corrections`` summed over
    the samples, ``switches`` of method, ``seconds``, and evaluations ``by_method``.

    Examples
    --------
    >>> def decay(t, y, out):
    ...     torch.neg(y, out=out)
    >>> solution = dln.ode.integrate(decay, torch.ones(1, 1), t_end=1.0)
    >>> solution.status, solution.y
    (['t_end'], tensor([[0.3679]]))
    """

    t: Tensor  # (T,): times of the saved rows
    saved: dict[str, Tensor]  # (T, B, ...): the results of `record`
    y: Tensor  # (B, n): the last states
    obs: Tensor | None  # (B, k): their observables
    t_final: Tensor  # (B,): their times
    status: list[str]
    """Why each sample stopped: ``"t_end"``, a stopping rule or a limit, ``"nonsmooth"``,
    ``"stationary"`` or ``"stalled"``; in the solution of an error also ``"failed"`` and
    ``"unfinished"``."""
    stats: dict[str, Any]
    start: Tensor  # (2, B): was the velocity at the start exactly zero; was it rounding alone?
    bound: Tensor  # (B,): did stability, not accuracy, bound the last step?
    monitored: Watched | None = None
    steps: tuple[Tensor, Tensor] | None = None
    """Times (S, B) and states (S, B, n) at the start and after every step, if they were kept."""


class IntegrationError(ValueError):
    """A step size fell below the rounding of time; `solution` holds the rows up to there.

    Examples
    --------
    >>> def square(t, y, out):
    ...     torch.square(y, out=out)
    >>> try:
    ...     dln.ode.integrate(square, torch.ones(1, 1), t_end=2.0)
    ... except dln.ode.IntegrationError as error:
    ...     print(f"y = 1/(1 - t) ended at {float(error.solution.t[-1]):.3f}")
    y = 1/(1 - t) ended at 1.000
    """

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.solution)


def save_times(save_at: Any, t_end: float, batch: int) -> np.ndarray | None:
    """Return the times of the rows, None for every step.

    Examples
    --------
    >>> dln.ode.save_times([0.0, 0.5], 1.0, batch=2)
    array([0. , 0.5])
    """
    if save_at is None:
        return None if batch == 1 else np.array([0.0, t_end])
    times, _ = read_array(save_at, "save_at")
    stops = times.detach().to("cpu", torch.float64).numpy().copy()
    if stops.ndim != 1 or len(stops) == 0:
        raise ValueError(f"save_at must be a non-empty vector, got shape {stops.shape}")
    if not np.isfinite(stops).all() or (np.diff(stops) <= 0).any():
        raise ValueError(f"save_at must be finite and strictly increasing, got {stops.tolist()}")
    # Times of a lower precision may round past the end.
    if t_end < stops[-1] <= t_end * (1 + 1e-6):
        stops[-1] = t_end
    if stops[0] < 0 or stops[-1] > t_end:
        raise ValueError(f"save_at must lie in [0, {t_end}], got {stops[0]} to {stops[-1]}")
    return stops


def until_rules(until: Mapping[str, float] | None, names: Sequence[str]) -> dict[str, float]:
    """Return the stopping rules that a user gave, among these names.

    Examples
    --------
    >>> dln.ode.until_rules({"loss": 0.1}, ["loss", "gradient"])
    {'loss': 0.1}
    """
    if not isinstance(until, Mapping | None):
        raise TypeError(f"until must be a mapping of rules to numbers, got {shown(until)}")
    rules = dict(until or {})
    for name, value in rules.items():
        if name not in names:
            raise ValueError(f"until must hold rules among {', '.join(names)}, got {shown(name)}")
        number = as_real(value, f"until[{name!r}]")
        whole = number.is_integer() or math.isinf(number) or name not in ("steps", "evaluations")
        if not number >= 0 or not whole:
            required = f"a {'number' if whole else 'whole number'} >= 0"
            raise ValueError(f"until[{name!r}] must be {required}, got {shown(value)}")
    return rules


def end_or_rules(t_end: float | None, rules: dict[str, float]) -> float:
    """Return the time at which a run ends, infinite where stopping rules end it.

    Examples
    --------
    >>> dln.ode.end_or_rules(None, {"loss": 0.1}), dln.ode.end_or_rules(2.0, {})
    (inf, 2.0)
    """
    if t_end is None:
        if not rules:
            raise ValueError("t_end or until must be given, got neither")
        t_end = math.inf
    t_end = as_real(t_end, "t_end")
    if not t_end >= 0:
        raise ValueError(f"t_end must be >= 0, got {t_end}")
    if math.isinf(t_end) and not rules:
        raise ValueError("until must be given if t_end is infinite, got no rule")
    return t_end


class Recorder:
    """Collect the results of `record` at the times `stops` (T,) in tensors (T, B, ...).

    Without `stops`, collect every accepted step of a batch of one. With `moves_end` the last row
    is the end of the run, whenever that comes. With `every` it also keeps the state after every
    step.
    """

    def __init__(
        self,
        record: Record,
        stops: np.ndarray | None,
        batch: int,
        *,
        moves_end: bool = False,
        every: bool = False,
    ) -> None:
        self._steps: tuple[list[np.ndarray], list[Tensor]] | None = ([], []) if every else None
        self._record, self._stops, self._batch, self._moves_end = record, stops, batch, moves_end
        self._padded = np.array([np.inf]) if stops is None else np.append(stops, np.inf)
        self._next = np.full(batch, self._padded[0])
        self._index = np.zeros(batch, dtype=np.int64)
        self.live: np.ndarray | None = None
        """The samples that `save` is given, where not all."""
        self._times: list[float] = []
        self._rows: dict[str, list[Tensor]] = {}
        self._saved: dict[str, Tensor] = {}

    @property
    def next(self) -> np.ndarray:
        """The time (B,) of the next row of each sample, infinite after the last."""
        return self._next if self.live is None else self._next[self.live]

    def save(self, t: np.ndarray, advanced: np.ndarray, y: Tensor, obs: Tensor | None) -> None:
        """Save the samples in the mask `advanced` that stand at their next save time."""
        if self._steps is not None:
            self._steps[0].append(t.copy())
            self._steps[1].append(y.clone())
        if self._stops is None:
            if advanced[0]:
                for name, value in self._record(y, obs).items():
                    self._rows.setdefault(name, []).append(value.detach().clone())
                self._times.append(float(t[0]))
            return
        due = advanced & (t == self.next)
        if np.count_nonzero(due):
            self._save_rows(due, y, obs)
            self._index[due if self.live is None else self.live[due]] += 1
            self._next = self._padded[self._index]

    def _save_rows(self, due: np.ndarray, y: Tensor, obs: Tensor | None) -> None:
        index = self._index if self.live is None else self._index[self.live]
        if self.live is None and due.all():
            new = self._record(y, obs)
            self._allocate(new)
            if (self._index == self._index[0]).all():
                for name, value in new.items():
                    self._saved[name][int(self._index[0])].copy_(value)
                return
            samples = torch.arange(self._batch, device=y.device)
        else:
            samples = torch.from_numpy(np.flatnonzero(due)).to(y.device, non_blocking=True)
            new = self._record(y[samples], None if obs is None else obs[samples])
            self._allocate(new)
            if self.live is not None:
                samples = torch.from_numpy(self.live[due]).to(y.device, non_blocking=True)
        rows = torch.from_numpy(index[due]).to(y.device, non_blocking=True)
        for name, value in new.items():
            self._saved[name][rows, samples] = value.detach()

    def _allocate(self, new: dict[str, Tensor]) -> None:
        if not self._saved:
            shape = (len(self._padded) - 1, self._batch)
            self._saved = {n: v.new_zeros((*shape, *v.shape[1:])) for n, v in new.items()}

    def result(
        self, t: np.ndarray, y: Tensor, obs: Tensor | None
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Return times and rows, given the last times (B,) and states."""
        if self._stops is None:
            return np.array(self._times), {n: torch.stack(rows) for n, rows in self._rows.items()}
        times = self._stops.copy()
        if (self._index == len(times)).all():
            return times, {name: value.clone() for name, value in self._saved.items()}
        last = {name: value.detach() for name, value in self._record(y, obs).items()}
        self._allocate(last)
        if self._batch == 1:
            reached = int(self._index[0])
            times, saved = times[:reached], {n: v[:reached] for n, v in self._saved.items()}
            if reached and times[-1] == t[0]:
                return times, {name: value.clone() for name, value in saved.items()}
            rows = {name: torch.cat([value, last[name][None]]) for name, value in saved.items()}
            return np.append(times, t[0]), rows
        if self._moves_end:
            times[-1] = t.max()
        pending = torch.from_numpy(np.arange(len(times))[:, None] >= self._index).to(y.device)
        return times, {
            name: torch.where(pending.view(*pending.shape, *(1,) * (v.ndim - 2)), last[name], v)
            for name, v in self._saved.items()
        }

    @property
    def steps(self) -> tuple[Tensor, Tensor] | None:
        """Times (S, B) and states (S, B, n) of all steps, if they are kept."""
        if self._steps is None:
            return None
        return torch.from_numpy(np.stack(self._steps[0])), torch.stack(self._steps[1])

    def state(self) -> dict[str, Any]:
        """Return all but the rows."""
        empty = {
            "times": torch.zeros(0, dtype=torch.float64, device="cpu"),
            "rows": {},
            "saved": {},
        }
        steps = {} if self._steps is None else {"steps": {}}
        return {**empty, **steps, "index": torch.from_numpy(self._index.copy())}

    def growing(self) -> dict[tuple[str, ...], Growing]:
        """Return the rows, not copied, by their places in `state`."""
        count = len(self._times)
        rows = {("rows", n): Growing(x, count) for n, x in self._rows.items()}
        rows |= {("saved", n): Growing(x, self._index) for n, x in self._saved.items()}
        for name, x in zip("ty", self._steps or (), strict=False):
            rows["steps", name] = Growing(x, len(x))
        return {**rows, **({("times",): Growing(self._times, count)} if count else {})}

    def form(self, state: Any, y: Tensor, obs: Tensor | None) -> dict[str, Any]:
        """Return the form that a copy must have, given any states and observables."""
        new = self._record(y, obs) if isinstance(state, dict) else {}
        every = self._stops is None
        count = len(state.get("times", ())) if every and new else len(self._padded) - 1
        rows = {n: Numbers(v.dtype, (count, *v.shape)) for n, v in new.items()}
        steps = {}
        if self._steps is not None:
            each = Numbers(torch.float64, (None, self._batch))
            steps = {"steps": {"t": each, "y": Numbers(y.dtype, (None, *y.shape))}}
        return {
            **steps,
            "times": Numbers(torch.float64, (None,)),
            "rows": rows if every and count else {},
            "saved": {} if every else ({}, rows),
            "index": Numbers(torch.int64, (self._batch,)),
        }

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a copy, on the device of the run."""
        index = state["index"].numpy().copy()
        if (index < 0).any() or (index >= len(self._padded)).any():
            raise ValueError(f"index must lie within {len(self._padded) - 1} save times")
        self._times = state["times"].tolist()
        rows, saved = state["rows"], state["saved"]
        self._rows = {name: list(x.to(device).clone().unbind(0)) for name, x in rows.items()}
        self._saved = {name: x.to(device).clone() for name, x in saved.items()}
        if self._steps is not None:
            t, y = (state["steps"][name] for name in ("t", "y"))
            self._steps = (list(t.numpy().copy()), list(y.to(device).clone().unbind(0)))
        self._index = index
        self._next = self._padded[self._index]
