"""Langevin steps on end-to-end matrices: the product step with noise, and Euler's at depth 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import contract, evaluate
from dln_geometry.dynamics.noise.simulation import Diverged, State, Stepper
from dln_geometry.dynamics.noise.watch import StepWatch
from dln_geometry.geometry.kernel import quick_product, quick_svd
from dln_geometry.geometry.metric import ProductFrame, layers_of_step, thin_svd
from dln_geometry.geometry.points import Collapsed, EndToEnd
from dln_geometry.support import Depth, Numbers

_DT_TOO_LARGE = "the matrices must stay finite, got overflow: take dt below {:g}"


@dataclass(frozen=True)
class Thermostat:
    """Loss (or None), temperature, and whether entropy acts; ``excess = sum_p (d_p - r)``."""

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
    """A generator, or increments (steps, ..., m, n) of Brownian motion, variance the step size."""

    def __init__(self, generator: torch.Generator | None, increments: Tensor | None = None) -> None:
        self.generator, self.increments = generator, increments

    def draw(self, shape: tuple[int, ...], like: Tensor, scale: float) -> Tensor:
        """Return independent Gaussians of standard deviation `scale`, of each part if complex."""
        source = self.generator
        assert source is not None
        z = torch.randn(shape, generator=source, dtype=like.dtype, device=source.device)
        # Of complex numbers torch divides the variance among the parts.
        scale = scale * math.sqrt(2.0) if like.is_complex() else scale
        return z.mul_(scale).to(like.device)

    def frames(self, point: EndToEnd, h: float, index: int, scale: float) -> list[Tensor | None]:
        """Return the increment in the frames of a point: core, left and right part."""
        (m, n), r = point.shape, point.rank
        like, batch = point.u, point.s.shape[:-1]
        if self.increments is not None:
            z = scale * self.increments[index]
            zv = z @ point.vh.mH
            right = point.u.mH @ z if n > r else None
            return [point.u.mH @ zv, zv if m > r else None, right]
        root = scale * math.sqrt(h)
        sizes = [(r, r), (m, r) if m > r else None, (r, n) if n > r else None]
        return [None if d is None else self.draw((*batch, *d), like, root) for d in sizes]


def gradient_parts(
    loss: Any, point: EndToEnd, x: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return ``(E, U^T G V, G V, s (U^T G))`` without the gradient G of a thin point.

    The last two are used only outside the range. `x` is the matrix of the point, where known.
    """
    (m, n), r = point.shape, point.rank
    scaled = point.u * point.s.unsqueeze(-2)
    if m == n == r:
        value, g = evaluate(loss, quick_product(scaled, point.vh) if x is None else x)
        return value, quick_product(quick_product(point.u.mH, g), point.vh.mH), None, g
    value, gv, gu = contract(loss, scaled, point.vh.mH)
    return value, quick_product(point.u.mH, gv), gv, gu.mH


def observed(loss: Any, point: EndToEnd, x: Tensor | None = None) -> dict[str, Tensor]:
    """Return singular values and loss of a point; `x` is its matrix, where known."""
    row = {"singular_values": point.s}
    if loss is not None:
        row["loss"] = gradient_parts(loss, point, x)[0].expand(point.s.shape[:-1])
    return row


class MatrixSteps(Stepper):
    """Langevin dynamics of an end-to-end matrix; states begin with its ``(u, s, vh)``."""

    depth: Depth

    def __init__(
        self, drive: Thermostat, noise: Gaussians, start: EndToEnd, collapsed: bool
    ) -> None:
        self.drive, self.noise, self.collapsed = drive, noise, collapsed
        self.depth, self.normalized = start.depth, start.normalized
        self.watch: StepWatch = StepWatch(start.depth)

    def observe(self, state: State) -> dict[str, Tensor]:
        return observed(self.drive.loss, self.at(state))

    def point(self, state: State) -> Collapsed | EndToEnd:
        point = self.at(state)
        return Collapsed.of(point) if self.collapsed else point

    def at(self, state: State) -> EndToEnd:
        """Return the point of a state."""
        u, s, vh = state[:3]
        return EndToEnd(u, s, vh, self.depth, self.normalized, check=False)

    def check(self, point: EndToEnd, finite: Tensor, h: float) -> None:
        """Stop if a step from a point overflowed in some chains; `finite` has shape (...)."""
        if self.passed(finite):
            return
        message = _DT_TOO_LARGE.format(h)
        if self.drive.loss is not None:
            value, core, _, _ = gradient_parts(self.drive.loss, point)
            if not bool(torch.isfinite(value).all() & torch.isfinite(core).all()):
                message = (
                    "loss must be finite with a finite gradient wherever the motion goes, got NaN "
                    f"or infinite (if the loss has no such points, take dt below {h:g})"
                )
        raise Diverged(message, ~finite.expand(point.s.shape[:-1]))


