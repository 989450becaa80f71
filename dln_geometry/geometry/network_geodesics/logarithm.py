r"""The logarithm of the balanced networks by shooting, and their distance.

What a shot misses is compared first by its projection at the start, which is quick and good for
near networks. Where that does not do, it is taken at the arrival and transported back along the
geodesic: the correction is then the inverse of a positive operator up to the first conjugate point,
however far the goal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.geodesics import GeodesicError, as_tolerance
from dln_geometry.geometry.network_geodesics.exponential import Framed
from dln_geometry.geometry.network_geodesics.frames import (
    LayerBox,
    Velocity,
    polished,
    stacked,
    straightened,
    tangent_blocks,
)
from dln_geometry.geometry.network_geodesics.motion import Network, travel
from dln_geometry.geometry.network_geodesics.rank_one import cone_logarithm
from dln_geometry.geometry.submersion import split
from dln_geometry.ode import Secants

__all__ = ["balanced_distance", "balanced_logarithm", "logarithm_of"]

_MOST_SHOTS = 60
_SECANTS = 20
_MOST_STALLS = 8
_MOST_HALVINGS = 8
_SHORTEST_STAGE = 1.0 / 64.0
# Networks are near if most of their chord is tangent.
_NEAR = 0.8


def balanced_logarithm(
    factors: Sequence[Any], other: Sequence[Any], *, rtol: float | None = None
) -> tuple[Tensor, ...]:
    r"""Return the velocity at one balanced network of a geodesic that is at another at time 1.

    It is the short one for networks that are not far apart; for distant ones it is a geodesic, and
    another may be shorter.

    Parameters
    ----------
    factors, other : sequence of array_like
        Balanced layers ``(W_1, ..., W_N)`` of the same widths, rank and dtype. Leading dimensions
        broadcast.
    rtol : float, optional
        Error allowed, relative to the distance; ``eps^{3/4}`` by default.

    Returns
    -------
    tuple of Tensor
        Tangent at `factors`.

    Raises
    ------
    TypeError
        If an argument is no sequence of real matrices.
    ValueError
        If the layers do not chain, are not balanced, vanish, or a batch mixes ranks; if the
        networks do not go together, or lie on different components: where two widths are the rank,
        the map of one such layer to another keeps the sign of its determinant.
    GeodesicError
        If no geodesic was found.

    References
    ----------
    Menon, arXiv 2411.09004 (the balanced manifold).

    Examples
    --------
    >>> balanced_logarithm(([[2.0]], [[2.0]]), ([[5.0]], [[5.0]]))
    (tensor([[3.]]), tensor([[3.]]))
    """
    return logarithm_of(split(factors), split(other, "other"), rtol=rtol)


def logarithm_of(
    network: Framed, other: Framed, *, rtol: float | None = None
) -> tuple[Tensor, ...]:
    """Return `balanced_logarithm` of networks whose frames are known."""
    with torch.no_grad():
        box, aim = _prepare(network, other)
        v = _shoot(aim, as_tolerance(rtol, aim.lam.dtype))
        return box.vector(aim.frames, aim.velocity(v))


def balanced_distance(
    factors: Sequence[Any], other: Sequence[Any], *, rtol: float | None = None
) -> Tensor:
    r"""Return the length of the geodesic of `balanced_logarithm`, shape (...).

    At least that of the chord, ``sqrt(sum_p |W_p - W'_p|_F^2)``, and at least the distance of the
    products in the metric of depth N. Parameters and errors as in `balanced_logarithm`.

    Examples
    --------
    >>> balanced_distance(([[2.0]], [[2.0]]), ([[5.0]], [[5.0]])).square()
    tensor(18.0000)
    """
    with torch.no_grad():
        _, aim = _prepare(split(factors), split(other, "other"))
        return torch.linalg.vector_norm(_shoot(aim, as_tolerance(rtol, aim.lam.dtype)), dim=-1)


@dataclass(frozen=True)
class _Aim:
    """A network to start from, in frames in which K is `lam`, and one to arrive at."""

    frames: Tensor
    lam: Tensor
    goal: Network
    signs: Tensor | None

    def velocity(self, coordinates: Tensor) -> Velocity:
        """Return a tangent vector at the start by its coordinates."""
        depth, (width, rank) = self.frames.shape[-3] - 1, self.frames.shape[-2:]
        return Velocity.of(coordinates, depth, width, rank)

    def start(self, coordinates: Tensor) -> Network:
        """Return the start, on its way."""
        return Network(self.frames, torch.diag_embed(self.lam), (self.velocity(coordinates),))

    def chord(self) -> tuple[Tensor, Tensor]:
        """Return the projected chord, and the length of all of it."""
        chord = self.goal.layers() - Network(self.frames, torch.diag_embed(self.lam), ()).layers()
        length = torch.linalg.vector_norm(chord.flatten(-3), dim=-1)
        return _projected(self.frames, self.lam, chord).coordinates(), length

    def shoot(self, coordinates: Tensor, rtol: float, far: bool) -> tuple[Tensor, Tensor]:
        """Return what a velocity misses, as a vector at the start, and its size."""
        (end,) = travel(self.start(coordinates), [1.0], rtol)
        gap = self.goal.layers() - end.layers()
        error = torch.linalg.vector_norm(gap.flatten(-3), dim=-1)
        if not far:
            return _projected(self.frames, self.lam, gap).coordinates(), error
        lam, basis = torch.linalg.eigh(end.k)
        there = _projected(polished(end.frames) @ basis.unsqueeze(-3), lam, gap).moved(basis.mT)
        (back,) = travel(end.reversed(there), [1.0], rtol)
        gauge = self.frames[..., 0, :, :].mT @ back.frames[..., 0, :, :]
        # Errors of a rough shot must not make a velocity that is none.
        miss = straightened(self.frames, self.lam, back.vectors[1].moved(gauge.mT))
        return miss.coordinates(), error

    @cached_property
    def gauge(self) -> Tensor:
        """The rotation of all frames of the goal at once that brings them near to the start."""
        values = self.goal.k.diagonal(dim1=-2, dim2=-1)
        overlap = (self.goal.frames.mT @ self.frames).sum(-3)
        a, _, bh = torch.linalg.svd(values.unsqueeze(-1) * overlap * self.lam.unsqueeze(-2))
        if self.signs is not None:
            # Where frames are square they must be turned, not reflected.
            last = self.signs * torch.linalg.det(a @ bh)
            a = torch.cat((a[..., :-1], a[..., -1:] * last[..., None, None]), -1)
        return a @ bh

    def towards(self, part: float) -> _Aim:
        """Return the aim at a network on the way to the goal, with the frames in one gauge."""
        wide = (1.0 - part) * self.frames + part * self.goal.frames @ self.gauge.unsqueeze(-3)
        u, _, vh = torch.linalg.svd(wide, full_matrices=False)
        k = part * self.gauge.mT @ self.goal.k @ self.gauge
        k = k + (1.0 - part) * torch.diag_embed(self.lam)
        lam, basis = torch.linalg.eigh(k)
        goal = Network(u @ vh @ basis.unsqueeze(-3), torch.diag_embed(lam), ())
        return _Aim(self.frames, self.lam, goal, self.signs)


def _projected(frames: Tensor, lam: Tensor, m: Tensor) -> Velocity:
    right, left = m @ frames[..., :-1, :, :], m.mT @ frames[..., 1:, :, :]
    return tangent_blocks(frames, lam, right, left)


def _prepare(network: Framed, other: Framed) -> tuple[LayerBox, _Aim]:
    (layers, one, lam), (ends, two, end_lam) = network, other
    widths, end_widths = ((x[0].shape[-1], *(w.shape[-2] for w in x)) for x in (layers, ends))
    kinds = [(w, x.shape[-1], x.dtype, x.device) for w, x in ((widths, lam), (end_widths, end_lam))]
    if kinds[0] != kinds[1]:
        raise ValueError(
            "factors and other must have the same widths, rank, dtype and device, "
            f"got {kinds[0]} and {kinds[1]}"
        )
    q, end_q = stacked(one, max(widths)), stacked(two, max(widths))
    signs = _signs(q, end_q, widths)
    box = LayerBox.around(widths, q, end_q - q @ (q.mT @ end_q))
    batch = torch.broadcast_shapes(lam.shape[:-1], end_lam.shape[:-1])
    frames, end_frames = (
        box.inside(x).expand(*batch, *box.inside(x).shape[-3:]) for x in (q, end_q)
    )
    lam = lam.expand(*batch, lam.shape[-1])
    k = torch.diag_embed(end_lam.expand(*batch, lam.shape[-1]))
    return box, _Aim(frames, lam, Network(end_frames, k, ()), signs)


def _signs(one: Tensor, two: Tensor, widths: Sequence[int]) -> Tensor | None:
    """Return how the square frames of one network are oriented in those of the other.

    None where no frames are square. All of a sample must be oriented alike.
    """
    rank = one.shape[-1]
    square = [p for p, width in enumerate(widths) if width == rank]
    if not square:
        return None
    overlap = two[..., square, :rank, :].mT @ one[..., square, :rank, :]
    signs = torch.linalg.det(overlap).sign()
    if bool((signs != signs[..., :1]).any()):
        raise ValueError(
            "factors and other must lie on one component of the balanced networks, got two: from "
            f"one to the other the frames at p = {square}, where the width is the rank, turn by "
            "determinants of opposite signs"
        )
    return signs[..., 0]


def _shoot(aim: _Aim, rtol: float) -> Tensor:
    """Return the coordinates of the velocity that reaches the goal, by nearer goals if need be."""
    if aim.lam.shape[-1] == 1:
        return cone_logarithm(aim.frames, aim.lam, aim.goal).coordinates()
    guess, length = aim.chord()
    near = torch.linalg.vector_norm(guess, dim=-1) >= _NEAR * length
    for far in (False, True) if bool(near.all()) else (True,):
        found, missed = _correct(aim, guess, rtol, far)
        if found is not None:
            return found
    reached, stage = 0.0, 0.5
    velocity = torch.zeros_like(guess)
    while reached < 1.0:
        part = min(1.0, reached + stage)
        way = aim if part == 1.0 else aim.towards(part)
        guess = way.chord()[0] if reached == 0.0 else velocity * (part / reached)
        # On the way it is enough to be near.
        found, missed = _correct(way, guess, rtol if part == 1.0 else max(rtol, 1e-3), True)
        if found is None:
            stage *= 0.5
            if stage < _SHORTEST_STAGE:
                raise GeodesicError(
                    f"no geodesic was found from factors to other: shooting reached {reached:.0%} "
                    f"of the way and missed the next goal by {missed:.1e} of its distance (the "
                    "logarithm is local, and the balanced networks are not complete)"
                )
            continue
        velocity, reached = found, part
        stage *= 1.5
    return velocity


def _correct(aim: _Aim, velocity: Tensor, rtol: float, far: bool) -> tuple[Tensor | None, float]:
    """Return the velocity that reaches the goal, or None, and the relative error left."""
    eps = torch.finfo(velocity.dtype).eps
    size = torch.linalg.vector_norm(aim.goal.layers().flatten(-3), dim=-1)
    secants = Secants(_SECANTS)
    best = nearest = before = math.inf
    stalled = halved = 0
    finest = max(eps, 0.2 * rtol)
    # Where a shot misses by much, it need not be a fine one.
    resolved = max(finest, 1e-6)
    for _ in range(_MOST_SHOTS):
        try:
            miss, error = aim.shoot(velocity, resolved, far)
        except GeodesicError:
            halved += 1
            if halved > _MOST_HALVINGS:
                break
            # Too far: half of the last move, or of the first guess.
            last = secants.velocity
            velocity = 0.5 * (velocity + (torch.zeros_like(velocity) if last is None else last))
            continue
        bound = rtol * torch.linalg.vector_norm(velocity, dim=-1) + 100.0 * eps * size
        # Relative to the length, or to what roundings leave of it.
        worst = rtol * float((error / bound).max())
        nearest = min(nearest, worst)
        done = (error <= bound).unsqueeze(-1)
        if bool(done.all()) and resolved <= finest:
            return velocity + torch.where(done, 0.0, miss), worst
        if resolved > finest and worst < 10.0 * resolved:
            # The same shot again: neither a step nor a secant may know less than is asked for.
            secants.refine(1e3 * resolved * float(size.max()))
            resolved = finest if bool(done.all()) else max(finest, 1e-3 * worst)
            continue
        stalled = stalled + 1 if worst > 0.7 * best else 0
        best = min(best, worst)
        if stalled > _MOST_STALLS or not math.isfinite(worst):
            break
        velocity = velocity + torch.where(done, 0.0, secants.step(velocity, miss))
        # The next one misses by less, at the rate so far.
        expected = worst * min(max(worst / before, 1e-3), 0.1)
        resolved, before = min(resolved, max(finest, 1e-3 * expected)), worst
    return None, min(nearest, 1.0)
