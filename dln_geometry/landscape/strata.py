"""Strata of the fibres: the layers with one end-to-end matrix, by the ranks of their products.

Layers are a chain of linear maps, which splits into intervals: the interval [i, k] is one direction
that is made at width i, carried on to width k, and lost there. How many intervals of each kind
there are, is decided by the ranks of the products ``W_k .. W_{i+1}``, and decides the dimension of
the stratum: all layers with these ranks and one product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import Network, haar_stiefel
from dln_geometry.support import (
    as_count,
    as_double,
    as_generator,
    as_matrix,
    as_rtol,
    as_width_sequence,
    normal,
    shown,
)

_Interval = tuple[int, int]


@dataclass(frozen=True)
class RankPattern:
    """A stratum of the fibres: how many intervals [i, k] of each kind the layers split into.

    Attributes
    ----------
    widths : tuple of int
        ``(d_0, ..., d_N)``.
    intervals : dict of (int, int) to int
        Number of intervals [i, k], ``0 <= i <= k <= N``, where it is not zero.

    References
    ----------
    Shewchuk, Bhattacharya, arXiv 2411.19920.

    Examples
    --------
    >>> pattern = dln.landscape.RankPattern.of(([[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0]]))
    >>> pattern.ranks[(2, 0)], pattern.intervals
    (0, {(0, 0): 1, (0, 1): 1, (1, 2): 1})
    >>> pattern.dimension, dln.landscape.fibre_dimension((2, 2, 1), 0)
    (4, 4)
    """

    widths: tuple[int, ...]
    intervals: dict[_Interval, int]

    def __post_init__(self) -> None:
        resolved, kinds = as_width_sequence(self.widths), self.intervals
        if not isinstance(kinds, dict):
            raise TypeError(f"intervals must be a dict of numbers by (i, k), got {shown(kinds)}")
        for interval, count in kinds.items():
            pair = isinstance(interval, tuple) and len(interval) == 2
            if not pair or not 0 <= interval[0] <= interval[1] < len(resolved):
                raise ValueError(
                    f"intervals must be pairs 0 <= i <= k <= {len(resolved) - 1}, got "
                    f"{shown(interval)}"
                )
            as_count(count, "intervals")
        covered = tuple(
            sum(c for (i, k), c in kinds.items() if i <= p <= k) for p in range(len(resolved))
        )
        if covered != resolved:
            raise ValueError(f"intervals must cover the widths {resolved}, got {covered}")
        object.__setattr__(self, "widths", resolved)

    @classmethod
    def of(cls, factors: Sequence[Any], *, rtol: float = 1e-9) -> RankPattern:
        """Return the pattern of layers; singular values below `rtol` of the largest are zero.

        The scale of a product of layers is that of the product of their norms. Ranks of complex
        layers are complex, and so are the dimensions of their pattern.
        """
        network = Network(factors)
        if network.batch_shape:
            raise ValueError(f"factors must be of one network, got {tuple(network.batch_shape)}")
        rtol = as_rtol(rtol, torch.float64, default=1e-9)
        layers, widths = [as_double(w.detach()) for w in network], network.widths
        ranks: dict[_Interval, int] = {(i, i): d for i, d in enumerate(widths)}
        for i in range(len(layers)):
            x, scale = torch.eye(widths[i], dtype=layers[0].dtype, device=layers[0].device), 1.0
            for k in range(i, len(layers)):
                x = layers[k] @ x
                scale *= float(torch.linalg.matrix_norm(layers[k], ord=2))
                s = torch.linalg.svdvals(x)
                ranks[(k + 1, i)] = int((s > rtol * scale).sum())
        return cls.from_ranks(widths, ranks)

    @classmethod
    def from_ranks(cls, widths: Sequence[int], ranks: dict[_Interval, int]) -> RankPattern:
        """Return the pattern with these ranks of ``W_k .. W_{i+1}``, by (k, i), 0 <= i <= k <= N.

        ValueError if no layers have these ranks.
        """
        resolved = as_width_sequence(widths)
        depth = len(resolved) - 1

        def rank(k: int, i: int) -> int:
            return ranks[(k, i)] if 0 <= i <= k <= depth else 0

        found = {}
        for i in range(depth + 1):
            for k in range(i, depth + 1):
                count = rank(k, i) - rank(k, i - 1) - rank(k + 1, i) + rank(k + 1, i - 1)
                if count < 0 or rank(i, i) != resolved[i]:
                    raise ValueError(f"ranks must be those of layers of widths {resolved}")
                if count:
                    found[(i, k)] = count
        return cls(resolved, found)

    @property
    def ranks(self) -> dict[_Interval, int]:
        """Ranks of the products ``W_k .. W_{i+1}``, by (k, i); the widths at i = k."""
        n = len(self.widths)
        return {
            (k, i): sum(c for (a, b), c in self.intervals.items() if a <= i and b >= k)
            for i in range(n)
            for k in range(i, n)
        }

    @property
    def rank(self) -> int:
        """Rank of the end-to-end matrix."""
        return self.intervals.get((0, len(self.widths) - 1), 0)

    @property
    def orbit_dimension(self) -> int:
        """Dimension of all layers with these ranks, whatever their product.

        ``sum_p d_p^2`` less the dimension of the changes of basis, ends included, that leave the
        layers as they are: one for each pair of intervals [a, b], [c, d], c <= a <= d <= b.
        """
        pairs = self.intervals.items()
        fixed = sum(m * n for (a, b), m in pairs for (c, d), n in pairs if c <= a <= d <= b)
        return sum(d * d for d in self.widths) - fixed

    @property
    def dimension(self) -> int:
        """Dimension of the stratum: of the layers with these ranks and one product."""
        m, n, r = self.widths[-1], self.widths[0], self.rank
        return self.orbit_dimension - r * (m + n - r)

    def layers(self, x: Any = None, *, generator: torch.Generator | int | None = None) -> Network:
        """Return layers of this pattern in random hidden bases, with the product x, (d_N, d_0).

        Without `x` the product is one of the rank of the pattern.
        """
        source, n = as_generator(generator, torch.device("cpu")), len(self.widths)
        if x is None:
            left, right = (normal((d, self.rank), source, torch.float64) for d in self._ends())
            x = left @ right.mT
        target = as_matrix(x, "x", complex=True).detach()
        dtype = as_double(target).dtype
        if tuple(target.shape) != self._ends():
            raise ValueError(f"x must have shape {self._ends()}, got {tuple(target.shape)}")
        u, s, vh = torch.linalg.svd(as_double(target).cpu())
        level = max(1e-9, 10.0 * max(target.shape) * torch.finfo(target.dtype).eps)
        if int((s > level * s[0]).sum() if float(s[0]) > 0 else 0) != self.rank:
            raise ValueError(f"x must have the rank {self.rank} of the pattern")
        places: list[list[int]] = [[] for _ in range(n)]
        named = sorted(self.intervals.items(), key=lambda pair: pair[0] != (0, n - 1))
        copies = [interval for interval, count in named for _ in range(count)]
        for number, (i, k) in enumerate(copies):
            for p in range(i, k + 1):
                places[p].append(number)
        layers: list[Tensor] = []
        for p in range(1, n):
            w = torch.zeros(self.widths[p], self.widths[p - 1], dtype=dtype)
            for row, number in enumerate(places[p]):
                if number in places[p - 1]:
                    w[row, places[p - 1].index(number)] = 1.0
            layers.append(w)
        # The whole intervals come first at both ends, as the modes of X do.
        right = vh.clone()
        right[: self.rank] *= s[: self.rank, None]
        layers[0] = layers[0] @ right
        layers[-1] = u @ layers[-1]
        for p in range(n - 2):
            d = self.widths[p + 1]
            kind: Any = {"generator": source, "dtype": dtype, "device": torch.device("cpu")}
            turn, other = (haar_stiefel((), d, d, **kind) for _ in "ab")
            stretch = torch.exp(0.3 * normal((d,), source, torch.float64))
            layers[p] = turn @ (stretch.unsqueeze(-1) * (other @ layers[p]))
            layers[p + 1] = ((layers[p + 1] @ other.mH) / stretch) @ turn.mH
        return Network.from_layers(w.to(target) for w in layers)

    def _ends(self) -> tuple[int, int]:
        return self.widths[-1], self.widths[0]


def as_target_rank(rank: Any, widths: Sequence[int]) -> int:
    """Return a rank from 0 to the smallest width."""
    r = as_count(rank, "rank", 0)
    if r > min(widths):
        raise ValueError(
            f"rank must lie between 0 and the smallest of the widths {widths}, got {r}"
        )
    return r


def strata(widths: Sequence[int], rank: int) -> Iterator[RankPattern]:
    """Return an iterator over all strata of the fibre over a matrix of this rank, in any order.

    Their number grows fast with widths and depth.

    Examples
    --------
    >>> [p.dimension for p in dln.landscape.strata((1, 1, 1), 0)]  # of w_2 w_1 = 0
    [0, 1, 1]
    """
    resolved = as_width_sequence(widths)
    r = as_target_rank(rank, resolved)
    depth = len(resolved) - 1
    kinds = [(i, k) for i in range(depth + 1) for k in range(i, depth + 1) if (i, k) != (0, depth)]
    # Intervals of one width come last: they fill what is left.
    longer = [(i, k) for i, k in kinds if i < k]

    def chosen(at: int, left: list[int], found: dict[_Interval, int]) -> Iterator[RankPattern]:
        if at == len(longer):
            rest = {(i, i): d for i, d in enumerate(left) if d}
            yield RankPattern(resolved, dict(sorted({**found, **rest}.items())))
            return
        i, k = longer[at]
        for count in range(min(left[i : k + 1]) + 1):
            now = [d - count if i <= p <= k else d for p, d in enumerate(left)]
            yield from chosen(at + 1, now, {**found, (i, k): count} if count else found)

    start = {(0, depth): r} if r else {}
    # An iterator and no generator: errors are raised at the call.
    return chosen(0, [d - r for d in resolved], start) if depth else iter(())


def fibre_dimension(widths: Sequence[int], rank: int) -> int:
    """Return the dimension of the layers whose product is one matrix of this rank.

    The largest dimension of a stratum; that of all layers less ``m n`` where the product is a
    submersion.

    Examples
    --------
    >>> dln.landscape.fibre_dimension((3, 4, 3), 3), 3 * 4 + 4 * 3 - 9
    (15, 15)
    """
    return max(pattern.dimension for pattern in strata(widths, rank))
