"""`EndToEnd`: a matrix with a depth, as its thin singular value decomposition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dln_geometry.geometry.points.batch import (
    Batch,
    check_alike,
    check_field,
    check_orthonormal,
    check_spectrum,
)
from dln_geometry.geometry.points.smooth_functions import differentiable_frames, truncated
from dln_geometry.support import (
    Depth,
    as_alike,
    as_depth,
    as_matrix,
    as_normalized,
    as_rank,
    entries_of_product,
    is_differentiated,
    refuse_complex,
)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class EndToEnd(Batch):
    """An end-to-end matrix ``X = U diag(s) V^T`` together with a depth.

    Complex matrices are allowed, here and wherever the documentation does not say otherwise: then
    transposes are conjugate, inner products ``Re tr A* B``, and rotations unitary. A function that
    is made for real matrices raises a TypeError.

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

    Raises
    ------
    ValueError
        If singular vectors are not orthonormal up to the root of the machine epsilon, or singular
        values are negative or rise. ``check=False`` trusts three tensors that fit.

    Examples
    --------
    >>> p = dln.EndToEnd.of([[3.0, 0.0], [0.0, 4.0]], depth=2)
    >>> p.singular_values
    tensor([4., 3.])
    >>> p.matrix
    tensor([[3., 0.],
            [0., 4.]])
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
        self,
        u: Any,
        s: Any,
        vh: Any,
        depth: float,
        normalized: bool | None = None,
        *,
        check: bool = True,
    ) -> None:
        depth = as_depth(depth)
        normalized = as_normalized(normalized, depth)
        if check:
            u, s, vh = as_alike(complex=True, real=("s",), u=u, s=s, vh=vh)
            u, vh = as_matrix(u, "u", complex=True), as_matrix(vh, "vh", complex=True)
            check_field(u=u, vh=vh)
        r, batch = s.shape[-1:], s.shape[:-1]
        if u.ndim < 2 or (u.shape[:-2], u.shape[-1:], vh.shape[:-1]) != (batch, r, batch + r):
            required = "shapes (..., m, r), (..., r) and (..., r, n)"
            got = f"{tuple(u.shape)}, {tuple(s.shape)} and {tuple(vh.shape)}"
            raise ValueError(f"u, s and vh must have {required}, got {got}")
        check_alike(u, vh, s=s)
        if check:
            bound = torch.finfo(s.dtype).eps ** 0.5
            check_orthonormal(u, "u", bound)
            check_orthonormal(vh.mH, "vh", bound, "rows")
            check_spectrum(s, "s")
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
        >>> dln.EndToEnd.of([[0.0, 3.0], [2.0, 0.0]], depth=4).s
        tensor([3., 2.])
        """
        depth = as_depth(depth)
        normalized = as_normalized(normalized, depth)
        x = as_matrix(x, "x", complex=True)
        full = min(x.shape[-2:])
        r = full if rank is None else as_rank(rank, full, "min(m, n)")
        frames = torch.linalg.svd(x.detach(), full_matrices=False)
        u, s, vh = frames
        kept = u[..., :r], s[..., :r], vh[..., :r, :]

        def matrix() -> Tensor:
            return x if r == full else truncated(x, frames, r)

        return cls.followed_by(kept, (x,), matrix, depth, normalized)

    @classmethod
    def followed_by(
        cls,
        frames: tuple[Tensor, Tensor, Tensor],
        origin: Iterable[Tensor],
        matrix: Callable[[], Tensor],
        depth: Depth,
        normalized: bool,
    ) -> EndToEnd:
        """Return a point of constant frames, with the derivatives of its matrix in its origin."""
        if not is_differentiated(*origin):
            return cls(*frames, depth, normalized, check=False)
        source = matrix()
        point = cls(*differentiable_frames(source, frames), depth, normalized, check=False)
        point._set(source=source)
        return point

    def _map(self, f: Callable[[Tensor, int], Tensor]) -> Self:
        point = super()._map(f)
        source = None if self.source is None else f(self.source, 2)
        followed = source is not None and (source.requires_grad or is_differentiated(source))
        point._set(source=source if followed else None)
        return point

    def replace(self, *, check: bool = True, **changes: Any) -> Self:
        point = super().replace(check=check, **changes)
        if not changes.keys() & self._tensors.keys():
            point._set(source=self.source)
        return point

    def following(self, source: Tensor | None) -> EndToEnd:
        """Return the point with the derivatives of this matrix, of which it is the SVD."""
        point = self.replace()
        point._set(source=source)
        return point

    def over(self, sizes: Tensor) -> EndToEnd:
        """Return the point divided by positive numbers, shape (...), constants for autograd."""
        point = self.replace(s=self.s / sizes.unsqueeze(-1), check=False)
        source = None if self.source is None else self.source / sizes[..., None, None]
        return point.following(source)

    @property
    def differentiable_matrix(self) -> Tensor:
        """The matrix that derivatives are asked of, if there is one, else `matrix`."""
        return self.matrix if self.source is None else self.source

    def entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return ``X[rows, cols]``, shape (..., k), without forming X."""
        return entries_of_product(self.u * self.s.unsqueeze(-2), self.vh.mT, rows, cols)

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
        if self.source is None:
            return (self.u * self.s.unsqueeze(-2)) @ self.vh
        x = (self.u.detach() * self.s.detach().unsqueeze(-2)) @ self.vh.detach()
        return x + (self.source - self.source.detach())

    @property
    def followed(self) -> Tensor | None:
        """The matrix that derivatives are asked of, if all singular values are positive."""
        if self.source is None or not is_differentiated(self.source):
            return None
        return self.source if bool((self.s > 0).all()) else None

    @property
    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, s and V^T cut off from autograd."""
        return self.u.detach(), self.s.detach(), self.vh.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the end-to-end matrix."""
        return self.u.shape[-2], self.vh.shape[-1]

    @property
    def rank(self) -> int:
        """Number r of singular values held."""
        return self.s.shape[-1]


def as_point(point: Batch, name: str = "point", *, complex: bool = False) -> EndToEnd:
    """Return the singular value decomposition of a point, whichever kind it is.

    Complex points must be allowed by the function that asks.
    """
    if not isinstance(point, Batch):
        got = f"{type(point).__name__}: EndToEnd.of(x, depth) makes a point of a matrix"
        raise TypeError(f"{name} must be an EndToEnd or a Collapsed, got {got}")
    if not complex:
        refuse_complex(name, point.dtype)
    return point if isinstance(point, EndToEnd) else point.point()


def point_of_values(s: Tensor, shape: tuple[int, int], depth: Depth) -> EndToEnd:
    """Return the diagonal matrix of a shape with singular values (..., r), without checks."""
    batch, r = s.shape[:-1], s.shape[-1]
    kind: Any = {"dtype": s.dtype, "device": s.device}
    u, vh = torch.eye(shape[0], r, **kind), torch.eye(r, shape[1], **kind)
    frames = u.expand(*batch, *u.shape), s, vh.expand(*batch, *vh.shape)
    return EndToEnd(*frames, depth, depth.infinite, check=False)
