"""Geodesics of balanced networks, ``W'' = II(W', W')``, and how they are aimed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dln_geometry.geometry.bundle import horizontal_frame, vertical_frame
from dln_geometry.geometry.collocation import StepFailure, integrate
from dln_geometry.geometry.geodesics import GeodesicError
from dln_geometry.geometry.second_form import acceleration
from manifolds._geomstats.arrays import as_layers, to_padded

__all__ = ["Shooting"]

_MOST_SHOTS = 60
_MOST_HALVINGS = 8


class Shooting:
    """Geodesics of the balanced networks of given widths and rank, on padded tensors.

    Parameters
    ----------
    widths : sequence of int
    rank : int
    rtol : float
        Error allowed, relative to what is travelled and carried.
    """

    def __init__(self, widths: Sequence[int], rank: int, rtol: float) -> None:
        self.widths = widths
        self.rank = rank
        self.rtol = rtol

    def velocity(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the velocity at x of a geodesic that is at y at time 1.

        Parameters
        ----------
        x, y : Tensor, shape (..., N, D, D)

        Raises
        ------
        GeodesicError
            If none is found.
        """
        frame = self.frame(x)
        goal = y.flatten(-3)
        distance = torch.linalg.vector_norm(goal - x.flatten(-3), dim=-1)
        bound = 10 * self.rtol * distance + 300 * torch.finfo(x.dtype).eps * goal.norm(dim=-1)
        c = torch.einsum("...km,...m->...k", frame, goal - x.flatten(-3))
        inverse = torch.eye(c.shape[-1], dtype=c.dtype, device=c.device).expand(*c.shape, -1)
        c, miss = self._first_shot(x, frame, goal, c)
        for _ in range(_MOST_SHOTS):
            done = miss.norm(dim=-1) <= bound
            if bool(done.all()):
                return torch.einsum("...k,...km->...m", c, frame).reshape(y.shape)
            c, miss, inverse = self._corrected(x, frame, goal, c, miss, inverse, done)
        raise GeodesicError(
            "point must be joined to base_point by a geodesic within the balanced networks; "
            f"shooting ends at a distance of {float(miss.norm(dim=-1).max()):.1e}"
        )

    def _layers(self, x: Tensor) -> tuple[Tensor, ...]:
        return as_layers(x, self.widths)

    def frame(self, x: Tensor) -> Tensor:
        """Return an orthonormal frame of the tangent space, shape (..., dim, N D D)."""
        layers = self._layers(x)
        parts = zip(horizontal_frame(layers), vertical_frame(layers), strict=True)
        return to_padded([torch.cat(p, -3) for p in parts], x.shape[-1]).flatten(-3)

    def _arrival(self, x: Tensor, frame: Tensor, c: Tensor) -> Tensor:
        v = torch.einsum("...k,...km->...m", c, frame).reshape(x.shape)
        return self.path(x, v, torch.ones(1))[0][..., 0, :, :, :].flatten(-3)

    def _first_shot(
        self, x: Tensor, frame: Tensor, goal: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return a velocity that stays within the networks, and by how much it misses."""
        for _ in range(_MOST_HALVINGS):
            try:
                return c, self._arrival(x, frame, c) - goal
            except GeodesicError:
                c = 0.5 * c
        raise GeodesicError("the point must be joined to base_point, but every short way leaves")

    def _corrected(
        self,
        x: Tensor,
        frame: Tensor,
        goal: Tensor,
        c: Tensor,
        miss: Tensor,
        inverse: Tensor,
        done: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take a step of Broyden's method, from the inverse Jacobian 1 of a flat space."""
        fault = torch.einsum("...km,...m->...k", frame, miss)
        step = -torch.einsum("...kl,...l->...k", inverse, fault)
        step = torch.where(done.unsqueeze(-1), 0.0, step)
        for _ in range(_MOST_HALVINGS):
            try:
                after = self._arrival(x, frame, c + step) - goal
            except GeodesicError:
                step = 0.5 * step
                continue
            worse = after.norm(dim=-1) > 2.0 * miss.norm(dim=-1)
            if not bool((worse & ~done).any()):
                break
            step = torch.where(worse.unsqueeze(-1), 0.5 * step, step)
        else:
            raise GeodesicError(
                "point must be joined to base_point by a geodesic within the balanced networks; "
                "shooting leaves them"
            )
        change = torch.einsum("...km,...m->...k", frame, after - miss)
        carried = torch.einsum("...kl,...l->...k", inverse, change)
        along = torch.einsum("...k,...kl->...l", step, inverse)
        scale = (step * carried).sum(-1, keepdim=True)
        usable = scale.abs() > torch.finfo(c.dtype).tiny
        update = (step - carried) / torch.where(usable, scale, 1.0)
        update = torch.where(usable & ~done.unsqueeze(-1), update, 0.0)
        inverse = inverse + update.unsqueeze(-1) * along.unsqueeze(-2)
        return c + step, torch.where(done.unsqueeze(-1), miss, after), inverse

    def path(
        self,
        x: Tensor,
        v: Tensor,
        times: Tensor,
        carried: Tensor | None = None,
    ) -> list[Tensor]:
        """Return positions, velocities (and a carried vector), each of shape (..., T, N, D, D)."""
        start = torch.stack([x, v] if carried is None else [x, v, carried])
        states = {0.0: start}
        for sign in (1.0, -1.0):
            # Both ways from 0: a geodesic may be asked for where it came from.
            ahead = sorted({float(t) for t in sign * times if t > 0})
            if ahead:
                found = self._integrate(start, sign, ahead)
                states |= {sign * t: state for t, state in zip(ahead, found, strict=True)}
        self._check_crossing(x, [state[0] for state in states.values()])
        return [torch.stack([states[float(t)][k] for t in times], -4) for k in range(len(start))]

    def _check_crossing(self, x: Tensor, positions: list[Tensor]) -> None:
        """Refuse to pass smoothly through a smaller rank, which an integrator does not notice.

        Where all widths are the rank, that happens on a hypersurface, and changes the sign of
        every layer's determinant; elsewhere a path misses it.
        """
        if set(self.widths) != {self.rank}:
            return
        sign = torch.linalg.slogdet(x[..., 0, :, :]).sign
        for position in positions:
            if bool((torch.linalg.slogdet(position[..., 0, :, :]).sign != sign).any()):
                raise GeodesicError(
                    "the geodesic must keep its rank, but it passes through networks of a smaller "
                    "one: the determinants of its layers change their sign"
                )

    def _integrate(self, start: Tensor, sign: float, times: list[float]) -> list[Tensor]:
        """Return the states ``(W, W', carried)`` at increasing times, forwards or backwards."""

        def field(state: Tensor) -> Tensor:
            velocity = self._layers(state[1])
            position, moving = self._layers(state[0]), self._layers(state[1:])
            moved = acceleration(position, velocity, moving, self.rank)
            return sign * torch.cat((state[1:2], to_padded(moved, start.shape[-1])))

        lengths = start.flatten(-3).norm(dim=-1)
        scale = torch.cat((lengths[1:2] * times[-1], lengths[1:]))
        # Roundings of the layers themselves bound what can be resolved.
        floor = lengths[:1] * (10.0 * torch.finfo(start.dtype).eps / self.rtol)
        scale = torch.cat((scale[:1].maximum(floor), scale[1:])).clamp_min(
            torch.finfo(start.dtype).tiny
        )

        def coordinates(difference: Tensor) -> Tensor:
            return difference.flatten(-3) / scale.unsqueeze(1).unsqueeze(-1)

        try:
            return integrate(
                field,
                start,
                times,
                coordinates_at=lambda _: coordinates,
                rtol=self.rtol,
                shortest=times[-1] * torch.finfo(start.dtype).eps ** 0.75,
            )
        except StepFailure as failure:
            smallest = torch.linalg.svdvals(self._layers(failure.state[0])[0])
            raise GeodesicError(
                f"the geodesic must keep its rank up to t = {times[-1]:g}, but near "
                f"t = {failure.time:.6g} the smallest singular value of a layer is "
                f"{float(smallest[..., self.rank - 1].min()):.1e} and falls to zero"
            ) from None
