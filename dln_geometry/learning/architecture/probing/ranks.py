"""Null spaces, ranks and spans of the directions of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Columns that are orthogonalised at once.
_AT_ONCE = 256


def null_space(rows: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """Return a basis of the null space, shape (columns, nullity), and the gap.

    Columns are scaled first: parameters of different sizes would hide each other. The basis is
    orthonormal in the scaled coordinates, where it is accurate. The gap is the
    quotient of the singular values on both sides of the cut.
    """
    n = rows.shape[1]
    a, scale, live, off = _scaled(rows, tolerance)
    if not live.numel():
        return torch.eye(n, dtype=rows.dtype, device=rows.device), float("inf")
    _, s, vh = torch.linalg.svd(a, full_matrices=a.shape[0] < a.shape[1])
    rank, gap = _cut(s, tolerance)
    inner = rows.new_zeros(n, live.numel() - rank + off.numel())
    inner[live, : live.numel() - rank] = vh[rank:].mT / scale[:, None]
    inner[off, torch.arange(live.numel() - rank, inner.shape[1])] = 1.0
    return inner, gap


def nullity(rows: Tensor, tolerance: float) -> tuple[int, float]:
    """Return the dimension of the null space, and the gap, as `null_space` tells them."""
    a, _, live, off = _scaled(rows, tolerance)
    if not live.numel():
        return rows.shape[1], float("inf")
    rank, gap = _cut(torch.linalg.svdvals(a), tolerance)
    return live.numel() - rank + off.numel(), gap


def _scaled(rows: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the columns that are not 0, scaled, their sizes, their places, and the others'."""
    sizes = rows.norm(dim=0)
    small = sizes <= tolerance * 1e-3 * sizes.max() if sizes.numel() else sizes > 0
    live, off = torch.nonzero(~small).flatten(), torch.nonzero(small).flatten()
    a = rows[:, live] / sizes[live]
    if a.shape[0] > a.shape[1]:
        a = torch.linalg.qr(a, mode="r")[1]
    return a, sizes[live], live, off


def _cut(s: Tensor, tolerance: float) -> tuple[int, float]:
    """Return the rank that singular values tell, and the quotient of those beside the cut."""
    rank = int((s > tolerance * s[0]).sum())
    after = float(s[rank]) if rank < len(s) else 0.0
    return rank, float(s[rank - 1]) / max(after, 1e-300)


def common_null_space(null: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Return the part of a null space that is also in those of some rows."""
    sizes = torch.stack([r.norm(dim=0) / max(float(r.norm()), 1e-300) for r in rows]).amax(0)
    scale = torch.where(sizes > 1e-9 * sizes.max(), sizes, 1.0)[:, None]
    for r in rows:
        if not null.shape[1]:
            return null
        scaled = torch.linalg.qr(scale * null)[0]
        a = (r / scale.mT) @ scaled / max(float(r.norm()), 1e-300)
        s, vh = torch.linalg.svd(a, full_matrices=a.shape[0] < a.shape[1])[1:]
        null = scaled @ vh[int((s > 1e-6).sum()) :].mT / scale
    return null


class Span:
    """A growing subspace of directions of the parameters."""

    def __init__(self, total: int, like: Tensor) -> None:
        self.basis = like.new_zeros(total, 0)

    @property
    def dimension(self) -> int:
        """Number of independent directions."""
        return self.basis.shape[1]

    def rest(self, fields: Tensor) -> Tensor:
        """Return the parts of some directions outside the span."""
        for _ in range(2):
            fields = fields - self.basis @ (self.basis.mT @ fields)
        return fields

    def add(self, fields: Tensor) -> int:
        """Add directions, shape (total, count); return how many are new."""
        sizes = fields.norm(dim=0)
        before = self.dimension
        # Fields far smaller than the others are rounding.
        live = sizes > 1e-12 * sizes.amax() if sizes.numel() else sizes > 0
        for some in (fields[:, live] / sizes[live]).split(_AT_ONCE, 1):
            u, s, _ = torch.linalg.svd(self.rest(some), full_matrices=False)
            new = u[:, s > 1e-6]
            if new.shape[1]:
                self.basis = torch.cat([self.basis, torch.linalg.qr(self.rest(new))[0]], 1)
        return self.dimension - before

    def holds(self, place: slice, fields: Tensor) -> Tensor:
        """Tell which fields, shape (entries, count), of the entries in one place are inside."""
        inside = self.basis[place].mT @ fields
        return fields.square().sum(0) - inside.square().sum(0) < 1e-10 * fields.square().sum(0)


def nullity_beyond(rows: Tensor, span: Tensor, tolerance: float) -> tuple[int, float]:
    """Return how many directions of a null space are not in a span inside it, and the gap.

    The span is appended to the rows, so that one triangular factor has as many small singular
    values as directions are missing: mostly none, which a few steps of inverse iteration tell.
    """
    sizes = rows.norm(dim=0)
    off = sizes <= tolerance * 1e-3 * sizes.max()
    scale = torch.where(off, 1.0, sizes)
    known = torch.linalg.qr(span * scale[:, None])[0] if span.shape[1] else span
    upper = torch.linalg.qr(torch.cat([rows / scale, known.mT]), mode="r")[1]
    n, count = rows.shape[1], 16
    generator = torch.Generator(rows.device).manual_seed(0)
    x = torch.ones(n, 1).to(upper)
    for _ in range(10):
        x = upper.mT @ (upper @ (x / x.norm()))
    largest = float(x.norm()) ** 0.5
    # A singular factor still has solutions.
    upper = upper + torch.eye(n).to(upper) * (1e-16 * largest)
    while True:
        count = min(count, n)
        x = torch.randn(n, count, generator=generator, dtype=rows.dtype, device=rows.device)
        for _ in range(4):
            x = torch.linalg.qr(torch.linalg.solve_triangular(upper.mT, x, upper=False))[0]
            x = torch.linalg.qr(torch.linalg.solve_triangular(upper, x, upper=True))[0]
        s = torch.linalg.svdvals(upper @ x) / largest
        few = int((s <= tolerance).sum())
        if few < count or count == n:
            # Without any, what is below the cut is the rounding of the span.
            below = float(s[count - few]) if few else 1e-16
            return few, float(s[count - few - 1]) / max(below, 1e-300)
        count *= 8
