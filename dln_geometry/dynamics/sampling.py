"""Unbiased samples of the Gibbs measure by a Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.downstairs import Gaussians
from dln_geometry.dynamics.losses import Loss, contract, prepared
from dln_geometry.dynamics.store import Store
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.dynamics.walk import Diverged, Grid, as_positive, walk
from dln_geometry.geometry.entropy import entropy_slope, hidden_excess
from dln_geometry.geometry.kernel import log_kernel_of_pairs, power_divided_difference
from dln_geometry.geometry.point import Collapsed, EndToEnd, as_point

__all__ = ["sample_gibbs"]

# The acceptance at which such chains move fastest (Roberts, Rosenthal 1998).
_BEST_ACCEPTANCE = 0.574


def sample_gibbs(
    loss: Loss,
    start: Collapsed | EndToEnd,
    *,
    beta: float,
    kappa: float = 1.0,
    entropy: bool = True,
    draws: int,
    thin: int = 1,
    burn_in: int = 500,
    dt: float | None = None,
    generator: torch.Generator,
    widths: Sequence[int] | int | None = None,
    keep_points: bool = False,
    progress: bool | Callable[[float, dict[str, Any]], None] = False,
    store: str | os.PathLike[str] | None = None,
) -> Trajectory:
    r"""Sample ``exp(-(beta/kappa) F_beta(X)) dvol_g`` without discretisation error.

    In the matrix ``Y = U rho V^T``, ``rho = sqrt(N) s^{1/N}``, the volume of ``g^N`` is Lebesgue
    measure (at full rank), so that Langevin proposals ``Y - h V'(Y) + sqrt(2h) Z`` need no
    geometry, and ``det X = 0`` is no special place. At rank ``r < min(m, n)``, ``Y = A Q^T`` with
    proposals for A, the weight ``prod_k rho_k^{n-r}``, and random rotations of the frame Q. One SVD
    a proposal.

    Both signs of the determinant are visited, at every depth.

    Parameters
    ----------
    loss : Loss
        The energy E.
    start : Collapsed or EndToEnd
        A point of finite depth; leading dimensions are independent chains.
    beta, kappa, entropy, widths
        As in `langevin`, whose equilibrium this is; `kappa` is positive.
    draws : int
        Number of samples kept from each chain.
    thin : int
        Proposals from one kept sample to the next.
    burn_in : int
        Proposals before the first.
    dt : float, optional
        Size h of the proposals; by default tuned during the burn-in to accept 57 %, then fixed.
    generator : torch.Generator
        The source of randomness.
    keep_points, progress, store
        As in `langevin`.

    Returns
    -------
    Trajectory
        ``t`` counts proposals, ``stats["acceptance"]`` is the accepted fraction after the burn-in
        and ``stats["dt"]`` the size of the proposals.

    Raises
    ------
    TypeError
        If `start` is no point or a count no integer.
    ValueError
        If a parameter is out of range, the depth is infinite, the start has a singular value that
        is zero, or there is no burn-in to tune `dt` in.
    FlowError
        If the loss is not finite at the start.

    References
    ----------
    Cohen, Menon, Veraszto, arXiv 2210.12497 (the volume); G. Roberts, R. Tweedie, Bernoulli 2
    (1996) (the algorithm).
    """
    beta, kappa = as_positive(beta, "beta"), as_positive(kappa, "kappa")
    draws, thin = _as_count(draws, "draws", 1), _as_count(thin, "thin", 1)
    burn_in = _as_count(burn_in, "burn_in", 0)
    if not isinstance(start, Collapsed | EndToEnd):
        raise TypeError(f"start must be a Collapsed or an EndToEnd, got {type(start).__name__}")
    if math.isinf(start.depth):
        raise ValueError("start must have a finite depth, got an infinite one")
    point = as_point(start)
    if bool((point.s <= 0).any()):
        raise ValueError(
            "start must have positive singular values, got a zero: state a smaller rank"
        )
    if dt is None and burn_in == 0:
        raise ValueError("dt must be given where there is no burn_in to tune it in, got None")
    size = 0.1 * kappa / beta if dt is None else as_positive(dt, "dt")
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    excess = hidden_excess(point.shape, point.rank, point.depth, widths)[1] if entropy else None
    like = point.s
    ready = prepared(loss, point.shape, dtype=like.dtype, device=like.device)
    potential = _Potential(
        ready, beta / kappa, None if excess is None else (1 / kappa, excess), point
    )
    chain = _Chain(potential, Gaussians(generator), burn_in, dt is None, start)
    counts = (burn_in + thin, *(thin,) * (draws - 1))
    grid = Grid(torch.tensor(counts, dtype=torch.float64).cumsum(0), counts, (1.0,) * draws)
    state = chain.start(point, size)
    saved = None
    if store is not None:
        options = [beta, kappa, entropy, draws, thin, burn_in, dt, keep_points]
        identity = {"start": like, "options": options, "loss": type(loss).__name__}
        saved = Store(store, identity)
    return walk(
        chain,
        state,
        grid,
        label="sampling",
        generator=generator,
        keep_points=keep_points,
        progress=progress,
        store=saved,
        summary=chain.summary,
    )


def _as_count(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


class _Potential:
    """``V(A, Q)`` of the measure ``exp(-V) dA dQ``, and its gradient in A.

    ``Y = A Q^T`` if the second side of X is not the shorter one, otherwise its transpose; Q is left
    out where it is square.
    """

    def __init__(
        self, loss: Any, weight: float, entropic: tuple[float, float] | None, point: EndToEnd
    ) -> None:
        self.loss, self.weight, self.entropic = loss, weight, entropic
        (m, n), r = point.shape, point.rank
        self.depth = point.depth
        self.swapped = m == r < n
        self.excess = (m if self.swapped else n) - r
        self.root = math.sqrt(point.depth)

    def at(self, a: Tensor, q: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Return ``V``, the drift, ``u, s, v`` of X, and the energy.

        The drift is ``-V'`` but for the repulsion from zero, which is bounded where it passes
        what a step can follow: the Metropolis test makes any drift right.
        """
        depth = self.depth
        u, rho, oh = torch.linalg.svd(a, full_matrices=False)
        lam = rho / self.root
        s = lam**depth
        v = q @ oh.mT if self.excess else oh.mT
        left, right = (v, u) if self.swapped else (u, v)
        energy, gr, gl = contract(self.loss, left * s.unsqueeze(-2), right)
        if self.swapped:
            scaled = torch.where(s > 0, s, math.inf).unsqueeze(-2)
            g = gl / scaled
        else:
            g = gr
        core = u.mT @ g
        # The derivative of Y -> X: divided differences of odd powers.
        even = power_divided_difference(lam, depth)
        both = lam.unsqueeze(-1) + lam.unsqueeze(-2)
        odd = (s.unsqueeze(-1) + s.unsqueeze(-2)) / torch.where(both > 0, both, math.inf)
        moved = 0.5 * (even * (core + core.mT) + odd * (core - core.mT))
        slope = u @ moved
        if a.shape[-2] > a.shape[-1]:
            slope = slope + (g - u @ core) * (lam ** (depth - 1.0)).unsqueeze(-2)
        drift = (-self.weight / self.root) * slope
        value = self.weight * energy
        pull = torch.full_like(rho, float(self.excess))
        log_rho = rho.clamp_min(torch.finfo(rho.dtype).tiny).log()
        value = value - self.excess * log_rho.sum(-1)
        if self.entropic is not None:
            share, excess = self.entropic
            x = s.log()
            r = s.shape[-1]
            i, j = torch.triu_indices(r, r, 1, device=s.device)
            kernel = log_kernel_of_pairs(x[..., i], x[..., j], depth, False)
            value = value - share * (0.5 * kernel.sum(-1) + excess * log_rho.sum(-1))
            safe = s.clamp_min(torch.finfo(s.dtype).tiny ** 0.5)
            pull = pull + share * safe * entropy_slope(safe, depth) * depth + share * excess
        scale = pull * rho / (rho.square() + h * pull).clamp_min(torch.finfo(rho.dtype).tiny)
        drift = (drift + u * scale.unsqueeze(-2)) @ oh
        return value, drift, left, s, right, energy


