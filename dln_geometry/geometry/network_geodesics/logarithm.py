r"""The logarithm of the balanced networks by shooting, and their distance.

For near networks, project the gap between arrival and goal at the start, which is quick. Where that
fails, project it at the arrival and transport it back along the geodesic: up to the first conjugate
point the correction is then the inverse of a positive operator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dln_geometry.geometry.geodesics import Aim, as_tolerance, shoot
from dln_geometry.geometry.network_geodesics.exponential import real_layers
from dln_geometry.geometry.network_geodesics.frames import (
    LayerBox,
    Velocity,
    of_unit_size_together,
    padded_stack,
    projected,
    resized,
    straightened,
)
from dln_geometry.geometry.network_geodesics.motion import MovingNetwork, attempt
from dln_geometry.geometry.network_geodesics.rank_one import cone_logarithm
from dln_geometry.geometry.points import (
    Network,
    balanced_network,
    by_power_of_two,
    complex_form,
    orthonormalized,
)
from dln_geometry.support import common_batch, refuse_derivatives

# Networks are near if most of their chord is tangent.
_NEAR = 0.8


def balanced_logarithm(
    factors: Sequence[Any], other: Sequence[Any], *, rtol: float | None = None
) -> tuple[Tensor, ...]:
    r"""Return the velocity at one balanced network of a geodesic that is at another at time 1.

    It is the short one for networks that are not far apart; for distant ones it is a geodesic, and
    another may be shorter. Other parameters as in `logarithm`.

    Parameters
    ----------
    factors, other : sequence of array_like
        Balanced layers ``(W_1, ..., W_N)`` of the same widths, rank and dtype. Leading dimensions
        broadcast.

    Returns
    -------
    tuple of Tensor
        Tangent at `factors`.

    Raises
    ------
    ValueError
        If the layers are not balanced, vanish, or a batch mixes ranks; if the networks lie on
        different components: where two widths are the rank, the map from one such layer to another
        keeps the sign of its determinant.
    GeodesicError
        If no geodesic was found.

    References
    ----------
    Menon, arXiv 2411.09004 (the balanced manifold).

    Examples
    --------
    >>> dln.balanced_logarithm(([[2.0]], [[2.0]]), ([[5.0]], [[5.0]]))
    (tensor([[3.]]), tensor([[3.]]))
    """
    start, end = _pair_of_networks(factors, other)
    if start.dtype.is_complex:
        return tuple(map(complex_form, balanced_logarithm(*real_layers(start, end), rtol=rtol)))
    refuse_derivatives("balanced_logarithm", *start, *end)
    with torch.no_grad():
        size, start, end = of_unit_size_together(start, end)
        box, aim, batch = aim_at(start, end)
        frames = aim.frames.reshape(*batch, *aim.frames.shape[-3:])
        return resized(box.vector(frames, aim.velocity(_coordinates(aim, rtol, batch))), size)


def balanced_distance(
    factors: Sequence[Any], other: Sequence[Any], *, rtol: float | None = None
) -> Tensor:
    r"""Return the length of the geodesic of `balanced_logarithm`, shape (...).

    At least that of the chord, ``sqrt(sum_p |W_p - W'_p|_F^2)``, and at least the distance of the
    products in the metric of depth N. Parameters and errors as in `balanced_logarithm`.

    Examples
    --------
    >>> dln.balanced_distance(([[2.0]], [[2.0]]), ([[5.0]], [[5.0]])).square()
    tensor(18.0000)
    """
    start, end = _pair_of_networks(factors, other)
    if start.dtype.is_complex:
        return balanced_distance(*real_layers(start, end), rtol=rtol) / math.sqrt(2.0)
    refuse_derivatives("balanced_distance", *start, *end)
    with torch.no_grad():
        size, start, end = of_unit_size_together(start, end)
        _, aim, batch = aim_at(start, end)
        length = torch.linalg.vector_norm(_coordinates(aim, rtol, batch), dim=-1)
        return length if size is None else by_power_of_two(length, size, 0)


def _pair_of_networks(factors: Sequence[Any], other: Sequence[Any]) -> tuple[Network, Network]:
    pair = balanced_network(factors, complex=True), balanced_network(other, "other", complex=True)
    kinds = [(x.widths, x.spectrum.shape[-1], x.dtype, x.device) for x in pair]
    if kinds[0] != kinds[1]:
        wanted, got = "the same widths, rank, dtype and device", f"{kinds[0]} and {kinds[1]}"
        raise ValueError(f"factors and other must have {wanted}, got {got}")
    return pair


@dataclass(frozen=True)
class NetworkAim(Aim):
    """The aim from networks, in frames in which K is `lam`, at others; see `Aim`."""

    frames: Tensor
    lam: Tensor
    goal: MovingNetwork
    signs: Tensor | None  # orientation of the goal's square frames in those of the start
    transported: bool  # whether to project the gap at the arrival and transport it back

    names, incomplete = "factors to other", "the balanced networks are"
    progress, patience, longest, resolution = 0.7, (8, 8), math.inf, 1e-2

    @cached_property
    def size(self) -> Tensor:
        """Norm of all layers of the goal, (B,), to which rounding is relative."""
        return torch.linalg.vector_norm(self.goal.layers().flatten(-3), dim=-1)

    def velocity(self, coordinates: Tensor) -> Velocity:
        """Return a tangent vector at the start by its coordinates."""
        points, width, rank = self.frames.shape[-3:]
        return Velocity.of(coordinates, points - 1, width, rank)

    def start(self, *vectors: Velocity) -> MovingNetwork:
        """Return the start, on its way."""
        return MovingNetwork(self.frames, torch.diag_embed(self.lam), vectors)

    @cached_property
    def chord(self) -> tuple[Tensor, Tensor]:
        """The coordinates of the projected chord, and the length of the whole one."""
        chord = self.goal.layers() - self.start().layers()
        length = torch.linalg.vector_norm(chord.flatten(-3), dim=-1)
        return projected(self.frames, self.lam, chord).coordinates(), length

    def guess(self) -> Tensor:
        return self.chord[0].clone()

    def shoot(self, velocity: Tensor, resolved: float) -> tuple[Tensor, Tensor, Tensor]:
        (end,), journey = attempt(self.start(self.velocity(velocity)), [1.0], resolved)
        arrives = np.isnan(journey.lost)
        gap = self.goal.layers() - end.layers()
        distance = torch.linalg.vector_norm(gap.flatten(-3), dim=-1)
        if self.transported:
            lam, basis = torch.linalg.eigh(end.k)
            frames = orthonormalized(end.frames, 2) @ basis.unsqueeze(-3)
            there = projected(frames, lam, gap).moved(basis.mT)
            (back,), journey = attempt(end.reversed(there), [1.0], resolved)
            arrives = arrives & np.isnan(journey.lost)
            gauge = self.frames[..., 0, :, :].mT @ back.frames[..., 0, :, :]
            # A rough shot leaves errors outside the tangent space: remove them.
            miss = straightened(self.frames, self.lam, back.vectors[1].moved(gauge.mT))
        else:
            miss = projected(self.frames, self.lam, gap)
        return miss.coordinates(), distance, torch.as_tensor(arrives, device=velocity.device)

    @cached_property
    def gauge(self) -> Tensor:
        """The rotation of all frames of the goal at once that brings them near to the start."""
        values = self.goal.k.diagonal(dim1=-2, dim2=-1)
        overlap = (self.goal.frames.mT @ self.frames).sum(-3)
        a, _, bh = torch.linalg.svd(values.unsqueeze(-1) * overlap * self.lam.unsqueeze(-2))
        if self.signs is not None:
            # Square frames can be turned to each other, not reflected.
            last = self.signs * torch.linalg.det(a @ bh)
            a = torch.cat((a[..., :-1], a[..., -1:] * last[..., None, None]), -1)
        return a @ bh

    def towards(self, part: float) -> NetworkAim:
        wide = (1.0 - part) * self.frames + part * self.goal.frames @ self.gauge.unsqueeze(-3)
        u, _, vh = torch.linalg.svd(wide, full_matrices=False)
        k = part * self.gauge.mT @ self.goal.k @ self.gauge
        k = k + (1.0 - part) * torch.diag_embed(self.lam)
        lam, basis = torch.linalg.eigh(k)
        goal = MovingNetwork(u @ vh @ basis.unsqueeze(-3), torch.diag_embed(lam))
        return replace(self, goal=goal)

    def of_samples(self, samples: Tensor) -> NetworkAim:
        signs = None if self.signs is None else self.signs[samples]
        goal = self.goal.map(lambda x, _: x[samples])
        return NetworkAim(self.frames[samples], self.lam[samples], goal, signs, self.transported)


def aim_at(network: Network, other: Network) -> tuple[LayerBox, NetworkAim, torch.Size]:
    """Return the box of the geodesics between networks, the aim in one row, and the batch."""
    widths = network.widths
    q, end_q = (padded_stack(x.frames, max(widths)) for x in (network, other))
    signs = _signs(q, end_q, widths)
    box = LayerBox.around(widths, q, end_q - q @ (q.mT @ end_q))
    batch = common_batch(factors=network.batch_shape, other=other.batch_shape)
    start, goal = (
        MovingNetwork(box.inside(frames), torch.diag_embed(x.spectrum))
        .map(lambda x, own: x.expand(*batch, *x.shape[-own:]))
        .reshaped(-1)
        for frames, x in ((q, network), (end_q, other))
    )
    signs = None if signs is None else signs.expand(batch).reshape(-1)
    lam = start.k.diagonal(dim1=-2, dim2=-1)
    return box, NetworkAim(start.frames, lam, goal, signs, False), batch


def _signs(one: Tensor, two: Tensor, widths: Sequence[int]) -> Tensor | None:
    """Return the orientation of one network's square frames in the other's, None without any."""
    rank = one.shape[-1]
    square = [p for p, width in enumerate(widths) if width == rank]
    if not square:
        return None
    # A list of indices would be brought to the device, which waits.
    pairs = [[x[..., p, :rank, :] for x in (two, one)] for p in square]
    overlap = torch.stack([second.mT @ first for second, first in pairs], -3)
    signs = torch.linalg.det(overlap).sign()
    if bool((signs != signs[..., :1]).any()):
        raise ValueError(
            "factors and other must lie on one component of the balanced networks, got two: from "
            f"one to the other the frames at p = {square}, where the width is the rank, turn by "
            "determinants of opposite signs"
        )
    return signs[..., 0]


def _coordinates(aim: NetworkAim, rtol: float | None, batch: torch.Size) -> Tensor:
    """Return the coordinates of the velocity that reaches the goal, shape (*batch, k)."""
    if aim.lam.shape[-1] == 1:
        found = cone_logarithm(aim.frames, aim.lam, aim.goal).coordinates()
        return found.reshape(*batch, found.shape[-1])
    guess, length = aim.chord
    near = bool((torch.linalg.vector_norm(guess, dim=-1) >= _NEAR * length).all())
    exact = replace(aim, transported=True)
    return shoot([aim, exact] if near else [exact], as_tolerance(rtol, aim.lam.dtype), batch)
