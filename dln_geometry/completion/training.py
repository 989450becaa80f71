"""One model of a table: offsets and a balanced network, trained by its gradient flow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dln_geometry.completion.offsets import (
    FIT_STEPS,
    WATCH_STEPS,
    Offsets,
    ProfiledCompletion,
    SideMeans,
)
from dln_geometry.completion.problem import Problem, Units, units_of
from dln_geometry.dynamics.flows import gradient_flow
from dln_geometry.dynamics.losses import Completion
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import ProgressCallback

PATIENCE = 12
"""Accepted steps without a better validation error after which a run stops."""
IMPROVEMENT = 3e-4
"""Relative decrease of the validation error that is worth to wait for."""
EVALUATIONS = 3000
ROUNDS = 3
"""Flows between which the offsets of a logistic or Poisson model are fitted anew."""
FLAT = 1e-3
"""Without validation: the norm of the gradient, relative to the start, at which a run stops."""


@dataclass(frozen=True)
class Setting:
    """What one model is: depth, rank, factor of the decay (without units), size of the start.

    >>> dln.completion.Setting.of(depth=3.0, rank=4, decay=0.5).sides
    True
    """

    depth: float
    rank: int
    decay: float
    scale: float
    seed: int = 0
    sides: bool = True  # whether there are means of the sides, if the problem has them

    @classmethod
    def of(cls, depth: float, rank: int, decay: float, seed: int = 0) -> Setting:
        """Return a setting with the start that goes with a decay: large enough not to collapse."""
        return cls(depth, rank, decay, min(0.05, max(0.002, 0.1 * decay)), seed)


@dataclass(frozen=True)
class Model:
    """Offsets and the matrix X of a trained model.

    >>> offsets = dln.completion.Offsets(torch.tensor(3.0), torch.zeros(2), torch.zeros(2))
    >>> dln.completion.Model(offsets, None).at(torch.tensor([0]), torch.tensor([1]))
    tensor([3.])
    """

    offsets: Offsets
    point: Collapsed | EndToEnd | None  # None stands for X = 0

    def at(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return ``X + o`` at entries, shape (k,)."""
        z = self.offsets.at(rows, cols)
        return z if self.point is None else z + self.point.entries(rows, cols)

    def decomposed(self) -> EndToEnd:
        """Return the singular value decomposition of X, which must not be 0."""
        assert self.point is not None
        return self.point if isinstance(self.point, EndToEnd) else self.point.point()


@dataclass(frozen=True)
class Fit:
    """A trained model and how it went."""

    setting: Setting
    model: Model
    times: tuple[float, ...]  # of the flows to the best point, one per round
    train: float
    validation: float  # NaN without held-out entries
    side_means: float  # validation error of the offsets alone
    last: float  # validation error where the run stopped
    status: str
    evaluations: int
    seconds: float
    curve: tuple[tuple[float, float], ...] = ()  # times and validation errors
    fold: int = 0


@dataclass(frozen=True)
class Limits:
    """Limits of one run.

    >>> dln.completion.Limits(seconds=10.0).patience
    12
    """

    rtol: float = 1e-3
    seconds: float = math.inf
    patience: int = PATIENCE
    improvement: float = IMPROVEMENT
    evaluations: int = EVALUATIONS
    progress: bool | ProgressCallback = False


def train(
    problem: Problem,
    setting: Setting,
    held: Problem | None,
    budget: Limits,
    *,
    times: tuple[float, ...] | None = None,
    start: Model | None = None,
) -> Fit:
    """Train a model on all entries of a problem.

    With `held`, stop by its error and return the best point; with `times`, run that long instead,
    as a refit does; else until the gradient is flat. `start` continues from a trained model.

    >>> places, values = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 0]]), torch.tensor([4.0, 2, 1, 5])
    >>> problem = dln.completion.Problem(*places, values, (3, 2))
    >>> setting, limits = dln.completion.Setting.of(2.0, 1, 0.5), dln.completion.Limits()
    >>> bool(dln.completion.train(problem, setting, None, limits).train < 1.0)
    True
    """
    begun = time.perf_counter()
    run = _Run(problem, setting, held, budget)
    fit = run.squares(times, start) if problem.link is None else run.link(times, start)
    return replace(fit, seconds=time.perf_counter() - begun)