class _Chain:
    """The Metropolis-adjusted chain as a `Stepper`.

    States are ``(dt, turn, accepted, A, Q)`` and what `_Potential.at` returned there.
    """

    def __init__(
        self, potential: _Potential, noise: Gaussians, burn_in: int, tuned: bool, start: Any
    ) -> None:
        self.potential, self.noise = potential, noise
        self.burn_in, self.tuned = burn_in, tuned
        self.depth, self.collapsed = start.depth, isinstance(start, Collapsed)
        self._proposals = 0

    def start(self, point: EndToEnd, dt: float) -> tuple[Tensor, ...]:
        """Return the first state."""
        potential = self.potential
        rho = potential.root * point.s ** (1.0 / point.depth)
        u, v = (point.vh.mT, point.u) if potential.swapped else (point.u, point.vh.mT)
        a = u * rho.unsqueeze(-2)
        a, q = (a, v) if potential.excess else (a @ v.mT, a.new_zeros(0))
        h = a.new_tensor(dt)
        turn = self._turn(h, rho)
        return (h, turn, a.new_zeros(a.shape[:-2]), a, q, *potential.at(a, q, h))

    def advance(self, state: tuple[Tensor, ...], h: float, index: int) -> tuple[Tensor, ...]:
        """Return the state after one proposal."""
        dt, turn, accepted, a, q, value, drift, *rest = state
        if not bool(torch.isfinite(value).all() & torch.isfinite(drift).all()):
            raise Diverged("loss must be finite with a finite gradient at the start")
        z = self.noise.draw(a.shape, a, 1.0)
        a_new, q_new = a + dt * drift + (2 * dt).sqrt() * z, q
        if self.potential.excess:
            b = self.noise.draw((*q.shape[:-1], q.shape[-2]), a, 1.0) * turn
            q_new = torch.linalg.matrix_exp(b - b.mT) @ q
        new = self.potential.at(a_new, q_new, dt)
        back = a - a_new - dt * new[1]
        log_ratio = value - new[0] + 0.5 * z.square().sum((-2, -1))
        log_ratio = log_ratio - back.square().sum((-2, -1)) / (4 * dt)
        uniform = torch.rand(
            value.shape, generator=self.noise.generator, dtype=a.dtype, device=self._device
        )
        # A proposal without a finite potential has ratio NaN or -inf and is refused.
        yes = uniform.to(a.device).log() < log_ratio
        old_parts, new_parts = (a, q, value, drift, *rest), (a_new, q_new, *new)
        parts = [_where(yes, x, y) for x, y in zip(new_parts, old_parts, strict=True)]
        if index < self.burn_in:
            chance = log_ratio.clamp(max=0.0).exp().nan_to_num(0.0).mean()
            if self.tuned:
                dt = dt * torch.exp(2.0 * (index + 1.0) ** -0.6 * (chance - _BEST_ACCEPTANCE))
            turn = self._turn(dt, torch.linalg.matrix_norm(parts[0]).unsqueeze(-1))
        else:
            accepted = accepted + yes
        return (dt, turn, accepted, *parts)

    def _turn(self, dt: Tensor, rho: Tensor) -> Tensor:
        """Return the size of rotations that move Y as far as the noise; fixed after burn-in."""
        return 0.5 * (2 * dt).sqrt() / rho.square().sum(-1).mean().sqrt()

    @property
    def _device(self) -> torch.device:
        assert self.noise.generator is not None
        return self.noise.generator.device

    def observe(self, state: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Return loss and singular values."""
        return {"singular_values": state[8], "loss": state[10]}

    def summary(self, state: tuple[Tensor, ...], steps: int) -> dict[str, Any]:
        """Return the statistics of the run."""
        proposals = max(steps - self.burn_in, 1)
        return {"acceptance": float(state[2].mean()) / proposals, "dt": float(state[0])}

    def point(self, state: tuple[Tensor, ...]) -> Collapsed | EndToEnd:
        """Return the point, in the view of the start."""
        u, s, v = state[7:10]
        point = EndToEnd(u, s, v.mT, self.depth, False)
        return Collapsed.of(point) if self.collapsed else point


def _where(yes: Tensor, new: Tensor, old: Tensor) -> Tensor:
    if new.numel() == 0:
        return new
    index: Any = (..., *(None,) * (new.ndim - yes.ndim))
    return torch.where(yes[index], new, old)
