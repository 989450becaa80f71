"""Effective ranks: numbers of singular values that count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points.collapsed import Collapsed
from dln_geometry.geometry.points.end_to_end import EndToEnd
from dln_geometry.geometry.points.network import Network
from dln_geometry.support import as_choice, as_float_tensor, as_positive, is_differentiated


def effective_rank(x: Any, kind: str = "entropy", *, rtol: float | None = None) -> Tensor:
    r"""Return an effective rank of a matrix, 0 for the matrix 0; shape (...).

    With singular values ``s_1 >= ... >= s_r``:
    ``"entropy"``    ``exp(- sum p_i log p_i)``, ``p_i = s_i / sum s``, between 1 and r;
    ``"stable"``     ``sum s_i^2 / s_1^2``;
    ``"numerical"``  the number of ``s_i > rtol s_1``.
    None of them changes if the matrix is multiplied by a number. The first is smooth where all
    singular values are positive, the second where s_1 is simple; gradients go through both.

    Parameters
    ----------
    x : EndToEnd, Collapsed, Network or array_like of shape (..., r)
        A point, or singular values (of a matrix, give its `EndToEnd` or ``svdvals``).
    kind : {"entropy", "stable", "numerical"}
        Which one.
    rtol : float, optional
        For ``"numerical"``: by default ``eps max(m, n)`` of a point, ``eps r`` of numbers.

    References
    ----------
    Roy, Vetterli, The effective rank, EUSIPCO 2007; Rudelson, Vershynin, 2007 (stable rank).

    Examples
    --------
    >>> s = [[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]]
    >>> dln.effective_rank(s), dln.effective_rank([2.0, 1.0], "stable")
    (tensor([2., 1.]), tensor(1.2500))
    """
    as_choice(kind, ("entropy", "stable", "numerical"), "kind")
    if rtol is not None and (kind != "numerical" or not as_positive(rtol, "rtol", zero=True) < 1):
        raise ValueError(f'rtol must be below 1, and go with kind "numerical", got {rtol}')
    s, side = _values(x)
    top = s.amax(-1, keepdim=True)
    # Of the matrix 0 the shares are 0, without 0/0, which would make gradients NaN.
    share = s / torch.where(top > 0, top, 1.0)
    if kind == "stable":
        return share.square().sum(-1)
    if kind == "numerical":
        least = side * torch.finfo(s.dtype).eps if rtol is None else rtol
        return (share > least).sum(-1).to(s.dtype)
    total = share.sum(-1, keepdim=True)
    p = share / torch.where(total > 0, total, 1.0)
    found = torch.exp(-torch.xlogy(p, p).sum(-1))
    return torch.where(total.squeeze(-1) > 0, found, 0.0)


def _values(x: Any) -> tuple[Tensor, int]:
    """Return singular values (..., r), and the longer side of the matrix."""
    if isinstance(x, Collapsed | EndToEnd | Network):
        matrix = x.differentiable_matrix if isinstance(x, EndToEnd) else x.matrix
        if is_differentiated(matrix):
            return torch.linalg.svdvals(matrix)[..., : x.rank], max(x.shape)
        return x.singular_values.as_subclass(Tensor), max(x.shape)
    s = as_float_tensor(x, "x")
    if s.ndim == 0 or s.shape[-1] == 0:
        raise ValueError(f"x must be a point or singular values (..., r), got {tuple(s.shape)}")
    if bool((s < 0).any()):
        raise ValueError(
            f"x must hold singular values, which are at least 0, got {float(s.min()):g}: give a "
            "matrix as its EndToEnd"
        )
    return s, s.shape[-1]
