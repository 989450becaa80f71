"""`EndToEnd`: a matrix with a depth, as its thin singular value decomposition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dln_geometry.geometry.points.batch import Batch, check_alike
from dln_geometry.support import Depth, as_depth, as_matrix, as_normalized, as_rank


@dataclass(frozen=True, eq=False, repr=False, init=False)
class EndToEnd(Batch):
    """An end-to-end matrix ``X = U diag(s) V^T`` together with a depth.

    Attributes
    ----------
    u : Tensor, shape (..., m, r)
        Left singular vectors, orthonormal columns.
    s : Tensor, shape (..., r)
        Singular values, descending.
    vh : Tensor, shape (..., r, n)
        Right singular vectors, orthonormal rows.
    depth : float
        Real depth N >= 1, or ``math.inf``.
    normalized : bool
        Whether the metric is divided by N (always at infinite depth).
    """

    _tensors: ClassVar = {"u": 2, "s": 1, "vh": 2}
    u: Tensor
    s: Tensor
    vh: Tensor
    depth: Depth
    normalized: bool
    # The matrix that was decomposed (below full rank, its truncation), if it requires gradients:
    # singular vectors have no derivatives at equal singular values, functions of the matrix have.
    # Copies of the whole point keep it, new parts drop it.
    source: Tensor | None = field(default=None, init=False)

    def __init__(
        self, u: Tensor, s: Tensor, vh: Tensor, depth: float, normalized: bool | None = None
    ) -> None:
        depth = as_depth(depth)
        normalized = as_normalized(normalized, depth)
        if not all(isinstance(part, Tensor) for part in (u, s, vh)):
            raise TypeError("u, s and vh must be tensors: EndToEnd.of(x, depth) makes them")
        r, batch = s.shape[-1:], s.shape[:-1]
        if u.ndim < 2 or (u.shape[:-2], u.shape[-1:], vh.shape[:-1]) != (batch, r, batch + r):
            required = "shapes (..., m, r), (..., r) and (..., r, n)"
            got = f"{tuple(u.shape)}, {tuple(s.shape)} and {tuple(vh.shape)}"
            raise ValueError(f"u, s and vh must have {required}, got {got}")
        check_alike(u, s, vh)
        self._set(u=u, s=s, vh=vh, depth=depth, normalized=normalized)

    @classmethod
    def of(
        cls, x: Any, depth: float, *, rank: int | None = None, normalized: bool | None = None
    ) -> EndToEnd:
        """Decompose a matrix `x`, shape (..., m, n), once; depth N >= 1 or ``math.inf``.

        Parameters
        ----------
        rank : int, optional
            Rank r of the manifold on which the point lies; the singular values below the first
            r are dropped (the nearest matrix of that rank). `None` is ``min(m, n)``.
        normalized : bool, optional
            Divide the metric by N; `None` does so at infinite depth only, `False` cannot there.

        Examples
        --------
        >>> EndToEnd.of([[0.0, 3.0], [2.0, 0.0]], depth=4).s
        tensor([3., 2.])
        """
        depth = as_depth(depth)
        normalized = as_normalized(normalized, depth)
        x = as_matrix(x, "x")
        full = min(x.shape[-2:])
        r = full if rank is None else as_rank(rank, full, "min(m, n)")
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        point = cls(u[..., :, :r], s[..., :r], vh[..., :r, :], depth, normalized)
        if x.requires_grad:
            point._set(source=x if r == full else truncated(x, (u, s, vh), r))
        return point

    def _map(self, f: Callable[[Tensor, int], Tensor]) -> Self:
        point = super()._map(f)
        source = None if self.source is None else f(self.source, 2)
        point._set(source=source if source is not None and source.requires_grad else None)
        return point

    def replace(self, **changes: Any) -> Self:
        point = super().replace(**changes)
        if not changes.keys() & self._tensors.keys():
            point._set(source=self.source)
        return point

    @property
    def differentiable_matrix(self) -> Tensor:
        """The matrix that derivatives are asked of, if there is one, else `matrix`."""
        return self.matrix if self.source is None else self.source

    @property
    def singular_values(self) -> Tensor:
        """Singular values of X, shape (..., r), descending: `s`."""
        return self.s

    def point(self) -> EndToEnd:
        """Return the point itself."""
        return self

    @property
    def matrix(self) -> Tensor:
        """The end-to-end matrix ``X``, shape (..., m, n)."""
        return (self.u * self.s.unsqueeze(-2)) @ self.vh

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the end-to-end matrix."""
        return self.u.shape[-2], self.vh.shape[-1]

    @property
    def rank(self) -> int:
        """Number r of singular values held."""
        return self.s.shape[-1]


def as_point(point: Batch) -> EndToEnd:
    """Return the singular value decomposition of a point, whichever kind it is."""
    if isinstance(point, EndToEnd):
        return point
    if not isinstance(point, Batch):
        got = f"{type(point).__name__}: EndToEnd.of(x, depth) makes a point of a matrix"
        raise TypeError(f"point must be an EndToEnd or a Collapsed, got {got}")
    return point.point()


def truncated(x: Tensor, frames: tuple[Tensor, Tensor, Tensor], rank: int) -> Tensor:
    """Return a matrix of thin decomposition `frames` without its singular values below the first r.

    The derivative is in closed form: infinite only where the last value kept equals the first one
    dropped. Once differentiable.
    """
    return _Truncation.apply(x, *(part.detach() for part in frames), rank)


class _Truncation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, s: Tensor, vh: Tensor, rank: int) -> Tensor:
        ctx.save_for_backward(u, s, vh)
        ctx.rank = rank
        return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, s, vh = ctx.saved_tensors
        (g,), r = gradients, ctx.rank
        ug, gv = u.mT @ g, g @ vh.mT
        core = ug @ vh.mT
        kept, dropped = s[..., :r, None], s[..., None, r:]
        gap = (kept - dropped) * (kept + dropped)
        above, below, mixed = core[..., :r, r:], core[..., r:, :r], core.clone()
        mixed[..., :r, r:] = kept * (kept * above + dropped * below.mT) / gap
        mixed[..., r:, :r] = (kept * (kept * below.mT + dropped * above) / gap).mT
        mixed[..., r:, r:] = 0.0
        # Directions outside of all frames turn the kept singular vectors only.
        left, right = gv - u @ core, ug - core @ vh
        moved = u @ mixed @ vh + left[..., :r] @ vh[..., :r, :] + u[..., :r] @ right[..., :r, :]
        return moved, None, None, None, None
