"""Predictions of entries by the average of models, how far they may be off, and of new rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.completion.fitting import Choice, Model, Problem
from dln_geometry.support import warn

LEVEL = 0.9
"""Level at which the coverage of intervals is measured."""
ROW_STEPS = 8
"""Newton steps of a row of a logistic or Poisson model."""


@dataclass(frozen=True)
class Predictions:
    """Means and standard deviations over the models, shape (k,).

    `missing` is the mean square of the parts of the model that unknown rows and columns lack.
    """

    mean: np.ndarray
    spread: np.ndarray
    missing: np.ndarray

    def scale(self, error: float) -> np.ndarray:
        """Return sizes of errors: of held-out entries, the spread of starts, what is missing."""
        return np.sqrt(error**2 + self.spread**2 + self.missing)


@dataclass(frozen=True)
class Asked:
    """Places of entries (k,), which of them the table does not have, and features of these (k, p).

    Where no features are known, they are 0.
    """

    rows: np.ndarray
    cols: np.ndarray
    unknown_rows: np.ndarray
    unknown_cols: np.ndarray
    row_features: Tensor | None = None
    col_features: Tensor | None = None

    @classmethod
    def known(cls, rows: np.ndarray, cols: np.ndarray) -> Asked:
        """Return entries of the table itself."""
        none = np.zeros(len(rows), dtype=bool)
        return cls(rows, cols, none, none)


def predict_entries(models: Sequence[Model], problem: Problem, asked: Asked) -> Predictions:
    """Predict entries; those of unknown rows or columns by the offsets and the average of X."""
    like = problem.values
    i, j, no_row, no_col = (
        torch.from_numpy(np.ascontiguousarray(x)).to(like.device)
        for x in (asked.rows, asked.cols, asked.unknown_rows, asked.unknown_cols)
    )
    found = []
    for model in models:
        o = model.offsets
        new_row = _by_features(asked.row_features, o.row_slopes)
        new_col = _by_features(asked.col_features, o.col_slopes)
        rows, cols = (
            torch.where(no_row, new_row, o.rows[i]),
            torch.where(no_col, new_col, o.cols[j]),
        )
        z = o.mean + rows + cols
        if model.point is not None and len(i):
            z = z + _x_at(model, problem, i, j, (no_row, no_col))
        found.append(problem.predicted(z).double())
    all_ = torch.stack(found)
    spread = all_.std(0) if len(models) > 1 else torch.zeros_like(all_[0])
    missing = _missing(models[0], problem, no_row, no_col)
    return Predictions(*(x.cpu().numpy() for x in (all_.mean(0), spread, missing)))


def _averages(model: Model, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Return X averaged over the rows (n,), over the columns (m,), and over both.

    Of X, too, a part is common to all rows: there its penalty is less than that of a column mean.
    """
    p, (rows, cols) = model.decomposed(), problem.taught
    left, right = p.u[rows].mean(0) * p.s, p.vh[:, cols].mean(1)
    return left @ p.vh, p.u @ (p.s * right), left @ right


def _x_at(
    model: Model, problem: Problem, i: Tensor, j: Tensor, unknown: tuple[Tensor, Tensor]
) -> Tensor:
    """Return X at entries (k,); of rows and columns that no entry has taught, its average."""
    assert model.point is not None
    x = model.point.entries(i, j)
    no_row, no_col = unknown[0] | ~problem.taught[0][i], unknown[1] | ~problem.taught[1][j]
    if bool((no_row | no_col).any()):
        by_row, by_col, both = _averages(model, problem)
        x = torch.where(no_row, by_row[j], torch.where(no_col, by_col[i], x))
        x = torch.where(no_row & no_col, both, x)
    return x


def filled(model: Model, problem: Problem) -> Tensor:
    """Return offsets and X of all entries of the table, shape (m, n)."""
    z = model.offsets.matrix()
    if model.point is None:
        return z
    x, (rows, cols) = model.point.matrix, problem.taught
    if not bool(rows.all() and cols.all()):
        by_row, by_col, both = _averages(model, problem)
        x = torch.where(rows[:, None], torch.where(cols, x, by_col[:, None]), by_row)
        x = torch.where(~rows[:, None] & ~cols, both, x)
    return z + x


def _by_features(features: Tensor | None, slopes: Tensor | None) -> Any:
    """Return what the features of unknown rows or columns add to a prediction, shape (k,) or 0."""
    return 0.0 if features is None or slopes is None else features @ slopes


