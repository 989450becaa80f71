"""The product step: move the layers along a horizontal line and multiply them.

With ``X = U Lam^N V^T`` and a tangent vector ``U (sqrt(a) o eta) V^T``, it is
``X+ = U (Lam + del_N) .. (Lam + del_1) V^T``, ``del_p,ij = lam_i^{N-p} lam_j^{p-1} / sqrt(a_ij)
eta_ij``. It keeps the rank and crosses ``det X = 0`` smoothly. For a gradient it is one step of
gradient descent of N layers; for Gaussian `eta` its second order is the Ito drift.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from dln_geometry.geometry.kernel import (
    log_kernel_of_log,
    quick_product,
    quick_svd,
    small_svd,
    waitless,
)
from dln_geometry.geometry.metric.entropy import entropy_pull
from dln_geometry.geometry.points import EndToEnd, product
from dln_geometry.support import Depth, as_depth

_MOST_LAYERS = 16
_BLOCKS = 4


def layers_of_step(depth: float) -> int:
    """Return the number of factors of a product step.

    The depth itself if it is an integer up to 16; otherwise 2 to 4 blocks of equal depth, which is
    enough: the error of gathering layers in blocks has mean zero.
    """
    depth = as_depth(depth)
    if depth.is_integer() and 2 <= depth <= _MOST_LAYERS:
        return depth.layers
    return max(2, int(min(_BLOCKS, depth)))


class ProductFrame:
    r"""The tables of product steps from a point, each computed once, on demand.

    At integer depth the number q of factors is N. At another depth each of q factors stands for
    N / q layers (``l = s^{1/q}``): its off-diagonal part is the sum over these layers,
    ``l_i^{q-b} l_j^{b-1} sqrt(a_ij(N)) / a_ij(q) eta_ij``, its diagonal their product
    ``sign(y) |y|^{N/q}``, ``y = lam + eta_ii / sqrt N``; at infinite depth ``l exp(eta_ii / q)``:
    the flat coordinate ``sqrt(N) lam`` makes an exact, straight step. Where it passes zero, the
    determinant changes its sign, except at even depths.

    The depth of `point` is above 1; `layers` is the number q >= 2, by default `layers_of_step` of
    the depth. The diagonal moves on a straight line in ``s^{1/flat_depth}``, by default that of N;
    with ``flat_depth = layers`` every factor is linear, for any N.
    """

    def __init__(
        self, point: EndToEnd, *, layers: int | None = None, flat_depth: float | None = None
    ) -> None:
        self.point = point
        self.layers = layers_of_step(point.depth) if layers is None else layers
        self.flat_depth = point.depth if flat_depth is None else as_depth(flat_depth)
        # An orthonormal coordinate of A is sqrt(N) times that of A/N.
        self._size = 1.0 if point.normalized else math.sqrt(point.depth)

    @cached_property
    def roots(self) -> Tensor:
        """The singular values ``s^{1/q}`` of a factor, shape (..., r)."""
        return self.point.s ** (1.0 / self.layers)

    @cached_property
    def _larger(self) -> Tensor:
        """The larger root of every pair."""
        return torch.maximum(self.roots.unsqueeze(-1), self.roots.unsqueeze(-2))

    @cached_property
    def _powers(self) -> list[Tensor]:
        """Powers 1..q-1 of the ratio of the smaller to the larger root; 1 for two zeros."""
        smaller = torch.minimum(self.roots.unsqueeze(-1), self.roots.unsqueeze(-2))
        ratio = torch.where(self._larger > 0, smaller / self._larger, 1.0)
        return list(accumulate([ratio] * (self.layers - 1), torch.mul))

    @cached_property
    def _squares(self) -> list[Tensor]:
        return [power.square() for power in self._powers]

    @cached_property
    def _total(self) -> Tensor:
        total = 1.0 + self._squares[0]
        for square in self._squares[1:]:
            total.add_(square)
        return total

    @cached_property
    def _above(self) -> Tensor:
        """One above the diagonal, where the row has the larger value: they descend."""
        r = self.point.rank
        return torch.ones(r, r, dtype=self.roots.dtype, device=self.roots.device).triu_(1)

    @cached_property
    def _norm(self) -> Tensor:
        """The root of the sum of squares of the powers: ``sqrt(a_ij(q))`` over ``l_max^{q-1}``."""
        return self._total.sqrt()

    @cached_property
    def _blocks(self) -> Tensor | None:
        """``sqrt(a(N) / a(q))``, by which gathering N/q layers in one factor changes its size."""
        depth, q = self.point.depth, self.layers
        if depth == q:
            return None if self._size != 1.0 else torch.full_like(self._norm, depth**-0.5)
        if depth == 2 * q:
            pair = self.roots.unsqueeze(-1) + self.roots.unsqueeze(-2)
            return (pair if self._size != 1.0 else pair / depth).sqrt_()
        # a_ij(N; s) = a_ij(q; s) a_ij(N/q; l); at infinity the second is the logarithmic mean.
        x = self.roots
        if depth < q:
            # Negative powers, of roots that are multiplied by more than these.
            x = x.clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
        log_kernel = log_kernel_of_log(x.log(), Depth(depth / q), False)
        divisor = float(q) if depth.infinite else (depth if self._size == 1.0 else 1.0)
        return torch.exp(0.5 * log_kernel) * divisor**-0.5

    @cached_property
    def root_kernel(self) -> Tensor:
        """The square root of the kernel, ``sqrt(a_ij)``, shape (..., r, r)."""
        # The larger of two powers is the power of the larger: r powers instead of r^2.
        power = self.roots ** (self.layers - 1)
        root = torch.maximum(power.unsqueeze(-1), power.unsqueeze(-2)) * self._norm
        return root if self._blocks is None else root * self._blocks

    @cached_property
    def root_mixed(self) -> Tensor:
        """The same outside the range or corange, ``s^{1-1/N}``, shape (..., r)."""
        return self.point.s ** (1.0 - self.point.depth.inverse) * self._outer_unit

    @cached_property
    def flat(self) -> Tensor:
        """The coordinate ``s^{1/N}`` (at infinite depth ``log s``) of the diagonal, (..., r)."""
        return self.roots if self.flat_depth == self.layers else self.flat_depth.root(self.point.s)

    @property
    def _outer_unit(self) -> float:
        """``root_mixed`` over ``s^{1-1/N}``: 1, ``1/sqrt N`` for A/N, 0 at infinite depth."""
        return self._size / math.sqrt(self.point.depth)

    @property
    def flat_speed(self) -> float:
        """How far a unit of ``eta_ii`` moves the flat coordinate: ``1/sqrt N``; 1 at infinity."""
        return self._size / self.point.depth.unit(True)

    def entropy_pull(self, excess: float = 0.0) -> Tensor:
        """Return ``s_i dS/ds_i``, shape (..., r): bounded, whatever vanishes or collides.

        ``sum_{j != i} sum_p (N-p)/N w_p^2 + excess/N`` with the weights w of the layers, if every
        factor stands for one layer or two; ``excess = sum_p (d_p - r)`` over hidden layers.
        """
        depth, q, r = self.point.depth, self.layers, self.point.rank
        if depth not in (q, 2 * q):
            s = self.point.s.clamp_min(torch.finfo(self.roots.dtype).tiny ** 0.5)
            return entropy_pull(s.log(), depth, excess=excess)
        weight = self._squares[0]
        for k, square in enumerate(self._squares[1:], start=2):
            weight = weight.add(square, alpha=k)
        weight, most = weight / self._total, q - 1.0
        if depth == 2 * q:
            # Of log(l_i + l_j): half the share of the smaller value.
            weight, most = weight + 0.5 * self._powers[0] / (1.0 + self._powers[0]), q - 0.5
        below = r - 1 - torch.arange(r, dtype=weight.dtype, device=weight.device)
        signed = (weight * (self._above.mH - self._above)).sum(-1)
        return (signed + below * most) / q + excess / depth

    def diagonal(self, eta: Tensor, keep: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the diagonal of every factor and the weight of the part outside the range.

        `eta` is the diagonal of the move in orthonormal coordinates, shape (..., r); `keep` as in
        `move`.
        """
        depth, q, flat_depth = self.point.depth, self.layers, self.flat_depth
        if flat_depth.infinite:
            return self.roots * torch.exp(eta / q), torch.zeros_like(eta)
        # The size outside the range is that of one layer of the last block: 1 for q = N.
        unit = self._outer_unit
        if flat_depth == depth:
            moved = keep * self.flat + self.flat_speed * eta
            outside = torch.full_like(moved, unit)
        else:
            gap = self.point.s ** (flat_depth.inverse - depth.inverse)
            moved = keep * self.flat + (self._size / flat_depth) * gap * eta
            outside = unit * gap
        exponent = flat_depth / q
        if exponent == 1.0:
            return moved, outside
        if moved.is_complex():
            return moved**exponent, outside * moved ** (exponent - 1.0)
        size = moved.abs()
        if exponent < 1.0:
            size = size.clamp_min(torch.finfo(size.dtype).tiny)
        return torch.sign(moved) * size**exponent, outside * size ** (exponent - 1.0)

    def factors(self, core: Tensor, diagonal: Tensor) -> list[Tensor]:
        """Return the q factors in the frames of the point, first factor first, (..., r, r).

        They are the off-diagonal `weights` of the move `core`, with this diagonal.
        """
        weights = self.weights(core)
        # An even number of factors, but no even number of layers: one factor takes the signs.
        depth, q = self.flat_depth, self.layers
        once = q % 2 == 0 and depth != q and depth % 2 != 0
        for b, factor in enumerate(weights):
            own = diagonal.abs() if once and b > 0 and not diagonal.is_complex() else diagonal
            factor.diagonal(dim1=-2, dim2=-1).copy_(own)
        return weights

    def weights(self, core: Tensor) -> list[Tensor]:
        """Return the off-diagonal parts of the q factors, to first order in the move.

        For the factor p, ``lam_i^{q-p} lam_j^{p-1} / sqrt(a_ij) core_ij`` where q is the depth.
        """
        unit = core / self._norm
        if self._blocks is not None:
            unit = unit * self._blocks
        upper = unit * self._above
        lower, rising = unit - upper, self._powers
        falling = rising[::-1]
        inner = zip(rising[:-1], falling[1:], strict=True)
        parts = [torch.addcmul(upper * up, lower, down) for up, down in inner]
        top = rising[-1]
        return [torch.addcmul(upper, lower, top), *parts, torch.addcmul(lower, upper, top)]

    def move(
        self,
        core: Tensor,
        left: Tensor | None = None,
        right: Tensor | None = None,
        *,
        keep: float = 1,
    ) -> tuple[Tensor, Tensor]:
        """Make the step; return ``X+`` as a product of two matrices, (..., m, r) and (..., r, n).

        The move Z is given in orthonormal coordinates: `core` is ``U^T Z V``, `left` is ``Z V``
        (m x r) and `right` is ``U^T Z`` (r x n), of which the parts within range and corange are
        dropped. `keep` multiplies every layer, for weight decay.
        """
        u, vh = self.point.u, self.point.vh
        diagonal, outside = self.diagonal(core.diagonal(dim1=-2, dim2=-1), keep)
        first, *inner, last = self.factors(core, diagonal)
        if left is None and right is None:
            return quick_product(u, product([first, *inner, last], quick_product)), vh
        # The square one of the two outer factors takes in the hidden ones.
        if right is None:
            first, inner = product([first, *inner], quick_product), []
        elif left is None:
            last, inner = product([*inner, last], quick_product), []
        last, first = quick_product(u, last), quick_product(first, vh)
        if left is not None:
            inside = quick_product(u, quick_product(u.mH, left))
            last = last + (left - inside) * outside.unsqueeze(-2)
        if right is not None:
            inside = quick_product(quick_product(right, vh.mH), vh)
            first = first + outside.unsqueeze(-1) * (right - inside)
        return last, product([first, *inner], quick_product)


def thin_svd(last: Tensor, first: Tensor, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD of ``last @ first``, (..., m, k) and (..., k, n), by k x k work.

    `rank` is the number of singular values kept, by default all.
    """
    m, k, n = last.shape[-2], last.shape[-1], first.shape[-1]
    if k >= min(m, n):
        u, s, vh = quick_svd(quick_product(last, first))
    elif waitless(last):
        u, s, vh = small_svd(last)
        turn, s, vh = small_svd((s.unsqueeze(-1) * vh) @ first)
        u = u @ turn
    else:
        # New orthonormal frames at every step: rounding does not build up in them.
        ql, rl = torch.linalg.qr(last)
        qr, rr = torch.linalg.qr(first.mH)
        u, s, vh = torch.linalg.svd(rl @ rr.mH)
        u, vh = ql @ u, vh @ qr.mH
    if rank is None or rank == s.shape[-1]:
        return u, s, vh
    return u[..., :rank], s[..., :rank], vh[..., :rank, :]
