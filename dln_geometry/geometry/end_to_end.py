"""An end-to-end matrix with a depth: the point below, at which everything else is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.doors import as_depth, as_matrix, as_normalized, as_rank
from dln_geometry.geometry.truncation import truncated

__all__ = ["EndToEnd", "check_alike"]


@dataclass(frozen=True)
class EndToEnd:
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

    u: Tensor
    s: Tensor
    vh: Tensor
    depth: float
    normalized: bool
    # What was decomposed, where derivatives are asked of it: those through the singular vectors
    # do not exist at equal singular values, those of the cometric do. No argument: a point made
    # from parts of another one must not inherit it.
    _source: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    # Below full rank, what of it was kept, with derivatives that exist there, too.
    _kept: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        depth = as_depth(self.depth)
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "normalized", as_normalized(self.normalized, depth))
        u, s, vh = self.u, self.s, self.vh
        if not all(isinstance(part, Tensor) for part in (u, s, vh)):
            raise TypeError("u, s and vh must be tensors: EndToEnd.of(x, depth) makes them")
        r, batch = s.shape[-1:], s.shape[:-1]
        if u.ndim < 2 or (u.shape[:-2], u.shape[-1:], vh.shape[:-1]) != (batch, r, batch + r):
            raise ValueError(
                "u, s and vh must have shapes (..., m, r), (..., r) and (..., r, n), got "
                f"{tuple(u.shape)}, {tuple(s.shape)} and {tuple(vh.shape)}"
            )
        check_alike(u, s, vh)

    @classmethod
    def of(
        cls, x: Any, depth: float, *, rank: int | None = None, normalized: bool | None = None
    ) -> EndToEnd:
        """Decompose a matrix once.

        Parameters
        ----------
        x : array_like, shape (..., m, n)
            End-to-end matrix.
        depth : float
            Real depth N >= 1, or ``math.inf``.
        rank : int, optional
            Rank r of the manifold on which the point lies; the singular values below the first
            r are dropped (the nearest matrix of that rank). `None` is ``min(m, n)``.
        normalized : bool, optional
            Divide the metric by N; `None` does so at infinite depth only.

        Raises
        ------
        TypeError
            If `x` is not a real array, or `rank` no integer.
        ValueError
            If `x` is a vector, empty or not finite, the depth is below 1, the rank out of range,
            or ``normalized=False`` at infinite depth.

        Examples
        --------
        >>> EndToEnd.of([[0.0, 3.0], [2.0, 0.0]], depth=4).s
        tensor([3., 2.])
        """
        depth = as_depth(depth)
        normalized = as_normalized(normalized, depth)
        x = as_matrix(x, "x")
        r = min(x.shape[-2:]) if rank is None else as_rank(rank, min(x.shape[-2:]), "min(m, n)")
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        point = cls(u[..., :, :r], s[..., :r], vh[..., :r, :], depth, normalized)
        if x.requires_grad:
            whole = r == min(x.shape[-2:])
            name = "_source" if whole else "_kept"
            object.__setattr__(point, name, x if whole else truncated(x, (u, s, vh), r))
        return point

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


def check_alike(*parts: Tensor) -> None:
    """Refuse tensors of different dtypes or devices."""
    first = parts[0]
    for part in parts[1:]:
        if (part.dtype, part.device) != (first.dtype, first.device):
            raise ValueError(
                f"the tensors of a point must share dtype and device, got {first.dtype} on "
                f"{first.device} and {part.dtype} on {part.device}"
            )
