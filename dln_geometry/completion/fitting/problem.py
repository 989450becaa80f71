"""The entries of a table as a problem: what is seen, what is held out, and its natural units."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dln_geometry.completion.fitting.offsets import SideMeans
from dln_geometry.dynamics.entries import Pattern
from dln_geometry.dynamics.losses import Completion, LinkLoss, Logistic, Poisson
from dln_geometry.support import warn

LINKS: dict[str, type[LinkLoss] | None] = {
    "squared": None,
    "logistic": Logistic,
    "poisson": Poisson,
}
LANCZOS_STEPS = 14
TINY = 1e-300
PLACES, FILLED = 2**16, 0.04
"""Most places of a table that is held as a dense matrix, and the least share of known ones."""
SHRINK = 5.0
SEARCH_RANK, LARGEST_RANK = 20, 200
ENOUGH_HELD, MOST_FOLDS = 200, 3
"""Held-out entries that are enough, and how many splits there are at most to reach them."""
WORK = 1e7
"""Entries times rank that the last run may have, by default."""


@dataclass(frozen=True)
class Problem:
    """Known entries of an m x n table, and how errors of them count.

    Tensors of one device; `values` and `weights` (None stands for 1) have the dtype of the runs.
    `features` are known numbers of the rows (m, p) and of the columns (n, q), standardised.

    Examples
    --------
    >>> rows, cols = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    >>> problem = dln.completion.Problem(rows, cols, torch.tensor([4.0, 2.0, 1.0, 5.0]), (3, 2))
    >>> len(problem), problem.select(torch.tensor([0, 3])).values
    (4, tensor([4., 5.]))
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    shape: tuple[int, int]
    weights: Tensor | None = None
    loss: str = "squared"
    biases: bool = True
    shrink: float | None = 5.0  # None: 5, or no side means at all, by the validation error
    features: tuple[Tensor | None, Tensor | None] = (None, None)
    bounds: tuple[float | None, float | None] = (None, None)

    @property
    def link(self) -> type[LinkLoss] | None:
        """The class of the loss of entries, None for squares."""
        return LINKS[self.loss]

    def __len__(self) -> int:
        return len(self.values)

    def select(self, index: Tensor) -> Problem:
        """Return the problem of some of the entries."""
        weights = None if self.weights is None else self.weights[index]
        return replace(
            self,
            rows=self.rows[index],
            cols=self.cols[index],
            values=self.values[index],
            weights=weights,
        )

    def joined(self, other: Problem) -> Problem:
        """Return the problem of the entries of two."""
        weights = None
        if self.weights is not None or other.weights is not None:
            both = (self, other)
            parts = [torch.ones_like(p.values) if p.weights is None else p.weights for p in both]
            weights = torch.cat(parts)
        names = ("rows", "cols", "values")
        joint = {name: torch.cat((getattr(self, name), getattr(other, name))) for name in names}
        return replace(self, **joint, weights=weights)

    @cached_property
    def taught(self) -> tuple[Tensor, Tensor]:
        """Which rows (m,) and which columns (n,) have an entry."""
        m, n = self.shape
        return self.rows.bincount(minlength=m) > 0, self.cols.bincount(minlength=n) > 0

    @property
    def is_small(self) -> bool:
        """Whether to hold the table as a dense matrix: its squares, not those of a link."""
        places = self.shape[0] * self.shape[1]
        return self.link is None and places <= min(PLACES, len(self) / FILLED)

    def side_means(self) -> SideMeans:
        """Return the linear model of the offsets of these entries."""
        return SideMeans(
            self.rows,
            self.cols,
            self.shape,
            self.weights,
            shrink=SHRINK if self.shrink is None else self.shrink,
            sides=self.biases,
            features=self.features,
            like=self.values,
        )

    def completion(self, values: Tensor, **options: Any) -> Completion:
        """Return the loss of other values (or, with offsets, of the link) at these places."""
        make = self.link if "offsets" in options else None
        loss = make or Completion
        return loss(self.rows, self.cols, values, self.shape, weights=self.weights, **options)

    def predicted(self, z: Tensor) -> Tensor:
        """Return the prediction of entries from ``z = X + o``, within the bounds."""
        mean = z if self.link is None else self.link.mean(z)
        low, high = self.bounds
        return mean if low is None and high is None else mean.clamp(low, high)

    def before(self, mean: Tensor) -> Tensor:
        """Return the ``z`` of predictions within the bounds."""
        if self.link is None:
            return mean
        return (
            torch.logit(mean, eps=1e-12) if self.link is Logistic else mean.clamp_min(1e-12).log()
        )

    def error(self, z: Tensor) -> Tensor:
        """Return the root mean square error at ``z``, or the mean log loss of a link."""
        w = torch.ones_like(self.values) if self.weights is None else self.weights
        if self.link is None:
            square = (self.predicted(z) - self.values).square()
            return ((w * square).sum(-1) / w.sum()).sqrt()
        if self.link is Logistic:
            each = torch.nn.functional.softplus(z) - self.values * z
        else:
            each = z.exp() - self.values * z
        return (w * each).sum(-1) / w.sum()


