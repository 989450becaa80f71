"""Errors of trained models: pooled over folds, of averages, and the noise that explains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dln_geometry.completion.fitting.problem import Problem
from dln_geometry.completion.fitting.training import Fit, Model


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


def average_error(models: Sequence[Model], held: Problem) -> float:
    """Return the error of the average of predictions on held-out entries."""
    each = [held.predicted(model.at(held.rows, held.cols)) for model in models]
    return float(held.error(held.before(torch.stack(each).mean(0))))
