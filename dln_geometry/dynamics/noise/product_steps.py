"""Langevin steps on the end-to-end matrices: the product step with noise, one SVD each."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import contract, evaluate
from dln_geometry.dynamics.noise.simulation import Diverged
from dln_geometry.geometry.metric import ProductFrame, layers_of_step, thin_svd
from dln_geometry.geometry.points import Collapsed, EndToEnd

__all__ = [
    "Downstairs",
    "Gaussians",
    "StepWatch",
    "Thermostat",
    "decomposable",
    "descent",
    "gradient_parts",
    "way_and_reach",
]


@dataclass(frozen=True)
class Thermostat:
    """What drives a motion besides the noise.

    Attributes
    ----------
    loss : Loss or None
        Prepared for the points.
    beta, kappa : float
        Inverse temperature, and the ratio of the noise across the orbits to that along them.
    entropy : bool
        Whether the noise along the orbits acts.
    excess : float
        ``sum_p (d_p - r)`` over the hidden layers.
    """

    loss: Any
    beta: float
    kappa: float
    entropy: bool
    excess: float = 0.0

    @property
    def amplitude(self) -> float:
        """Size of the noise across the orbits, ``sqrt(2 kappa / beta)``."""
        return math.sqrt(2.0 * self.kappa / self.beta)


class Gaussians:
    """The source of randomness: a generator, or increments of a Brownian motion of matrices.

    Parameters
    ----------
    generator : torch.Generator or None
    increments : Tensor, shape (steps, ..., m, n), optional
        Independent Gaussians with the variance of the step size.
    """

    def __init__(self, generator: torch.Generator | None, increments: Tensor | None = None) -> None:
        self.generator, self.increments = generator, increments

    def draw(self, shape: tuple[int, ...], like: Tensor, scale: float) -> Tensor:
        """Return independent Gaussians of standard deviation `scale`."""
        if self.generator is None:
            raise ValueError("generator must be given where there is noise, got None")
        z = torch.randn(
            shape, generator=self.generator, dtype=like.dtype, device=self.generator.device
        )
        return z.mul_(scale).to(like.device)

    def frames(self, point: EndToEnd, h: float, index: int, scale: float) -> list[Tensor | None]:
        """Return the increment in the frames of a point: core, left and right part."""
        (m, n), r = point.shape, point.rank
        s, batch = point.s, point.s.shape[:-1]
        if self.increments is not None:
            z = scale * self.increments[index]
            zv = z @ point.vh.mT
            right = point.u.mT @ z if n > r else None
            return [point.u.mT @ zv, zv if m > r else None, right]
        root = scale * math.sqrt(h)
        sizes = [(r, r), (m, r) if m > r else None, (r, n) if n > r else None]
        return [None if d is None else self.draw((*batch, *d), s, root) for d in sizes]


def gradient_parts(
    loss: Any, point: EndToEnd, x: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return ``(E, U^T G V, G V, s U^T G)`` without forming what a thin point does not need.

    The last is scaled by the singular values; it and ``G V`` are only used outside the range. `x`
    is the matrix of the point, where it is known.
    """
    (m, n), r = point.shape, point.rank
    scaled = point.u * point.s.unsqueeze(-2)
    if m == n == r:
        value, g = evaluate(loss, scaled @ point.vh if x is None else x)
        return value, (point.u.mT @ g) @ point.vh.mT, None, g
    value, gv, gu = contract(loss, scaled, point.vh.mT)
    return value, point.u.mT @ gv, gv, gu.mT


class StepWatch:
    """Warn once if steps along the gradient are as long as points are from zero."""

    def __init__(self, depth: float) -> None:
        # At depths below 2 zero is no special place.
        self._done = depth < 2

    def __call__(self, squares: Tensor, reach: Tensor, h: float) -> None:
        """Look at moves of these squared lengths, (...), at these squared distances."""
        if self._done:
            return
        way, size = squares.mean().sqrt(), reach.mean().sqrt()
        # A tamed move is never longer than the reach: half of it is 0.58 untamed.
        if float(way) > 0.5 * float(size) > 0:
            self._done = True
            warnings.warn(
                f"dt = {h:g} is too large for this loss: one step along the gradient is as long as "
                f"{float(way / size):.2g} of the way to the zero matrix (1 is the most it may be), "
                "and what follows means little; take a smaller dt",
                UserWarning,
                stacklevel=6,
            )


