"""Means of the sides of a table, with slopes of known features: fitted, and eliminated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from dln_geometry.completion.fitting.equations import NormalEquations, sums_of
from dln_geometry.dynamics.entries import Pattern, PlacedEntries
from dln_geometry.dynamics.losses import Completion, LinkLoss
from dln_geometry.geometry.points import Collapsed, EndToEnd

FIT_STEPS, NEWTON_STEPS = 60, 25
PROFILE_STEPS = 1
"""Steps of conjugate gradients for the little that a flow moves the offsets from their start."""
WATCH_STEPS = 2
"""The same, where held-out entries are predicted on the way."""
SLOPES = 0.2
"""Ridge of a slope over that of a side mean: by default, one entry more."""
DENSE, DENSE_WORK = 512, 10_000_000
"""Most parameters, and parameters times entries, whose normal equations are inverted once."""


@dataclass(frozen=True)
class Offsets:
    """What every entry has besides X: ``mean + rows_i + cols_j + F_i . f + G_j . g``.

    `rows` (m,) and `cols` (n,) hold the side means with the slopes of the features in them, which
    `row_slopes` (p,) and `col_slopes` (q,) are, for rows and columns that the table does not have.

    Examples
    --------
    >>> rows, cols = torch.tensor([1.0, -1.0]), torch.zeros(2)
    >>> offsets = dln.completion.Offsets(torch.tensor(3.0), rows, cols)
    >>> offsets.at(torch.tensor([0, 1]), torch.tensor([1, 0]))
    tensor([4., 2.])
    """

    mean: Tensor
    rows: Tensor
    cols: Tensor
    row_slopes: Tensor | None = None
    col_slopes: Tensor | None = None

    def at(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return the offsets of entries, shape (k,)."""
        return self.mean + self.rows[rows] + self.cols[cols]

    def __add__(self, other: Offsets) -> Offsets:
        slopes = ((self.row_slopes, other.row_slopes), (self.col_slopes, other.col_slopes))
        return Offsets(
            self.mean + other.mean,
            self.rows + other.rows,
            self.cols + other.cols,
            *(b if a is None else a if b is None else a + b for a, b in slopes),
        )

    def matrix(self) -> Tensor:
        """Return the offsets of all places, shape (..., m, n)."""
        return self.mean[..., None, None] + self.rows.unsqueeze(-1) + self.cols.unsqueeze(-2)

    def to(self, like: Tensor) -> Offsets:
        """Return the same in the dtype and on the device of a tensor."""
        moved = {name: x if x is None else x.to(like) for name, x in vars(self).items()}
        return replace(self, **moved)