class ProductSteps(MatrixSteps):
    r"""Product steps on the matrices of rank r, one SVD each.

    ``eta = -h sqrt(a) o U^T E'(X) V + sqrt(2 kappa h / beta) xi`` (see `descent`); the
    entropic drift moves the flat coordinate by ``2 h k / (lam + sqrt(lam^2 + 4 h k))``,
    ``k = (s dS/ds) / beta``: about ``h k / lam``, but finite where singular values vanish.

    States are ``(u, s, vh)``, and the matrix if it is square and of full rank.
    """

    def advance(self, state: State, h: float, index: int) -> State:
        point = self.at(state)
        frame = ProductFrame(point, layers=_factor_count(self.depth))
        value, core, left, right = horizontal_step(self, frame, h, index, *state[3:])
        (m, n), r = point.shape, point.rank
        if self.drive.entropy:
            diagonal = core.diagonal(dim1=-2, dim2=-1)
            diagonal += self._entropic(frame, h)
        last, first = frame.move(core, left, right)
        try:
            if m == n == r:
                x = quick_product(last, first)
                moved = (*quick_svd(x), x)
            else:
                moved = thin_svd(last, first, r)
            finite = torch.isfinite(moved[1]).all(-1) & torch.isfinite(value)
        except torch.linalg.LinAlgError:
            finite, moved = decomposable(last @ first), state
        self.check(point, finite, h)
        return moved

    def observe(self, state: State) -> dict[str, Tensor]:
        return observed(self.drive.loss, self.at(state), *state[3:])

    def form(self, start: State) -> Any:
        forms = super().form(start)
        return forms, [*forms, Numbers.like(self.at(start).matrix)]

    def _entropic(self, frame: ProductFrame, h: float) -> Tensor:
        """Return the entropic drift as a move in orthonormal coordinates, shape (..., r)."""
        pull = frame.entropy_pull(self.drive.excess)
        if frame.point.dtype.is_complex:
            # Twice the pairs, and the kernel's diagonal.
            pull = pull + frame.entropy_pull() + 0.5 * self.depth.exponent
        pull = pull * (h / self.drive.beta)
        if self.depth.infinite:
            return pull
        if self.normalized:
            pull = pull / self.depth
        lam = frame.flat
        sums = lam + (lam.square() + 4.0 * pull).sqrt()
        return 2.0 * pull / sums.clamp_min(torch.finfo(lam.dtype).tiny) / frame.flat_speed


def _factor_count(depth: float) -> int:
    """Return the number of factors: half of an even number of six or more layers.

    By measurement, errors are as large for values apart, and up to twice as large for neighbours.
    """
    q = layers_of_step(depth)
    return q // 2 if q == depth and q >= 6 and q % 2 == 0 else q


def decomposable(x: Tensor) -> Tensor:
    """Return which matrices of a batch without an SVD are finite, (...); none if all are."""
    finite = torch.isfinite(x).all(-1).all(-1)
    return finite & ~finite.all()


