"""Singular values of end-to-end matrices under Brownian motion and Langevin dynamics."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dyson.coulomb import (
    Field,
    ascending_rows,
    stored_rows,
    times_to_end,
)
from dln_geometry.dynamics.dyson.eigenvalues import field_step
from dln_geometry.dynamics.dyson.paths import as_particles
from dln_geometry.dynamics.dyson.singular_values import field_singular_values
from dln_geometry.dynamics.noise import (
    Diverged,
    FlatCoordinates,
    State,
    Stepper,
    StepWatch,
    simulate,
    time_grid,
)
from dln_geometry.dynamics.observing import observed_path
from dln_geometry.dynamics.store import opened, resumable
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy_slope
from dln_geometry.support import (
    EVERY,
    FIELDS,
    Every,
    as_choice,
    as_depth,
    as_flag,
    as_generator,
    as_normalized,
    as_observables,
    as_positive,
    as_rtol,
    as_sides,
)


@resumable("observe")
def dln_dyson(
    start: Any,
    depth: float,
    *,
    beta: float,
    loss: Any = None,
    kappa: float = 1.0,
    entropy: bool = True,
    shape: tuple[int, int] | None = None,
    field: str = "real",
    t_end: float,
    dt: float | None = None,
    generator: torch.Generator | int | None = None,
    save_at: Any = None,
    normalized: bool | None = None,
    rtol: float = 1e-9,
    progress: bool = False,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
) -> Trajectory:
    r"""Simulate the singular values of the end-to-end matrix at any depth.

    In ``rho = sqrt(N) s^{1/N}``, with ``q = m + n - 2r`` and the dimension f of the field,

        drho_i = -dE/drho_i dt + (1/beta) dS/drho_i dt + sqrt(2 kappa/beta) dB_i
                 + (kappa/beta) [ (f q + f - 1)/rho_i
                                  + f sum_{j != i} 2 rho_i/(rho_i^2 - rho_j^2) ] dt;

    at infinite depth in ``u = log s``, with the normalised metric,

        du_i = -dE/du_i dt + (1/beta) dS/du_i dt + sqrt(2 kappa/beta) dB_i
               + (kappa/beta) f sum_{j != i} dt/(u_i - u_j).

    Noise and repulsion are those of singular values, or eigenvalues, of a matrix Brownian motion:
    exact steps of them, half before and half after the drift of the loss and the entropy (weak
    order 2). Without loss and entropy every step is exact in law, and the law of `rho` is the same
    at every finite depth. Singular values of square real matrices are reflected at 0.

    Parameters
    ----------
    start : array_like, shape (..., r)
        Singular values s in any order; zeros are allowed at finite depth.
    depth : float
        Real depth N >= 1, or ``math.inf``.
    beta, kappa, entropy
        As in `langevin`. At ``kappa = 0`` the flow of the free energy is integrated with the
        relative tolerance `rtol`; `dt` and `generator` are not used.
    loss : callable, optional
        ``E(s)`` of the singular values (..., r), returning (...), differentiable by autograd; or
        an object with ``spectral_gradient(s)``, ``dE/ds`` of shape (..., r).
    shape : (int, int), optional
        Shape (m, n) of the matrices of rank r; by default r x r. Hidden widths are min(m, n).
    field : {"real", "complex", "quaternion"}
        The field of the matrices, f = 1, 2, 4; the entropy is that of its unitary groups.
    t_end, dt, generator, save_at, progress, observe, store, every
        As in `dyson`; `dt` is optional without loss and entropy.
    normalized : bool, optional
        Use the metric of A/N, which makes time N times slower; `None` only at infinite depth.

    Returns
    -------
    Trajectory
        ``singular_values (T, ..., r)`` descending; ``states (T, ..., r)`` holds `rho` (at infinite
        depth ``log s``) ascending; ``final`` the singular values at `t_end`, descending.

    Raises
    ------
    ValueError
        If the loss is no symmetric function of the singular values.
    FlowError
        If the drift overflows because `dt` is too large. `langevin` warns of the same.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088.

    Examples
    --------
    Entropy alone against ``E = |X|^2/2`` (``kappa = 0``): ``s*^2 = (d-1)(N-1)/(2 beta N)``:

    >>> loss = lambda s: 0.5 * s.square().sum(-1)
    >>> path = dln.dln_dyson([0.9, 0.1], 2, beta=1.0, kappa=0.0, loss=loss, t_end=30.0)
    >>> path.final
    tensor([0.5000, 0.5000])
    """
    observables = as_observables(observe)
    flat, s = FlatCoordinates(as_depth(depth)), as_particles(start, positive=True)
    beta, deep = as_positive(beta, "beta"), flat.depth.infinite
    kappa, entropy = as_positive(kappa, "kappa", zero=True), as_flag(entropy, "entropy")
    f = FIELDS[as_choice(field, FIELDS, "field")]
    r = s.shape[-1]
    m, n = as_sides((r, r) if shape is None else shape)
    if r > n:
        raise ValueError(f"start must hold at most {n} values for {m} x {n}, got {r}")
    if deep and bool((s == 0).any()):
        raise ValueError("start must be positive at infinite depth, where 0 is never reached")
    if deep and n > r and entropy:
        raise ValueError(f"shape must be {r} x {r} at infinite depth with entropy, got {m} x {n}")
    rtol = as_rtol(rtol, s.dtype, default=1e-9)
    slow = flat.depth.unit(as_normalized(normalized, flat.depth))
    gradient = _gradient(loss)
    if gradient is not None:
        _check_symmetry(gradient, s)
        if not bool(torch.isfinite(gradient(s)).all()):
            raise ValueError("loss must have a finite gradient at the start, got NaN or infinite")
        if (kept := opened(store)) is not None:
            kept.know(loss=gradient(_probes(s)))
    entropic = None
    if entropy and flat.depth > 1:
        entropic = beta, f * (flat.depth - 1) * (n - r) if n > r else 0.0
    drift, pull = _drift(flat, gradient, entropic, f), _drift(flat, gradient, None, f)
    if kappa == 0:
        if drift is None:
            raise ValueError("kappa must be positive without loss and entropy: nothing moves")
        times = time_grid(t_end, None, save_at, device=s.device).times
        x, at = flat.of(s).reshape(-1, r), times_to_end(times, t_end)
        kept = stored_rows(opened(store), s)
        rows, stats = ascending_rows(lambda y: drift(y) / slow, x, at, rtol, kept)
        rows, known = rows.reshape(-1, *s.shape), {"evaluations": stats["evaluations"]}
        path = Trajectory(t=times, states=rows[: len(times)], stats=known, depth=flat.depth)
        values = flat.values(rows).flip(-1)
        path = replace(path, singular_values=values[: len(times)], final=values[-1])
        return observed_path(path, observables, path.singular_values)
    if dt is None and drift is not None:
        raise ValueError("dt must be given: steps with a loss or entropy are not exact in law")
    grid = time_grid(t_end, dt, save_at, to_end=True, device=s.device)
    generator, noise = as_generator(generator, s.device), kappa / (beta * slow)
    watch = StepWatch(flat.depth)
    steps = SpectralSteps(flat, m + n - 2 * r, f, noise, drift, pull, slow, generator, watch)
    shown: dict[str, Any] = {"progress": progress, "generator": generator, "store": opened(store)}
    path = simulate(steps, (flat.of(s),), grid, label="singular values", **shown)
    path = replace(path, depth=flat.depth)
    return observed_path(path, observables, path.singular_values)


def _gradient(loss: Any) -> Field | None:
    """Return ``dE/ds`` of a spectral loss."""
    if loss is None:
        return None
    if (own := getattr(loss, "spectral_gradient", None)) is not None:
        # It may use autograd, which `simulate` turns off.
        return torch.enable_grad()(own)
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(
            "loss must be a function of the singular values (..., r), or have "
            f"spectral_gradient(s), got {type(loss).__name__}: matrices other than by their "
            "singular values are for langevin"
        )

    def gradient(s: Tensor) -> Tensor:
        with torch.enable_grad():
            s = s.detach().requires_grad_()
            value: Any = loss(s)
            shape = getattr(value, "shape", None)
            if shape != s.shape[:-1]:
                raise ValueError(
                    f"loss must return a tensor of shape {tuple(s.shape[:-1])} for singular values "
                    f"{tuple(s.shape)}, got {type(value).__name__} {tuple(shape or ())}"
                )
            if not value.requires_grad:
                raise ValueError(
                    "loss must be differentiable by autograd, got a result that does not depend "
                    "on the singular values"
                )
            return torch.autograd.grad(value.sum(), s)[0]

    return gradient


def _probes(s: Tensor) -> Tensor:
    """Return different values of the size of the start, at which losses are compared."""
    size = s.amax(-1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny ** 0.25)
    return size * torch.linspace(0.5, 1.0, s.shape[-1], dtype=s.dtype, device=s.device)


def _check_symmetry(gradient: Field, s: Tensor) -> None:
    """Refuse a loss that changes with the order of singular values: it is none of matrices."""
    r, probe = s.shape[-1], _probes(s)
    there, back = gradient(probe), gradient(probe.flip(-1)).flip(-1)
    bound = 1e3 * torch.finfo(s.dtype).eps * r * there.abs().amax(-1)
    # NaN passes: the motion reports it.
    if bool(((there - back).abs().amax(-1) > bound).any()):
        raise ValueError(
            "loss must be a symmetric function of the singular values, got one that changes when "
            "they are permuted"
        )


def _drift(
    flat: FlatCoordinates, gradient: Field | None, entropic: tuple[float, float] | None, f: int
) -> Field | None:
    """Return the drift of loss and entropy in `flat`.

    `entropic`: beta and ``sum_p (d_p - r)`` over the hidden layers, if the entropy acts.
    """
    if gradient is None and entropic is None:
        return None
    depth = flat.depth

    def drift(x: Tensor) -> Tensor:
        tiny = 1e-30 if x.dtype == torch.float32 else 1e-290
        x = x if depth.infinite else x.clamp_min(tiny**0.5)
        # ds/drho = N s/rho (at infinite depth s), and the slope of the entropy times s is bounded.
        s = flat.values(x)
        ds = s if depth.infinite else depth * s / x
        total = torch.zeros_like(x) if gradient is None else -gradient(s) * ds
        if entropic is not None:
            s = s.clamp_min(tiny)
            scaled = s * entropy_slope(s, depth, excess=entropic[1], f=f) / entropic[0]
            total = total + (scaled if depth.infinite else scaled * depth / x)
        return total

    return drift


@dataclass
class SpectralSteps(Stepper):
    """Half a step of noise, a step of drift (Heun) and half a step of noise.

    `wall` is ``m + n - 2r``, `index` the dimension of the field, `noise` the variance of the noise
    in unit time, `pull` the drift of the loss alone; `slow` divides time: N in the metric of A/N.
    """

    flat: FlatCoordinates
    wall: int
    index: int
    noise: float
    drift: Field | None
    pull: Field | None
    slow: float
    generator: torch.Generator
    watch: StepWatch

    def advance(self, state: State, h: float, index: int) -> State:
        (x,), deep = state, self.flat.depth.infinite
        if self.drift is None:
            return (self._brownian(x, h),)
        x = self._brownian(x, 0.5 * h)
        first = self.drift(x) * (h / self.slow)
        moved = x + first if deep else (x + first).abs()
        before, x = x, x + 0.5 * (first + self.drift(moved) * (h / self.slow))
        finite = torch.isfinite(x).all(-1)
        if not self.passed(finite):
            message = (
                f"dt must be smaller than {h:.3g}: the drift of the loss left the finite numbers "
                "(if every dt is too large, the loss is not finite there)"
            )
            raise Diverged(message, ~finite)
        if self.pull is not None and self.watch.due(index):
            # The loss alone: the entropy is steep at zero, but pushes away from it.
            way = self.pull(before).square().sum(-1) * (h / self.slow) ** 2
            reach = torch.full_like(way, x.shape[-1]) if deep else before.square().sum(-1)
            self.watch.look(way, reach, h)
        return (self._brownian(x if deep else x.abs(), 0.5 * h),)

    def _brownian(self, x: Tensor, h: float) -> Tensor:
        """Return the coordinates after the noise of the time h, exact in law."""
        if self.flat.depth.infinite:
            return field_step(self.index, self.generator)(x, self.index * self.noise * h)
        variance = 2 * self.noise * h
        return field_singular_values(x, variance, self.wall, self.index, self.generator)

    def observe(self, state: State) -> dict[str, Tensor]:
        return {"states": state[0], "singular_values": self.point(state)}

    def point(self, state: State) -> Tensor:
        return self.flat.values(state[0]).flip(-1)