class SideMeans:
    """The linear model of offsets on a set of entries, with ridge penalties.

    Minimises ``1/2 sum_e w_e (r_e + o_e)^2 + 1/2 shrink (|b|^2 + |c|^2)`` over the side means b, c,
    and over the slopes of the features, which are standardised, with a fifth of that ridge each: a
    slope costs far less than the side means that it explains. The global mean is not shrunk.

    Examples
    --------
    >>> rows, cols = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    >>> means = dln.completion.SideMeans(rows, cols, (2, 2), shrink=0.0, like=torch.zeros(1))
    >>> offsets = means.fit_squares(-torch.tensor([4.0, 2.0, 1.0]))
    >>> offsets.at(rows, cols)
    tensor([4.0000, 2.0000, 1.0000])
    """

    def __init__(
        self,
        rows: Tensor,
        cols: Tensor,
        shape: tuple[int, int],
        weights: Tensor | None = None,
        *,
        shrink: float = 5.0,
        sides: bool = True,
        features: tuple[Tensor | None, Tensor | None] = (None, None),
        like: Tensor,
    ) -> None:
        self.rows, self.cols, self.shape = rows, cols, shape
        self.weights = like.new_ones(len(rows)) if weights is None else weights.to(like)
        f, g = ([] if x is None else [x.to(like)] for x in features)
        self.features = (f, g)
        m, n = shape
        self.sides = sides
        # Parameters: mean | row means | column means | slopes of the features of rows, of columns.
        self.sizes = [1, m, n, *(x[0].shape[1] for x in (f, g) if x)]
        slopes = [SLOPES * shrink] * (len(self.sizes) - 3)
        ridges = [0.0, shrink, shrink, *slopes]
        self.ridge = torch.cat(
            [like.new_full((size,), r) for size, r in zip(self.sizes, ridges, strict=True)]
        )
        key = rows * n + cols
        self._order = None if bool((key[1:] > key[:-1]).all()) else torch.argsort(key)
        self.pattern = Pattern(self._sorted(rows), self._sorted(cols), shape)
        self.inverse = self._dense_inverse()

    def split(self, o: Tensor) -> Offsets:
        """Return parameters as offsets."""
        mean, rows, cols, *slopes = o.split(self.sizes, dim=-1)
        if not self.sides:
            rows, cols = torch.zeros_like(rows), torch.zeros_like(cols)
        known: list[Tensor | None] = [None, None]
        for side, x in enumerate(self.features):
            if x:
                known[side] = slope = slopes.pop(0)
                part = slope @ x[0].mT.to(o)
                rows, cols = (rows + part, cols) if side == 0 else (rows, cols + part)
        return Offsets(mean.squeeze(-1), rows, cols, *known)

    def sides_of(self, o: Tensor) -> tuple[Tensor, Tensor]:
        """Return what parameters add to every entry of the rows (..., m), and of the columns."""
        part = self.split(o)
        return part.mean.unsqueeze(-1) + part.rows, part.cols

    def spread(self, o: Tensor) -> Tensor:
        """Return the offsets of all entries, shape (..., k)."""
        rows, cols = self.sides_of(o)
        return rows.index_select(-1, self.rows) + cols.index_select(-1, self.cols)

    def gathered(self, t: Tensor) -> Tensor:
        """Return the adjoint of `spread`, shape (..., number of parameters)."""
        if t.shape[:-1].numel() == 1:
            return self.collected(*sums_of(self.pattern, self._sorted(t.reshape(-1)))).view(
                *t.shape[:-1], -1
            )
        m, n = self.shape
        by_row = t.new_zeros(*t.shape[:-1], m).index_add_(-1, self.rows, t)
        by_col = t.new_zeros(*t.shape[:-1], n).index_add_(-1, self.cols, t)
        return self.collected(by_row, by_col)

    @property
    def is_sorted(self) -> bool:
        """Whether the entries are in row-major order, as those of losses."""
        return self._order is None

    def _sorted(self, t: Tensor) -> Tensor:
        """Return numbers of the entries (k,) in row-major order."""
        return t if self._order is None else t[self._order]

    def collected(self, by_row: Tensor, by_col: Tensor) -> Tensor:
        """Return `gathered` from sums over the rows (..., m) and over the columns (..., n)."""
        slopes = [s @ x[0].to(s) for s, x in zip((by_row, by_col), self.features, strict=True) if x]
        if not self.sides:
            by_row, by_col, kept = torch.zeros_like(by_row), torch.zeros_like(by_col), by_row
            return torch.cat((kept.sum(-1, keepdim=True), by_row, by_col, *slopes), dim=-1)
        return torch.cat((by_row.sum(-1, keepdim=True), by_row, by_col, *slopes), dim=-1)

    @cached_property
    def own_equations(self) -> NormalEquations:
        """The normal equations of squares."""
        return NormalEquations(self, self._sorted(self.weights))

    def _dense_inverse(self) -> Tensor | None:
        """Return the inverse of the normal equations if they are few: the solutions are exact."""
        count = len(self.ridge)
        if count > DENSE or count * len(self.rows) > DENSE_WORK:
            return None
        eye = torch.eye(count, dtype=self.ridge.dtype, device=self.ridge.device)
        normal = self.gathered(self.weights * self.spread(eye)) + torch.diag(self.ridge)
        return torch.linalg.pinv(normal, hermitian=True)

    def solve(self, residual: Tensor, steps: int, pull: Tensor | None = None) -> Tensor:
        """Return the parameters that minimise the penalised square of ``residual + o``."""
        target = self.gathered(-self.weights * residual)
        return self.solved(target if pull is None else target - pull, steps)

    def penalty(self, o: Tensor, pull: Tensor) -> Tensor:
        """Return the penalty of parameters, ``1/2 ridge . o^2 + pull . o``."""
        return (o * (0.5 * self.ridge.to(o) * o + pull.to(o))).sum(-1)

    def solved(self, target: Tensor, steps: int) -> Tensor:
        """Return the solution of the normal equations for a right-hand side as `gathered`."""
        if self.inverse is not None:
            return target @ self.inverse
        return self.own_equations.solve(target.reshape(-1), steps).view_as(target)

    def fit_squares(self, residual: Tensor, steps: int = FIT_STEPS) -> Offsets:
        """Return the offsets that fit ``-residual`` best."""
        return self.split(self.solve(residual, steps))

    def fit_link(self, loss: type[LinkLoss], x: Tensor, values: Tensor) -> Offsets:
        """Return the offsets that fit values through a link best, X given: Newton's method."""
        o = torch.zeros_like(self.ridge)
        o[0] = loss.link((self.weights * values).sum() / self.weights.sum())
        for _ in range(NEWTON_STEPS):
            at = x + self.spread(o)
            slope = self.weights * (loss.mean(at) - values)
            curvature = self.weights * loss.curvature(at)
            target = -self.gathered(slope) - self.ridge * o
            step = NormalEquations(self, self._sorted(curvature)).solve(target, FIT_STEPS)
            largest = float(step.abs().max())
            o = o + step * min(1.0, 2.0 / max(largest, 1e-300))
            if largest < 1e-4:
                break
        return self.split(o)