def horizontal_step(
    stepper: Any, frame: ProductFrame, h: float, index: int, x: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the loss, and the step of `descent` and noise: core, left and right part."""
    drive, s, parts = stepper.drive, frame.point.s, [None] * 3
    value = s.new_zeros(s.shape[:-1])
    if drive.loss is not None:
        value, parts = descent(drive.loss, frame, h, index, stepper.watch, x)
    if drive.kappa > 0:
        noise = stepper.noise.frames(frame.point, h, index, drive.amplitude)
        parts = [z if g is None else z.add_(g) for z, g in zip(noise, parts, strict=True)]
    core, left, right = parts
    if core is None:
        core = frame.point.u.new_zeros(*s.shape, s.shape[-1])
    return value, core, left, right


def descent(
    loss: Any, frame: ProductFrame, h: float, index: int, watch: StepWatch, x: Tensor | None = None
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss, and the step along its gradient in orthonormal coordinates in three parts.

    ``-h sqrt(a) o U^T G V``, times ``1 / sqrt(1 + (way / reach)^2)`` with its own length and the
    distance ``|rho|`` of the point from zero: a change of third order in h, without which losses
    that grow faster than quadratically in rho throw chains to infinity. `x` as in `observed`.
    """
    point = frame.point
    (m, n), r = point.shape, point.rank
    value, core, gv, gu = gradient_parts(loss, point, x)
    parts: list[Tensor | None] = [-h * core * frame.root_kernel, None, None]
    if m > r and gv is not None:
        gv = gv - quick_product(point.u, core)
        parts[1] = -h * gv * frame.root_mixed.unsqueeze(-2)
    if n > r:
        # Both vanish at s = 0, above depth 1.
        ratio = frame.root_mixed / torch.where(point.s > 0, point.s, math.inf)
        gu = gu - quick_product(quick_product(gu, point.vh.mH), point.vh)
        parts[2] = -h * ratio.unsqueeze(-1) * gu
    # At infinite depth zero is infinitely far.
    reach = frame.flat.square().sum(-1) / frame.flat_speed**2
    if point.depth.infinite:
        reach = torch.full_like(reach, float(r))
    shrink = tamed(_squares(parts), reach)
    parts = [None if part is None else part * shrink for part in parts]
    if watch.due(index):
        watch.look(_squares(parts), reach, h)
    return value, parts


def tamed(way: Tensor, reach: Tensor) -> Tensor:
    """Return ``1 / sqrt(1 + way / reach)`` of two squared lengths (...), shape (..., 1, 1)."""
    shrink = (reach / (reach + way).clamp_min(torch.finfo(way.dtype).tiny)).sqrt()
    # A square that overflows must not pass for a gradient of zero.
    return (shrink + 0.0 * way)[..., None, None]


def _squares(parts: list[Tensor | None]) -> Tensor:
    """Return the squared length of a move in parts, (...)."""
    total = [torch.linalg.matrix_norm(part).square() for part in parts if part is not None]
    return torch.stack(total).sum(0) if len(total) > 1 else total[0]


class PlainSteps(Stepper):
    """Depth 1: steps of ``dX = -E'(X) dt + sqrt(2 kappa / beta) dB``, any rank.

    Euler's, of weak order 1, or Heun's, of weak order 2: the noise is additive.
    """

    depth = 1.0

    def __init__(self, drive: Thermostat, noise: Gaussians, *, heun: bool = False) -> None:
        self.drive, self.noise, self.heun = drive, noise, heun

    def advance(self, state: State, h: float, index: int) -> State:
        (x,), drive = state, self.drive
        if self.noise.increments is not None:
            moved = x + drive.amplitude * self.noise.increments[index]
        else:
            moved = x + self.noise.draw(x.shape, x, drive.amplitude * math.sqrt(h))
        if drive.loss is not None:
            first = evaluate(drive.loss, x)[1]
            if self.heun:
                first = 0.5 * (first + evaluate(drive.loss, moved - h * first)[1])
            moved = moved - h * first
        finite = torch.isfinite(moved).all(-1).all(-1)
        if not self.passed(finite):
            raise Diverged(_DT_TOO_LARGE.format(h), ~finite)
        return (moved,)

    def observe(self, state: State) -> dict[str, Tensor]:
        (x,) = state
        row = {"singular_values": torch.linalg.svdvals(x)}
        if self.drive.loss is not None:
            row["loss"] = evaluate(self.drive.loss, x)[0].expand(x.shape[:-2])
        return row

    def point(self, state: State) -> EndToEnd:
        return EndToEnd.of(state[0], 1.0)
