"""The variety of balanced networks for geomstats."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import geomstats.backend as gs  # pyright: ignore[reportMissingImports]
import torch
from geomstats.geometry.base import LevelSet
from torch import Tensor

from dln_geometry.geometry import points
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.geometry.submersion import tangent
from dln_geometry.support import as_flag, as_rank, as_width_sequence
from manifolds._geomstats.arrays import as_layers, as_tensor, gram_schmidt, to_backend, to_padded
from manifolds._geomstats.matrices import DepthMetric, FixedRankEndToEnd, FullRankEndToEnd
from manifolds._geomstats.networks.layers import LayeredNetworks
from manifolds._geomstats.networks.metric import BalancedMetric


class BalancedNetworks(LevelSet):
    """The balanced networks of given widths and rank, the total space over the matrices.

    Random networks have random points of `base` as products, and uniform hidden gauges. `widths`
    and `equip` are as in `LayeredNetworks`, with `BalancedMetric`.

    Parameters
    ----------
    rank : int, optional
        Rank r of the layers; the default is the smallest width.
    positive_det : bool
        Keep to end-to-end matrices of positive determinant (square ones of full rank).

    References
    ----------
    Menon, arXiv 2411.09004.

    Examples
    --------
    >>> from manifolds.geomstats_dln import BalancedNetworks
    >>> networks = BalancedNetworks((3, 4, 2), rank=2)
    >>> networks.dim, networks.random_point().shape
    (11, (2, 4, 4))
    """

    embedding_space: LayeredNetworks

    def __init__(
        self,
        widths: Sequence[int],
        rank: int | None = None,
        positive_det: bool = False,
        equip: bool = True,
    ) -> None:
        self.widths = as_width_sequence(widths)
        self.depth = len(self.widths) - 1
        smallest = min(self.widths)
        self.rank = smallest if rank is None else as_rank(rank, smallest, "the smallest width")
        self.positive_det = as_flag(positive_det, "positive_det")
        equip = as_flag(equip, "equip")
        self._base = self._end_to_end()
        dim = points.balanced_dimension(self.widths, self.rank)
        super().__init__(dim=dim, intrinsic=False, equip=equip)

    def new(self, equip: bool = True) -> BalancedNetworks:
        """Return a space with the same parameters."""
        return BalancedNetworks(self.widths, self.rank, self.positive_det, equip)

    @staticmethod
    def default_metric() -> Any:
        """Metric to equip the space with if equip is True."""
        return BalancedMetric

    def base(self, equip: bool = True) -> FullRankEndToEnd | FixedRankEndToEnd:
        """Return the space of the end-to-end matrices, with `DepthMetric` of depth N if asked."""
        space = self._end_to_end()
        return space.equip_with_metric(DepthMetric, depth=self.depth) if equip else space

    def equip_with_quotient(self) -> Any:
        """Equip with `BalancedBundle`, and return the base with `BalancedQuotientMetric`."""
        # geomstats returns a copy of the total space; its metric knows the base.
        copy: Any = super().equip_with_quotient()
        self.quotient = copy.metric.base
        self.quotient.metric = copy.metric
        return self.quotient

    def stack(self, layers: Sequence[Any]) -> Any:
        """Return layers as one point, as `LayeredNetworks.stack` does."""
        return self.embedding_space.stack(layers)

    def layers(self, point: Any) -> tuple[Any, ...]:
        """Return the layers of a point, as `LayeredNetworks.layers` does."""
        return self.embedding_space.layers(point)

    def submersion(self, point: Any) -> Any:
        """Return functions that vanish on balanced networks of rank r, shape (..., 2N - 1, D, D).

        The moments ``G_p``, p = 1..N-1, then for every layer its distance from the nearest matrix
        of rank r. Moments alone are not enough below full rank: they are not regular there.
        """
        layers = as_layers(point, self.widths)
        parts = [*points.layer_moments(layers), *(self._excess(w) for w in layers)]
        return to_backend(to_padded(parts, self.shape[-1]))

    def tangent_submersion(self, vector: Any, point: Any) -> Any:
        """Return the differential of `submersion`, whose kernel is the tangent space."""
        layers = as_layers(point, self.widths)
        moves = as_layers(vector, self.widths, like=layers[0])
        pairs = list(zip(layers, moves, strict=True))
        changes = [b.mT @ db - da @ a.mT for (a, da), (b, db) in pairwise(pairs)]
        parts = [change + change.mT for change in changes]
        parts += [self._tangent_excess(w, v) for w, v in pairs]
        return to_backend(to_padded(parts, self.shape[-1]))

    def belongs(self, point: Any, atol: float = gs.atol) -> Any:
        """Tell whether `submersion` vanishes and the r-th singular value is above the tolerance."""
        inside = super().belongs(point, atol)
        if not gs.any(inside):
            return inside
        layers = as_layers(point, self.widths)
        reached = torch.linalg.svdvals(layers[0])[..., self.rank - 1] > atol
        if self.positive_det:
            reached = reached & (_determinant_sign(points.balanced_frames(layers)[0]) > 0)
        return gs.logical_and(inside, to_backend(reached))

    def to_tangent(self, vector: Any, base_point: Any) -> Any:
        layers = as_layers(base_point, self.widths)
        moves = as_layers(vector, self.widths, like=layers[0])
        return to_backend(to_padded(tangent(layers, moves), self.shape[-1]))

    def projection(self, point: Any) -> Any:
        """Return the balanced network of the same end-to-end matrix, in the nearest gauge.

        Singular values beyond the rank are dropped; with ``positive_det`` the smallest one of a
        matrix of negative determinant changes its sign. End-to-end matrices of rank below r have no
        nearest network of rank r: a ValueError.
        """
        frames, lam = points.balanced_frames(points.balance(as_layers(point, self.widths)))
        if lam.shape[-1] < self.rank or bool((lam[..., self.rank - 1] == 0).any()):
            raise ValueError(
                f"point must have end-to-end matrices of rank {self.rank} at least, got less"
            )
        s = lam[..., : self.rank] ** self.depth
        frames = [q[..., : self.rank] for q in frames]
        if self.positive_det:
            turn = torch.ones_like(s)
            turn[..., -1] = _determinant_sign(frames)
            frames[-1] = frames[-1] * turn.unsqueeze(-2)
        return to_backend(to_padded(points.chain_from_frames(frames, s), self.shape[-1]))

    def random_point(self, n_samples: int = 1, bound: float = 1.0) -> Any:
        x = as_tensor(self._base.random_point(n_samples, bound))
        sizes = [(*x.shape[:-2], d, self.rank) for d in self.widths[1:-1]]
        gauge = [gram_schmidt(as_tensor(gs.random.normal(size=s), like=x)) for s in sizes]
        p = EndToEnd.of(x, self.depth, rank=self.rank)
        layers = points.balanced_factors(p, widths=self.widths, gauge=gauge)
        return to_backend(to_padded(layers, self.shape[-1]))

    def _define_embedding_space(self) -> LayeredNetworks:
        return LayeredNetworks(self.widths)

    def _end_to_end(self) -> FullRankEndToEnd | FixedRankEndToEnd:
        m, n, r = self.widths[-1], self.widths[0], self.rank
        if r == min(m, n):
            return FullRankEndToEnd(m, n, self.positive_det, equip=False)
        if self.positive_det:
            raise ValueError(f"positive_det must be False below full rank, got rank {r} of {m, n}")
        return FixedRankEndToEnd(m, n, r, equip=False)

    def _excess(self, w: Tensor) -> Tensor:
        """Return the part of a matrix beyond its first r singular values."""
        r = self.rank
        if r >= min(w.shape[-2:]):
            return torch.zeros_like(w)
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        return (u[..., r:] * s[..., None, r:]) @ vh[..., r:, :]

    def _tangent_excess(self, w: Tensor, v: Tensor) -> Tensor:
        """Return the derivative of `_excess`: a spectral function, smooth across the cut."""
        r = self.rank
        if r >= min(w.shape[-2:]):
            return torch.zeros_like(w + v)
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        kept, dropped = s[..., :r, None], s[..., None, r:]
        left, right = u[..., :r], vh[..., :r, :]
        outside = v - left @ (left.mT @ v)
        moved = outside - (outside @ right.mT) @ right
        # The dropped singular vectors turn with the kept ones.
        a, b = left.mT @ v @ vh[..., r:, :].mT, u[..., r:].mT @ v @ right.mT
        ratio, gap = dropped / kept, 1.0 - (dropped / kept).square()
        above = -(a * ratio + b.mT) * ratio / gap
        below = -(b.mT * ratio + a) * ratio / gap
        return moved + left @ above @ vh[..., r:, :] + u[..., r:] @ below.mT @ right


def _determinant_sign(frames: Sequence[Tensor]) -> Tensor:
    """Return the sign of ``det X`` from square outer frames: ``det X`` may round to zero."""
    return torch.linalg.det(frames[-1]).sign() * torch.linalg.det(frames[0]).sign()
