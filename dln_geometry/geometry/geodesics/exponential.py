r"""Geodesics of the depth-N metric, and parallel transport along them.

They are integrated in the roots ``X = U K^N V^T``, where a singular value of zero is a regular
point. A geodesic of matrices of rank r stays in the span of the frames of the point and of the
initial velocity: at most 2r dimensions on either side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.geodesics.chart import DEEPEST
from dln_geometry.geometry.geodesics.hamilton import as_times, as_tolerance, follow_geodesic
from dln_geometry.geometry.geodesics.rank_loss import GeodesicError, Lost
from dln_geometry.geometry.geodesics.variations import Varied, exponential_gradients
from dln_geometry.geometry.metric import (
    Box,
    blocks_of,
    squared_length,
    tangent_argument,
    tangent_arguments,
)
from dln_geometry.geometry.points import (
    Collapsed,
    EndToEnd,
    as_point,
    by_power_of_two,
    complex_form,
    complex_point,
    exponent_of,
    is_ordinary,
    real_form,
    real_point,
)
from dln_geometry.support import broadcast_shapes, is_differentiated, refuse_derivatives


def geodesic(point: EndToEnd | Collapsed, z: Any, t: Any, *, rtol: float | None = None) -> EndToEnd:
    r"""Return the point at time t of the geodesic from `point` with velocity `z`.

    If Z turns no singular vector it is ``U (Lam + t Lam')^N V^T`` with ``Lam = Sigma^{1/N}``
    (``U exp(log Sigma + t ..) V^T`` at infinite depth); at depth 1 it is ``X + t Z``. Once
    differentiable by autograd in X, Z and t.

    Parameters
    ----------
    point : EndToEnd or Collapsed
        A point X of shape (..., m, n) and rank r, its singular values positive.
    z : array_like, shape (..., m, n)
        Tangent vector.
    t : float or array_like, shape (k,)
        Times in any order, of either sign.
    rtol : float, optional
        Error allowed, relative to the distance travelled; ``eps^{3/4}`` by default.

    Returns
    -------
    EndToEnd
        Of shape (..., m, n) for a number, (k, ..., m, n) for a vector of times.

    Raises
    ------
    ValueError
        If `z` is not tangent, or a singular value is zero.
    GeodesicError
        If the geodesic meets matrices of lower rank before t: at finite depth they are no further
        than ``sqrt(N) s_min^{1/N}``, and the metric has no geodesics beyond.

    References
    ----------
    Menon, arXiv 2411.09004 (the metric).

    Examples
    --------
    >>> dln.geodesic(dln.EndToEnd.of([[8.0]], 3), [[12.0]], 2.0).matrix.round(decimals=3)
    tensor([[64.]])
    """
    p = as_point(point, complex=True)
    z = tangent_argument(p, z, "z")
    if z.is_complex():
        return complex_point(geodesic(real_point(p), real_form(z), t, rtol=rtol))
    times, rtol = as_times(t), as_tolerance(rtol, p.s.dtype)
    followed = is_differentiated(*point.tensors, z, times)
    if followed and p.depth == 1.0:
        return _trajectory(p, z, times, rtol)
    with torch.no_grad():
        found = _trajectory(p, z, times, rtol)
    if not followed:
        return found
    moves = times.to(z).reshape(*times.shape, *(1,) * (len(found.batch_shape) - times.ndim + 2)) * z
    x = p.differentiable_matrix
    slope = exponential_gradients(p, moves)
    origin = x, moves
    return EndToEnd.followed_by(
        found.constants,
        origin,
        lambda: Varied.apply(*origin, found.matrix, slope),
        p.depth,
        p.normalized,
    )


def exponential(point: EndToEnd | Collapsed, z: Any, *, rtol: float | None = None) -> EndToEnd:
    """Return the exponential map: `geodesic` at time 1. Other parameters and errors as there.

    Examples
    --------
    >>> dln.exponential(dln.EndToEnd.of([[8.0]], 3), [[12.0]]).matrix.round(decimals=3)
    tensor([[27.]])
    """
    return geodesic(point, z, 1.0, rtol=rtol)


def parallel_transport(
    point: EndToEnd | Collapsed, z: Any, w: Any, *, rtol: float | None = None
) -> tuple[EndToEnd, Tensor]:
    r"""Transport a tangent vector along the geodesic ``exp_X(t Z)`` from t = 0 to 1.

    ``dW/dt = -Gamma_X(dX/dt, W)``, integrated together with the geodesic; an isometry up to the
    tolerance. Other parameters and errors as in `geodesic`.

    Parameters
    ----------
    z, w : array_like, shape (..., m, n)
        Tangent vectors: the velocity of the geodesic, and the vector to transport.
    rtol : float, optional
        Error allowed, relative to the distance travelled and to the length of `w`.

    Returns
    -------
    EndToEnd, Tensor of shape (..., m, n)
        The end point, and the transported vector there.

    Examples
    --------
    >>> dln.parallel_transport(dln.EndToEnd.of([[8.0]], 3), [[12.0]], [[4.0]])[1].round(decimals=3)
    tensor([[9.]])
    """
    p = as_point(point, complex=True)
    z, w = tangent_arguments(p, z=z, w=w)
    if z.is_complex():
        end, moved = parallel_transport(real_point(p), real_form(z), real_form(w), rtol=rtol)
        return complex_point(end), complex_form(moved)
    refuse_derivatives("parallel_transport", *point.tensors, z, w)
    rtol = as_tolerance(rtol, p.s.dtype)
    with torch.no_grad():
        if p.depth == 1.0:
            end = _trajectory(p, z, torch.ones((), dtype=torch.float64, device="cpu"), rtol)
            return end, w.expand(broadcast_shapes(end.matrix.shape, w.shape))
        if not is_ordinary((w, w)):
            size = exponent_of(w)
            end, moved = parallel_transport(p, z, by_power_of_two(w, -size), rtol=rtol)
            return end, by_power_of_two(moved, size)
        if (size := _unit_of(p, z)) is not None:
            # Linear in w, which keeps its size.
            small = _resized(p, -size), by_power_of_two(z, -size)
            end, moved = parallel_transport(*small, w, rtol=rtol)
            return _resized(end, size), moved
        box = Box.around(p, z, w, frozen=_is_deep(p, z, w))
        ends, vectors, lost = follow_geodesic(box, [1.0], rtol)
        lost.refuse(1.0)
        return box.embed(ends[0].point(p)), box.embed_matrix(vectors[0])


def _unit_of(p: EndToEnd, *vectors: Tensor) -> Tensor | None:
    """Return the exponent of a power of two near the point, or None if squares are in range."""
    s = p.s.detach().unsqueeze(-1)
    if all(is_ordinary((x, x)) for x in (s, *vectors)):
        return None
    return size if bool(((size := exponent_of(s)) != 0).any()) else None


def _resized(p: EndToEnd, exponent: Tensor) -> EndToEnd:
    return p.replace(s=by_power_of_two(p.s, exponent, 1), check=False)


def _is_deep(p: EndToEnd, *vectors: Tensor) -> bool:
    """Tell whether the spaces of the point must stand still; ValueError if a vector turns them."""
    if p.depth <= DEEPEST or p.depth.infinite:
        return False
    for z in vectors:
        norm = torch.linalg.matrix_norm(z)
        inside = p.u @ (p.u.mT @ z @ p.vh.mT) @ p.vh
        outside = torch.linalg.matrix_norm(z - inside)
        if bool((outside > 1000.0 * torch.finfo(z.dtype).eps * norm).any()):
            raise ValueError(
                f"z must keep the row and column space at depths above {DEEPEST:.0e}, where "
                "roundings outgrow the tolerance, got a vector that turns them"
            )
    return True


def _trajectory(p: EndToEnd, z: Tensor, times: Tensor, rtol: float) -> EndToEnd:
    if p.depth == 1.0:
        x, z = torch.broadcast_tensors(p.matrix, z)
        t = times.to(z).reshape(*times.shape, *(1,) * z.ndim)
        return EndToEnd.of(x + t * z, 1.0, normalized=p.normalized)
    if (size := _unit_of(p, z)) is not None:
        small = _trajectory(_resized(p, -size), by_power_of_two(z, -size), times, rtol)
        return _resized(small, size)
    box = Box.around(p, z, frozen=_is_deep(p, z))
    aligned = _aligned(box)
    if aligned is not None:
        every = [aligned(t) for t in times.reshape(-1).tolist()]
    else:
        states: dict[float, EndToEnd] = {0.0: box.point}
        for sign in (1.0, -1.0):
            if ahead := sorted({t for t in (sign * times).reshape(-1).tolist() if t > 0}):
                signed = Box(box.point, (sign * box.vectors[0],), None, None)
                found, _, lost = follow_geodesic(signed, ahead, rtol)
                lost.refuse(sign * ahead[-1])
                states |= {sign * t: q.point(p) for t, q in zip(ahead, found, strict=True)}
        every = [states[t] for t in times.reshape(-1).tolist()]
    if times.ndim == 0:
        return box.embed(every[0])
    u, s, vh = (torch.stack([getattr(q, part) for q in every]) for part in ("u", "s", "vh"))
    return box.embed(p.replace(u=u, s=s, vh=vh, check=False))


def _aligned(box: Box) -> Callable[[float], EndToEnd] | None:
    """Return the closed form of the geodesic if its velocity turns no singular vector."""
    p, (z,) = box.point, box.vectors
    rate = (p.u.mT @ z @ p.vh.mT).diagonal(dim1=-2, dim2=-1)
    rest = z - (p.u * rate.unsqueeze(-2)) @ p.vh
    k = box.differences(p.s)
    kernel = k.kernel.diagonal(dim1=-2, dim2=-1)
    straight = (rate.square() / kernel).sum(-1).sqrt()
    turned = squared_length(k, blocks_of(p.u, p.vh, rest, p.depth.infinite)).sqrt()
    # Ignore a turn that is smaller than the rounding error of X.
    bound = straight + (p.s.square() / kernel).sum(-1).sqrt()
    if bool((turned > 10.0 * torch.finfo(z.dtype).eps * bound).any()):
        return None
    if p.depth.infinite:
        return lambda t: _sorted(p, p.s * torch.exp(t * rate / p.s))
    # lam' = s' / (N lam^{N-1}): relative to lam, s' / (N s).
    speed = rate / (p.depth * p.s)

    def at(t: float) -> EndToEnd:
        growth = 1.0 + t * speed
        if bool((growth <= 0).any()):
            meets = torch.where(growth > 0, math.inf, -1.0 / speed).abs().amin(-1).cpu().numpy()
            times = np.where(np.isinf(meets), math.nan, meets)
            Lost(times, np.isfinite(meets)).refuse(t)
        return _sorted(p, p.s * growth**p.depth)

    return at


def _sorted(p: EndToEnd, s: Tensor) -> EndToEnd:
    """Return the point with singular values s, in any order, in the frames of p."""
    if not bool(torch.isfinite(s).all()):
        raise GeodesicError("the geodesic must stay within the range of numbers, and leaves it")
    s, order = s.sort(-1, descending=True)
    u = p.u.take_along_dim(order.unsqueeze(-2), -1)
    vh = p.vh.take_along_dim(order.unsqueeze(-1), -2)
    return p.replace(u=u, s=s, vh=vh, check=False)
