r"""Geodesics of the balanced networks with the Frobenius metric of their layers.

``W'' = II(W', W')`` in moving frames. A geodesic that starts horizontally stays so, and its product
is a geodesic of the depth-N metric; every geodesic conserves the antisymmetric parts of
``W_p' W_p^T - W_{p+1}^T W_{p+1}'``, since the rotations of the layers are isometries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.geodesics import as_times, as_tolerance
from dln_geometry.geometry.network_geodesics.frames import (
    LayerBox,
    Velocity,
    of_unit_size_together,
    padded_stack,
    resized,
    tangent_blocks,
)
from dln_geometry.geometry.network_geodesics.motion import MovingNetwork, travel
from dln_geometry.geometry.network_geodesics.rank_one import cone_travel
from dln_geometry.geometry.points import Network, balanced_network, complex_form, real_form
from dln_geometry.geometry.submersion import as_ambient, as_ambient_pair
from dln_geometry.support import broadcast_shapes, refuse_derivatives


def balanced_geodesic(
    factors: Sequence[Any], v: Sequence[Any], t: Any = 1.0, *, rtol: float | None = None
) -> tuple[Tensor, ...]:
    r"""Return the balanced network at time t of the geodesic from `factors` with velocity `v`.

    At time 1 it is the exponential map. Not differentiable by autograd. Other parameters as in
    `geodesic`.

    Parameters
    ----------
    factors : sequence of array_like
        Balanced layers ``(W_1, ..., W_N)`` of one rank, W_p of shape (..., d_p, d_{p-1}).
    v : sequence of array_like
        Tangent vector: one matrix of the same shape for every layer. Leading dimensions broadcast.

    Returns
    -------
    tuple of Tensor
        Balanced layers of shape (..., d_p, d_{p-1}) for a number, (k, ..., d_p, d_{p-1}) for a
        vector of times.

    Raises
    ------
    ValueError
        If the layers are not balanced, vanish, or a batch mixes ranks; if `v` is not tangent.
    GeodesicError
        If the geodesic meets networks of lower rank before t, which are at finite distance.

    References
    ----------
    Menon, arXiv 2411.09004 (the balanced manifold).

    Examples
    --------
    Layers that are numbers are equal, and move along a straight line:

    >>> dln.balanced_geodesic(([[2.0]], [[2.0]]), ([[1.0]], [[1.0]]), 3.0)
    (tensor([[5.]]), tensor([[5.]]))
    """
    times = as_times(t)
    network = balanced_network(factors, complex=True)
    v = as_ambient(v, network)
    if network.dtype.is_complex:
        real, move = real_layers(network, v)
        moved = balanced_geodesic(real, move, t, rtol=rtol)
        return tuple(complex_form(w) for w in moved)
    refuse_derivatives("balanced_geodesic", *network, *v, t)
    with torch.no_grad():
        size, network, v = of_unit_size_together(network, v)
        box, start = starting(network, v)
        ways = _ways(start, times.reshape(-1).tolist(), as_tolerance(rtol, start.k.dtype))
        if times.ndim == 0:
            return resized(box.network(ways[0].frames, ways[0].k), size)
        layers = (resized(box.network(way.frames, way.k), size) for way in ways)
        return tuple(torch.stack(layer) for layer in zip(*layers, strict=True))


def balanced_transport(
    factors: Sequence[Any], v: Sequence[Any], w: Sequence[Any], *, rtol: float | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    r"""Transport a tangent vector along the geodesic with velocity `v` from t = 0 to 1.

    ``w' = II(W', w)``, integrated together with the geodesic; an isometry up to the tolerance.
    Other parameters and errors as in `balanced_geodesic`.

    Parameters
    ----------
    v, w : sequence of array_like
        Tangent vectors: the velocity of the geodesic, and the vector to transport.
    rtol : float, optional
        Error allowed, relative to the distance travelled and to the length of `w`.

    Returns
    -------
    tuple of Tensor, tuple of Tensor
        The end point, and the transported vector there.

    Examples
    --------
    >>> dln.balanced_transport(([[2.0]], [[2.0]]), ([[1.0]], [[1.0]]), ([[4.0]], [[4.0]]))[1]
    (tensor([[4.]]), tensor([[4.]]))
    """
    network = balanced_network(factors, complex=True)
    v, w = as_ambient_pair(v, w, network)
    if network.dtype.is_complex:
        there, moved = balanced_transport(*real_layers(network, v, w), rtol=rtol)
        return tuple(map(complex_form, there)), tuple(map(complex_form, moved))
    refuse_derivatives("balanced_transport", *network, *v, *w)
    with torch.no_grad():
        size, network, v, w = of_unit_size_together(network, v, w)
        box, start = starting(network, v, w)
        (end,) = travel(start, [1.0], as_tolerance(rtol, start.k.dtype))
        there, moved = box.network(end.frames, end.k), box.vector(end.frames, end.vectors[1])
        return resized(there, size), resized(moved, size)


def real_layers(*layers: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the real forms of complex layers, the fixed points of an isometry of real networks."""
    return [[real_form(w) for w in each] for each in layers]


