"""`Collapsed`: a balanced network of any depth as two matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from dln_geometry.geometry.points.batch import Batch, check_alike, check_field
from dln_geometry.geometry.points.end_to_end import EndToEnd
from dln_geometry.geometry.points.gauges import as_spectrum, balanced_chain, haar_frames
from dln_geometry.geometry.points.layers import by_power_of_two, chain_svd, is_ordinary, over_units
from dln_geometry.geometry.points.network import Network
from dln_geometry.geometry.points.smooth_functions import frames_and_root, gram_power
from dln_geometry.support import (
    Depth,
    as_alike,
    as_depth,
    as_matrix,
    as_matrix_shape,
    as_normalized,
    as_rank,
    entries_of_product,
)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Collapsed(Batch):
    """A balanced network of any depth as two matrices.

    ``X = L C^{(N-2)/2} R^T`` with ``L^T L = R^T R = C``: `L` is the last layer and `R` the
    transposed first layer, in the gauge that makes the product of the layers between them
    symmetric. At infinite depth, where both would tend to isometries, the pair is that of depth 2.

    Attributes
    ----------
    L : Tensor, shape (..., m, r)
    R : Tensor, shape (..., n, r)
    depth : float
        Real depth N >= 1, or ``math.inf``.
    normalized : bool
        Whether the metric is divided by N; by default at infinite depth only.

    Raises
    ------
    ValueError
        If ``L^T L`` and ``R^T R`` differ by more than the root of the machine epsilon, relative to
        their size. ``check=False`` trusts two tensors that fit.

    References
    ----------
    Menon, arXiv 2411.09004 (the balanced manifold).

    Examples
    --------
    >>> p = dln.Collapsed.of(([[2.0, 0.0]], [[2.0]]))  # the layers of a network of depth 2
    >>> p.L.shape, p.R.shape, p.depth
    (torch.Size([1, 1]), torch.Size([2, 1]), 2.0)
    >>> p.matrix
    tensor([[4., 0.]])
    >>> p.replace(depth=5).singular_values  # another depth, the same matrix
    tensor([32.])
    """

    _tensors: ClassVar = {"L": 2, "R": 2}
    L: Tensor
    R: Tensor
    depth: Depth
    normalized: bool

    def __init__(
        self, L: Any, R: Any, depth: float, normalized: bool | None = None, *, check: bool = True
    ) -> None:
        depth = as_depth(depth)
        normalized = as_normalized(normalized, depth)
        left, right = as_alike(complex=True, L=L, R=R) if check else (L, R)
        if check:
            left, right = as_matrix(left, "L", complex=True), as_matrix(right, "R", complex=True)
            check_field(L=left, R=right)
        check_alike(left, right)
        if left.shape[-1] != right.shape[-1] or left.shape[:-2] != right.shape[:-2]:
            got = f"{tuple(left.shape)} and {tuple(right.shape)}"
            raise ValueError(f"L and R must have shapes (..., m, r) and (..., n, r), got {got}")
        if not depth.infinite and depth * torch.finfo(left.dtype).eps >= 1:
            raise ValueError(
                f"depth must be below {1 / torch.finfo(left.dtype).eps:.2g} or infinite for a "
                f"Collapsed in {left.dtype}, whose N-th roots carry no digits above, got {depth:g}"
            )
        self._set(L=left, R=right, depth=depth, normalized=normalized)
        defect = self.defect().detach() if check else left.real.new_zeros(0)
        if bool((defect > torch.finfo(left.dtype).eps ** 0.5).any()):
            got = f"a relative difference of {float(defect.max()):.1e}"
            advice = "Collapsed.of(EndToEnd.of(x, depth)) makes a balanced pair of a matrix"
            raise ValueError(f"L and R must be balanced, L^T L = R^T R, got {got}: {advice}")

    @classmethod
    def of(cls, point: EndToEnd | Collapsed | Sequence[Any]) -> Collapsed:
        """Collapse a point, or balanced factors ``(W_1, ..., W_N)``, to two matrices.

        Unbalanced factors give the pair of the balanced network with the same end-to-end
        matrix. Their rank is the numerical rank of the product (the largest of a batch).
        """
        if isinstance(point, Collapsed):
            return point
        if isinstance(point, EndToEnd):
            if (x := point.followed) is not None:
                depth = Depth(2.0) if point.depth.infinite else point.depth
                u, middle, v = frames_and_root(x, point.constants, depth)
                return cls(u @ middle, v @ middle, point.depth, point.normalized, check=False)
            root = _root(point.s, point.depth).unsqueeze(-2)
            left, right = point.u * root, point.vh.mH * root
            return cls(left, right, point.depth, point.normalized, check=False)
        factors = Network(point, "point")
        depth, eps = factors.depth, torch.finfo(factors.dtype).eps
        if bool((factors.imbalance <= 100.0 * eps * depth).all()):
            frames, lam = factors.balanced_parts()
            root = lam.unsqueeze(-2)
            return cls(frames[-1] * root, frames[0] * root, depth, check=False)
        if is_ordinary(factors):
            u, s, vh = chain_svd(factors)
        else:
            small, exponents = over_units(factors)
            u, s, vh = chain_svd(small)
            s = by_power_of_two(s, sum(exponents[1:], exponents[0]), 1)
            if not bool(torch.isfinite(s.detach()).all()):
                raise ValueError(
                    f"point must have a product in the range of {factors.dtype}, got layers whose "
                    "product overflows"
                )
        r = max(1, int((s > 0).sum(-1).max())) if s.numel() else s.shape[-1]
        parts = u[..., :r], s[..., :r], vh[..., :r, :]
        return cls.of(EndToEnd(*parts, depth, False, check=False))

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
        generator: torch.Generator | int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Collapsed:
        """Draw a point with Haar singular vectors and the end-to-end `shape` (m, n).

        A `rank` of None is ``min(m, n)``. Other parameters and errors as in `random_balanced`.
        """
        depth = as_depth(depth)
        m, n = as_matrix_shape(shape)
        r = min(m, n) if rank is None else as_rank(rank, min(m, n), "min(m, n)")
        s = as_spectrum(scale, spectrum, r, dtype, device)
        u, v = haar_frames(s, (m, n), batch, generator, dtype)
        root = _root(s, depth).unsqueeze(-2)
        return cls(u * root, v * root, depth, check=False)

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
        if self.depth == 2.0 or self.depth.infinite:
            eye = torch.eye(self.rank, dtype=self.L.dtype, device=self.L.device)
            return eye.expand(*self.L.shape[:-2], -1, -1)
        # Below depth 2 a zero mode of C adds nothing to X: L C^{e} R^T -> 0.
        return self.power(0.5 * self.depth - 1.0)

    def power(self, exponent: float) -> Tensor:
        """Return ``C^e``, shape (..., r, r); a zero mode to a negative power counts as 0."""
        c, unit = gram(self.L)
        size = unit ** (2.0 * exponent)
        # The inverse of a denormal number leaves the range: it counts as zero too.
        return gram_power(c, exponent) * size.nan_to_num(posinf=0.0)

    @property
    def matrix(self) -> Tensor:
        """The end-to-end matrix ``X``, shape (..., m, n)."""
        return (self.L @ self.M) @ self.R.mH

    def entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return ``X[rows, cols]``, shape (..., k), without forming X."""
        return entries_of_product(self.L @ self.M, self.R.conj(), rows, cols)

    @property
    def singular_values(self) -> CallableTensor:
        """Singular values of X, (..., r), descending; may also be called, as in version 0.1."""
        c, unit = gram(self.L)
        c = torch.linalg.eigvalsh(c).clamp_min(0.0).flip(-1)
        power = 1.0 if self.depth.infinite else 0.5 * self.depth
        return (c**power * unit.squeeze(-1) ** (2.0 * power)).as_subclass(CallableTensor)

    def point(self) -> EndToEnd:
        """Return the singular value decomposition, by r x r work and two thin products."""
        # QR keeps the singular vectors of small values orthonormal; dividing by the root of a small
        # eigenvalue of L^T L would not.
        ql, rl = torch.linalg.qr(self.L.detach())
        qr, rr = torch.linalg.qr(self.R.detach())
        u, s, vh = torch.linalg.svd(rl @ self.M.detach() @ rr.mH)
        frames = ql @ u, s, vh @ qr.mH
        return EndToEnd.followed_by(
            frames, (self.L, self.R), lambda: self.matrix, self.depth, bool(self.normalized)
        )

    def factors(
        self,
        widths: Sequence[int] | int | None = None,
        generator: torch.Generator | int | None = None,
    ) -> Network:
        """Return `balanced_factors` of X, in the Haar gauge if a generator is given."""
        gauge = None if generator is None else "haar"
        return Network.from_layers(balanced_chain(self.point(), widths, gauge, generator))

    def defect(self) -> Tensor:
        """Return the relative violation ``|L^T L - R^T R| / |L^T L|`` (Frobenius), shape (...)."""
        left, unit = gram(self.L)
        right = (self.R / unit).mH @ (self.R / unit)
        norm, gap = torch.linalg.matrix_norm(left), torch.linalg.matrix_norm(left - right)
        return gap / torch.where(norm > 0, norm, 1.0)


def gram(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x^T x`` over the square of a unit, (..., r, r), and that unit, (..., 1, 1).

    The unit is 1 where the squares are in the range of the type, else a power of two near the
    largest entry of x.
    """
    largest = x.detach().abs().amax((-2, -1), keepdim=True) if x.numel() else x.real.new_zeros(())
    bound = torch.finfo(x.dtype).tiny ** 0.25
    extreme = (largest > 0) & ((largest < bound) | (largest > 1.0 / bound)) & largest.isfinite()
    unit = torch.exp2(torch.where(extreme, largest, torch.ones_like(largest)).log2().floor())
    x = x / unit
    return x.mH @ x, unit


class CallableTensor(Tensor):
    """A tensor that returns itself when called; results of operations are plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    def __call__(self) -> Tensor:
        return self.as_subclass(Tensor)

    def __repr__(self, **_: Any) -> str:
        return repr(self.as_subclass(Tensor))


def _root(s: Tensor, depth: Depth) -> Tensor:
    """Return the singular values of `L` and `R`: ``s^{1/N}``, at infinite depth ``s^{1/2}``."""
    return s.sqrt() if depth.infinite else depth.root(s)
