"""The normal equations of side means, with the means of one side eliminated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.entries import Pattern

MOST, MOST_WORK = 1024, 20_000_000
"""Most unknowns that are left, and most of them times the eliminated ones, for an inverse."""
LOOK = 5
"""Steps after which to look whether more would change anything but roundings."""


class NormalEquations:
    """``(A^T W A + ridge) o = t`` for weights W of entries.

    o = (mean, row means, column means, slopes) are parameters of `model`, a `SideMeans`; `weights`
    are in row-major order. The means b of the longer side are eliminated, each by its own equation.
    What is left is inverted if it is small, and else solved by conjugate gradients: elimination
    saves every second step, and what the ridge alone decides, moving a constant between the mean
    and the sides, is solved first and kept out of all directions.
    """

    def __init__(self, model: Any, weights: Tensor) -> None:
        (m, n), ridge, sides = model.shape, model.ridge, model.sides
        self._longer = 0 if m >= n else 1
        pair = slice(None, None, -1 if self._longer else 1)
        self._w, self._wt = model.pattern.matrices(weights)[pair]
        self._counts = sums_of(model.pattern, weights)[pair]
        f, g = [x[0].to(ridge) if x else None for x in model.features][pair]
        self._features = f, g
        # Places of b, and of the others: the mean, the shorter side, slopes of both sides.
        parts = torch.arange(len(ridge), device=ridge.device).split(model.sizes)
        eliminated, kept = parts[1:3][pair]
        slopes = parts[3:][pair] if len(parts) == 5 else parts[3:]
        others = [parts[0], *([kept] if sides else []), *slopes]
        self._b, self._rest = eliminated, torch.cat(others)
        self._sizes, self._sides = [len(part) for part in others], sides
        counts = self._counts[0] + ridge[eliminated]
        self._each = torch.where(counts > 0, 1.0 / counts, 0.0) * sides
        self._ridge = ridge[self._rest]
        self._inverse = self._start = None
        left = len(self._rest)
        if left <= MOST and left * len(eliminated) <= MOST_WORK:
            whole = self._reduced(torch.eye(left, dtype=ridge.dtype, device=ridge.device))[0]
            self._inverse = _symmetric_inverse(whole)
        else:
            self._start = self._constants()

    def _constants(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the scale of conjugate gradients; constants, their images, and the inverse."""
        total, kept = self._counts[0].sum(), self._counts[1]
        squares = [
            count @ x.square()
            for count, x in zip(self._counts, self._features, strict=True)
            if x is not None
        ]
        diagonal = torch.cat((total[None], *([kept] if self._sides else []), *squares))
        diagonal = diagonal + self._ridge
        z = torch.zeros(1 + self._sides, len(diagonal), dtype=kept.dtype, device=kept.device)
        z[0, 0] = 1.0
        if self._sides:
            z[1, 1 : 1 + len(kept)] = 1.0
        images = self._reduced(z)[0]
        energies = (z @ images.mT).double()
        least = 30 * torch.finfo(kept.dtype).eps * float(total)
        inverse = torch.linalg.pinv(0.5 * (energies + energies.mT), atol=least, rtol=0.0)
        scale = torch.where(diagonal > 0, 1.0 / diagonal, 0.0)
        return scale, z, images, inverse.to(kept)

    def _spread(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return what y = (mean, shorter side, slopes) adds to each of the longer, and shorter."""
        mean, *parts = y.split(self._sizes, dim=-1)
        kept = parts.pop(0) if self._sides else mean.new_zeros(())
        f, g = self._features
        longer = mean if f is None else mean + parts.pop(0) @ f.mT
        shorter = kept if g is None else kept + parts.pop(0) @ g.mT
        return longer, shorter.expand(*y.shape[:-1], len(self._counts[1]))

    def _gathered(self, longer: Tensor, shorter: Tensor) -> Tensor:
        """Return the adjoint of `_spread`, of sums over the longer side and the shorter."""
        pairs = zip((longer, shorter), self._features, strict=True)
        slopes = [sums @ x for sums, x in pairs if x is not None]
        kept = [shorter] if self._sides else []
        return torch.cat((longer.sum(-1, keepdim=True), *kept, *slopes), dim=-1)

    def _reduced(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the equations at y (..., q) and the best b, and this b."""
        long, short = self._counts
        longer, shorter = self._spread(y)
        sums = long * longer + _times(self._w, shorter)
        b = -self._each * sums
        image = self._gathered(sums + long * b, short * shorter + _times(self._wt, longer + b))
        return image + self._ridge * y, b

    def solve(self, target: Tensor, steps: int) -> Tensor:
        """Return o; by conjugate gradients, after so many steps of two products with W."""
        long, t = self._counts[0], target[self._b]
        b = self._each * t
        y = target[self._rest] - self._gathered(long * b, self._wt @ b)
        if self._inverse is not None:
            y = self._inverse @ y
            longer, shorter = self._spread(y)
            b = self._each * (t - long * longer - self._w @ shorter)
        else:
            y, more = self._iterated(y, steps)
            b = b + more
        out = torch.zeros_like(target)
        out[self._b], out[self._rest] = b, y
        return out

    def _iterated(self, r: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Return y and its b by conjugate gradients."""
        assert self._start is not None
        scale, z, images, inverse = self._start

        def projected(r: Tensor) -> Tensor:
            x = scale * r
            return x - ((images @ x) @ inverse) @ z

        least = torch.finfo(r.dtype).eps ** 2 * (scale * r) @ r
        y = ((z @ r) @ inverse) @ z
        image, b = self._reduced(y)
        r = r - image
        p = projected(r)
        rho = r @ p
        for k in range(steps):
            if k % LOOK == LOOK - 1 and bool(rho <= least):
                break  # further steps would move it by roundings alone
            q, d = self._reduced(p)
            goes_on = rho > least  # else p is a direction of roundings
            alpha = torch.where(goes_on, rho / (p @ q), 0.0)
            y, b = y + alpha * p, b + alpha * d
            if k == steps - 1:
                break
            r = r - alpha * q
            new = projected(r)
            before, rho = rho, r @ new
            p = new + torch.where(goes_on, rho / before, 0.0) * p
        return y, b


def sums_of(pattern: Pattern, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of numbers of the entries over the rows (m,) and over the columns (n,)."""
    (m, n), ones = pattern.shape, t.new_ones(max(pattern.shape), 1)
    by_row, by_col = pattern.products(t, ones[:m], ones[:n])
    return by_row.squeeze(-1), by_col.squeeze(-1)


def _times(w: Tensor, x: Tensor) -> Tensor:
    """Return the product of a sparse matrix with vectors (..., n)."""
    return w @ x if x.ndim == 1 else (w @ x.mT).mT


def _symmetric_inverse(x: Tensor) -> Tensor:
    """Return the inverse of a symmetric matrix, on its range if it is singular."""
    whole = x.double()
    whole = 0.5 * (whole + whole.mT)
    factor, failed = torch.linalg.cholesky_ex(whole)
    size = factor.diagonal()
    if int(failed) == 0 and bool(size.min() > 1e-5 * size.max()):
        return torch.cholesky_inverse(factor).to(x)
    least = 100 * torch.finfo(x.dtype).eps
    return torch.linalg.pinv(whole, hermitian=True, rtol=least).to(x)
