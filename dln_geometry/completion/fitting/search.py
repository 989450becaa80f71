"""Train models with what is given, and with what held-out entries choose."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from dln_geometry.completion.fitting.comparison import (
    DECAY,
    ROUGHLY,
    Comparison,
    adjusted,
    as_large,
)
from dln_geometry.completion.fitting.errors import (
    WORTH,
    average_error,
    checked,
    common_time,
    pooled,
)
from dln_geometry.completion.fitting.models import Prepared, run_of, train, train_together
from dln_geometry.completion.fitting.problem import SEARCH_RANK, Problem, default_rank, folds_of
from dln_geometry.completion.fitting.residuals import by_the_noise
from dln_geometry.completion.fitting.subtable import dense_part
from dln_geometry.completion.fitting.training import Choice, Fit, Limits, Model, Setting

DEPTHS = (2.0, 2.5, 3.0)
"""Depths that are tried: a convex problem, and two that prefer low rank more and more."""
LARGE, PART = 300_000, 200_000
"""Entries from which on settings are compared on a part of the table, and entries of this part."""
GOES_ON = 0.25
"""Share of the best time for which a validated model of a large table goes on with all entries."""
FIRST, LAST = 1.5, 1.1
"""The time that is left over that of the validated run, and over that of the last one."""
SMALL_EVALUATIONS = 1500
"""Bound on a validated run of a small table."""


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
        self.problem, self.seed, self._say = problem, seed, progress or (lambda _: None)
        self.end = time.perf_counter() + seconds
        self.budget = Limits(rtol, seconds, patience, progress=bar)
        self.tried: list[tuple[Setting, float, Fit]] = []
        self.prepared: Prepared = {}
        # The mask is that of the entries that the first fold holds out.
        self.folds, self.mask = folds_of(problem, held, seed)
        self.parts = 1  # the choices that are still to be made
        self._part: tuple[list[tuple[Problem, Problem]], Prepared] | None = None

    def choose(
        self,
        depths: Sequence[float],
        rank: int | None,
        decay: float | Sequence[float] | None,
        *,
        refit: bool,
        starts: int,
        average: bool = False,
        start: tuple[Model | None, Model | None] = (None, None),
    ) -> Choice:
        """Choose what is not given (a rank or a decay of None), and train the chosen models.

        `start` is where the chosen models begin, instead of small random matrices: one that has
        not seen the held-out entries, and the one that is trained on all. With `average` there are
        models of every depth, each with its own decay; `decay` may be one for each depth.
        """
        self.start = start
        groups = [[depth] for depth in depths] if average else [list(depths)]
        decays = list(decay) if isinstance(decay, Sequence) else [decay] * len(groups)
        sides, parts = None if self.problem.shrink is None else True, []
        if not self.problem.biases:
            sides = True  # there are none to leave out
        for k, group in enumerate(groups):
            self.parts = len(groups) - k
            parts.append(self._chosen(group, rank, decays[k], sides, refit, starts))
            if self.folds:
                sides = parts[0].settings[0].sides
        choice = self._joined(parts)
        if not choice.validated:
            return choice
        again = refit and time.perf_counter() < self.end
        return checked(choice, self._whole if again else self.problem, again)

    def _chosen(
        self,
        depths: Sequence[float],
        rank: int | None,
        decay: float | None,
        sides: bool | None,
        refit: bool,
        starts: int,
    ) -> Choice:
        final = rank or default_rank(self.problem.shape, len(self.problem), self.problem.is_small)
        first = DECAY if decay is None else decay
        if not self.folds:
            depth = depths[len(depths) // 2]
            setting = Setting.of(depth, final, first, self.seed)
            fits = self._everything(setting, None, starts)
            if self.start[1] is None and self.problem.link is None:
                free = (min(depths) if len(depths) > 1 else depth, decay is None)
                setting, fits = by_the_noise(
                    self.problem,
                    setting,
                    fits,
                    lambda other: self._everything(other, None, starts),
                    self._on_all_entries,
                    *free,
                    self.end,
                )
            return Choice((setting,), fits, (), (), None, math.nan, math.nan)
        comparison = self._comparison()
        small = min(final, SEARCH_RANK, *comparison.folds[0][0].shape)
        settings = [Setting.of(depth, small, first, self.seed) for depth in depths]
        chosen = replace(comparison.chosen(settings, decay, sides), rank=final)
        rough = comparison.fits.get(chosen) if comparison.folds is self.folds else None
        moves = decay is None and comparison.folds is not self.folds
        if moves:
            limits = self._budget(1.0)
            part = run_of(comparison.folds[0][0], chosen, None, limits, comparison.prepared)
            known = self._known(self.folds[0][0], chosen)
            chosen = as_large(chosen, part, run_of(self.folds[0][0], chosen, None, limits, known))
        validated = self._validated(chosen, rough)
        self._note(chosen, pooled(validated, self.folds), validated[0])
        if moves:
            chosen, validated = adjusted(
                chosen, validated, self.folds, self._validated, self._note, self.end
            )
        error = pooled(validated, self.folds)
        means = pooled(validated, self.folds, "side_means")
        others = [chosen.restarted(k) for k in range(1, starts)]
        validated += tuple(self._train(self.folds[:1], others, FIRST, [self.start[0]]))
        own = tuple(fit for fit in validated if fit.fold == 0)
        fits = self._everything(chosen, validated, starts) if refit else own
        return Choice((chosen,), fits, (), validated, self.folds[0][1], means, error)

    def _comparison(self) -> Comparison:
        """Return where settings are compared: the folds, or those of a part of a large table."""
        whole = self.folds[0][0]
        if len(whole) <= LARGE:
            return Comparison(self.folds, self._budget, self._note, self.prepared)
        if self._part is None:
            part = dense_part(whole, PART, self.seed)
            share = max(len(self.folds[0][1]) / (len(whole) + len(self.folds[0][1])), 0.05)
            self._part = folds_of(part, share, self.seed)[0], {}
            self._say(
                f"settings are compared on a part of {len(part)} entries, "
                f"{part.shape[0]} x {part.shape[1]}"
            )
        folds, prepared = self._part
        return Comparison(folds, self._budget, self._note, prepared)

    def _joined(self, parts: list[Choice]) -> Choice:
        """Return the choice of all parts, with the error of the average of their models."""
        best = min(parts, key=lambda part: part.best) if self.folds else parts[0]
        validated = tuple(fit for part in parts for fit in part.validated)
        own = [fit for fit in validated if fit.fold == 0]
        error, means = best.best, best.side_means
        if len(own) > 1:
            error = average_error([fit.model for fit in own], self.folds[0][1])
            means = own[0].side_means
        return replace(
            best,
            settings=tuple(part.settings[0] for part in parts),
            fits=tuple(fit for part in parts for fit in part.fits),
            tried=tuple(self.tried),
            validated=validated,
            side_means=means,
            best=error,
        )

    def _validated(self, chosen: Setting, rough: list[Fit] | None) -> tuple[Fit, ...]:
        """Train the chosen setting on all folds.

        Fits that were made to compare settings are trained on, if they got anywhere.
        """
        start = self.start[0]
        far = rough and all(fit.times and fit.validation < WORTH * fit.side_means for fit in rough)
        if start is not None or self.problem.link is not None or not far:
            rough = None
        begun = [start] * len(self.folds) if rough is None else [fit.model for fit in rough]
        first = self._train(self.folds, [chosen], FIRST, begun)
        if rough is not None:
            first = [fit.after(other) for fit, other in zip(first, rough, strict=True)]
        return tuple(replace(fit, fold=fold) for fold, fit in enumerate(first))

    def _note(self, setting: Setting, error: float, fit: Fit) -> None:
        self.tried.append((setting, error, fit))
        means = "" if setting.sides or not self.problem.biases else ", no side means"
        self._say(
            f"depth {setting.depth:g}, rank {setting.rank}, decay {setting.decay:.3g}{means}: "
            f"validation error {error:.6g} after {fit.evaluations} evaluations"
        )

    def _everything(
        self, setting: Setting, validated: Sequence[Fit] | None, starts: int
    ) -> tuple[Fit, ...]:
        """Train on all entries, as long as was best, in time that runs with their number."""
        problem, times = self.problem, None
        if validated is not None:
            problem = self._whole
            share = len(self.folds[0][0]) / len(problem)
            first = validated[: len(self.folds)]
            if len(first) > 1 and all(fit.curve and problem.link is None for fit in first):
                times = (share * common_time(first, self.folds),)
            else:
                # Of a link there are several flows each; half of the folds took so many or more.
                rounds = sorted(len(fit.times) for fit in first)[len(first) // 2]
                taken = [
                    [fit.times[r] for fit in first if r < len(fit.times)] for r in range(rounds)
                ]
                times = tuple(share * sum(some) / len(some) for some in taken)
        own = tuple(fit for fit in validated or () if fit.fold == 0)
        if own and self.end - time.perf_counter() < max(fit.prepared for fit in own):
            return own  # there is no time for more
        if times is None or len(problem) <= LARGE or self.problem.link is not None:
            settings = [setting.restarted(k) for k in range(starts)]
            return tuple(self._train([(problem, None)], settings, LAST, [self.start[1]], times))
        # The few entries that it has not seen move a model of a large table little.
        more = tuple(GOES_ON * t for t in times)
        return self._on_all_entries(setting, own, problem, more)

    def _on_all_entries(
        self,
        setting: Setting,
        fits: Sequence[Fit],
        problem: Problem | None = None,
        times: tuple[float, ...] | None = None,
    ) -> tuple[Fit, ...]:
        """Train on from fits, each of its own start."""
        pairs = [(problem or self.problem, None)]
        return tuple(
            self._train(pairs, [setting.restarted(k)], LAST, [fit.model], times)[0]
            for k, fit in enumerate(fits)
        )

    @cached_property
    def _whole(self) -> Problem:
        """The entries that are trained on at last: held-out ones of the user too."""
        return self.folds[0][0].joined(self.folds[0][1]) if len(self.folds) == 1 else self.problem

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
        # The last steps are the longest, and of large tables change the least.
        few = math.ceil(self.budget.patience / 2)
        more: dict[str, Any] = {"improvement": ROUGHLY["improvement"], "patience": few}
        if len(folds[0][0]) <= LARGE:
            small = self.problem.is_small and not times
            more = {"evaluations": SMALL_EVALUATIONS} if small else {}
        found, pairs = [], zip(folds, begun, strict=True)
        for (problem, held), start in pairs:
            for setting in settings:
                budget = self._budget(share * (count - len(found)), **more)
                known = self._known(problem, setting)
                fit = train(
                    problem, setting, held, budget, times=times, start=start, prepared=known
                )
                found.append(fit)
        return found

    def _known(self, problem: Problem, setting: Setting) -> Prepared:
        """Return what runs share; of large tables that of one problem at a time, for its memory."""
        if len(problem) > LARGE and (id(problem), setting.sides, setting.seed) not in self.prepared:
            self.prepared.clear()
        return self.prepared

    def _budget(self, share: float, **limits: Any) -> Limits:
        """Return limits for the next run: a share of the time that is left."""
        left = max(self.end - time.perf_counter(), 0.0)
        seconds = left / (share * self.parts) if math.isfinite(left) else math.inf
        return replace(self.budget, seconds=seconds, **limits)
