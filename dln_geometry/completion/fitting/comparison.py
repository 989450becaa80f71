"""Settings compared by the error on held-out entries."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from dln_geometry.completion.fitting.errors import pooled
from dln_geometry.completion.fitting.models import Prepared, train, train_together
from dln_geometry.completion.fitting.problem import Problem
from dln_geometry.completion.fitting.training import (
    LEAST_DECAY,
    Fit,
    Limits,
    ModelRun,
    Setting,
)

DECAY, FACTOR = 0.5, 4.0
"""First factor of the decay, and the ratio between neighbours."""
TOGETHER = (1.0, 1 / FACTOR, 1 / FACTOR**2)
"""Ratios of the decays that are tried at once on small tables."""
LOWER = 0.7
"""Ratio between neighbouring decays on the whole of a table, of which a part chose the first."""
ROUGHLY = {"improvement": 1e-3, "evaluations": 500}
"""Limits of a run while settings are compared."""


class Comparison:
    """Settings that were trained on folds of a table, with their pooled validation errors.

    `budget(share, **limits)` gives the limits of a run, `note` hears of every setting.
    """

    def __init__(
        self,
        folds: Sequence[tuple[Problem, Problem]],
        budget: Callable[..., Limits],
        note: Callable[[Setting, float, Fit], None],
        prepared: Prepared,
    ) -> None:
        self.folds, self.budget, self.note, self.prepared = folds, budget, note, prepared
        self.errors: dict[Setting, float] = {}
        self.fits: dict[Setting, list[Fit]] = {}  # of all folds

    def chosen(self, settings: list[Setting], decay: float | None, sides: bool | None) -> Setting:
        """Return the best setting, the decay moved unless it is given; with or without side means.

        `sides` tells whether there are side means, None that the error decides.
        """
        first = [replace(setting, sides=sides is not False) for setting in settings]
        best = first[0]
        if len(first) > 1 or decay is None:
            for setting in first:
                self._compare(setting, TOGETHER if decay is None else (1.0,))
            best = min((*first, *self.errors), key=self.error)
            if decay is None:
                best = self._refined(best)
        if sides is None:
            bare = replace(best, sides=False)
            self._compare(bare, (1.0,) if decay is not None else (FACTOR, 1.0, 1 / FACTOR))
            others = [setting for setting in self.errors if not setting.sides]
            bare = self._refined(min((bare, *others), key=self.error), decay is None)
            best = min((best, bare), key=self.error)
        return best

    def error(self, setting: Setting) -> float:
        """Return the pooled validation error of a setting, trained once."""
        if setting not in self.errors:
            self._compare(setting, (1.0,))
        if setting not in self.errors:
            limits = dict(ROUGHLY)
            with_sides = [fits for other, fits in self.fits.items() if other.sides]
            if with_sides and not setting.sides:
                # What is slower than with side means is not worth to wait for.
                limits["evaluations"] = max(fit.evaluations for fits in with_sides for fit in fits)
            left = self.budget(6.0, **limits)
            if self.errors and not left.seconds > 0:
                return math.inf
            with warnings.catch_warnings():
                # The search learns of a collapse by its error.
                warnings.simplefilter("ignore", UserWarning)
                fits = [train(a, setting, b, left, prepared=self.prepared) for a, b in self.folds]
            self._keep(setting, fits)
        return self.errors[setting]

    def _refined(self, setting: Setting, moves: bool = True) -> Setting:
        """Go to smaller or larger decays while the error falls, if the decay may move."""
        best = setting
        known = [error for other, error in self.errors.items() if other.sides != setting.sides]
        if known and not self.error(setting) < min(known):
            return best  # without side means it is worse: the decay will not change that
        for ratio in (1 / FACTOR, FACTOR) if moves else ():
            moved = False
            while True:
                next_ = best.with_decay(best.decay * ratio)
                if not self.error(next_) < self.error(best):
                    break
                best, moved = next_, True
                if best.decay == 0:
                    break
            if moved:
                break
        return best

    def _compare(self, setting: Setting, ratios: Sequence[float]) -> None:
        """Train settings of a small table, with decays of these ratios to one, in a batch."""
        limits: Any = self.budget(4.0, **ROUGHLY)
        if self.errors and not limits.seconds > 0:
            return
        settings = list(dict.fromkeys(setting.with_decay(setting.decay * x) for x in ratios))
        values = self.folds[0][0].values
        # Squares of squares of the entries must neither overflow nor vanish in single precision.
        dtype = torch.float32 if 1e-6 < float(values.std()) < 1e6 else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = train_together(
                self.folds, settings, limits, dtype=dtype, prepared=self.prepared
            )
        if found is not None:
            for k, other in enumerate(settings):
                self._keep(other, [fits[k] for fits in found])

    def _keep(self, setting: Setting, fits: list[Fit]) -> None:
        self.errors[setting], self.fits[setting] = pooled(fits, self.folds), fits
        self.note(setting, self.errors[setting], fits[0])


def as_large(setting: Setting, part: ModelRun, whole: ModelRun) -> Setting:
    """Return a setting that was chosen on a part with the decay k as large on the whole.

    Of equal noise in all entries the best ridge of a row does not depend on the size of the table,
    while factors of the decay count in spectral norms, which grow with it.
    """
    if setting.decay == 0 or not whole.units.noise > 0:
        return setting
    ratio = part.units.noise / whole.units.noise
    return setting.with_decay(max(setting.decay * ratio, LEAST_DECAY))


def adjusted(
    chosen: Setting,
    fits: tuple[Fit, ...],
    folds: Sequence[tuple[Problem, Problem]],
    further: Callable[[Setting, list[Fit]], tuple[Fit, ...]],
    note: Callable[[Setting, float, Fit], None],
    end: float,
) -> tuple[Setting, tuple[Fit, ...]]:
    """Lower a decay that a part chose while the error on the whole falls, or else raise it.

    The part has the busiest rows and columns, each with as many entries, and rows of the whole
    differ. `further` goes on from fits with another setting, of which `note` hears; at `end`, a
    time of the clock, nothing more is tried.
    """
    error = pooled(fits, folds)
    for ratio in (LOWER, 1 / LOWER):
        moved = False
        while chosen.decay > 0 and time.perf_counter() < end:
            setting = chosen.with_decay(ratio * chosen.decay)
            found = further(setting, list(fits))
            new = pooled(found, folds)
            note(setting, new, found[0])
            if not new < error:
                break
            chosen, fits, error, moved = setting, found, new, True
        if moved:
            break
    return chosen, fits
