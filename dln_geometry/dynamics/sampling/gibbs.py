"""Unbiased samples of the Gibbs measure by a Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dln_geometry.dynamics.losses import Loss, prepared
from dln_geometry.dynamics.noise import (
    Diverged,
    Gaussians,
    Grid,
    Show,
    State,
    Stepper,
    simulate,
)
from dln_geometry.dynamics.sampling.existence import infinite_measure
from dln_geometry.dynamics.sampling.potentials import Potential
from dln_geometry.dynamics.store import opened, resumable
from dln_geometry.dynamics.trajectory import Trajectory
from dln_geometry.geometry.metric import hidden_excess
from dln_geometry.geometry.points import Collapsed, EndToEnd, as_point
from dln_geometry.support import (
    EVERY,
    Every,
    absolute_square,
    as_count,
    as_flag,
    as_generator,
    as_positive,
    field_dimension,
    matrix_exponential,
    warn,
)

# The acceptance at which such chains move fastest (Roberts, Rosenthal 1998).
_BEST_ACCEPTANCE = 0.574


@resumable("observe")
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
    generator: torch.Generator | int | None = None,
    widths: Sequence[int] | int | None = None,
    keep_points: bool = False,
    observe: Mapping[str, Callable[[Any], Any]] | None = None,
    progress: Show = False,
    store: str | os.PathLike[str] | None = None,
    every: Every = EVERY,
) -> Trajectory:
    r"""Sample ``exp(-(beta/kappa) F_beta(X)) dvol_g`` without discretisation error.

    In ``Y = U rho V^T``, ``rho = sqrt(N) s^{1/N}``, the volume of ``g^N`` is Lebesgue measure at
    full rank, so that Langevin proposals ``Y - h V'(Y) + sqrt(2h) Z`` need no geometry and pass
    through ``det X = 0``. At rank ``r < min(m, n)``, ``Y = A Q^T`` with proposals for A, the weight
    ``prod_k rho_k^{n-r}``, and random rotations of the frame Q. One SVD a proposal.

    Complex points have complex Y and Hermitian H; the entropy is that of the unitary groups.

    At every finite depth a real chain visits both signs of the determinant. At infinite depth the
    column and row spaces stand still and X is an orthogonal matrix times ``exp(H)``: the volume is
    Lebesgue measure of the symmetric H times Haar measure; proposals move H with its drift and
    rotate at random. Zero is infinitely far there: if the loss is finite where one singular value
    vanishes, the measure is finite only with entropy and ``kappa < (r-1)/(2r)``.

    A warning tells if the measure is infinite, so that the chain drifts off: by that criterion, for
    losses that do not grow with X, and for `Completion` at full rank, whose unknown entries are
    free. With k singular values of size t the density in the entries falls like ``t^-p``,
    ``p = (2-2/N) [k/2 + (1-1/(2 kappa)) (k(k-1)/2 + k(d-k)) + k(D-d)/2]`` (d, D the sides; without
    entropy no 1/(2 kappa); wider hidden layers lessen p): it must exceed the number of free
    entries. Other losses are not examined, and no warning is no proof.

    Parameters
    ----------
    loss, start, beta, kappa, entropy, generator, widths, keep_points, observe, progress
        As in `langevin`, whose equilibrium this is; `kappa` is positive.
    store, every
        As in `langevin`.
    draws : int
        Number of samples kept from each chain.
    thin : int
        Proposals from one kept sample to the next.
    burn_in : int
        Proposals before the first.
    dt : float, optional
        Size h of the proposals; by default tuned during the burn-in to accept 57 %, then fixed.

    Returns
    -------
    Trajectory
        ``t`` counts proposals; ``stats["acceptance"]`` is the accepted fraction after the burn-in,
        ``stats["dt"]`` the size of the proposals.

    Raises
    ------
    ValueError
        If a singular value of the start is zero.
    FlowError
        If the loss is not finite at the start.

    References
    ----------
    Cohen, Menon, Veraszto, arXiv 2210.12497 (the volume); G. Roberts, R. Tweedie, Bernoulli 2
    (1996) (the algorithm).

    Examples
    --------
    >>> loss, start = dln.losses.Quadratic(torch.zeros(2, 2)), dln.EndToEnd.of(torch.eye(2), 3)
    >>> path = dln.sample_gibbs(loss, start, beta=5.0, draws=3, burn_in=20, generator=0)
    >>> path.singular_values.shape
    torch.Size([3, 2])
    """
    beta, kappa = as_positive(beta, "beta"), as_positive(kappa, "kappa")
    draws, thin = as_count(draws, "draws"), as_count(thin, "thin")
    burn_in, entropy = as_count(burn_in, "burn_in", 0), as_flag(entropy, "entropy")
    if not isinstance(start, Collapsed | EndToEnd):
        raise TypeError(f"start must be a Collapsed or an EndToEnd, got {type(start).__name__}")
    point = as_point(start, complex=True).detach()
    if bool((point.s <= 0).any()):
        raise ValueError(
            "start must have positive singular values, got a zero: state a smaller rank"
        )
    if dt is None and burn_in == 0:
        raise ValueError("dt must be given where there is no burn_in to tune it in, got None")
    size = 0.1 * kappa / beta if dt is None else as_positive(dt, "dt")
    generator = as_generator(generator, point.device)
    keep_points = as_flag(keep_points, "keep_points")
    f = field_dimension(None, point.dtype)
    excess = hidden_excess(point.shape, point.rank, point.depth, widths, f)[1] if entropy else None
    ready = prepared(loss, point.shape, dtype=point.dtype, device=point.device)
    entropic = None if excess is None else (1 / kappa, excess)
    if reason := infinite_measure(ready, point, kappa, entropy, excess or 0.0):
        warn(f"the measure is infinite and the chain has no equilibrium: {reason}")
    potential = Potential(ready, beta / kappa, entropic, point)
    chain = MetropolisChain(potential, generator, burn_in, dt is None, start)
    counts = (burn_in + thin, *(thin,) * (draws - 1))
    grid = Grid(
        torch.tensor(counts, dtype=torch.float64, device="cpu").cumsum(0).to(point.device),
        counts,
        (1.0,) * draws,
    )
    shown: dict[str, Any] = {"keep_points": keep_points, "observe": observe, "progress": progress}
    shown["store"] = opened(store)
    state = chain.start(point, size)
    return simulate(chain, state, grid, label="sampling", generator=generator, **shown)


class MetropolisChain(Stepper):
    """The chain: states are ``(dt, turn, accepted, A, Q)`` and the values of `Potential.at`."""

    def __init__(
        self, potential: Potential, source: torch.Generator, burn_in: int, tuned: bool, start: Any
    ) -> None:
        self.potential, self.noise = potential, Gaussians(source)
        self.generator, self.burn_in, self.tuned = source, burn_in, tuned
        self.depth, self.collapsed = start.depth, isinstance(start, Collapsed)

    def start(self, point: EndToEnd, dt: float) -> State:
        """Return the first state."""
        a, q = self.potential.coordinates(point)
        h, accepted = point.s.new_tensor(dt), point.s.new_zeros(point.s.shape[:-1])
        return (h, self._turn(h, a), accepted, a, q, *self.potential.at(a, q, h))

    def advance(self, state: State, h: float, index: int) -> State:
        dt, turn, accepted, a, q, value, drift = state[:7]
        finite = torch.isfinite(value) & torch.isfinite(drift).all(-1).all(-1)
        if not bool(finite.all()):
            raise Diverged("loss must be finite with a finite gradient at the start", ~finite)
        z = self.potential.increment(self.noise.draw(a.shape, a, 1.0))
        a_new, q_new = a + dt * drift + (2 * dt).sqrt() * z, q
        if q.numel():
            b = self.noise.draw((*q.shape[:-1], q.shape[-2]), a, 1.0) * turn
            q_new = matrix_exponential(b - b.mH) @ q
        new = self.potential.at(a_new, q_new, dt)
        back = a - a_new - dt * new[1]
        log_ratio = value - new[0] + 0.5 * absolute_square(z).sum((-2, -1))
        log_ratio = log_ratio - absolute_square(back).sum((-2, -1)) / (4 * dt)
        source = self.generator
        uniform = torch.rand(value.shape, generator=source, dtype=value.dtype, device=source.device)
        # A proposal without a finite potential has ratio NaN or -inf and is refused.
        yes = uniform.to(a.device).log() < log_ratio
        pairs = zip((a_new, q_new, *new), state[3:], strict=True)
        parts = [_where(yes, x, y) for x, y in pairs]
        if index < self.burn_in:
            chance = log_ratio.clamp(max=0.0).exp().nan_to_num(0.0).mean()
            if self.tuned:
                dt = dt * torch.exp(2.0 * (index + 1.0) ** -0.6 * (chance - _BEST_ACCEPTANCE))
            turn = self._turn(dt, parts[0])
        else:
            accepted = accepted + yes
        return (dt, turn, accepted, *parts)

    def _turn(self, dt: Tensor, a: Tensor) -> Tensor:
        """Return the size of rotations that move Y as far as the noise does."""
        return 0.5 * (2 * dt).sqrt() / self.potential.size(a)

    def observe(self, state: State) -> dict[str, Tensor]:
        return {"singular_values": state[8], "loss": state[10]}

    def summary(self, state: State, steps: int) -> dict[str, Any]:
        proposals = max(steps - self.burn_in, 1)
        return {"acceptance": float(state[2].mean()) / proposals, "dt": float(state[0])}

    def point(self, state: State) -> Collapsed | EndToEnd:
        u, s, v = state[7:10]
        point = EndToEnd(u, s, v.mH, self.depth, check=False)
        return Collapsed.of(point) if self.collapsed else point


def _where(yes: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Choose the new or the old part of a state, sample by sample."""
    index: Any = (..., *(None,) * (new.ndim - yes.ndim))
    return torch.where(yes[index], new, old) if new.numel() else new
