"""Choose depth, rank and decay by the error on held-out entries, then train on everything."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dln_geometry.completion.problem import Problem
from dln_geometry.completion.training import Fit, Limits, Model, Setting, train
from dln_geometry.support import warn

DEPTHS = (2.0, 2.5, 3.0)
"""Depths that are tried: a convex problem, and two that prefer low rank more and more."""
DECAY, FACTOR, LEAST_DECAY = 0.5, 4.0, 0.005
"""First factor of the decay, and the ratio between neighbours; below the least one it is 0."""
SEARCH_RANK, LARGEST_RANK = 20, 200
WORK = 1e7
"""Entries times rank that the last run may have, by default."""
ENOUGH_HELD, MOST_FOLDS = 200, 3
WORTH = 0.99
"""Share of the error of the side means that a model must stay below not to be warned of."""
ROUGH, ROUGH_EVALUATIONS = 1e-3, 500
"""Improvement of the error to wait for, and bound on a run, while settings are compared."""


@dataclass(frozen=True)
class Choice:
    """What was tried and chosen, and the models trained on everything."""

    setting: Setting
    fits: tuple[Fit, ...]  # the models that predict
    tried: tuple[tuple[Setting, float, Fit], ...]  # setting, pooled validation error, first fold
    validated: tuple[Fit, ...]  # the chosen setting, trained without the held-out entries
    held: Problem | None
    side_means: float
    best: float


def default_rank(shape: tuple[int, int], count: int) -> int:
    """Return the bound on the rank of the last run for so many entries.

    Examples
    --------
    >>> dln.completion.default_rank((100, 50), 2000)
    50
    """
    return max(1, min(*shape, LARGEST_RANK, max(16, round(WORK / count))))


class Search:
    """Train models of one problem under a budget of time.

    Examples
    --------
    >>> rows, cols = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    >>> problem = dln.completion.Problem(rows, cols, torch.tensor([4.0, 2.0, 1.0, 5.0]), (3, 2))
    >>> search = dln.completion.Search(problem, 0.25, seed=0, rtol=1e-3, patience=5, seconds=5.0)
    >>> choice = search.choose((2.0,), 1, 0.5, refit=False, starts=1)
    >>> type(choice).__name__
    'Choice'
    """

    def __init__(
        self,
        problem: Problem,
        held: Problem | tuple[Problem, Problem] | float,
        *,
        seed: int,
        rtol: float,
        patience: int,
        seconds: float,
        progress: Callable[[str], None] | None = None,
        bar: Any = False,
    ) -> None:
        self.problem, self.seed, self.said = problem, seed, progress
        self.end = time.perf_counter() + seconds
        self.budget = Limits(rtol, seconds, patience, progress=bar)
        self.tried: list[tuple[Setting, float, Fit]] = []
        self.mask: Any = None  # of the entries that the first fold holds out
        self.folds = self._folds(held)

    def _folds(self, held: Any) -> list[tuple[Problem, Problem]]:
        """Return pairs of a training and a validation problem; several if one would be small."""
        if isinstance(held, Problem):
            return [(self.problem, held)]
        if isinstance(held, tuple):
            return [held]
        count = len(self.problem)
        if held == 0:
            return []
        out = max(1, round(held * count))
        if count < 3:
            warn(f"none of {count} entries can be held out: nothing is chosen by them", UserWarning)
            return []
        if count - out < 2:
            raise ValueError(
                f"validation must leave entries to train on, got {held:g} of {count} entries"
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(count, generator=generator, device=generator.device).to(
            self.problem.rows.device
        )
        wanted = min(MOST_FOLDS, count // out, math.ceil(ENOUGH_HELD / out))
        parts = [order[k * out : (k + 1) * out] for k in range(max(wanted, 1))]
        pairs = []
        for part in parts:
            mask = torch.ones(count, dtype=torch.bool, device=order.device)
            mask[part] = False
            self.mask = (~mask).cpu().numpy() if self.mask is None else self.mask
            pairs.append(
                (self.problem.select(mask.nonzero().squeeze(1)), self.problem.select(part))
            )
        return pairs

    def choose(
        self,
        depths: Sequence[float],
        rank: int | None,
        decay: float | None,
        *,
        refit: bool,
        starts: int,
        start: tuple[Model | None, Model | None] = (None, None),
    ) -> Choice:
        """Choose what is not given (a rank or a decay of None), and train the chosen models.

        `start` is where the chosen models begin, instead of small random matrices: one that has
        not seen the held-out entries, and the one that is trained on all.
        """
        self.start = start
        final = rank or default_rank(self.problem.shape, len(self.problem))
        small = min(final, SEARCH_RANK)
        if not self.folds:
            setting = Setting.of(depths[0], final, DECAY if decay is None else decay, self.seed)
            fits = self._everything(setting, None, starts)
            return Choice(setting, fits, (), (), None, math.nan, math.nan)
        first = DECAY if decay is None else decay
        settings = [Setting.of(depth, small, first, self.seed) for depth in depths]
        chosen = settings[0]
        if len(settings) > 1 or decay is None:
            chosen = min(settings, key=self._error)
            if decay is None:
                chosen = self._refined(chosen)
        if self.problem.biases and self.problem.shrink is None:
            bare = self._refined(replace(chosen, sides=False), decay is None)
            chosen = min((chosen, bare), key=self._error)
        chosen = replace(chosen, rank=final)
        validated = tuple(
            replace(self._train(a, chosen, b, k, 3.0, start=start[0]), fold=fold)
            for k in range(starts)
            for fold, (a, b) in enumerate(self.folds[: 1 if k else None])
        )
        error = _pooled(validated[: len(self.folds)], self.folds)
        self._note(chosen, error, validated[0])
        means = _pooled(validated[: len(self.folds)], self.folds, "side_means")
        if means > 0 and not error < WORTH * means and validated[0].status != "constant":
            self._warn(error, means, validated[0].status)
        own = tuple(fit for fit in validated if fit.fold == 0)
        fits = self._everything(chosen, validated, starts) if refit else own
        held = self.folds[0][1]
        return Choice(chosen, fits, tuple(self.tried), validated, held, means, error)

    def _refined(self, setting: Setting, moves: bool = True) -> Setting:
        """Go to smaller or larger decays while the error falls, if the decay may move."""
        best = setting
        known = [error for other, error, _ in self.tried if other.sides and not setting.sides]
        if known and not self._error(setting) < min(known):
            return best  # without side means it is worse: the decay will not change that
        for ratio in (1 / FACTOR, FACTOR) if moves else ():
            moved = False
            while time.perf_counter() < self.end:
                decay = best.decay * ratio
                decay = 0.0 if decay < LEAST_DECAY else decay
                next_ = Setting.of(best.depth, best.rank, decay, best.seed)
                next_ = replace(next_, sides=best.sides)
                if not self._error(next_) < self._error(best):
                    break
                best, moved = next_, True
                if decay == 0:
                    break
            if moved:
                break
        return best

    def _error(self, setting: Setting) -> float:
        """Return the pooled validation error of a setting, trained once."""
        for known, error, _ in self.tried:
            if known == setting:
                return error
        if self.tried and time.perf_counter() > self.end:
            return math.inf
        rough = {"improvement": ROUGH, "evaluations": ROUGH_EVALUATIONS}
        with warnings.catch_warnings():
            # The search learns of a collapse by its error.
            warnings.simplefilter("ignore", UserWarning)
            fits = [train(a, setting, b, self._budget(6.0, **rough)) for a, b in self.folds]
        error = _pooled(fits, self.folds)
        self._note(setting, error, fits[0])
        return error

    def _note(self, setting: Setting, error: float, fit: Fit) -> None:
        self.tried.append((setting, error, fit))
        if self.said is not None:
            means = "" if setting.sides or not self.problem.biases else ", no side means"
            self.said(
                f"depth {setting.depth:g}, rank {setting.rank}, decay {setting.decay:.3g}{means}: "
                f"validation error {error:.6g} after {fit.evaluations} evaluations"
            )

    def _everything(
        self, setting: Setting, validated: Sequence[Fit] | None, starts: int
    ) -> tuple[Fit, ...]:
        """Train on all entries, as long as was best, in time that runs with their number."""
        problem, times = self.problem, None
        if validated is not None:
            if isinstance(self.folds[0][1], Problem) and len(self.folds) == 1:
                problem = joined(*self.folds[0])
            share = len(self.folds[0][0]) / len(problem)
            first = [fit.times for fit in validated[: len(self.folds)]]
            rounds = min(map(len, first))
            times = tuple(
                share * math.exp(sum(math.log(max(t[r], 1e-300)) for t in first) / len(first))
                for r in range(rounds)
            )
        return tuple(
            self._train(problem, setting, None, k, 2.0 * (starts - k), times, self.start[1])
            for k in range(starts)
        )

    def _train(
        self,
        problem: Problem,
        setting: Setting,
        held: Problem | None,
        number: int,
        share: float,
        times: tuple[float, ...] | None = None,
        start: Model | None = None,
    ) -> Fit:
        """Train the model of one random start, in a share of the time that is left."""
        setting = replace(setting, seed=self.seed + 1000 * number)
        budget = self._budget(share)
        return train(problem, setting, held, budget, times=times, start=start)

    def _budget(self, share: float, **limits: Any) -> Limits:
        """Return limits for the next run: a share of the time that is left."""
        left = max(self.end - time.perf_counter(), 0.0)
        seconds = left / share if math.isfinite(left) else math.inf
        return replace(self.budget, seconds=seconds, **limits)

    def _warn(self, error: float, means: float, status: str) -> None:
        what = "side means" if self.problem.biases else "mean"
        why = "the table may not be close to one of low rank, or have too few entries"
        if status == "seconds":
            why = "the time was too short"
        warn(
            f"the best validation error {error:.6g} is hardly better than that of the {what} "
            f"alone, {means:.6g}: {why}",
            UserWarning,
        )


def joined(a: Problem, b: Problem) -> Problem:
    """Return the problem of the entries of two."""
    weights = None
    if a.weights is not None or b.weights is not None:
        parts = (torch.ones_like(p.values) if p.weights is None else p.weights for p in (a, b))
        weights = torch.cat(tuple(parts))
    parts = {name: torch.cat((getattr(a, name), getattr(b, name))) for name in _ENTRIES}
    return replace(a, **parts, weights=weights)


_ENTRIES = ("rows", "cols", "values")


def _pooled(fits: Sequence[Fit], folds: Sequence[Any], name: str = "validation") -> float:
    """Return the error over all folds: squares are averaged, log losses too."""
    errors = [getattr(fit, name) for fit in fits]
    sizes = [len(held) for _, held in folds]
    power = 2 if folds[0][1].link is None else 1
    total = sum(s * e**power for s, e in zip(sizes, errors, strict=True)) / sum(sizes)
    return total ** (1 / power) if power == 2 else total
