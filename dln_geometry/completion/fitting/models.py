"""Models of a table, trained by squares or a link: one, or many of a small table in a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dln_geometry.completion.fitting.dense import DenseCompletion
from dln_geometry.completion.fitting.offsets import FIT_STEPS, WATCH_STEPS, ProfiledCompletion
from dln_geometry.completion.fitting.problem import Problem, units_of
from dln_geometry.completion.fitting.training import Fit, Limits, Model, ModelRun, Setting, flow_of
from dln_geometry.geometry.points import Collapsed, EndToEnd

ROUNDS = 3
"""Flows between which the offsets of a logistic or Poisson model are fitted anew."""
Prepared = dict[tuple[int, bool, int], "Squares | _Linked"]
"""Runs of problems, with or without side means, for one seed: what their flows share."""


def train(
    problem: Problem,
    setting: Setting,
    held: Problem | None,
    budget: Limits,
    *,
    times: tuple[float, ...] | None = None,
    start: Model | None = None,
    prepared: Prepared | None = None,
) -> Fit:
    """Train a model on all entries of a problem.

    With `held`, stop by its error and return the best point; with `times`, run that long instead,
    as a refit does; else until the gradient is flat. `start` continues from a trained model,
    `prepared` keeps what all runs on these entries share.

    Examples
    --------
    >>> places, values = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 0]]), torch.tensor([4.0, 2, 1, 5])
    >>> problem = dln.completion.Problem(*places, values, (3, 2))
    >>> setting, limits = dln.completion.Setting.of(2.0, 1, 0.5), dln.completion.Limits()
    >>> bool(dln.completion.train(problem, setting, None, limits).train < 1.0)
    True
    """
    begun = time.perf_counter()
    known = {} if prepared is None else prepared
    run = run_of(problem, setting, held, budget, known)
    made = time.perf_counter() - begun
    fit = run.trained(times, start)
    return replace(fit, seconds=time.perf_counter() - begun, prepared=made)


class Squares(ModelRun):
    """A model trained by squares: the offsets are the best ones at every point of the flow."""

    def __init__(
        self, problem: Problem, setting: Setting, held: Problem | None, budget: Limits
    ) -> None:
        super().__init__(problem, setting, held, budget)
        problem, values = self.problem, self.problem.values
        residual = values - self.o.at(problem.rows, problem.cols)
        # What the ridge pulls at these offsets: there it balances the pull of the entries.
        pull = self.model.gathered(self.model.weights * residual)
        if problem.is_small and self.model.inverse is not None:
            self.centred = DenseCompletion.of(residual, self.model, pull)
        else:
            self.centred = ProfiledCompletion.of(problem.completion(residual), self.model, pull)
        ones, pattern = torch.ones_like(values), self.model.pattern
        self.units = units_of(problem, -residual, ones, setting.seed, pattern)

    def model_of(self, point: Collapsed | EndToEnd, steps: int = WATCH_STEPS) -> Model:
        """Return X with the offsets that are best for it."""
        return Model(self.o + self.centred.offsets_of(point, steps), point)

    def trained(self, times: tuple[float, ...] | None, start: Model | None) -> Fit:
        """Run the flow."""
        point = self.start(start, self.setting)
        if point is None:
            return self.finished(Model(self.o, None), (), "constant", math.nan)
        t_end = None if times is None else times[0]
        final, time_, last = self.flow(self.centred, point, self.model_of, t_end)
        return self.finished(self.model_of(final, FIT_STEPS), (time_,), self.status, last)


class _Linked(ModelRun):
    """A model trained by a link: flows with fixed offsets, which are fitted anew between them."""

    def __init__(
        self, problem: Problem, setting: Setting, held: Problem | None, budget: Limits
    ) -> None:
        super().__init__(problem, setting, held, budget)
        problem, make = self.problem, self.problem.link
        assert make is not None
        z = self.o.at(problem.rows, problem.cols)
        slope, curvature = make.mean(z) - problem.values, make.curvature(z)
        self.units = units_of(problem, slope, curvature, setting.seed, self.model.pattern)

    def trained(self, times: tuple[float, ...] | None, start: Model | None) -> Fit:
        """Run the flows."""
        problem, values, make = self.problem, self.problem.values, self.problem.link
        assert make is not None
        o = self.o
        if bool((values == values[0]).all()):
            return self.finished(Model(o, None), (), "constant", math.nan)
        point, best, used = self.start(start, self.setting), Model(o, None), []
        if point is None:
            return self.finished(best, (), "constant", math.nan)
        least, last = self.held_error(best), math.nan
        for number in range(ROUNDS if times is None else len(times)):
            loss = problem.completion(values, offsets=o.at(problem.rows, problem.cols))
            t_end = None if times is None else times[number]
            point, time_, last = self.flow(loss, point, partial(Model, o), t_end)
            o = self.model.fit_link(make, point.entries(problem.rows, problem.cols), values)
            used.append(time_)
            model = Model(o, point)
            error = self.held_error(model)
            if self.held is not None and not error < least:
                used.pop()
                break
            least, best = error, model
        return self.finished(best, tuple(used), self.status, last)


def train_together(
    folds: Sequence[tuple[Problem, Problem | None]],
    settings: Sequence[Setting],
    budget: Limits,
    *,
    t_end: float | None = None,
    starts: Sequence[Model | None] | None = None,
    dtype: torch.dtype | None = None,
    prepared: Prepared | None = None,
) -> list[list[Fit]] | None:
    """Train a model for each fold and setting in one batched run; None if that cannot be done.

    The folds are of one small table (see `Problem.is_small`); settings differ in decay, scale and
    seed alone. `starts` are where the folds begin. Without held-out entries the runs end
    at `t_end`. `dtype` is that of the flows alone. The fits come fold by fold.

    Examples
    --------
    >>> places, values = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 0]]), torch.tensor([4.0, 2, 1, 5])
    >>> problem = dln.completion.Problem(*places, values, (3, 2))
    >>> setting, limits = dln.completion.Setting.of(2.0, 1, 0.5), dln.completion.Limits()
    >>> settings = [setting, setting.with_decay(0.1)]
    >>> fits = dln.completion.train_together([(problem, None)], settings, limits, t_end=1.0)
    >>> [len(of_fold) for of_fold in fits]
    [2]
    """
    begun = time.perf_counter()
    if not settings:
        return [[] for _ in folds]
    first = settings[0]
    if not (1 < first.depth < math.inf and folds[0][0].is_small):
        return None
    known = {} if prepared is None else prepared
    made = [run_of(problem, first, held, budget, known) for problem, held in folds]
    runs = [run for run in made if isinstance(run, Squares)]
    places = [run.problem for run in runs]
    rank = min(first.rank, *(len(side.unique()) for p in places for side in (p.rows, p.cols)))
    points = [
        run.start(None if starts is None else starts[f], replace(s, rank=rank))
        for f, run in enumerate(runs)
        for s in settings
    ]
    small = [point for point in points if isinstance(point, Collapsed)]
    if len(small) < len(points):
        return None  # the side means explain everything
    batch = len(runs), len(settings)
    left, right = (
        torch.stack(x).unflatten(0, batch)
        for x in ([point.L for point in small], [point.R for point in small])
    )
    losses = [run.centred for run in runs if isinstance(run.centred, DenseCompletion)]
    if len(losses) < len(runs):
        return None
    like = left if dtype is None else left.new_zeros(0, dtype=dtype)
    loss = DenseCompletion.stacked(losses).to(dtype=like.dtype)
    error = _monitor(runs, loss, batch) if folds[0][1] is not None and t_end is None else None
    decays = [[run.units.decay(s.decay, s.depth) for s in settings] for run in runs]
    point = small[0].replace(L=left, R=right, check=False).to(dtype=like.dtype)
    path = flow_of(loss, point, left.new_tensor(decays), budget, {}, error, t_end)
    seen, fits = path.monitored, []
    for f, run in enumerate(runs):
        fits.append([])
        for k, setting in enumerate(settings):
            at = path.final[f, k].to(dtype=left.dtype)
            best, last = float(path.t[-1]), math.nan
            if seen is not None:
                best, last = float(seen.best_t[f, k]), float(seen.values[-1, f, k])
                pairs = zip(seen.t[:, f, k].tolist(), seen.values[:, f, k].tolist(), strict=True)
                run.curve = list(dict(pairs).items())  # a sample that has ended repeats its time
            run.setting, run.evaluations = setting, path.stats["evaluations"]
            model = run.model_of(at, FIT_STEPS)
            status = path.status[f * len(settings) + k]
            fits[-1].append(run.finished(model, (best,), status, last))
    each = (time.perf_counter() - begun) / len(points)
    return [[replace(fit, seconds=each) for fit in row] for row in fits]


def _monitor(runs: Sequence[Squares], loss: DenseCompletion, batch: tuple[int, int]) -> Any:
    """Return the errors of all models on the held-out entries of their folds."""
    problem = runs[0].problem
    like = problem.values.new_zeros(loss.values.shape)  # not in a lower precision of the flows
    values, weights = torch.zeros_like(like), torch.zeros_like(like)
    for f, run in enumerate(runs):
        held = run.held
        assert held is not None
        at = (f, 0, held.rows, held.cols)
        values[at] = held.values
        weights[at] = 1.0 if held.weights is None else held.weights
    weights = weights / weights.sum((-2, -1), keepdim=True)
    base = torch.stack([run.o.matrix() for run in runs]).unsqueeze(1)

    def error(point: Collapsed) -> Tensor:
        x = point.matrix.unflatten(0, batch)
        z = base + (x + loss.offsets_at(x).matrix()).to(base)
        return (weights * (problem.predicted(z) - values).square()).sum((-2, -1)).sqrt().flatten()

    return error


def run_of(
    problem: Problem, setting: Setting, held: Problem | None, budget: Limits, known: Prepared
) -> Squares | _Linked:
    """Return a run of a problem, whose side means and units are found once."""
    begun, key = time.perf_counter(), (id(problem), setting.sides, setting.seed)
    if key not in known:
        kind = Squares if problem.link is None else _Linked
        known[key] = kind(problem, setting, held, budget)
    run = copy(known[key])
    run.setting, run.held, run.budget, run.begun = setting, held, budget, begun
    run.curve = []
    return run