class Downstairs:
    r"""Langevin dynamics on the matrices of rank r by product steps.

    ``eta = -h sqrt(a) o U^T E'(X) V + sqrt(2 kappa h / beta) xi`` (see `descent`); the
    entropic drift moves the flat coordinate by ``2 h k / (lam + sqrt(lam^2 + 4 h k))``,
    ``k = (s dS/ds) / beta``: implicit, so that it is finite where singular values vanish, and
    ``h k / lam`` elsewhere.

    States are ``(u, s, vh)``, and the matrix if it is square and of full rank.
    """

    def __init__(
        self, drive: Thermostat, noise: Gaussians, start: EndToEnd, collapsed: bool
    ) -> None:
        self.drive, self.noise = drive, noise
        self.depth, self.normalized = start.depth, start.normalized
        self.collapsed = collapsed
        self.watch = StepWatch(start.depth)

    def advance(self, state: tuple[Tensor, ...], h: float, index: int) -> tuple[Tensor, ...]:
        """Return the state after one step."""
        point, drive = self._at(state), self.drive
        frame = ProductFrame(point, layers=_factors(self.depth))
        value = point.s.new_zeros(point.s.shape[:-1])
        moves: list[Tensor | None] = [None, None, None]
        if drive.kappa > 0:
            moves = self.noise.frames(point, h, index, drive.amplitude)
        if drive.loss is not None:
            value, parts = descent(drive.loss, frame, h, *state[3:])
            if index & (index - 1) == 0:
                self.watch(*way_and_reach(frame, parts), h)
            moves = [_sum(z, g) for z, g in zip(moves, parts, strict=True)]
        core, left, right = moves
        (m, n), r = point.shape, point.rank
        if core is None:
            core = point.s.new_zeros(*point.s.shape, r)
        if drive.entropy:
            diagonal = core.diagonal(dim1=-2, dim2=-1)
            diagonal += self._entropic(frame, h)
        last, first = frame.move(core, left, right)
        try:
            if m == n == r:
                x = last @ first
                moved = (*torch.linalg.svd(x, full_matrices=False), x)
            else:
                moved = thin_svd(last, first, r)
            finite = torch.isfinite(moved[1]).all(-1) & torch.isfinite(value)
        except torch.linalg.LinAlgError:
            finite, moved = decomposable(last @ first), state
        if not bool(finite.all()):
            raise self._diverged(point, finite, h)
        return moved

    def _entropic(self, frame: ProductFrame, h: float) -> Tensor:
        """Return the entropic drift as a move in orthonormal coordinates, shape (..., r)."""
        pull = frame.entropy_pull(self.drive.excess) * (h / self.drive.beta)
        if math.isinf(self.depth):
            return pull
        if self.normalized:
            pull = pull / self.depth
        lam = frame.flat
        shift = (
            2.0
            * pull
            / (lam + (lam.square() + 4.0 * pull).sqrt()).clamp_min(torch.finfo(lam.dtype).tiny)
        )
        return shift / frame.flat_speed

    def _diverged(self, point: EndToEnd, finite: Tensor, h: float) -> Diverged:
        """Tell which chains left the finite numbers from a point, (...), and why."""
        return Diverged(self._cause(point, h), ~finite.expand(point.s.shape[:-1]))

    def _cause(self, point: EndToEnd, h: float) -> str:
        if self.drive.loss is not None:
            value, core, _, _ = gradient_parts(self.drive.loss, point)
            if not bool(torch.isfinite(value).all() & torch.isfinite(core).all()):
                return (
                    "loss must be finite with a finite gradient wherever the motion goes, got NaN "
                    f"or infinite (if the loss has no such points, take dt below {h:g})"
                )
        return f"the matrices must stay finite, got overflow: take dt below {h:g}"

    def observe(self, state: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Return loss and singular values."""
        row = {"singular_values": state[1]}
        if self.drive.loss is not None:
            value = gradient_parts(self.drive.loss, self._at(state), *self._matrix(state))[0]
            row["loss"] = value.expand(state[1].shape[:-1])
        return row

    def point(self, state: tuple[Tensor, ...]) -> Collapsed | EndToEnd:
        """Return the point, in the view of the start."""
        point = self._at(state)
        return Collapsed.of(point) if self.collapsed else point

    def _at(self, state: tuple[Tensor, ...]) -> EndToEnd:
        u, s, vh = state[:3]
        return EndToEnd(u, s, vh, self.depth, self.normalized)

    def _matrix(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the matrix of a state as a tuple, which is empty if the state has none."""
        return state[3:]


def _factors(depth: float) -> int:
    """Return the number of factors: from six layers on, pairs of layers where that is possible.

    Half of the products, and errors that were measured to be as large for values apart, and up to
    twice as large for neighbours; fewer factors would cost more accuracy than time.
    """
    q = layers_of_step(depth)
    return q // 2 if q == depth and q >= 6 and q % 2 == 0 else q


def decomposable(x: Tensor) -> Tensor:
    """Return which matrices of a batch without an SVD are finite, none if all are, (...)."""
    finite = torch.isfinite(x).all(-1).all(-1)
    return finite & ~finite.all()


def descent(
    loss: Any, frame: ProductFrame, h: float, x: Tensor | None = None
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss, and the step along its gradient in orthonormal coordinates in three parts.

    ``-h sqrt(a) o U^T G V``, times ``1 / sqrt(1 + (way / reach)^2)`` with its own length and the
    distance ``|rho|`` of the point from zero: a change of third order in h that keeps losses which
    grow faster than quadratically in rho from throwing chains to infinity.
    """
    point = frame.point
    (m, n), r = point.shape, point.rank
    value, core, gv, gu = gradient_parts(loss, point, x)
    parts: list[Tensor | None] = [-h * core * frame.root_kernel, None, None]
    if m > r and gv is not None:
        gv = gv - point.u @ core
        parts[1] = -h * gv * frame.root_mixed.unsqueeze(-2)
    if n > r:
        # Both vanish at s = 0, above depth 1.
        ratio = frame.root_mixed / torch.where(point.s > 0, point.s, math.inf)
        gu = gu - (gu @ point.vh.mT) @ point.vh
        parts[2] = -h * ratio.unsqueeze(-1) * gu
    way, reach = _squares(parts), _reach(frame)
    shrink = (reach / (reach + way).clamp_min(torch.finfo(way.dtype).tiny)).sqrt()
    # A square that overflows must not pass for a gradient of zero.
    shrink = (shrink + 0.0 * way)[..., None, None]
    return value, [None if part is None else part * shrink for part in parts]


def way_and_reach(frame: ProductFrame, parts: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Return the squared length of a move and the squared distance from zero, (...)."""
    return _squares(parts), _reach(frame)


def _squares(parts: list[Tensor | None]) -> Tensor:
    total = [torch.linalg.matrix_norm(part).square() for part in parts if part is not None]
    return torch.stack(total).sum(0) if len(total) > 1 else total[0]


def _reach(frame: ProductFrame) -> Tensor:
    """Return ``|rho|^2``, shape (...); at infinite depth, where zero is far, r."""
    if math.isinf(frame.point.depth):
        return torch.full_like(frame.point.s[..., 0], float(frame.point.rank))
    return frame.flat.square().sum(-1) / frame.flat_speed**2


def _sum(z: Tensor | None, g: Tensor | None) -> Tensor | None:
    """Return the sum of two parts, either of which may be missing."""
    if g is None or z is None:
        return z if g is None else g
    return z.add_(g)