def side_means_alone(problem: Problem, model: SideMeans) -> Offsets:
    """Return the offsets that explain a problem best where X is 0."""
    values = problem.values
    if problem.link is None:
        return model.fit_squares(-values)
    if bool((values == values[0]).all()):
        # Those of zeros or ones alone would be infinite.
        rows, cols = (values.new_zeros(count) for count in problem.shape)
        return Offsets(problem.link.link((values.sum() + 0.5) / (len(problem) + 1)), rows, cols)
    return model.fit_link(problem.link, torch.zeros_like(values), values)


class _Run:
    """The flows of one model."""

    def __init__(
        self, problem: Problem, setting: Setting, held: Problem | None, budget: Limits
    ) -> None:
        # In the order of the losses, so that offsets and residuals of entries stand side by side.
        problem = problem.select(torch.argsort(problem.rows * problem.shape[1] + problem.cols))
        problem = replace(problem, biases=problem.biases and setting.sides)
        self.problem, self.setting, self.held, self.budget = problem, setting, held, budget
        self.model = problem.side_means()
        self.begun = time.perf_counter()
        self.evaluations, self.status = 0, "side means"  # unless a flow gives another
        self.curve: list[tuple[float, float]] = []

    def squares(self, times: tuple[float, ...] | None, start: Model | None) -> Fit:
        """Train by squares: the offsets are the best ones at every point of the flow."""
        problem, values = self.problem, self.problem.values
        o = side_means_alone(problem, self.model)
        residual = values - o.at(problem.rows, problem.cols)
        centred = ProfiledCompletion.of(problem.completion(residual), self.model)
        units = units_of(problem, -residual, torch.ones_like(values), self.setting.seed)

        def model_of(point: Collapsed | EndToEnd, steps: int = WATCH_STEPS) -> Model:
            x = point.entries(centred.rows, centred.cols)
            return Model(o + centred.offsets(x, steps), point)

        point = self._start(units, start)
        if point is None:
            return self._finished(Model(o, None), (), o, "constant", math.nan)
        path, time_, last = self._flow(
            centred, point, units, model_of, None if times is None else times[0]
        )
        model = model_of(path, FIT_STEPS)
        return self._finished(model, (time_,), o, self.status, last)

    def link(self, times: tuple[float, ...] | None, start: Model | None) -> Fit:
        """Train by a link: flows with fixed offsets, which are fitted anew between them."""
        problem, values, make = self.problem, self.problem.values, self.problem.link
        assert make is not None
        first = o = side_means_alone(problem, self.model)
        if bool((values == values[0]).all()):
            return self._finished(Model(o, None), (), o, "constant", math.nan)
        z = o.at(problem.rows, problem.cols)
        units = units_of(problem, make.mean(z) - values, make.curvature(z), self.setting.seed)
        point, best, used = self._start(units, start), Model(o, None), []
        if point is None:
            return self._finished(best, (), first, "constant", math.nan)
        least, last = self._held_error(best), math.nan
        for number in range(ROUNDS if times is None else len(times)):
            loss = problem.completion(values, offsets=o.at(problem.rows, problem.cols))
            make_model = partial(Model, o)
            point, time_, last = self._flow(
                loss, point, units, make_model, None if times is None else times[number]
            )
            o = self.model.fit_link(make, point.entries(problem.rows, problem.cols), values)
            used.append(time_)
            model = Model(o, point)
            error = self._held_error(model)
            if self.held is not None and not error < least:
                used.pop()
                break
            least, best = error, model
        return self._finished(best, tuple(used), first, self.status, last)

    def _start(self, units: Units, start: Model | None) -> Collapsed | EndToEnd | None:
        """Return where the flow begins; None if the offsets explain everything."""
        values = self.problem.values
        if not units.signal > 1e3 * torch.finfo(values.dtype).eps * float(values.abs().max()):
            return None
        if start is not None and start.point is not None:
            return start.point
        generator = torch.Generator(device=values.device).manual_seed(self.setting.seed)
        rows, cols = self.problem.rows.unique(), self.problem.cols.unique()
        small = Collapsed.random(
            (len(rows), len(cols)),
            min(self.setting.rank, len(rows), len(cols)),
            self.setting.depth,
            scale=self.setting.scale * units.size,
            generator=generator,
            dtype=values.dtype,
            device=values.device,
        )
        if small.shape == self.problem.shape:
            return small
        # No entry would move the rest of a random start: zeros leave these rows to the means.
        left, right = (
            x.new_zeros(count, small.rank).index_copy(0, places, x)
            for count, places, x in zip(
                self.problem.shape, (rows, cols), (small.L, small.R), strict=True
            )
        )
        return small.replace(L=left, R=right)

    def _flow(
        self,
        loss: Completion,
        point: Collapsed | EndToEnd,
        units: Units,
        model_of: Callable[[Collapsed | EndToEnd], Model],
        t_end: float | None,
    ) -> tuple[Collapsed | EndToEnd, float, float]:
        """Run one flow; return the best point, its time, and the error at the end."""
        left = self.budget.seconds - (time.perf_counter() - self.begun)
        until: dict[str, float] = {"evaluations": self.budget.evaluations}
        if math.isfinite(self.budget.seconds):
            until["seconds"] = max(left, 0.0)
        held = None if t_end is not None else self.held

        def error(p: Collapsed | EndToEnd) -> Tensor:
            assert held is not None
            return torch.stack([held.error(model_of(q).at(held.rows, held.cols)) for q in p])

        monitor = None if held is None else error
        rtol = self.budget.rtol
        if monitor is None and t_end is None:
            power = 1 - 1 / self.setting.depth
            until["gradient"] = FLAT * units.signal * (self.setting.scale * units.size) ** power
            # Long steps shake the point, and its gradient stays above what they allow.
            least = 30 * torch.finfo(self.problem.values.dtype).eps
            rtol = max(min(rtol, 0.1 * FLAT * self.setting.scale**power), least)
        path = gradient_flow(
            loss,
            point,
            t_end=t_end,
            until=until,
            decay=units.decay(self.setting.decay, self.setting.depth),
            rtol=rtol,
            method="rk5",
            save_at=None if t_end is None else 2,
            monitor=monitor,
            patience=None if monitor is None else self.budget.patience,
            improvement=self.budget.improvement,
            progress=self.budget.progress,
        )
        self.status = str(path.status)
        self.evaluations += path.stats["evaluations"]
        seen, final = path.monitored, path.final
        assert isinstance(final, Collapsed | EndToEnd)
        if seen is None:
            return final, float(path.t[-1]), math.nan
        self.curve += list(zip(seen.t.tolist(), seen.values.tolist(), strict=True))
        return final, float(seen.best_t), float(seen.values[-1])

    def _held_error(self, model: Model) -> float:
        if self.held is None:
            return math.nan
        return float(self.held.error(model.at(self.held.rows, self.held.cols)))

    def _finished(
        self, model: Model, times: tuple[float, ...], o: Offsets, status: str, last: float
    ) -> Fit:
        side_means, problem = self._held_error(Model(o, None)), self.problem
        train = float(problem.error(model.at(problem.rows, problem.cols)))
        return Fit(
            self.setting,
            model,
            times,
            train,
            self._held_error(model),
            side_means,
            last,
            status,
            self.evaluations,
            0.0,
            tuple(self.curve),
        )
