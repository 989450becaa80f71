"""Engines of every finite and infinite depth by decompositions of r x r matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dln_geometry.dynamics.engines.collapsed import CollapsedEngine
from dln_geometry.dynamics.engines.engine import Engine
from dln_geometry.dynamics.engines.terms import minus, minus_product, observables, squares
from dln_geometry.dynamics.losses import Loss, contract
from dln_geometry.geometry.kernel import (
    MatrixPower,
    MatrixPowerSlope,
    log_kernel_of_log,
    power_divided_difference,
    small_eigh,
    small_svd,
    waitless,
)
from dln_geometry.geometry.metric import cometric_of_matrix
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point
from dln_geometry.support import Depth, absolute_square, on_device, real_product


def finite_eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return `eigh` of Gram matrices, with NaN where they are not finite: a step is rejected."""
    if waitless(a):
        return small_eigh(a, positive=True)
    if not on_device(a) and bool(torch.isfinite(a.sum())):
        return torch.linalg.eigh(a)
    finite = torch.isfinite(a).all(-1).all(-1)
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None, None], a, eye))
    return torch.where(finite[..., None], values, torch.nan), vectors


def _weighted(weights: Tensor, entries: Tensor, exponent: float) -> Tensor:
    """Return the product of entries, 0 where an entry is 0: its weight is infinite if N < 2."""
    if exponent >= 0.0:
        return weights * entries
    return torch.where(entries == 0, 0.0, weights * entries)


class SpectralEngine(CollapsedEngine):
    """Two matrices and the eigenvalues of ``C = L^T L = Q diag(c) Q^T``: any finite depth above 1.

    With ``f(c) = c^{(N-2)/2}`` and all in the eigenbasis, ``K = Q^T L^T G R Q``:
    ``dL Q = -G (R Q) f``, ``dR Q = -G^T (L Q) f + R Q x``, ``x_kl = f[c_k, c_l] (K - K^T)_kl``.
    """

    def __init__(self, loss: Loss, start: Collapsed, watch: bool = False) -> None:
        super().__init__(loss, start, watch)
        self.exponent = 0.5 * (self.depth - 2.0)

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        left, right = self.views(y)
        d_left, d_right = self.views(out)
        if self.exponent == 0.0:
            value, g_right, g_left = contract(self.loss, left, right)
            minus(d_left, g_right)
            minus(d_right, g_left)
            squared = self.total(squares(g_right) + squares(g_left)) if self.watch else None
            return self.finished(y, out, value, squared, (g_right, left))
        if left.requires_grad:
            return self._differentiable(y, out)
        c, q = finite_eigh(self.gram((left, left)))
        c = c.clamp_min(0.0)
        f = c**self.exponent
        if self.exponent < 0:
            f = torch.where(c > 0, f, 0.0)  # Zero modes contribute nothing to X.
        f = f.unsqueeze(-2)
        left, right = left @ q, right @ q
        top = left * f
        value, g_right, g_left = contract(self.loss, top, right)
        k = self.gram((left, g_right))
        gauge = _weighted(power_divided_difference(c, self.exponent), k - k.mH, self.exponent)
        minus_product(d_left, g_right * f, q.mH)
        minus_product(d_right, g_left - right @ gauge, q.mH)
        squared = None
        if self.watch:
            twice = 2.0 * self.exponent
            inside = _weighted(power_divided_difference(c, twice), absolute_square(k), twice)
            squared = self.total(squares(d_left) + squares(g_left)) + inside.sum((-2, -1))
        return self.finished(y, out, value, squared, (g_right, top))

    def _differentiable(self, y: Tensor, out: Tensor) -> Tensor:
        """Write the velocity by functions of C whose derivatives exist at equal eigenvalues."""
        (left, right), (d_left, d_right) = self.views(y), self.views(out)
        c = left.mH @ left
        f = MatrixPower.apply(c, self.exponent)
        value, g_right, g_left = contract(self.loss, left @ f, right)
        k = left.mH @ g_right
        minus_product(d_left, g_right, f)
        minus(d_right, g_left - right @ MatrixPowerSlope.apply(c, k - k.mH, self.exponent))
        return self.finished(y, out, value, None, (g_right, left))