class ProfiledCompletion(Completion):
    """The squared error on entries with the best offsets for every X.

    ``E(X) = min_o 1/2 sum_e w_e (X_e + o_e - v_e)^2 + penalty(o)``, a smooth convex function of X,
    whose gradient is that of the square at the best offsets. Where the values are what offsets p
    leave, o is added to these, and the penalty is that of the sum: ``1/2 |o|^2 + p . o`` with the
    weights of the ridge, of which `pull` (ridge times p) is the linear part.

    Examples
    --------
    >>> rows, cols = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    >>> problem = dln.completion.Problem(rows, cols, torch.tensor([4.0, 2.0, 1.0, 5.0]), (3, 2))
    >>> means = problem.side_means()
    >>> loss = dln.completion.ProfiledCompletion.of(problem.completion(problem.values), means)
    >>> bool(loss.value(torch.zeros(3, 2)) < 0.5 * problem.values.square().sum())
    True
    """

    _model: SideMeans
    _pull: Tensor

    @classmethod
    def of(cls, loss: Completion, model: SideMeans, pull: Tensor | None = None) -> Self:
        """Return the loss of the entries of `loss`, with the offsets of a model eliminated."""
        profiled = object.__new__(cls)
        profiled._fill(loss.shape, loss.rows, loss.cols, loss.values, loss.weights)
        profiled._model = model
        profiled._pull = torch.zeros_like(model.ridge) if pull is None else pull
        if model.is_sorted:
            # The places of large tables take more memory than their values.
            kept = (loss.rows, loss.cols, loss.shape, loss.values, loss.weights)
            profiled._kept[torch.Size(())] = PlacedEntries(*kept, pattern=model.pattern)
        return profiled

    def contract(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(E, G R, G^T L)`` at ``X = L R^T``, in one pass where it is compiled."""
        placed = self._whole(left, right)
        if placed is None:
            return super().contract(left, right)
        o = self._solved(placed, left, right, PROFILE_STEPS)
        done = placed.contract(left, right, self._model.sides_of(o))
        assert done is not None
        return done[0].reshape(()) + self._model.penalty(o, self._pull), *done[1:]

    def _whole(self, left: Tensor, right: Tensor) -> PlacedEntries | None:
        """Return the entries, if the compiled pass takes these factors of one matrix."""
        if left.ndim > 2 or left.is_complex():
            return None
        placed = self._placed(left.shape[:-2])[1]
        return placed if placed.is_compiled(left, right) else None

    def _solved(self, placed: PlacedEntries, left: Tensor, right: Tensor, steps: int) -> Tensor:
        """Return the parameters of the best offsets from sums over the sides, without residuals."""
        sums = placed.sums(left, right)
        return self._model.solved(-self._model.collected(*sums) - self._pull, steps)

    def offsets_of(self, point: Collapsed | EndToEnd, steps: int = WATCH_STEPS) -> Offsets:
        """Return the best offsets, given X."""
        thin: Any = self._enter(point)[1]
        left, right = thin
        if (placed := self._whole(left, right)) is not None:
            return self._model.split(self._solved(placed, left, right, steps))
        return self._model.split(self._model.solve(self._residual(thin), steps, self._pull))

    def _measured(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        o = self._model.solve(residual, PROFILE_STEPS, self._pull)
        rest = residual + self._model.spread(o)
        slope = rest if self.weights is None else self.weights * rest
        return 0.5 * (slope * rest).sum(-1) + self._model.penalty(o, self._pull), slope

    def to(self, *, dtype: Any = None, device: Any = None) -> Self:
        return self  # made in the dtype and on the device of its runs