def _missing(model: Model, problem: Problem, no_row: Tensor, no_col: Tensor) -> Tensor:
    """Return the mean square of what unknown rows and columns do not add to a prediction."""
    m, n = problem.shape
    x = 0.0
    if model.point is not None:
        x = float(model.point.singular_values.double().square().sum()) / (m * n)
    rows, cols = (
        float(side.double().var(correction=0)) for side in (model.offsets.rows, model.offsets.cols)
    )
    return rows * no_row.double() + cols * no_col.double() + x * (no_row | no_col).double()


def spread_quantile(
    choice: Choice, problem: Problem
) -> tuple[Callable[[float], float] | None, float]:
    """Return the quantiles of held-out errors over their scale, and the coverage at 90 %.

    The coverage is measured on every second held-out entry with the quantile of the others.
    """
    held = choice.held
    if held is None or problem.link is not None or not choice.validated:
        return None, float("nan")
    i, j = held.rows.cpu().numpy(), held.cols.cpu().numpy()
    own = [fit for fit in choice.validated if fit.fold == 0]
    found = predict_entries([fit.model for fit in own], problem, Asked.known(i, j))
    gap = np.abs(held.values.double().cpu().numpy() - found.mean)
    ratio = gap / np.maximum(found.scale(choice.best), 1e-300)
    if len(i) < 2:
        return Quantiles(ratio), float("nan")
    coverage = float((ratio[1::2] <= np.quantile(ratio[::2], LEVEL)).mean())
    return Quantiles(np.sort(ratio)), coverage


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of a sample, corrected for its size, as conformal prediction does."""

    sample: np.ndarray

    def __call__(self, level: float) -> float:
        count = len(self.sample)
        place = int(np.ceil(level * (count + 1)))
        if place > count:
            warn(
                f"intervals of level {level:g} need {int(np.ceil(level / (1 - level)))} held-out "
                f"entries, got {count}: they may be too narrow",
                UserWarning,
            )
        return float(self.sample[min(count, place) - 1])


def folded(
    problem: Problem,
    model: Model,
    noise: float,
    known: Tensor,
    values: Tensor,
    features: Tensor | None = None,
) -> Tensor:
    """Return predictions of whole rows (c, n), of which some entries are known.

    Each row is ``mean + b + cols_j + x_j + z . V_j`` with the right singular vectors V of X and the
    average x of its rows. Its b and z minimise its squares (or the log loss) with the ridge
    ``noise^2 m b^2 / |rows|^2`` and ``noise^2 m z_i^2 / s_i^2``: the prior is the spread of the
    trained rows. `known` (c, n) is a mask, `values` holds anything where it is False. `features`
    (c, p) of the rows move the mean of each.
    """
    o = model.offsets
    base = o.mean + o.cols
    shift = _by_features(features, o.row_slopes)
    shift = base.new_zeros(len(known)) if isinstance(shift, float) else shift
    # Of rows that have no means, or all the same, new ones have none.
    design = torch.ones_like(base).unsqueeze(1)
    scale = o.rows.square().sum().clamp_min(torch.finfo(base.dtype).tiny)
    ridge = (noise**2 * problem.shape[0] / scale).clamp_max(1.0 / torch.finfo(base.dtype).eps)[None]
    if model.point is not None:
        p = model.decomposed()
        base = base + _averages(model, problem)[0]
        kept = p.s > 1e-4 * p.s.max()
        spread = (noise**2 * problem.shape[0]) / p.s[kept].square()
        design = torch.cat((design, p.vh[kept].mT), dim=1)
        ridge = torch.cat((ridge, spread))
    # Without noise the equations may be singular: roundings are a noise, too.
    ridge = ridge.clamp_min(100 * torch.finfo(base.dtype).eps * problem.shape[1])
    rows = [
        _completed_row(problem, design, ridge, base + shift[i], known[i], values[i])
        for i in range(known.shape[0])
    ]
    return torch.stack(rows)


def _completed_row(
    problem: Problem, design: Tensor, ridge: Tensor, base: Tensor, known: Tensor, values: Tensor
) -> Tensor:
    """Return the prediction of one row, shape (n,)."""
    seen = known.nonzero().squeeze(1)
    if len(seen) == 0:
        return problem.predicted(base)
    a, y, link = design[seen], values[seen], problem.link
    if link is None:
        z = torch.linalg.solve(a.mT @ a + torch.diag(ridge), a.mT @ (y - base[seen]))
        return problem.predicted(base + design @ z)
    z = torch.zeros_like(ridge)
    for _ in range(ROW_STEPS):
        at = base[seen] + a @ z
        slope = a.mT @ (link.mean(at) - y) + ridge * z
        curvature = (a * link.curvature(at).unsqueeze(1)).mT @ a + torch.diag(ridge)
        step = torch.linalg.solve(curvature, slope)
        z = z - step * min(1.0, 2.0 / max(float((a @ step).abs().max()), 1e-30))
    return problem.predicted(base + design @ z)