class EvenEngine(SpectralEngine):
    """The same two matrices at even depth by products alone: ``f(C) = C^k``, ``k = (N-2)/2``.

    The gauge term is the geometric sum ``x = sum_{q<k} C^{k-1-q} (K - K^T) C^q``. It is
    antisymmetric, so that each doubling of it is one product. The norm of the gradient would
    cost as much again and is not reported.
    """

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        left, right = self.views(y)
        d_left, d_right = self.views(out)
        powers = _binary_powers(self.gram((left, left)), int(self.exponent))
        middle = powers[-1]
        value, g_right, g_left = contract(self.loss, left @ middle, right)
        k = self.gram((left, g_right))
        gauge = _antisymmetric_sum(k - k.mH, powers, int(self.exponent))
        minus_product(d_left, g_right, middle)
        if torch.is_grad_enabled():
            d_right.copy_(right @ gauge - g_left)
        else:
            torch.sub(right @ gauge, g_left, out=d_right)
        self.decayed(y, out)
        return observables(value)


def _binary_powers(c: Tensor, k: int) -> list[Tensor]:
    """Return C and the powers met on the binary way to ``C^k``, the last one C^k."""
    powers = [c]
    for bit in bin(k)[3:]:
        powers.append(powers[-1] @ powers[-1])
        if bit == "1":
            powers.append(c @ powers[-1])
    return powers


def _antisymmetric_sum(delta: Tensor, powers: Sequence[Tensor], k: int) -> Tensor:
    """Return ``sum_{q<k} C^{k-1-q} delta C^q`` for antisymmetric `delta` along the same way."""
    total, stage = delta, 0
    for bit in bin(k)[3:]:
        half = powers[stage] @ total
        total = half - half.mH
        stage += 1
        if bit == "1":
            total = powers[0] @ total + delta @ powers[stage]
            stage += 1
    return total


class PairEngine(CollapsedEngine):
    """Two matrices of the depth-2 network, ``X = L R^T``, ``L^T L = R^T R = Q diag(s) Q^T``.

    The flow of depth N is that of depth 2 for the preconditioned gradient ``A_2^{-1} A_N(G)``:
    ``dL = -G R Q w Q^T - L Q ( ((a_ij/(s_i + s_j) - w_j)/s_i) o Q^T K Q ) Q^T``, the same for R
    with the transposes, ``w = s^{1-2/N}``. The state holds no N-th root of a singular value, which
    at large N would be 1 up to rounding.
    """

    reads = ("start", "given")

    def __init__(self, loss: Loss, start: Collapsed | EndToEnd, watch: bool = False) -> None:
        self.given, p = start, as_point(start, complex=True)
        super().__init__(loss, Collapsed.of(EndToEnd(p.u, p.s, p.vh, 2.0, check=False)), watch)
        self.depth = start.depth

    def shares(self) -> Sequence[float]:
        return (0.5 * self.depth,) * 2

    def norm_squared(self, y: Tensor) -> Tensor:
        return self.depth * self.depth.root(self.singular_values(y)).square().sum(-1)

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        left, right = self.views(y)
        d_left, d_right = self.views(out)
        value, g_right, g_left = contract(self.loss, left, right)
        if left.requires_grad:
            w, rest = _differentiable_parts(left.mH @ left, left.mH @ g_right, self.depth)
            minus(d_left, g_right @ w + left @ rest[0])
            minus(d_right, g_left @ w + right @ rest[1])
            return self.finished(y, out, value, None, (g_right, left))
        c, k = self.gram((left, left), (left, g_right))
        s, q = finite_eigh(c)
        # Eigenvalues below the rounding of the largest are unknown: do not divide by them.
        s = torch.maximum(s, torch.finfo(s.dtype).eps * s[..., -1:])
        x = s.log()
        w = torch.exp((1.0 - 2.0 / self.depth) * x).unsqueeze(-2)
        a = log_kernel_of_log(x, self.depth, False).exp()
        inside = (a / (s.unsqueeze(-1) + s.unsqueeze(-2)) - w) / s.unsqueeze(-1)
        k = q.mH @ k @ q
        outer = (q * w) @ q.mH
        minus_product(d_left, g_right, outer)
        minus_product(d_right, g_left, outer)
        d_left.sub_(left @ (q @ (inside * k) @ q.mH))
        d_right.sub_(right @ (q @ (inside * k.mH) @ q.mH))
        squared = None
        if self.watch:
            squared = -real_product(g_right, d_left).sum((-2, -1))
            squared = self.total(squared - real_product(g_left, d_right).sum((-2, -1)))
        return self.finished(y, out, value, squared, (g_right, left))

    def point(self, y: Tensor) -> Collapsed | EndToEnd:
        # Return the start's own view: the N-th roots of the other one lose digits.
        p = self.pair(y).point()
        point = EndToEnd(p.u, p.s, p.vh, self.depth, self.given.normalized, check=False)
        return point if isinstance(self.given, EndToEnd) else Collapsed.of(point)


