"""Whether the measure ``exp(-(beta/kappa) F_beta) dvol_g`` is finite, where that can be told.

With ``nu = 1/(2 kappa)`` (0 without entropy), two ways to infinity are counted:

Zero, at infinite depth. In ``u = log s`` the density is ``prod |u_i - u_j| a_ij^nu``. If the
smallest u tends to minus infinity, ``a_ij ~ s_i^2 / (2 |u_j|)``: the tail is
``int T^{(r-1)(1-nu)} dT``. If the loss stays finite, the measure is finite only if
``(r-1)(nu-1) > 1``, that is ``kappa < (r-1)/(2r)``; never without entropy. At finite depth zero is
at finite distance, and the density is integrable there.

Infinity, where the loss does not confine. In the entries of X, at full rank, the density is
``prod a_ii^{-1/2} prod_{i<j} a_ij^{nu-1}`` times mixed kernels: with k singular values of size t it
is ``t^{-p}``, ``p = (2-2/N) [k/2 + (1-nu)(k(k-1)/2 + k(d-k)) + k (D-d)/2] - 2 nu k e/N``, d and D
the short and the long side, e the excess width of the hidden layers. Along matrices of rank k in a
space of dimension q on which the loss does not depend it is finite only if ``p > q``. For the
2 x 2 completion with its diagonal known that is ``(1-1/N)(4-1/kappa) > 2``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import Completion
from dln_geometry.geometry.points import EndToEnd
from dln_geometry.support import Depth, field_dimension

# Values of a loss that differ by no more than this share count as equal.
_EQUAL = 1e-6


def infinite_measure(
    loss: Any, point: EndToEnd, kappa: float, entropic: bool, excess: float
) -> str | None:
    """Return why the measure is infinite, None if no reason is known."""
    nu, r, depth = (0.5 / kappa if entropic else 0.0), point.rank, point.depth
    f = field_dimension(None, point.dtype)
    # Complex orbits have the factor s^(2 nu), which vanishes at zero.
    held = f > 1 and nu > 0
    if depth.infinite and not held and (r - 1) * (nu - 1.0) <= 1.0 and _is_flat(loss, _sunk(point)):
        bound = f" or kappa below (r-1)/(2r) = {(r - 1) / (2 * r):.3g} with entropy"
        return (
            "the loss is finite where a singular value vanishes, infinitely far at depth inf, and "
            f"the volume on the way is infinite: take a finite depth{bound if r > 1 else ''}"
        )
    short, long = sorted(point.shape)
    full = r == short
    for free, k, q in _free_directions(loss, point):
        p = falloff(depth, nu, (short, long), k, excess, f) if full else float("inf")
        q = f * q
        if p <= q:
            return (
                f"{free}, where the density falls like t^-{p:.3g} in {q} dimensions: add a loss "
                "that grows there, such as a ridge"
            )
    return None


def falloff(
    depth: Depth, nu: float, sides: tuple[int, int], k: int, excess: float = 0.0, f: int = 1
) -> float:
    """Return p: with k singular values of size t the density in the entries of X is ``t^-p``.

    Over a field of dimension f the volume has f times that of pairs and diagonal, the orbits f
    times that of pairs and f - 1 times the diagonal; `excess` counts real dimensions.
    """
    d, long = sides
    pairs = 0.5 * k * (k - 1) + k * (d - k)
    power = f * (0.5 * k + (1.0 - nu) * pairs + 0.5 * k * (long - d)) - (f - 1) * nu * k
    return 2.0 * (1.0 - depth.inverse) * power - 2.0 * nu * k * excess * depth.inverse


def _sunk(point: EndToEnd) -> list[Tensor]:
    """Return X with its smallest singular value reduced, twice."""
    parts = []
    for fall in (1e-12, 1e-24):
        s = point.s.clone()
        s[..., -1] = s[..., -1] * fall
        parts.append(point.replace(s=s, check=False).matrix)
    return parts


def _is_flat(loss: Any, matrices: list[Tensor]) -> bool:
    """Tell whether the loss is finite at two matrices and (nearly) the same, in every sample."""
    first, second = (loss.value(x) for x in matrices)
    same = (second - first).abs() <= _EQUAL * (1.0 + first.abs())
    return bool((same & torch.isfinite(first)).all())


def _free_directions(loss: Any, point: EndToEnd) -> list[tuple[str, int, int]]:
    """Return spaces on which the loss does not depend: words, generic rank, dimension."""
    m, n = point.shape
    x = point.matrix
    if _is_flat(loss, [1e3 * x, 1e6 * x]) and not isinstance(loss, Completion):
        return [("the loss does not grow with X", min(m, n), m * n)]
    if not isinstance(loss, Completion):
        return []
    free = torch.ones(m, n, dtype=torch.float64, device="cpu")
    free[loss.rows.cpu(), loss.cols.cpu()] = 0.0
    if not bool(free.any()):
        return []
    index = torch.arange(1, m * n + 1, dtype=torch.float64, device="cpu").view(m, n)
    generic = free * torch.frac(index * 0.6180339887498949)
    lines = max(int(free.sum(0).max()), int(free.sum(1).max()))
    whole = int(torch.linalg.matrix_rank(generic)), int(free.sum())
    words = "entries that are not known are free"
    return [(words, *whole), (words, 1, lines), (words, 1, 1)]
