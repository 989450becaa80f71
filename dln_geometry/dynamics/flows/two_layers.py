"""The exact gradient flow of two layers, whose moment is a multiple of the identity in blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import Network, layer_moments
from dln_geometry.support import (
    absolute_square,
    as_covector,
    as_double,
    as_float_tensor,
    common_batch,
)

# Exponents of one step: e^16 loses no digit that float64 needs.
_GROWTH = 8.0


def two_layers(factors: Sequence[Any], target: Any, t: Any) -> Tensor:
    r"""Return the end-to-end matrices of two layers under the gradient flow of ``1/2 |X - Y|^2``.

    For layers with ``W_2^T W_2 - W_1 W_1^T = lam I`` (balanced ones, those of `lambda_balanced`),
    real or complex, of any widths and rank, aligned with Y or not. Other moments are taken where
    hidden units with different eigenvalues lam of the moment never meet: their rows of W_1 and
    columns of W_2, and what Y makes of them, are orthogonal, as for layers aligned with the
    singular vectors of Y, each mode with its own lam, and for units that are 0. Then X is the sum
    of the solutions for each lam; for other moments no closed form is known. It is the flow of a
    regression on whitened inputs, ``sum_k x_k x_k^T = I``, where ``Y = sum_k y_k x_k^T``. With
    ``Q = [W_1^T; W_2]`` the matrix ``R = Q Q^T`` obeys ``R' = F R + R F - R^2``,
    ``F = [[-lam/2, Y^T], [Y, lam/2]]``, so

    ``R = e^{Ft} Q_0 (1 + Q_0^T F^{-1} (e^{2Ft} - 1) Q_0 / 2)^{-1} Q_0^T e^{Ft}``.

    Parameters
    ----------
    factors : sequence of two array_like
        The layers at time 0, shapes (..., d_1, d_0) and (..., d_2, d_1).
    target : array_like, shape (..., d_2, d_0)
    t : array_like, shape (T...)
        Times, at least 0.

    Returns
    -------
    Tensor, shape (T..., ..., d_2, d_0)
        Computed in double precision, without gradients.

    Raises
    ------
    ValueError
        If there are not two layers, or hidden units whose moments have different eigenvalues meet.

    References
    ----------
    Dominé et al., arXiv 2409.14623; Braun et al. 2022 (balanced); Fukumizu 1998.

    Examples
    --------
    >>> start = dln.lambda_balanced([[0.5]], 0.0, (1, 1, 1))
    >>> dln.exact.two_layers(start, [[1.0]], [0.0, 1.0]).flatten()
    tensor([0.5000, 0.8808])
    """
    network = Network(factors)
    if len(network) != 2:
        raise ValueError(f"factors must be two layers, got {len(network)}")
    y = as_covector(target, network[0], network.shape, "target", network[0].shape[:-2]).detach()
    times = as_float_tensor(t, "t", dtype=torch.float64, device=y.device).detach()
    if bool((times < 0).any()):
        raise ValueError(f"t must be at least 0, got {float(times.min()):g}")
    first, second = (as_double(w.detach()) for w in network)
    (g,) = layer_moments((first, second))
    rounding = 1e3 * g.shape[-1] * torch.finfo(network[0].dtype).eps
    lam = g.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
    eye = torch.eye(g.shape[-1], dtype=lam.dtype, device=g.device)
    size = absolute_square(first).sum((-2, -1)) + absolute_square(second).sum((-2, -1))
    size = size[..., None, None]
    off = float(((g - lam * eye).abs() / torch.where(size > 0, size, 1.0)).max())
    if off <= rounding:
        return _solution(first, second, lam, y, times)
    batch = common_batch(factors=first.shape[:-2], target=y.shape[:-2])
    first, second, y = (
        x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (first, second, y)
    )
    each = zip(first, second, y, strict=True)
    found = [_sum_of_blocks(a, b, c, times, rounding) for a, b, c in each]
    return torch.stack(found, times.ndim).reshape(*times.shape, *batch, *network.shape)


def _sum_of_blocks(
    first: Tensor, second: Tensor, y: Tensor, times: Tensor, rounding: float
) -> Tensor:
    """Return the sum of the solutions for each eigenvalue of the moment."""
    (g,) = layer_moments((first, second))
    values, vectors = torch.linalg.eigh(g)
    size = float(absolute_square(first).sum() + absolute_square(second).sum())
    cuts = torch.nonzero(values.diff() > rounding * size).flatten() + 1
    blocks = vectors.tensor_split(cuts.cpu(), 1)
    pairs = [(v.mH @ first, second @ v) for v in blocks]
    worst = _meeting(pairs, as_double(y), size)
    if worst > rounding:
        raise ValueError(
            "factors must have a moment W_2^T W_2 - W_1 W_1^T that is a multiple of the identity, "
            f"or hidden units that never meet where its eigenvalues differ ({len(blocks)} here), "
            f"got units that meet by {worst:.1e} of the squares of the layers: no closed form is "
            "known, gradient_flow of the factors integrates them"
        )
    lams = [v.mean()[None, None] for v in values.tensor_split(cuts.cpu())]
    parts = [_solution(a, b, lam, y, times) for (a, b), lam in zip(pairs, lams, strict=True)]
    return torch.stack(parts).sum(0)


def _meeting(pairs: Sequence[tuple[Tensor, Tensor]], y: Tensor, size: float) -> float:
    """Return the largest product of units of different blocks, in the singular spaces of Y."""
    u, s, vh = torch.linalg.svd(y)
    least = 100 * max(y.shape) * torch.finfo(y.dtype).eps * (float(s[0]) if s.numel() else 0.0)
    rank = int((s > least).sum())
    cuts = [0, *(k for k in range(1, rank) if float(s[k - 1] - s[k]) > least), rank]
    # Units that meet in one singular space do so from either side; outside the rank each alone.
    spaces = [(vh[a:b], u[:, a:b].mH) for a, b in pairwise(cuts)]
    none = (vh[:0], u[:, :0].mH)
    spaces += [(vh[rank:], none[1]), (none[0], u[:, rank:].mH)]
    worst = 0.0
    for right, left in spaces:
        seen = [
            torch.cat([right @ a.mH] * bool(len(right)) + [left @ b] * bool(len(left)), 1)
            for a, b in pairs
            if len(right) + len(left)
        ]
        for k, one in enumerate(seen):
            for other in seen[:k]:
                worst = max(worst, float((one.mH @ other).abs().max()))
    return worst / size if size else 0.0


def _solution(first: Tensor, second: Tensor, lam: Tensor, y: Tensor, times: Tensor) -> Tensor:
    """Return the flow of layers whose moment is lam times the identity."""
    m, n, d = second.shape[-2], first.shape[-1], first.shape[-2]
    batch = common_batch(factors=first.shape[:-2], target=y.shape[:-2])
    form = first.new_zeros(*batch, n + m, n + m)
    form[..., :n, n:], form[..., n:, :n] = as_double(y).mH, as_double(y)
    half = torch.cat([lam.new_full((n,), -0.5), lam.new_full((m,), 0.5)])
    form += torch.diag_embed(half * lam[..., 0])
    f, basis = torch.linalg.eigh(form)
    q = basis.mH @ torch.cat([first.mH, second], -2).expand(*batch, n + m, d)
    order, now, made = times.flatten().sort()[1].tolist(), 0.0, {}
    fastest = max(float(f.abs().max()), 1e-300)
    for k in order:
        later = float(times.flatten()[k])
        # An infinite number of steps changes nothing any more.
        steps = min(math.ceil((later - now) * fastest / _GROWTH), 10_000)
        for _ in range(steps):
            q = _riccati_step(q, f, (later - now) / steps)
        now = later
        x = (basis @ q)[..., n:, :] @ (basis @ q)[..., :n, :].mH
        made[k] = x.to(y.dtype)
    ordered = [made[k] for k in range(len(order))]
    stacked = torch.stack(ordered) if ordered else y.new_zeros(0, *batch, m, n)
    return stacked.reshape(*times.shape, *batch, m, n)


def _riccati_step(q: Tensor, f: Tensor, dt: float) -> Tensor:
    """Return a root Q of R at the next time, in the eigenvectors of F, whose eigenvalues are f."""
    moved = f.unsqueeze(-1)
    safe = torch.where(moved == 0, 1.0, moved)
    grown = torch.where(moved == 0, dt, torch.expm1(2 * moved * dt) / (2 * safe))
    inner = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device) + q.mH @ (grown * q)
    lower = torch.linalg.cholesky(inner)
    return torch.linalg.solve_triangular(lower, ((moved * dt).exp() * q).mH, upper=False).mH