def _ways(start: MovingNetwork, times: list[float], rtol: float) -> list[MovingNetwork]:
    """Return the networks at times in any order, of either sign."""
    if start.k.shape[-1] == 1:
        return cone_travel(start, times)
    states = {0.0: start}
    for sign in (1.0, -1.0):
        if ahead := sorted({sign * t for t in times if sign * t > 0}):
            found = travel(start if sign > 0 else start.reversed(), ahead, rtol)
            states |= {sign * t: state for t, state in zip(ahead, found, strict=True)}
    return [states[t] for t in times]


def starting(network: Network, *vectors: Sequence[Any]) -> tuple[LayerBox, MovingNetwork]:
    """Return the box of a network and of tangent vectors, and these in it."""
    lam, widths = network.spectrum, network.widths
    q, whole = padded_stack(network.frames, max(widths)), LayerBox(widths, None)
    found = [
        _in_frames(whole, q, lam, as_ambient(v, network, name), name)
        for v, name in zip(vectors, ("v", "w"), strict=False)
    ]
    box = LayerBox.around(widths, q, *(v.outers for v in found))
    inner = [Velocity(v.cores, box.inside(v.outers)) for v in found]
    batch = broadcast_shapes(lam.shape[:-1], *(v.cores.shape[:-3] for v in inner))
    start = MovingNetwork(box.inside(q), torch.diag_embed(lam), tuple(inner))
    return box, start.map(lambda x, own: x.expand(*batch, *x.shape[-own:]))


def _in_frames(
    whole: LayerBox, frames: Tensor, lam: Tensor, v: list[Tensor], name: str
) -> Velocity:
    """Return a tangent vector in the frames of its network, or say why it is none."""
    q = [frames[..., p, :width, :] for p, width in enumerate(whole.widths)]
    right = padded_stack([a @ before for a, before in zip(v, q, strict=False)], frames.shape[-2])
    left = padded_stack([a.mT @ after for a, after in zip(v, q[1:], strict=True)], frames.shape[-2])
    found = tangent_blocks(frames, lam, right, left)
    pairs, zero = zip(v, whole.vector(frames, found), strict=True), lam.new_zeros(())
    outside = sum(((a - b).square().sum((-2, -1)) for a, b in pairs), zero)
    size = sum((a.square().sum((-2, -1)) for a in v), zero)
    # Allow rounding relative to the network, for vectors that are differences of long ones.
    eps = torch.finfo(lam.dtype).eps
    bound = eps * size + (1000.0 * eps) ** 2 * lam.square().sum(-1)
    if not bool((outside <= bound).all()):
        worst = float((outside / size.clamp_min(torch.finfo(lam.dtype).tiny)).max().sqrt())
        raise ValueError(
            f"{name} must be tangent to the balanced networks of rank {lam.shape[-1]} at the "
            f"factors, got a vector with a relative part {worst:.1e} outside"
        )
    # Square frames have no outer parts: remove their rounding errors, which a small K magnifies.
    mask = lam.new_tensor([width > lam.shape[-1] for width in whole.widths])
    return Velocity(found.cores, found.outers * mask[:, None, None])
