r"""Second variations of the cometric in the frames of a point, and the curvature they make.

All indices are explicit here, those of zero singular values included: with ``b`` and ``b'`` the
moves of ``l(X X^T)`` and ``l(X^T X)``, ``A''(H)`` along a move is
``sum 2 p[l_i, l_k, l_l, l_j] (b_ik b_kl H_lj + b_ik H_kl b'_lj + H_ik b'_kl b'_lj)``, plus the
second moves of l times ``p[l_i, l_k, l_j]``.
"""

from __future__ import annotations

import itertools
import math
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from dln_geometry.geometry.kernel import Differences, second_difference, third_difference
from dln_geometry.geometry.metric import (
    Blocks,
    Box,
    apply,
    combine_blocks,
    of_unit_size,
    pair_blocks,
    pull,
    push,
    squared_length,
)
from dln_geometry.geometry.points import EndToEnd, real_form
from dln_geometry.geometry.submersion import complement
from dln_geometry.support import as_double

# Above this ratio of singular values roundings leave no digit of a curvature.
_WIDEST = 1e7


def unit_point(p: EndToEnd) -> tuple[EndToEnd, Tensor]:
    """Return a point in double precision over its largest singular value, and that value, (...).

    Refuses spectra for which no digit of a curvature would be right.
    """
    q, largest = of_unit_size(p)
    if p.depth > 1.0 and bool((narrow := q.s.amin(-1) * _WIDEST < 1.0).any()):
        ratio = float((1.0 / q.s.amin(-1))[narrow].max())
        raise ValueError(
            f"point must have singular values within a factor of {_WIDEST:.0e} for a curvature, "
            f"got a ratio of {ratio:.1e}: roundings would leave no digit"
        )
    return q, largest


def multiplied_by_powers(value: Tensor, *powers: tuple[Tensor, float]) -> Tensor:
    """Return value times ``base ** power`` of each pair of a positive base and a power.

    Factors may leave the range of numbers where the product does not; infinite where it does.
    """
    exponent = torch.zeros_like(value)
    for base, power in powers:
        part, e = torch.frexp(base)
        e = power * e.to(value.dtype)
        whole = e.round()
        value = value * part**power * torch.exp2(e - whole)
        exponent = exponent + whole
    half = (0.5 * exponent).floor()
    scaled = value * torch.exp2(half) * torch.exp2(exponent - half)
    return torch.where(value == 0, value, scaled)


def realified(z: Tensor, r: int) -> Tensor:
    """Return the real form of complex matrices (..., d, d), both copies of the first r first."""
    d = z.shape[-1]
    order = [*range(r), *range(d, d + r), *range(r, d), *range(d + r, 2 * d)]
    return real_form(z)[..., order, :][..., order]


