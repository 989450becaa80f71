"""Singular values of end-to-end matrices under Brownian motion and Langevin dynamics."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.dyson.eigenvalue_steps import isospectral_step
from dln_geometry.dynamics.dyson.singular_value_steps import real_singular_values
from dln_geometry.dynamics.noise import StepWatch, as_singular_values, follow, schedule, stacked
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import entropy_slope
from dln_geometry.ode import integrate
from dln_geometry.support import (
    as_depth,
    as_flag,
    as_generator,
    as_normalized,
    as_positive,
    as_sides,
)

__all__ = ["dln_dyson"]

Drift = Callable[[Tensor], Tensor]


def dln_dyson(
    start: Any,
    depth: float,
    *,
    beta: float,
    loss: Any = None,
    kappa: float = 1.0,
    entropy: bool = True,
    shape: tuple[int, int] | None = None,
    t_end: float,
    dt: float | None = None,
    generator: torch.Generator | None = None,
    save_at: Any = None,
    normalized: bool | None = None,
    rtol: float = 1e-9,
    progress: bool = False,
) -> Trajectory:
    r"""Simulate the singular values of the end-to-end matrix at any depth.

    In ``rho = sqrt(N) s^{1/N}``, with ``q = m + n - 2r``,

        drho_i = -dE/drho_i dt + (1/beta) dS/drho_i dt + sqrt(2 kappa/beta) dB_i
                 + (kappa/beta) [ q/rho_i + sum_{j != i} 2 rho_i/(rho_i^2 - rho_j^2) ] dt;

    at infinite depth in ``u = log s``, with the normalised metric,

        du_i = -dE/du_i dt + (1/beta) dS/du_i dt + sqrt(2 kappa/beta) dB_i
               + (kappa/beta) sum_{j != i} dt/(u_i - u_j).

    The second lines are singular values, or eigenvalues, of a matrix Brownian motion: they are
    taken exactly, half a step before and half a step after the drift of the loss and the entropy
    (weak order 2). Without loss and entropy every step is exact in law, and the law of `rho` is the
    same at every finite depth. A singular value that meets 0 in a square matrix is
    reflected: it is the modulus of a signed one that moves through 0.

    Parameters
    ----------
    start : array_like, shape (..., r)
        Singular values s in any order; zeros are allowed at finite depth.
    depth : float
        Real depth N >= 1, or ``math.inf``.
    beta : float
        Inverse temperature.
    loss : callable, optional
        ``E(s)`` of the singular values (..., r), returning (...), differentiable by autograd; or
        an object with ``spectral_gradient(s)``, ``dE/ds`` of shape (..., r).
    kappa : float
        Noise across the orbits over noise along them, kappa >= 0; at 0 the deterministic flow of
        the free energy, integrated with tolerance `rtol` (`dt` and `generator` are not used).
    entropy : bool
        Whether the drift holds the entropy S, as the noise of the layers makes it.
    shape : (int, int), optional
        Shape (m, n) of the matrices of rank r; by default r x r. Hidden widths are min(m, n).
    t_end, dt, generator, save_at, progress
        As in `dyson`; `dt` may be left out without loss and entropy.
    normalized : bool, optional
        Use the metric of A/N, which makes time N times slower; `None` only at infinite depth.

    Returns
    -------
    Trajectory
        ``singular_values (T, ..., r)`` descending; ``states (T, ..., r)`` holds `rho` (at infinite
        depth ``log s``) ascending; ``final`` the singular values at `t_end`, descending.

    Raises
    ------
    TypeError
        If the loss is a function of matrices.
    ValueError
        If the start does not fit the shape, the loss is no symmetric function of the singular
        values, an argument is not as described, or the drift
        leaves the finite numbers because `dt` is too large.

    Warns
    -----
    UserWarning
        If `dt` is so large that a step along the gradient leaves the region of the start.

    References
    ----------
    Menon, arXiv 2411.09004; Menon, Yu, arXiv 2509.09088.

    Examples
    --------
    Entropy alone against ``E = |X|^2/2`` (``kappa = 0``): ``s*^2 = (d-1)(N-1)/(2 beta N)``:

    >>> loss = lambda s: 0.5 * s.square().sum(-1)
    >>> path = dln_dyson([0.9, 0.1], 2, beta=1.0, kappa=0.0, loss=loss, t_end=30.0)
    >>> path.final
    tensor([0.5000, 0.5000])
    """
    n_depth, s = as_depth(depth), as_singular_values(start)
    beta = as_positive(beta, "beta")
    kappa, entropy = as_positive(kappa, "kappa", zero=True), as_flag(entropy, "entropy")
    r = s.shape[-1]
    m, n = as_sides((r, r) if shape is None else shape)
    if r > n:
        raise ValueError(f"start must hold at most {n} values for {m} x {n}, got {r}")
    if math.isinf(n_depth) and bool((s == 0).any()):
        raise ValueError("start must be positive at infinite depth, where 0 is never reached")
    slow = n_depth if as_normalized(normalized, n_depth) and not math.isinf(n_depth) else 1.0
    excess = (n_depth - 1) * (n - r) if n > r else 0.0
    if math.isinf(excess) and entropy:
        raise ValueError(f"shape must be {r} x {r} at infinite depth with entropy, got {m} x {n}")
    gradient = _gradient(loss)
    if gradient is not None:
        _check_symmetry(gradient, s)
        if not bool(torch.isfinite(gradient(s)).all()):
            raise ValueError("loss must have a finite gradient at the start, got NaN or infinite")
    drift = _drift(n_depth, beta, gradient, entropy and n_depth > 1, excess)
    particles, values = _coordinates(n_depth)
    x = particles(s)
    if kappa == 0:
        if drift is None:
            raise ValueError("kappa must be positive without loss and entropy: nothing moves")
        times, rows, stats = _flow(x, drift, t_end, save_at, slow, rtol)
    else:
        plan = schedule(t_end, dt, save_at, exact=drift is None)
        generator = as_generator(generator, s.device)
        noise = kappa / (beta * slow)
        pull = _drift(n_depth, beta, gradient, False, 0.0)
        step = _langevin_step(n_depth, m + n - 2 * r, noise, drift, pull, slow, generator)
        rows = list(follow(x, step, plan, t_end, progress=progress, label="singular values"))
        times, stats = plan[0], {"steps": sum(plan[1])}
    states, final = stacked(rows[:-1], x), rows[-1]
    return Trajectory(
        t=torch.tensor(times, dtype=torch.float64, device=s.device),
        states=states,
        singular_values=values(states).flip(-1),
        final=values(final).flip(-1),
        stats=stats,
        depth=n_depth,
    )


def _coordinates(depth: float) -> tuple[Drift, Drift]:
    """Return the maps from singular values to the coordinates that move, and back."""
    if math.isinf(depth):
        return torch.log, torch.exp
    root = math.sqrt(depth)
    return lambda s: root * s ** (1 / depth), lambda rho: (rho / root) ** depth


def _gradient(loss: Any) -> Drift | None:
    """Return ``dE/ds`` of a spectral loss."""
    if loss is None:
        return None
    own = getattr(loss, "spectral_gradient", None)
    if own is not None:
        return own
    if not callable(loss):
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


def _check_symmetry(gradient: Drift, s: Tensor) -> None:
    """Refuse a loss that tells the singular values apart: it is none of the matrix."""
    r = s.shape[-1]
    probe = s.amax(-1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny ** 0.25)
    probe = probe * torch.linspace(0.5, 1.0, r, dtype=s.dtype, device=s.device)
    there, back = gradient(probe), gradient(probe.flip(-1)).flip(-1)
    gap = (there - back).abs().amax(-1)
    bound = 1e3 * torch.finfo(s.dtype).eps * r * there.abs().amax(-1)
    # Where the loss is no number the motion will say so.
    if bool((gap > bound).any()):
        raise ValueError(
            "loss must be a symmetric function of the singular values, got one that changes when "
            "they are permuted"
        )


def _drift(
    depth: float, beta: float, gradient: Drift | None, entropy: bool, excess: float
) -> Drift | None:
    """Return the drift of loss and entropy in the coordinates that move."""
    if gradient is None and not entropy:
        return None
    tiny = {torch.float32: 1e-30, torch.float64: 1e-290}

    def drift(x: Tensor) -> Tensor:
        if math.isinf(depth):
            s = x.exp()
            ds = s
        else:
            # ds/drho = N s/rho, and the slope of the entropy times s is of order 1.
            x = x.clamp_min(tiny[x.dtype] ** 0.5)
            s = (x / math.sqrt(depth)) ** depth
            ds = depth * s / x
        total = torch.zeros_like(x) if gradient is None else -gradient(s) * ds
        if entropy:
            s = s.clamp_min(tiny[x.dtype])
            scaled = s * entropy_slope(s, depth, excess=excess) / beta
            total = total + (scaled if math.isinf(depth) else scaled * depth / x)
        return total

    return drift


def _langevin_step(
    depth: float,
    wall: int,
    noise: float,
    drift: Drift | None,
    pull: Drift | None,
    slow: float,
    generator: torch.Generator,
) -> Callable[[Tensor, float], Tensor]:
    """Return half a step of noise, a step of drift (Heun) and half a step of noise."""
    eigenvalues = isospectral_step(1.0, generator)

    def brownian(x: Tensor, h: float) -> Tensor:
        if math.isinf(depth):
            return eigenvalues(x, noise * h)
        return real_singular_values(x, 2 * noise * h, wall, generator)

    if drift is None:
        return brownian
    watch, steps = StepWatch(depth), count()

    def step(x: Tensor, h: float) -> Tensor:
        x = brownian(x, 0.5 * h)
        first = drift(x) * (h / slow)
        moved = x + first if math.isinf(depth) else (x + first).abs()
        before, x = x, x + 0.5 * (first + drift(moved) * (h / slow))
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                f"dt must be smaller than {h:.3g}: the drift of the loss left the finite numbers "
                "(if every dt is too large, the loss is not finite there)"
            )
        k = next(steps)
        if pull is not None and k & (k - 1) == 0:
            # Of the loss alone: the entropy is steep at zero, and pushes away from it.
            way = pull(before).square().sum(-1) * (h / slow) ** 2
            deep = math.isinf(depth)
            watch(way, torch.full_like(way, x.shape[-1]) if deep else before.square().sum(-1), h)
        x = x if math.isinf(depth) else x.abs()
        return brownian(x, 0.5 * h)

    return step


def _flow(
    x: Tensor, drift: Drift, t_end: float, save_at: Any, slow: float, rtol: float
) -> tuple[list[float], list[Tensor], dict[str, Any]]:
    """Integrate the drift alone."""
    times, _ = schedule(t_end, None, save_at, exact=True)
    at = times if times and times[-1] == t_end else [*times, float(t_end)]

    def field(t: Tensor, y: Tensor, out: Tensor) -> None:
        out.copy_(drift(y) / slow)

    flat = x.reshape(-1, x.shape[-1])
    solution = integrate(
        field, flat, t_end=t_end, rtol=rtol, save_at=at, record=lambda y, obs: {"y": y}
    )
    rows = [row.reshape(x.shape).sort(-1).values for row in solution.saved["y"]]
    return times, [*rows[: len(times)], rows[-1]], {k: solution.stats[k] for k in ("evaluations",)}