@dataclass(frozen=True)
class Units:
    """Scales of a problem: norms of the gradient at X = 0, and the size of X it asks for."""

    signal: float  # spectral norm of the gradient at zero
    noise: float  # the same with random signs: what structureless residuals would have
    size: float  # singular value of the X that would explain the signal

    def decay(self, factor: float, depth: float) -> float:
        """Return the weight decay k with this factor, which has no units.

        A mode of size s is held down by ``k s^{2/N - 1}``, to be compared with norms of gradients:
        `factor` is that force on a mode of 1 % of `size`, in units of the noise.
        """
        return factor * self.noise * (0.01 * self.size) ** (1.0 - 2.0 / depth)


def units_of(
    problem: Problem, slope: Tensor, curvature: Tensor, seed: int, pattern: Pattern | None = None
) -> Units:
    """Return the units, from the slopes of the entries' losses at X = 0 and their curvatures.

    `pattern` is that of the entries, if they are in row-major order and there is one already.

    Examples
    --------
    >>> rows, cols = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    >>> problem = dln.completion.Problem(rows, cols, torch.tensor([4.0, 2.0, 1.0, 5.0]), (3, 2))
    >>> units = dln.completion.units_of(problem, problem.values, torch.ones(4), seed=0)
    >>> round(units.signal, 3), round(units.size, 3)
    (6.534, 9.802)
    """
    m, n = problem.shape
    weights = torch.ones_like(slope) if problem.weights is None else problem.weights
    generator = torch.Generator(device=slope.device).manual_seed(seed)
    signs = torch.rand(slope.shape, generator=generator, device=slope.device) < 0.5
    slope = weights * slope
    if pattern is None:
        order = torch.argsort(problem.rows * n + problem.cols)
        pattern = Pattern(problem.rows[order], problem.cols[order], problem.shape)
        slope, signs = slope[order], signs[order]
    norms = [
        _spectral_norm(pattern, x, n, generator) for x in (slope, torch.where(signs, slope, -slope))
    ]
    density = float((weights * curvature).sum()) / (m * n)
    size = norms[0] / max(density, 1e-300)
    return Units(norms[0], norms[1], size if math.isfinite(size) else 1.0)


def _spectral_norm(pattern: Pattern, x: Tensor, n: int, generator: torch.Generator) -> float:
    """Return the spectral norm of a sparse matrix, to a per cent, by bidiagonalisation."""
    v = torch.randn(n, 1, generator=generator, dtype=x.dtype, device=x.device)
    u = torch.zeros(pattern.shape[0], 1, dtype=x.dtype, device=x.device)
    v /= torch.linalg.vector_norm(v)
    diagonal, beside = [], [0.0]
    for _ in range(LANCZOS_STEPS):
        u = pattern.products(x, u, v)[0] - beside[-1] * u
        diagonal.append(float(torch.linalg.vector_norm(u)))
        u /= max(diagonal[-1], TINY)
        v = pattern.products(x, u, v)[1] - diagonal[-1] * v
        beside.append(float(torch.linalg.vector_norm(v)))
        if not min(diagonal[-1], beside[-1]) > 1e-3 * max(diagonal):
            break  # what is left lies in a space of its own
        v /= beside[-1]
    steps: Any = {"dtype": torch.float64, "device": "cpu"}
    b = torch.diag(torch.tensor(diagonal, **steps))
    b += torch.diag(torch.tensor(beside[1 : len(diagonal)], **steps), 1)
    return float(torch.linalg.matrix_norm(b, 2))


def default_rank(shape: tuple[int, int], count: int, small: bool = False) -> int:
    """Return the bound on the rank of the last run for so many entries.

    Of a small table, which many runs share a batch for, as much as its entries determine.

    Examples
    --------
    >>> dln.completion.default_rank((100, 50), 2000)
    50
    """
    most = max(SEARCH_RANK, math.ceil(count / sum(shape))) if small else LARGEST_RANK
    return max(1, min(*shape, most, LARGEST_RANK, max(16, round(WORK / count))))


def folds_of(
    problem: Problem, held: Problem | tuple[Problem, Problem] | float, seed: int
) -> tuple[list[tuple[Problem, Problem]], Any]:
    """Return pairs of a training and a validation problem, and the mask of the first held share.

    `held` is a validation problem, such a pair, or a share of the entries, of which there are
    several splits if one would be small.

    Examples
    --------
    >>> rows, cols = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    >>> problem = dln.completion.Problem(rows, cols, torch.tensor([4.0, 2.0, 1.0, 5.0]), (3, 2))
    >>> folds, mask = dln.completion.folds_of(problem, 0.25, seed=0)
    >>> [len(held) for _, held in folds], int(mask.sum())
    ([1, 1, 1], 1)
    """
    if isinstance(held, Problem):
        return [(problem, held)], None
    if isinstance(held, tuple):
        return [held], None
    count = len(problem)
    if held == 0:
        return [], None
    out = max(1, round(held * count))
    if count < 3:
        warn(f"none of {count} entries can be held out: nothing is chosen by them", UserWarning)
        return [], None
    if count - out < 2:
        raise ValueError(
            f"validation must leave entries to train on, got {held:g} of {count} entries"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator).to(problem.rows.device)
    wanted = max(1, min(MOST_FOLDS, count // out, math.ceil(ENOUGH_HELD / out)))
    pairs, masks = [], []
    for part in (order[k * out : (k + 1) * out] for k in range(wanted)):
        mask = torch.zeros(count, dtype=torch.bool, device=order.device)
        mask[part] = True
        masks.append(mask)
        pairs.append((problem.select((~mask).nonzero().squeeze(1)), problem.select(part)))
    return pairs, masks[0].cpu().numpy()