class CurvatureFrames:
    """A point whose tangent vectors are square matrices, zeros included among the singular values.

    `differences` are those of the r positive singular values. In the frames of the point tangent
    vectors are ``rows x columns`` matrices, padded to squares of size d. The last row and the last
    column stand for `more` directions each. Complex matrices are `realified`: their inner products
    are then twice as large.
    """

    def __init__(
        self,
        differences: Differences,
        rows: int,
        columns: int,
        vectors: list[Tensor],
        more: list[int],
        complex: bool = False,
    ) -> None:
        self.differences, self.rows, self.columns = differences, rows, columns
        self.complex = complex
        self.vectors, self.more = vectors, more
        self.rank = differences.s.shape[-1]
        self.size = (1 + complex) * max(rows, columns)

    @classmethod
    def at(cls, p: EndToEnd, *vectors: Tensor) -> tuple[CurvatureFrames, Tensor, list[Tensor]]:
        """Return the frames of a point and vectors scaled to unit size, and the sizes, (...)."""
        q, unit = unit_point(p)
        vectors = tuple(as_double(v) for v in vectors)
        sizes = [v.abs().amax((-2, -1)) for v in vectors]
        sizes = [torch.where(size > 0, size, 1.0) for size in sizes]
        scaled = [v / size[..., None, None] for v, size in zip(vectors, sizes, strict=True)]
        return cls._around(q, *scaled), unit, sizes

    @classmethod
    def _around(cls, p: EndToEnd, *vectors: Tensor) -> CurvatureFrames:
        """Return the frames of a box, with one direction on either side for all that are beyond."""
        box = Box.around(p, *vectors)
        q, (m, n) = box.point, p.shape
        left, right = (torch.cat([b, complement(b)], -1) for b in (q.u, q.vh.mH))
        # At infinite depth range and corange do not move: the box is r x r.
        inside = [left.mH @ v @ right for v in box.vectors]
        (rows, columns), more = q.shape, [1, 1]
        if not p.depth.infinite:
            if m > rows:
                more[0], rows = m - rows, rows + 1
            if n > columns:
                more[1], columns = n - columns, columns + 1
        size = max(rows, columns)
        square = [pad(v, (0, size - v.shape[-1], 0, size - v.shape[-2])) for v in inside]
        if not p.dtype.is_complex:
            return cls(box.differences(q.s), rows, columns, square, more)
        square = [realified(v, q.rank) for v in square]
        both = torch.cat((q.s, q.s), -1)
        return cls(box.differences(both), rows, columns, square, more, True)

    @cached_property
    def x(self) -> Tensor:
        """Logarithms of the singular values, ``-inf`` for zeros, shape (..., d)."""
        return self._padded(self.differences.x, -math.inf)

    def _padded(self, values: Tensor, value: float) -> Tensor:
        return pad(values, (0, self.size - self.rank), value=value)

    def basis(self) -> list[tuple[Tensor, float]]:
        """Return an orthonormal basis, and of how many directions each vector takes the place."""
        vectors, rank, batch = [], self.rank // (1 + self.complex), self.x.shape[:-1]
        size = max(self.rows, self.columns)
        for i, j in itertools.product(range(self.rows), range(self.columns)):
            if min(i, j) < rank:
                count = self.more[0] if i == self.rows - 1 else 1
                count = float(count * (self.more[1] if j == self.columns - 1 else 1))
                # Of complex frames the zeros come after both copies of the values.
                a, b = (k if k < rank else k + self.rank - rank for k in (i, j))
                e = self.x.new_zeros(*batch, size, size)
                e[..., i, j] = self._kernel[..., a, b].sqrt()
                if self.complex:
                    vectors += [(realified(unit * e, rank), count) for unit in (1.0 + 0j, 1j)]
                else:
                    vectors.append((e, count))
        return vectors

    def blocks(self, z: Tensor) -> Blocks:
        """Return the blocks of a matrix, without the one between zeros."""
        if self.size == (r := self.rank):
            return Blocks(z, None, None)
        return Blocks(z[..., :r, :r], z[..., r:, :r], z[..., :r, r:])

    def matrix(self, b: Blocks) -> Tensor:
        """Return the matrix of blocks."""
        if b.left is None or b.right is None:
            return b.core
        corner = b.core.new_zeros(*b.core.shape[:-2], *(2 * (self.size - self.rank,)))
        upper, lower = torch.cat((b.core, b.right), -1), torch.cat((b.left, corner), -1)
        return torch.cat((upper, lower), -2)

    def inner(self, z: Tensor, w: Tensor) -> Tensor:
        """Return ``g(Z, W)``."""
        return pair_blocks(apply(self.differences, self.blocks(z), -1.0), self.blocks(w))

    def numerator(self, z: Tensor, w: Tensor) -> Tensor:
        """Return ``g(R(Z,W)W, Z)``."""
        if self.differences.depth == 1.0:
            return torch.zeros_like(self.inner(z, w))
        k = self.differences
        zb, wb = self.blocks(z), self.blocks(w)
        alpha, beta = apply(k, zb, -1.0), apply(k, wb, -1.0)
        aa, ab, bb = pull(k, alpha, alpha), pull(k, alpha, beta), pull(k, beta, beta)
        za, zc = push(k, zb, alpha), push(k, zb, beta)
        wa, wc = push(k, wb, alpha), push(k, wb, beta)
        bracket = combine_blocks((1.0, zc), (-1.0, wa))
        first = 0.5 * (
            pair_blocks(bb, za) - pair_blocks(ab, zc) - pair_blocks(ab, wa) + pair_blocks(aa, wc)
        )
        first = first + 0.25 * (pair_blocks(ab, apply(k, ab)) - pair_blocks(aa, apply(k, bb)))
        first = first - 0.75 * squared_length(k, bracket)
        a, b = self.matrix(alpha), self.matrix(beta)
        return first + 0.5 * self._second_variation(a, b, z, w)

    def _second_variation(self, a: Tensor, b: Tensor, z: Tensor, w: Tensor) -> Tensor:
        """Return ``<b, A''[z,z] b> - 2 <a, A''[z,w] b> + <a, A''[w,w] a>``."""
        rows, columns = [self._turn(y) for y in (z, w)], [self._turn(y.mT) for y in (z, w)]
        # Covectors (g, h) and moves (y, y'), with weights.
        terms = [(1.0, b, b, 0, 0), (-2.0, a, b, 0, 1), (1.0, a, a, 1, 1)]
        total = torch.zeros_like((a * b).sum((-2, -1)))
        for weight, g, h, i, j in terms:
            for turned, y, one, two in ((rows, (z, w), g, h), (columns, (z.mT, w.mT), g.mT, h.mT)):
                bend = self._bend(turned[i], turned[j], y[i], y[j])
                total = total + weight * (bend * self._contract(one, two)).sum((-2, -1))
        k, x = self.differences, self.x
        for i in range(self.size):
            nodes = (x[..., i, None, None, None], *self._nodes)
            third = third_difference(nodes, k.depth, k.normalized)
            # Indices i, k, l, j of g_ij b_ik b_kl h_lj and its like.
            product = torch.zeros_like(third)
            for weight, g, h, one, two in terms:
                last = weight * g[..., i, None, None, :]
                for y, v in ((one, two), (two, one)):
                    into, after = rows[y][..., i, :, None, None], columns[v].unsqueeze(-3)
                    inner = rows[v].unsqueeze(-1) * h.unsqueeze(-3) + h.unsqueeze(-1) * after
                    outer = h[..., i, :, None, None] * columns[y].unsqueeze(-1) * after
                    product = product + last * (into * inner + outer)
            total = total + (third * product).sum((-3, -2, -1))
        return total

    def _turn(self, y: Tensor) -> Tensor:
        """Return how l moves at first order, ``(y s + s y^T)/a``; zeros among themselves stay."""
        move = y * self._padded(self.differences.s, 0.0).unsqueeze(-2)
        return (move + move.mT) / self._kernel

    @cached_property
    def _kernel(self) -> Tensor:
        """The kernel among values and zeros; infinite where both are zero."""
        k, r = self.differences, self.rank
        kernel = torch.full_like(self.x.unsqueeze(-1) + self.x.unsqueeze(-2), math.inf)
        kernel[..., :r, :r] = k.kernel
        kernel[..., :r, r:] = k.mixed.unsqueeze(-1)
        kernel[..., r:, :r] = k.mixed.unsqueeze(-2)
        return kernel

    def _bend(self, one: Tensor, two: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Return how l moves at second order, along moves y and v of X.

        ``(y v^T + v y^T - sum_k p[l_i, l_k, l_j] (b_ik b'_kj + b'_ik b_kj)) / a_ij``; the block of
        zeros follows from the rank: ``sum_k (b_ik b'_kj + b'_ik b_kj) / l_k``.
        """
        move = y @ v.mT + v @ y.mT
        pairs = one.unsqueeze(-1) * two.unsqueeze(-3) + two.unsqueeze(-1) * one.unsqueeze(-3)
        bent = (move - (self._second * pairs).sum(-2)) / self._kernel
        r, k = self.rank, self.differences
        if self.size == r:
            return bent
        roots = k.s ** (2.0 / k.depth) / k.unit
        outer = (one[..., r:, :r] / roots.unsqueeze(-2)) @ two[..., :r, r:]
        bent = bent.clone()
        bent[..., r:, r:] = outer + outer.mT
        return bent

    def _contract(self, g: Tensor, h: Tensor) -> Tensor:
        """Return ``sum_j p[l_i, l_k, l_j] g_ij h_kj``."""
        return (self._second * g.unsqueeze(-2) * h.unsqueeze(-3)).sum(-1)

    @cached_property
    def _second(self) -> Tensor:
        """``p[l_i, l_k, l_j]``, shape (..., d, d, d); 0 for three zeros."""
        return second_difference(self._nodes, self.differences.depth, self.differences.normalized)

    @property
    def _nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[..., :, None, None], self.x[..., None, :, None], self.x[..., None, None, :]
