r"""Geodesics of the balanced networks with the Frobenius metric of their layers.

``W'' = II(W', W')`` in moving frames. A geodesic that starts horizontally stays so, and its product
is a geodesic of the depth-N metric; along every geodesic the antisymmetric parts of
``W_p' W_p^T - W_{p+1}^T W_{p+1}'`` are conserved, as the rotations of the layers are isometries.
Networks of rank r stay in a small box, whatever their widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.geodesics import as_tolerance
from dln_geometry.geometry.network_geodesics.frames import (
    LayerBox,
    Velocity,
    stacked,
    tangent_blocks,
)
from dln_geometry.geometry.network_geodesics.motion import Network, travel
from dln_geometry.geometry.network_geodesics.rank_one import cone_travel
from dln_geometry.geometry.submersion import as_ambient, split
from dln_geometry.support import as_float_tensor

__all__ = ["Framed", "balanced_geodesic", "balanced_transport", "geodesic_of"]

# Layers with their frames and singular values, as `split` returns them.
Framed = tuple[tuple[Tensor, ...], list[Tensor], Tensor]


def balanced_geodesic(
    factors: Sequence[Any], v: Sequence[Any], t: Any = 1.0, *, rtol: float | None = None
) -> tuple[Tensor, ...]:
    r"""Return the balanced network at time t of the geodesic from `factors` with velocity `v`.

    At time 1 it is the exponential map. Not differentiable by autograd.

    Parameters
    ----------
    factors : sequence of array_like
        Balanced layers ``(W_1, ..., W_N)`` of rank r, W_p of shape (..., d_p, d_{p-1}); all of a
        batch must have the same rank.
    v : sequence of array_like
        Tangent vector: one matrix of the same shape for every layer. Leading dimensions broadcast.
    t : float or array_like, shape (k,)
        Time, or times in any order, of either sign.
    rtol : float, optional
        Error allowed, relative to the distance travelled; ``eps^{3/4}`` by default.

    Returns
    -------
    tuple of Tensor
        Balanced layers of shape (..., d_p, d_{p-1}) for a number, (k, ..., d_p, d_{p-1}) for a
        vector of times.

    Raises
    ------
    TypeError
        If `factors` or `v` is no sequence of real matrices.
    ValueError
        If the layers do not chain, are not balanced, vanish, or a batch mixes ranks; if `v` does
        not match them or is not tangent; if `t` or `rtol` makes no sense.
    GeodesicError
        If the geodesic meets networks of lower rank before t, which are at finite distance.

    References
    ----------
    Menon, arXiv 2411.09004 (the balanced manifold).

    Examples
    --------
    Layers that are numbers are equal, and move along a straight line:

    >>> balanced_geodesic(([[2.0]], [[2.0]]), ([[1.0]], [[1.0]]), 3.0)
    (tensor([[5.]]), tensor([[5.]]))
    """
    times = as_float_tensor(t, "t", dtype=torch.float64, device="cpu")
    if times.ndim > 1 or times.numel() == 0:
        raise ValueError(f"t must be a number or a vector, got shape {tuple(times.shape)}")
    return geodesic_of(split(factors), v, times, rtol=rtol)


def geodesic_of(
    network: Framed, v: Sequence[Any], times: Tensor, *, rtol: float | None = None
) -> tuple[Tensor, ...]:
    """Return `balanced_geodesic` of a network whose frames are known, at times on the CPU."""
    with torch.no_grad():
        box, start = _prepare(network, v)
        wanted = [float(t) for t in times.reshape(-1)]
        ways = _ways(start, wanted, as_tolerance(rtol, start.k.dtype))
        if times.ndim == 0:
            return box.network(ways[0].frames, ways[0].k)
        layers = (box.network(way.frames, way.k) for way in ways)
        return tuple(torch.stack(layer) for layer in zip(*layers, strict=True))


def balanced_transport(
    factors: Sequence[Any], v: Sequence[Any], w: Sequence[Any], *, rtol: float | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    r"""Transport a tangent vector along the geodesic with velocity `v` from t = 0 to 1.

    ``w' = II(W', w)``, integrated together with the geodesic; an isometry up to the tolerance.

    Parameters
    ----------
    factors : sequence of array_like
        Balanced layers ``(W_1, ..., W_N)``.
    v : sequence of array_like
        Tangent vector, the velocity of the geodesic.
    w : sequence of array_like
        Tangent vector that is transported.
    rtol : float, optional
        Error allowed, relative to the distance travelled and to the length of `w`.

    Returns
    -------
    tuple of Tensor
        The end point.
    tuple of Tensor
        The transported vector, tangent there.

    Raises
    ------
    TypeError, ValueError, GeodesicError
        As `balanced_geodesic`.

    Examples
    --------
    >>> balanced_transport(([[2.0]], [[2.0]]), ([[1.0]], [[1.0]]), ([[4.0]], [[4.0]]))[1]
    (tensor([[4.]]), tensor([[4.]]))
    """
    with torch.no_grad():
        box, start = _prepare(split(factors), v, w)
        (end,) = travel(start, [1.0], as_tolerance(rtol, start.k.dtype))
        layers = box.network(end.frames, end.k)
        return layers, box.vector(end.frames, end.vectors[1])


def _ways(start: Network, times: list[float], rtol: float) -> list[Network]:
    """Return the network at times in any order, of either sign."""
    if start.k.shape[-1] == 1:
        return cone_travel(start, times)
    states = {0.0: start}
    for sign in (1.0, -1.0):
        ahead = sorted({sign * t for t in times if sign * t > 0})
        if ahead:
            found = travel(start if sign > 0 else start.reversed(), ahead, rtol)
            states |= {sign * t: state for t, state in zip(ahead, found, strict=True)}
    return [states[t] for t in times]


def _prepare(network: Framed, *vectors: Sequence[Any]) -> tuple[LayerBox, Network]:
    """Return the box of a network and of tangent vectors, and these in it."""
    layers, frames, lam = network
    widths = layers[0].shape[-1], *(w.shape[-2] for w in layers)
    q = stacked(frames, max(widths))
    # A box of its own width: all of the space.
    whole = LayerBox(widths, None)
    found = [
        _in_frames(whole, q, lam, as_ambient(v, layers), name)
        for v, name in zip(vectors, ("v", "w"), strict=False)
    ]
    box = LayerBox.around(widths, q, *(v.outers for v in found))
    inner = [Velocity(v.cores, box.inside(v.outers)) for v in found]
    return box, _joined(box.inside(q), torch.diag_embed(lam), inner)


def _in_frames(
    whole: LayerBox, frames: Tensor, lam: Tensor, v: list[Tensor], name: str
) -> Velocity:
    """Return a tangent vector in the frames of its network, or say why it is none."""
    q = [frames[..., p, :width, :] for p, width in enumerate(whole.widths)]
    right = stacked([a @ before for a, before in zip(v, q, strict=False)], frames.shape[-2])
    left = stacked([a.mT @ after for a, after in zip(v, q[1:], strict=True)], frames.shape[-2])
    found = tangent_blocks(frames, lam, right, left)
    pairs = zip(v, whole.vector(frames, found), strict=True)
    outside = sum(((a - b).square().sum((-2, -1)) for a, b in pairs), torch.zeros(()).to(lam))
    size = sum((a.square().sum((-2, -1)) for a in v), torch.zeros(()).to(lam))
    # Of what is left of long vectors that cancel, roundings are no part.
    eps = torch.finfo(lam.dtype).eps
    bound = eps * size + (1000.0 * eps) ** 2 * lam.square().sum(-1)
    if not bool((outside <= bound).all()):
        worst = float((outside / size.clamp_min(torch.finfo(lam.dtype).tiny)).max().sqrt())
        raise ValueError(
            f"{name} must be tangent to the balanced networks of rank {lam.shape[-1]} at the "
            f"factors, got a vector with a relative part {worst:.1e} outside"
        )
    # Square frames have nothing outside, not even roundings, which a small K would divide.
    open_ended = [width > lam.shape[-1] for width in whole.widths]
    mask = torch.tensor(open_ended, dtype=lam.dtype, device=lam.device)
    return Velocity(found.cores, found.outers * mask[:, None, None])


def _joined(frames: Tensor, k: Tensor, vectors: Sequence[Velocity]) -> Network:
    """Return a network on its way, all parts expanded to one batch."""
    batch = torch.broadcast_shapes(
        frames.shape[:-3], k.shape[:-2], *(v.cores.shape[:-3] for v in vectors)
    )
    expanded = (
        Velocity(v.cores.expand(*batch, *v.cores.shape[-3:]),
                 v.outers.expand(*batch, *v.outers.shape[-3:]))
        for v in vectors
    )  # fmt: skip
    return Network(
        frames.expand(*batch, *frames.shape[-3:]), k.expand(*batch, *k.shape[-2:]), tuple(expanded)
    )
