"""Two frozen views of a point of the theory, and the way between them.

`EndToEnd` (of `end_to_end`) holds an end-to-end matrix as its thin singular value decomposition;
`Collapsed` holds a balanced network of any depth as exactly two matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.chain import (
    as_spectrum,
    balanced_chain,
    balanced_frames,
    chain_svd,
    haar_stiefel,
    moment_size,
)
from dln_geometry.geometry.doors import (
    as_depth,
    as_factors,
    as_generator,
    as_matrix,
    as_normalized,
    as_rank,
)
from dln_geometry.geometry.end_to_end import EndToEnd, check_alike

__all__ = ["Collapsed", "EndToEnd", "as_point"]


@dataclass(frozen=True)
class Collapsed:
    """A balanced network of any depth as two matrices.

    ``X = L C^{(N-2)/2} R^T`` with ``L^T L = R^T R = C``: `L` is the last layer and `R` the
    transposed first layer, in the gauge that makes what lies between them symmetric. At infinite
    depth, where both would tend to isometries, the pair is that of depth 2: ``X = L R^T``.

    Attributes
    ----------
    L : Tensor, shape (..., m, r)
    R : Tensor, shape (..., n, r)
    depth : float
        Real depth N >= 1, or ``math.inf``.
    normalized : bool
        Whether the metric is divided by N; by default at infinite depth only.

    References
    ----------
    Menon, arXiv 2411.09004 (the balanced manifold).
    """

    L: Tensor
    R: Tensor
    depth: float
    normalized: bool | None = None

    def __post_init__(self) -> None:
        depth = as_depth(self.depth)
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "normalized", as_normalized(self.normalized, depth))
        for name in ("L", "R"):
            part = getattr(self, name)
            if not (isinstance(part, Tensor) and part.is_floating_point() and part.ndim >= 2):
                object.__setattr__(self, name, as_matrix(part, name))
        check_alike(self.L, self.R)
        if self.L.shape[-1] != self.R.shape[-1] or self.L.shape[:-2] != self.R.shape[:-2]:
            raise ValueError(
                "L and R must have shapes (..., m, r) and (..., n, r), got "
                f"{tuple(self.L.shape)} and {tuple(self.R.shape)}"
            )

    @classmethod
    def of(cls, point: EndToEnd | Collapsed | Sequence[Any]) -> Collapsed:
        """Collapse a point, or balanced factors ``(W_1, ..., W_N)``, to two matrices.

        Unbalanced factors give the pair of the balanced network with the same end-to-end
        matrix. From factors the rank is the numerical rank of their product (the largest of a
        batch).

        Raises
        ------
        TypeError
            If `point` is none of these.
        ValueError
            If the factors do not chain, or mix dtypes or devices.
        """
        if isinstance(point, Collapsed):
            return point
        if isinstance(point, EndToEnd):
            root = _root(point.s, point.depth).unsqueeze(-2)
            return cls(point.u * root, point.vh.mT * root, point.depth, point.normalized)
        factors = as_factors(point, "point")
        depth = float(len(factors))
        eps = torch.finfo(factors[0].dtype).eps
        if bool((moment_size(factors) <= 100.0 * eps * depth).all()):
            frames, lam = balanced_frames(factors)
            root = lam.unsqueeze(-2)
            return cls(frames[-1] * root, frames[0] * root, depth)
        u, s, vh = chain_svd(factors)
        r = max(1, int((s > 0).sum(-1).max())) if s.numel() else s.shape[-1]
        return cls.of(EndToEnd(u[..., :r], s[..., :r], vh[..., :r, :], depth, False))

    @classmethod
    def random(
        cls,
        shape: tuple[int, int],
        rank: int | None,
        depth: float,
        *,
        scale: float = 1.0,
        spectrum: Any = None,
        batch: Sequence[int] = (),
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Collapsed:
        """Draw a point with Haar singular vectors.

        Parameters
        ----------
        shape : tuple of int
            Shape (m, n) of the end-to-end matrix.
        rank : int or None
            Rank r; `None` is ``min(m, n)``.
        depth : float
            Real depth N >= 1, or ``math.inf``.
        scale : float
            Every singular value of X, unless `spectrum` is given.
        spectrum : array_like, shape (..., r), optional
            The singular values of X.
        batch : sequence of int
            Leading dimensions.
        generator : torch.Generator, optional
            Source of randomness; a fresh one if not given (the global one is never used).
        dtype, device : optional
            Of the result; by default those of `spectrum` if it is an array, else torch's.

        Raises
        ------
        ValueError
            If the rank or the depth is out of range or a singular value is negative.
        """
        depth = as_depth(depth)
        m, n = (int(d) for d in shape)
        if min(m, n) < 1:
            raise ValueError(f"shape must be two positive integers, got {tuple(shape)}")
        r = min(m, n) if rank is None else as_rank(rank, min(m, n), "min(m, n)")
        s = as_spectrum(scale if spectrum is None else spectrum, r, dtype, device)
        dtype, device = s.dtype, s.device
        batch = torch.broadcast_shapes(tuple(batch), s.shape[:-1])
        generator = as_generator(generator, device)
        u = haar_stiefel(batch, m, r, generator=generator, dtype=dtype, device=device)
        v = haar_stiefel(batch, n, r, generator=generator, dtype=dtype, device=device)
        root = _root(s, depth).unsqueeze(-2)
        return cls(u * root, v * root, depth)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the end-to-end matrix."""
        return self.L.shape[-2], self.R.shape[-2]

    @property
    def rank(self) -> int:
        """Number r of columns of `L` and `R`."""
        return self.L.shape[-1]

    @cached_property
    def M(self) -> Tensor:
        """The middle ``C^{(N-2)/2}``, shape (..., r, r); the identity at depths 2 and infinity."""
        if self.depth == 2.0 or math.isinf(self.depth):
            eye = torch.eye(self.rank, dtype=self.L.dtype, device=self.L.device)
            return eye.expand(*self.L.shape[:-2], -1, -1)
        c, q = torch.linalg.eigh(self.L.mT @ self.L)
        c = c.clamp_min(0.0)
        exponent = (self.depth - 2.0) / 2.0
        # At depths below 2 a zero mode of C contributes nothing to X: L C^{e} R^T -> 0.
        power = torch.where(c > 0, c**exponent, 0.0) if exponent < 0 else c**exponent
        return (q * power.unsqueeze(-2)) @ q.mT

    @property
    def matrix(self) -> Tensor:
        """The end-to-end matrix ``X``, shape (..., m, n)."""
        return (self.L @ self.M) @ self.R.mT

    def entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return ``X[rows, cols]``, shape (..., k), without forming X."""
        left = (self.L @ self.M)[..., rows, :]
        return (left * self.R[..., cols, :]).sum(-1)

    def singular_values(self) -> Tensor:
        """Return the singular values of X, shape (..., r), descending: ``eig(L^T L)^{N/2}``."""
        c = torch.linalg.eigvalsh(self.L.mT @ self.L).clamp_min(0.0).flip(-1)
        return c if math.isinf(self.depth) else c ** (0.5 * self.depth)

    def point(self) -> EndToEnd:
        """Return the singular value decomposition, by r x r work and two thin products."""
        # A thin QR keeps the vectors of small singular values orthonormal, which dividing by
        # the root of a small eigenvalue of L^T L would not.
        ql, rl = torch.linalg.qr(self.L)
        qr, rr = torch.linalg.qr(self.R)
        u, s, vh = torch.linalg.svd(rl @ self.M @ rr.mT)
        return EndToEnd(ql @ u, s, vh @ qr.mT, self.depth, bool(self.normalized))

    def factors(
        self,
        widths: Sequence[int] | int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Return balanced factors ``(W_1, ..., W_N)`` of X.

        Parameters
        ----------
        widths : sequence of int or int, optional
            ``(d_0, ..., d_N)``, or one hidden width; `None` is ``min(m, n)``.
        generator : torch.Generator, optional
            If given, the hidden gauge is drawn from the Haar law; otherwise it is canonical.

        Raises
        ------
        ValueError
            If the depth is no integer, or a width is below the rank.
        """
        p = self.point()
        gauge = None if generator is None else "haar"
        return balanced_chain((p.u, p.s, p.vh), p.depth, widths, gauge, generator)

    def defect(self) -> Tensor:
        """Return the relative violation ``|L^T L - R^T R| / |L^T L|`` (Frobenius), shape (...)."""
        left, right = self.L.mT @ self.L, self.R.mT @ self.R
        norm = torch.linalg.matrix_norm(left)
        gap = torch.linalg.matrix_norm(left - right)
        return gap / torch.where(norm > 0, norm, 1.0)


def as_point(point: EndToEnd | Collapsed) -> EndToEnd:
    """Return the singular value decomposition of a point in either view."""
    if isinstance(point, Collapsed):
        return point.point()
    if not isinstance(point, EndToEnd):
        raise TypeError(
            f"point must be an EndToEnd or a Collapsed, got {type(point).__name__}: "
            "EndToEnd.of(x, depth) makes a point of a matrix"
        )
    return point


def _root(s: Tensor, depth: float) -> Tensor:
    """Return the singular values of `L` and `R`: ``s^{1/N}``, at infinite depth ``s^{1/2}``."""
    return s.sqrt() if math.isinf(depth) else s ** (1.0 / depth)