def _differentiable_parts(c: Tensor, k: Tensor, depth: Depth) -> tuple[Tensor, list[Tensor]]:
    """Return ``w(C)`` and the inner terms of `PairEngine`, with derivatives at equal eigenvalues.

    ``Q (a_ij/(s_i + s_j) o Q^T K Q) Q^T`` solves ``C Y + Y C = A(K)`` at the matrix C.
    """
    w = MatrixPower.apply(c, 1.0 - 2.0 / depth)
    r, eye = c.shape[-1], torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
    sums = (
        c[..., :, None, :, None] * eye[:, None, :]
        + eye[:, None, :, None] * c.conj()[..., None, :, None, :]
    )
    rest = []
    for inner in (k, k.mH):
        moved = cometric_of_matrix(c, inner, depth, False)
        y = torch.linalg.solve(sums.reshape(*c.shape[:-2], r * r, r * r), moved.flatten(-2))
        rest.append(torch.linalg.solve(c, y.unflatten(-1, (r, r)) - inner @ w))
    return w, rest


class CoreEngine(CollapsedEngine):
    """Infinite depth: the row and column spaces of X stand still, an r x r core moves.

    ``X = U S V^T`` with U, V frozen and ``dS = -P ( a o P^T U^T G V Q ) Q^T``,
    ``S = P diag(s) Q^T``, `a` the logarithmic mean of ``s_i^2`` and ``s_j^2``.
    """

    own = reads = ("u", "v")

    def __init__(
        self, loss: Loss, start: Collapsed, watch: bool = False, point: EndToEnd | None = None
    ) -> None:
        super().__init__(loss, start, watch, [(start.rank, start.rank)])
        point = start.point() if point is None else point
        self.u, self.s, self.v = point.u, point.s, point.vh.mH

    def rows(self) -> Tensor:
        return self.join(torch.diag_embed(self.s).to(self.u.dtype))

    def field(self, t: Tensor, y: Tensor, out: Tensor) -> Tensor:
        (core,), (d_core,) = self.views(y), self.views(out)
        top = self.u @ core
        value, g_right, _ = contract(self.loss, top, self.v)
        if core.requires_grad:
            # Autograd through the decomposition is NaN at equal singular values.
            inner = self.u.mH @ g_right
            minus(d_core, cometric_of_matrix(core, inner, self.depth, True))
            return self.finished(y, out, value, None, (core, core))
        # A NaN makes the integrator reject the trial step; the decomposition would raise.
        finite = torch.isfinite(core).all(-1).all(-1)[..., None, None]
        p, s, qh = small_svd(torch.where(finite, core, 0.0))
        p = torch.where(finite, p, torch.nan)
        k = p.mH @ self.gram((self.u, g_right)) @ qh.mH
        moved = log_kernel_of_log(s.log(), self.depth, True).exp() * k
        minus_product(d_core, p @ moved, qh)
        squared = real_product(moved, k).sum((-2, -1)) if self.watch else None
        return self.finished(y, out, value, squared, (g_right, top))

    def numbers_of_matrix(self) -> int:
        return self.u.shape[-2] * self.v.shape[-2]

    def norm_squared(self, y: Tensor) -> Tensor:
        # The limit of sum |W_p|^2 / N, whose layers have r singular values near 1.
        return y.new_full((len(y),), self.shapes[0][0])

    def pair(self, y: Tensor) -> Collapsed:
        p, s, qh = torch.linalg.svd(self.split(y)[0])
        u, v = (w.reshape(w.shape[:-2].numel(), *w.shape[-2:]) for w in (self.u, self.v))
        return Collapsed.of(EndToEnd(u @ p, s, qh @ v.mH, self.depth, check=False))

    def singular_values(self, y: Tensor) -> Tensor:
        return torch.linalg.svdvals(self.split(y)[0])

    def decomposed(self, y: Tensor) -> EndToEnd:
        u, s, vh = torch.linalg.svd(self.split(y)[0])
        return EndToEnd(u, s, vh, self.depth, check=False)

    def rows_of(self, point: EndToEnd) -> Tensor:
        return self.join(point.matrix)

    # The core has no invariants.
    defect, rebalanced = Engine.defect, Engine.rebalanced
