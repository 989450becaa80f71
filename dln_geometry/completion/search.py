"""Choose depth, rank and decay by the error on held-out entries, then train on everything."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from dln_geometry.completion import training
from dln_geometry.completion.models import Prepared, train, train_together
from dln_geometry.completion.problem import SEARCH_RANK, Problem, default_rank, folds_of
from dln_geometry.completion.training import Choice, Fit, Limits, Model, Setting
from dln_geometry.support import warn

DEPTHS = (2.0, 2.5, 3.0)
"""Depths that are tried: a convex problem, and two that prefer low rank more and more."""
DECAY, FACTOR = 0.5, 4.0
"""First factor of the decay, and the ratio between neighbours."""
TOGETHER = (1.0, 1 / FACTOR, 1 / FACTOR**2)
"""Ratios of the decays that are tried at once on small tables."""
WORTH = 0.99
"""Share of the error of the side means that a model must stay below not to be warned of."""
NOISE_ROUNDS, LOWER = 4, 0.7
"""Without validation: how often the decay may follow the residuals, and what is worth a round."""
NOISE_ALONE, THRESHOLD = 0.95, 1.0
"""Share of the residuals of the side means from which on noise explains them, and the decay that is
chosen then: of noise alone, it leaves next to nothing at depth 2."""
SMALL_EVALUATIONS = 1500
"""Bound on a validated run of a small table."""
ROUGHLY = {"improvement": 1e-3, "evaluations": 500}
"""Limits of a run while settings are compared."""


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
        self.prepared: Prepared = {}
        self.rough: dict[Setting, list[Fit]] = {}  # of all folds, while settings are compared
        # The mask is that of the entries that the first fold holds out.
        self.folds, self.mask = folds_of(problem, held, seed)

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
        final = rank or default_rank(self.problem.shape, len(self.problem), self.problem.is_small)
        small = min(final, SEARCH_RANK)
        if not self.folds:
            depth = depths[len(depths) // 2]
            setting = Setting.of(depth, final, DECAY if decay is None else decay, self.seed)
            fits = self._everything(setting, None, starts)
            if start[1] is None and self.problem.link is None:
                free = (min(depths) if len(depths) > 1 else depth, decay is None)
                setting, fits = self._by_the_noise(setting, fits, starts, *free)
            return Choice(setting, fits, (), (), None, math.nan, math.nan)
        first = DECAY if decay is None else decay
        settings = [Setting.of(depth, small, first, self.seed) for depth in depths]
        chosen = settings[0]
        if len(settings) > 1 or decay is None:
            for setting in settings:
                self._compare(setting, TOGETHER if decay is None else (1.0,))
            settings += [setting for setting in self.rough if setting not in settings]
            chosen = min(settings, key=self._error)
            if decay is None:
                chosen = self._refined(chosen)
        if self.problem.biases and self.problem.shrink is None:
            bare = replace(chosen, sides=False)
            self._compare(bare, (1.0,) if decay is not None else (FACTOR, 1.0, 1 / FACTOR))
            others = [setting for setting in self.rough if not setting.sides]
            bare = self._refined(min((bare, *others), key=self._error), decay is None)
            chosen = min((chosen, bare), key=self._error)
        chosen = replace(chosen, rank=final)
        validated = self._validated(chosen, starts, start[0])
        error = training.pooled(validated[: len(self.folds)], self.folds)
        self._note(chosen, error, validated[0])
        means = training.pooled(validated[: len(self.folds)], self.folds, "side_means")
        if means > 0 and not error < WORTH * means and validated[0].status != "constant":
            self._warn(error, means, validated[0].status)
        own = tuple(fit for fit in validated if fit.fold == 0)
        fits = self._everything(chosen, validated, starts) if refit else own
        held = self.folds[0][1]
        return Choice(chosen, fits, tuple(self.tried), validated, held, means, error)

    def _by_the_noise(
        self, setting: Setting, fits: tuple[Fit, ...], starts: int, least: float, moves: bool
    ) -> tuple[Setting, tuple[Fit, ...]]:
        """Lower the decay while the residuals of training are less than what it takes for noise.

        Of noise alone nothing is learned: the least depth and a large decay, where they are free.
        """
        first = self.problem.error(fits[0].alone.at(self.problem.rows, self.problem.cols))
        share = training.noise_of(fits[0], self.problem) / max(float(first), 1e-300)
        # Fewer entries than a mode of X has numbers leave no residuals to tell noise by.
        told = fits[0].model.point is not None and len(self.problem) > sum(self.problem.shape)
        chosen = moves or least < setting.depth  # else depth and decay are the user's
        if told and chosen and share > NOISE_ALONE:
            warn(
                "noise explains the entries as well as the model does, beside the side means: "
                "validation would tell what to trust",
                UserWarning,
            )
            decay = THRESHOLD if moves else setting.decay
            setting = replace(setting, depth=least).with_decay(decay)
            return setting, self._everything(setting, None, starts)
        for _ in range(NOISE_ROUNDS if moves else 0):
            decay = DECAY * share
            if not decay < LOWER * setting.decay or time.perf_counter() > self.end:
                break
            setting = replace(setting, decay=decay)
            fits = tuple(
                self._train([(self.problem, None)], [setting.restarted(k)], 2.0, [fit.model])[0]
                for k, fit in enumerate(fits)
            )
            share = training.noise_of(fits[0], self.problem) / max(float(first), 1e-300)
        return setting, fits

    def _refined(self, setting: Setting, moves: bool = True) -> Setting:
        """Go to smaller or larger decays while the error falls, if the decay may move."""
        best = setting
        known = [error for other, error, _ in self.tried if other.sides and not setting.sides]
        if known and not self._error(setting) < min(known):
            return best  # without side means it is worse: the decay will not change that
        for ratio in (1 / FACTOR, FACTOR) if moves else ():
            moved = False
            while time.perf_counter() < self.end:
                next_ = best.with_decay(best.decay * ratio)
                if not self._error(next_) < self._error(best):
                    break
                best, moved = next_, True
                if best.decay == 0:
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
        self._compare(setting, (1.0,))
        if setting in self.rough:
            return self._error(setting)
        with warnings.catch_warnings():
            # The search learns of a collapse by its error.
            warnings.simplefilter("ignore", UserWarning)
            fits = [train(a, setting, b, self._budget(6.0, **ROUGHLY)) for a, b in self.folds]
        return self._keep(setting, fits)

    def _compare(self, setting: Setting, ratios: Sequence[float]) -> None:
        """Train settings of a small table, with decays of these ratios to one, in a batch."""
        if self.tried and time.perf_counter() > self.end:
            return
        alike = dict.fromkeys(setting.with_decay(setting.decay * ratio) for ratio in ratios)
        settings = list(alike)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            limits = self._budget(4.0, **ROUGHLY)
            found = train_together(
                self.folds, settings, limits, dtype=torch.float32, prepared=self.prepared
            )
        for k, other in enumerate(settings if found else ()):
            assert found is not None
            self._keep(other, [fits[k] for fits in found])

    def _keep(self, setting: Setting, fits: list[Fit]) -> float:
        """Note the fits of a setting on all folds, and return their error."""
        error = training.pooled(fits, self.folds)
        self.rough[setting] = fits
        self._note(setting, error, fits[0])
        return error

    def _validated(self, chosen: Setting, starts: int, start: Model | None) -> tuple[Fit, ...]:
        """Train the chosen setting on all folds, and further starts on the first one."""
        rough = None if start is not None else self._rough_of(chosen)
        begun = [start] * len(self.folds) if rough is None else [fit.model for fit in rough]
        first = self._train(self.folds, [chosen], 3.0, begun)
        if rough is not None:
            first = [fit.after(other) for fit, other in zip(first, rough, strict=True)]
        first = [replace(fit, fold=fold) for fold, fit in enumerate(first)]
        others = [chosen.restarted(k) for k in range(1, starts)]
        return (*first, *self._train(self.folds[:1], others, 3.0, [start]))

    def _rough_of(self, chosen: Setting) -> list[Fit] | None:
        """Return the fits that were made to compare settings, if they can be trained on."""
        fits = self.rough.get(chosen)
        if fits is None or self.problem.link is not None:
            return None
        went_on = all(fit.times and fit.validation < WORTH * fit.side_means for fit in fits)
        return fits if went_on else None

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
                problem = self.folds[0][0].joined(self.folds[0][1])
            share = len(self.folds[0][0]) / len(problem)
            first = [fit.times for fit in validated[: len(self.folds)]]
            rounds = min(map(len, first))
            times = tuple(
                share * math.exp(sum(math.log(max(t[r], 1e-300)) for t in first) / len(first))
                for r in range(rounds)
            )
        settings = [setting.restarted(k) for k in range(starts)]
        return tuple(self._train([(problem, None)], settings, 2.0, [self.start[1]], times))

    def _train(
        self,
        folds: Sequence[tuple[Problem, Problem | None]],
        settings: Sequence[Setting],
        share: float,
        begun: Sequence[Model | None],
        times: tuple[float, ...] | None = None,
    ) -> list[Fit]:
        """Train all settings on all folds, in a share of the time that is left."""
        count = len(folds) * len(settings)
        if count > 1 and (times or folds[0][1] is not None):
            t_end = times[0] if times else None
            limits = self._budget(share, evaluations=SMALL_EVALUATIONS)
            found = train_together(
                folds, settings, limits, t_end=t_end, starts=begun, prepared=self.prepared
            )
            if found is not None:
                return [fit for fits in found for fit in fits]
        small = {"evaluations": SMALL_EVALUATIONS} if self.problem.is_small and not times else {}
        found, pairs = [], zip(folds, begun, strict=True)
        for (problem, held), start in pairs:
            for setting in settings:
                budget = self._budget(share * (count - len(found)), **small)
                fit = train(problem, setting, held, budget, times=times, start=start)
                found.append(fit)
        return found

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
