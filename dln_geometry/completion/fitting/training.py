"""What a run is: settings and limits, the flow of a model, and what is found."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dln_geometry.completion.fitting.offsets import Offsets, SideMeans
from dln_geometry.completion.fitting.problem import Problem, Units
from dln_geometry.dynamics.flows import gradient_flow
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import ProgressCallback

LEAST_DECAY = 0.005
"""A search takes 0 for smaller decays."""
PATIENCE = 12
"""Accepted steps without a better validation error after which a run stops."""
IMPROVEMENT = 3e-4
"""Relative decrease of the validation error that is worth to wait for."""
EVALUATIONS = 3000
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

    def with_decay(self, decay: float) -> Setting:
        """Return the setting with another decay, and the start that goes with it."""
        decay = 0.0 if decay < LEAST_DECAY else decay
        return replace(Setting.of(self.depth, self.rank, decay, self.seed), sides=self.sides)

    def restarted(self, number: int) -> Setting:
        """Return the setting with the start of this number."""
        return replace(self, seed=self.seed + 1000 * number)


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
    alone: Offsets  # where X is 0
    validation: float  # NaN without held-out entries
    side_means: float  # validation error of the offsets alone
    last: float  # validation error where the run stopped
    status: str
    evaluations: int
    seconds: float
    curve: tuple[tuple[float, float], ...] = ()  # times and validation errors
    fold: int = 0
    prepared: float = 0.0  # seconds before the flow

    def after(self, other: Fit) -> Fit:
        """Return this fit by squares, which began at the model of another, as one long flow."""
        begun = other.times[0]
        curve = tuple(point for point in other.curve if point[0] < begun)
        return replace(
            self,
            times=(begun + self.times[0],),
            evaluations=self.evaluations + other.evaluations,
            curve=curve + tuple((begun + t, error) for t, error in self.curve),
        )


@dataclass(frozen=True)
class Choice:
    """What was tried and chosen, and the models trained on everything."""

    settings: tuple[Setting, ...]  # one, or one for each depth of an average
    fits: tuple[Fit, ...]  # the models that predict
    tried: tuple[tuple[Setting, float, Fit], ...]  # setting, pooled validation error, first fold
    validated: tuple[Fit, ...]  # the chosen settings, trained without the held-out entries
    held: Problem | None
    side_means: float
    best: float


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


def flow_of(
    loss: Any,
    point: Collapsed | EndToEnd,
    decay: Any,
    budget: Limits,
    until: dict[str, float],
    error: Callable[[Any], Tensor] | None,
    t_end: float | None,
    rtol: float | None = None,
) -> Any:
    """Run a flow under a budget, watched by an error, up to `t_end` or by rules."""
    until = {"evaluations": budget.evaluations, **until}
    if math.isfinite(budget.seconds):
        until["seconds"] = max(budget.seconds, 0.0)
    with warnings.catch_warnings():
        # A flow that has come to rest is at its end.
        warnings.filterwarnings("ignore", ".*the flow (moves by rounding|came to rest)")
        return gradient_flow(
            loss,
            point,
            t_end=t_end,
            until=until,
            decay=decay,
            rtol=budget.rtol if rtol is None else rtol,
            save_at=None if t_end is None else 2,
            monitor=error,
            patience=None if error is None else budget.patience,
            improvement=budget.improvement,
            progress=budget.progress,
        )


class ModelRun:
    """The flows of one model."""

    o: Offsets  # those that are best where X is 0
    units: Units

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
        self.o = side_means_alone(problem, self.model)

    def start(self, start: Model | None, setting: Setting) -> Collapsed | EndToEnd | None:
        """Return where the flow begins; None if the offsets explain everything."""
        values, units = self.problem.values, self.units
        if not units.signal > 1e3 * torch.finfo(values.dtype).eps * float(values.abs().max()):
            return None
        if start is not None and start.point is not None:
            return start.point
        generator = torch.Generator(device=values.device).manual_seed(setting.seed)
        rows, cols = (
            torch.bincount(places, minlength=count).nonzero().squeeze(1)
            for places, count in zip(
                (self.problem.rows, self.problem.cols), self.problem.shape, strict=True
            )
        )
        small = Collapsed.random(
            (len(rows), len(cols)),
            min(setting.rank, len(rows), len(cols)),
            setting.depth,
            scale=setting.scale * units.size,
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

    def flow(
        self,
        loss: Any,
        point: Collapsed | EndToEnd,
        model_of: Callable[[Collapsed | EndToEnd], Model],
        t_end: float | None,
    ) -> tuple[Collapsed | EndToEnd, float, float]:
        """Run one flow; return the best point, its time, and the error at the end."""
        left = self.budget.seconds - (time.perf_counter() - self.begun)
        held, units, setting = None if t_end is not None else self.held, self.units, self.setting
        until: dict[str, float] = {}

        def error(p: Collapsed | EndToEnd) -> Tensor:
            assert held is not None
            return torch.stack([held.error(model_of(q).at(held.rows, held.cols)) for q in p])

        rtol = self.budget.rtol
        if held is None and t_end is None:
            power = 1 - 1 / setting.depth
            until["gradient"] = FLAT * units.signal * (setting.scale * units.size) ** power
            # Long steps shake the point, and its gradient stays above what they allow.
            least = 30 * torch.finfo(self.problem.values.dtype).eps
            rtol = max(min(rtol, 0.1 * FLAT * setting.scale**power), least)
        path = flow_of(
            loss,
            point,
            units.decay(setting.decay, setting.depth),
            replace(self.budget, seconds=left),
            until,
            None if held is None else error,
            t_end,
            rtol,
        )
        self.status = str(path.status)
        self.evaluations += path.stats["evaluations"]
        seen, final = path.monitored, path.final
        assert isinstance(final, Collapsed | EndToEnd)
        if seen is None:
            return final, float(path.t[-1]), math.nan
        self.curve += list(zip(seen.t.tolist(), seen.values.tolist(), strict=True))
        return final, float(seen.best_t), float(seen.values[-1])

    def held_error(self, model: Model) -> float:
        """Return the error on held-out entries, NaN without any."""
        if self.held is None:
            return math.nan
        return float(self.held.error(model.at(self.held.rows, self.held.cols)))

    def finished(self, model: Model, times: tuple[float, ...], status: str, last: float) -> Fit:
        """Return the model with its errors."""
        problem = self.problem
        return Fit(
            self.setting,
            model,
            times,
            float(problem.error(model.at(problem.rows, problem.cols))),
            self.o,
            self.held_error(model),
            self.held_error(Model(self.o, None)),
            last,
            status,
            self.evaluations,
            0.0,
            tuple(self.curve),
        )
