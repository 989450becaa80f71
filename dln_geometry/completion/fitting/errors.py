"""Errors of trained models: pooled over folds, of averages, and the noise that explains them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dln_geometry.completion.fitting.problem import Problem
from dln_geometry.completion.fitting.training import Choice, Fit, Model, side_means_alone
from dln_geometry.support import warn

WORTH = 0.99
"""Share of the error of the side means that a model must stay below not to be warned of."""


def noise_of(fit: Fit, problem: Problem) -> float:
    """Return the standard deviation of noise that explains the residuals of training."""
    parameters = 0.0
    if fit.model.point is not None:
        s = fit.model.decomposed().s
        parameters = float((s > 0.01 * s.max()).sum()) * sum(problem.shape)
    free = max(1 - parameters / len(problem), 0.1)
    return fit.train / free**0.5


def pooled(fits: Sequence[Fit], folds: Sequence[Any], name: str = "validation") -> float:
    """Return the error over all folds: squares are averaged, log losses too."""
    errors = [getattr(fit, name) for fit in fits]
    sizes = [len(held) for _, held in folds]
    power = 2 if folds[0][1].link is None else 1
    total = sum(s * e**power for s, e in zip(sizes, errors, strict=True)) / sum(sizes)
    return total ** (1 / power) if power == 2 else total


def common_time(fits: Sequence[Fit], folds: Sequence[Any]) -> float:
    """Return the time at which the pooled validation error of single flows is least.

    A mean of their best times would say nothing where one of them is 0.
    """
    times = np.unique([t for fit in fits for t, _ in fit.curve])
    power = 2 if folds[0][1].link is None else 1
    total = np.zeros_like(times)
    for fit, (_, held) in zip(fits, folds, strict=True):
        t, error = np.array(fit.curve).T
        total += len(held) * np.interp(times, t, error) ** power
    return float(times[int(total.argmin())])


def average_error(models: Sequence[Model], held: Problem) -> float:
    """Return the error of the average of predictions on held-out entries."""
    each = [held.predicted(model.at(held.rows, held.cols)) for model in models]
    return float(held.error(held.before(torch.stack(each).mean(0))))


def checked(choice: Choice, whole: Problem, refit: bool) -> Choice:
    """Return the choice, with a warning if it is hardly better than the side means.

    If it is worse, the side means alone predict: those of all entries with `refit`.
    """
    first, error, means = choice.validated[0], choice.best, choice.side_means
    if not means > 0 or error < WORTH * means or first.status == "constant":
        return choice
    what = "side means" if whole.biases else "mean"
    why = "the table may not be close to one of low rank, or have too few entries"
    if first.status == "seconds":
        why = "the time was too short"
    worse = not error < means
    warn(
        f"the best validation error {error:.6g} is hardly better than that of the {what} alone, "
        f"{means:.6g}{', which predict now' if worse else ''}: {why}",
        UserWarning,
    )
    if not worse:
        return choice
    alone = tuple(replace(fit, model=Model(fit.alone, None)) for fit in choice.validated)
    final = replace(alone[0], times=())
    if refit:
        whole = replace(whole, biases=whole.biases and choice.settings[0].sides)
        model = Model(side_means_alone(whole, whole.side_means()), None)
        train = float(whole.error(model.at(whole.rows, whole.cols)))
        final = replace(final, model=model, train=train)
    return replace(choice, fits=(final,), validated=alone, best=means)
