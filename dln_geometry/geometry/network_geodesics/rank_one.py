r"""Networks of rank one: a cone over a product of spheres, whose geodesics have a closed form.

``W_p = lam q_p q_{p-1}^T`` with unit vectors q_p: the metric is ``d rho^2 + rho^2 d phi^2`` with
``rho = sqrt(N) lam`` and ``N d phi^2 = sum_p w_p |dq_p|^2``, ``w_p`` the number of layers that q_p
turns. A geodesic is a straight line in the plane to which the cone unrolls, and turns all q_p along
great circles at constant ratios.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dln_geometry.geometry.geodesics import GeodesicError
from dln_geometry.geometry.network_geodesics.frames import Velocity
from dln_geometry.geometry.network_geodesics.motion import MovingNetwork


def cone_travel(start: MovingNetwork, times: list[float]) -> list[MovingNetwork]:
    """Return the networks at times of either sign; refuse a geodesic straight into zero."""
    frames, lam = start.frames, start.k[..., 0, 0]
    blurred = 10.0 * torch.finfo(lam.dtype).eps
    # In units of rho.
    along = start.vectors[0].cores[..., 0, 0, 0] / lam
    turns = start.vectors[0].outers / lam[..., None, None, None]
    speeds = torch.linalg.vector_norm(turns, dim=(-2, -1))
    across = _angle(speeds)
    directions = turns / torch.where(speeds > 0, speeds, 1.0)[..., None, None]
    # The angle that q_p turns by for one of phi.
    shares = speeds / torch.where(across > 0, across, 1.0).unsqueeze(-1)
    found = []
    for t in times:
        ahead, aside = 1.0 + t * along, t * across
        straight = aside.abs() <= blurred * (1.0 + (t * along).abs())
        if bool(((ahead <= 0) & straight).any()):
            raise GeodesicError(
                f"the geodesic must keep its rank up to t = {t:g}, but it runs straight into the "
                "zero network, where singular vectors of the layers change their sign"
            )
        angles = (torch.atan2(aside, ahead).unsqueeze(-1) * shares)[..., None, None]
        turned = torch.cos(angles) * frames + torch.sin(angles) * directions
        found.append(MovingNetwork(turned, (lam * torch.hypot(ahead, aside))[..., None, None]))
    return found


def cone_logarithm(frames: Tensor, lam: Tensor, goal: MovingNetwork) -> Velocity:
    """Return the velocity of the geodesic to another network, the shorter of both signs."""
    lam, blurred = lam[..., 0], 10.0 * torch.finfo(lam.dtype).eps
    inside = (frames * goal.frames).sum((-2, -1))
    outside = goal.frames - inside[..., None, None] * frames
    sines = torch.linalg.vector_norm(outside, dim=(-2, -1))
    angles = torch.stack([torch.atan2(sines, sign * inside) for sign in (1.0, -1.0)])
    # The great circle to the opposite point is not unique; in one dimension there is none.
    angles = torch.where(math.pi - angles < blurred, math.inf, angles)
    both = _angle(angles)
    phi, second = both.min(0)
    if not bool((phi < math.pi).all()):
        raise GeodesicError(
            "no geodesic was found from factors to other: networks of rank one are joined past "
            "zero only if they are at an angle below pi"
        )
    angles = torch.where(second.bool().unsqueeze(-1), angles[1], angles[0])
    sign = torch.where(second.bool(), -torch.ones_like(phi), 1.0)
    ratio = goal.k[..., 0, 0] / lam
    # across / phi is the speed of a turn by one radian.
    speed = ratio * torch.where(phi > 0, torch.sin(phi) / torch.where(phi > 0, phi, 1.0), 1.0)
    scale = sign.unsqueeze(-1) * angles / torch.where(sines > 0, sines, 1.0)
    outers = outside * (scale * (lam * speed).unsqueeze(-1))[..., None, None]
    core = lam * (ratio * torch.cos(phi) - 1.0)
    cores = core[..., None, None, None].expand(*core.shape, frames.shape[-3] - 1, 1, 1)
    return Velocity(cores, outers)


def _angle(turns: Tensor) -> Tensor:
    """Return phi from the angles of all q_p, shape (..., N + 1)."""
    squares = turns.square() / (turns.shape[-1] - 1)
    # Each hidden vector turns two layers.
    return (squares.sum(-1) + squares[..., 1:-1].sum(-1)).sqrt()
