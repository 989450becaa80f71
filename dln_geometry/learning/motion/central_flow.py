r"""The central flow of gradient descent: its average where it oscillates at the edge of stability.

Where eigenvalues of the Hessian reach ``2 / lr``, iterates oscillate around a smooth path, with a
covariance Sigma that keeps these eigenvalues from rising further. Time is counted in steps:

``dw/dt = -lr [ grad L + (1/2) grad <H, Sigma> ]``,  ``H <= 2/lr``,  ``Sigma >= 0``,
``<2/lr - H, Sigma> = 0``.

With ``Sigma = U X U^T`` on the top eigenvectors U and ``c_ij = grad <u_i, H u_j>`` the eigenvalues
move by ``d(U^T H U)_ij = -lr [ <c_ij, grad L> + (1/2) sum_kl <c_ij, c_kl> X_kl ]``; X is the least
matrix that holds them below ``2/lr``, from a small convex quadratic programme.

With momentum b slow motion has the learning rate ``lr / (1 - b)`` and oscillations the edge of the
rule, `Rule.edge`. With minibatches there is no edge to stay at: noise and oscillation have a
covariance that the steps move, see `minibatches`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    as_finite,
    as_loss,
    batch_losses,
    dot,
    flatten,
    gradient_and_value_of,
    unflatten,
    with_exact_derivatives,
)
from dln_geometry.learning.motion.minibatches import NoisySteps
from dln_geometry.learning.motion.spectrum import curvature_slopes, flat_product, top_eigenpairs
from dln_geometry.learning.rules import Rule
from dln_geometry.support import as_count, as_observable_value, as_observables, as_positive

_ITERATIONS = 500


@dataclass(frozen=True, eq=False)
class CentralPath:
    """A path of `central_flow`; time is the first axis.

    Attributes
    ----------
    t : Tensor, shape (T,)
        Numbers of steps.
    loss : Tensor, shape (T,)
        At the centre.
    average_loss : Tensor, shape (T,)
        ``L + <H, Sigma> / 2``: the loss of the iterates, averaged over their oscillation.
    sharpness : Tensor, shape (T, modes)
        The largest eigenvalues of the Hessian, descending.
    covariance : Tensor, shape (T, modes, modes)
        Sigma in the eigenvectors of these; its trace is the variance of the iterates.
    params : list of dict
        The centres, one for each time.
    observed : dict of Tensor, shape (T, ...)
        The observables that were asked for, by name.

    Examples
    --------
    >>> loss = lambda p: (p["a"] * p["b"] - 1).square() / 2
    >>> start = {"a": torch.tensor(2.0), "b": torch.tensor(0.1)}
    >>> path = dln.learning.central_flow(loss, 0.1)(start, 4)
    >>> path.t, path.sharpness.shape
    (tensor([0., 1., 2., 3., 4.]), torch.Size([5, 1]))
    """

    t: Tensor
    loss: Tensor
    average_loss: Tensor
    sharpness: Tensor
    covariance: Tensor
    params: list[Parameters]
    observed: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CentralFlow:
    """The central flow of a loss at one learning rate; made by `central_flow`.

    Calling it follows the flow; `velocity` is its velocity at one point.

    Examples
    --------
    >>> flow = dln.learning.central_flow(lambda p: p["q"].square().sum(), 0.1)
    >>> flow.velocity({"q": torch.tensor([1.0, 2.0])})["q"]
    tensor([-0.2000, -0.4000])
    """

    loss: Loss
    lr: float
    modes: int
    rule: Rule | None = None
    batches: tuple[Loss, ...] = ()

    @property
    def _rule(self) -> Rule:
        return Rule(self.lr) if self.rule is None else self.rule

    @property
    def _rate(self) -> float:
        """Learning rate of slow motion."""
        return self._rule.time_step / self._rule.friction

    def velocity(self, params: Any) -> Parameters:
        """Return ``dw/dt``, in units of steps; with minibatches at the covariance that rests."""
        q = _as_single_or_double(params)
        if self.batches:
            return unflatten(self._noisy().resting_velocity(q), q)
        return unflatten(self._at(q, 1.0)[0], q)

    def __call__(
        self,
        params: Any,
        steps: int,
        *,
        substeps: int = 4,
        save_every: int = 1,
        observe: Mapping[str, Callable[[Parameters], Any]] | None = None,
    ) -> CentralPath:
        """Follow the flow for some steps of gradient descent, each by `substeps` Euler steps.

        One Euler step for each would be gradient descent itself, which oscillates: two at least.
        With momentum b, where a step goes further, there are ``(1 + b) / (1 - b)`` times as many.
        The state is saved every `save_every` steps, and at the start, with the values of the
        functions `observe` of the parameters, by name.
        """
        observables = as_observables(observe, [one.name for one in fields(CentralPath)])
        q = {name: x.detach() for name, x in _as_single_or_double(params).items()}
        steps, substeps = as_count(steps, "steps"), as_count(substeps, "substeps", 2)
        every = as_count(save_every, "save_every")
        bound = self._rule.edge + self._rule.weight_decay
        # At the edge a step of the flow goes this many times as far as one of gradient descent.
        substeps = math.ceil(substeps * max(1.0, self._rate * bound / 2) - 1e-9)
        saved: list[tuple[Any, ...]] = []
        states = self._noisy().follow if self.batches else self._follow
        for n, (at, value, top, x) in enumerate(states(q, steps, substeps)):
            if n % every == 0:
                average = value + (top * x.diagonal()).sum() / 2
                seen = {k: as_observable_value(f(at), k) for k, f in observables.items()}
                saved.append((float(n), value, average, top, x, at, seen))
        t, loss, average, top, x, points, rows = zip(*saved, strict=True)
        like = loss[0]
        times = torch.tensor(t, dtype=like.dtype, device=like.device)
        stacked = [torch.stack(list(values)) for values in (loss, average, top, x)]
        observed = {k: torch.stack([row[k] for row in rows]) for k in observables}
        return CentralPath(times, *stacked, params=list(points), observed=observed)

    def _noisy(self) -> NoisySteps:
        return NoisySteps(self.loss, self.batches, self._rule, self.modes)

    def _follow(
        self, q: Parameters, steps: int, substeps: int
    ) -> Iterator[tuple[Parameters, Tensor, Tensor, Tensor]]:
        """Yield the centre, loss, top eigenvalues and X of every step."""
        for n in range(steps + 1):
            for k in range(substeps if n < steps else 1):
                velocity, value, top, x = self._at(q, 1.0 / substeps)
                if k == 0:
                    yield q, value, top, x
                q = unflatten(flatten(q) + velocity / substeps, q)

    def _at(self, q: Parameters, dt: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return velocity, loss, top eigenvalues and X, such that a step of dt keeps the bound."""
        exact = with_exact_derivatives(self.loss)
        gradients, value = gradient_and_value_of(exact)(q)
        if not bool(torch.isfinite(value)):
            raise ValueError(f"loss must be finite along the flow, got {float(value)}")
        g, w = flatten(gradients), flatten(q)
        top, u = top_eigenpairs(flat_product(self.loss, q), w, self.modes)
        # The loss has the decay of the rule.
        m, bound = len(top), self._rule.edge + self._rule.weight_decay
        velocity, x = -self._rate * g, top.new_zeros(m, m)
        # Modes far below the bound cannot reach it within the step.
        near = top > 0.7 * bound
        if bool(near.any()):
            first, second = torch.triu_indices(m, m, device=w.device)
            both = near[first] & near[second]
            first, second = first[both], second[both]
            c = torch.zeros(m, m, len(w), dtype=w.dtype, device=w.device)
            slopes = curvature_slopes(exact, q, u.mT[first], u.mT[second])
            c[first, second] = c[second, first] = slopes
            x = _least_covariance(c, g, (bound - top).diag(), self._rate * dt)
            velocity = velocity - self._rate / 2 * torch.einsum("ij,ijp->p", x, c)
        return velocity, value, top, x


def central_flow(
    loss: Any, lr: float | Rule, modes: int = 1, *, batches: Iterable[Any] | None = None
) -> CentralFlow:
    """Return the central flow of gradient descent: the time average of its iterates.

    Below the edge of stability it is gradient flow; at the edge it keeps the top eigenvalues of the
    Hessian at ``2 / lr``, and tells the covariance of the oscillation as part of its state. With
    momentum the edge is `Rule.edge`.

    With minibatches noise drives the oscillation long before the edge. The covariance is then moved
    by the steps themselves, of independent batches, to second order in the distance from the
    centre, on the top eigenvectors: ``X+ = mean (1 - lr H_b) X (1 - lr H_b) + lr^2 cov(g_b)``. It
    is exact for quadratic losses if `modes` are all parameters. Its average is one over many runs,
    without the transient of the first momentum buffers; where little noise lets oscillations come
    in bursts, it has the first one alone, since later ones come at another time in each run.
    Batches in random order, each once an epoch, have less noise along the flat directions that are
    left out (see `modified_loss`).

    Parameters
    ----------
    loss : callable
        ``loss(params)``, three times differentiable; of the whole data. With batches
        ``loss(params, batch)``, or what `functionalize` returns, which is put on each batch.
    lr : float or Rule
        Learning rate of gradient descent, or a rule without a potential, with momentum and decay
        (the losses along the path then have the decay).
    modes : int
        Number of top eigenvalues that may reach ``2 / lr``.
    batches : iterable, optional
        The minibatches, of equal weights, of which every step draws one.

    Returns
    -------
    CentralFlow
        ``flow(params, steps)`` returns a `CentralPath`.

    References
    ----------
    Cohen et al., Understanding optimization in deep learning with central flows, arXiv 2410.24206
    (full batch). Momentum and minibatches are derived here.

    Examples
    --------
    A valley that gets steeper along b: gradient descent stops where its curvature is 2 / lr = 4.

    >>> loss = lambda p: p["a"].square() * (1 + p["b"]) - p["b"]
    >>> flow = dln.learning.central_flow(loss, 0.5)
    >>> path = flow({"a": torch.tensor(0.01), "b": torch.tensor(0.0)}, 20)
    >>> path.sharpness[-1].round(decimals=3), path.covariance[-1].round(decimals=3)
    (tensor([4.]), tensor([[1.]]))

    The variance of one parameter under noise of variance 1, curvature 1:
    ``lr / (2 - lr)``.

    >>> on_batch = lambda p, x: (p["q"] - x).square().sum() / 2
    >>> flow = dln.learning.central_flow(on_batch, 0.5, batches=[-1.0, 1.0])
    >>> flow({"q": torch.tensor([0.0])}, 20).covariance[-1].round(decimals=3)
    tensor([[0.3330]])
    """
    rule = lr if isinstance(lr, Rule) else Rule(as_positive(lr, "lr"))
    if rule.potential is not None:
        raise ValueError("lr must be a rule without a potential, got one with a potential")
    modes, k = as_count(modes, "modes"), rule.weight_decay
    found = [as_loss(loss)] if batches is None else batch_losses(loss, batches, "batches")

    def mean(params: Parameters) -> Tensor:
        value: Any = sum(f(params) for f in found) / len(found)
        return value + k / 2 * dot(params, params) if k else value

    whole = mean if len(found) > 1 or k else found[0]
    several = tuple(found) if len(found) > 1 else ()
    return CentralFlow(whole, rule.lr, modes, rule, several)


def _as_single_or_double(params: Any) -> Parameters:
    q = as_finite(params)
    for name, x in q.items():
        if x.dtype.itemsize < 4:
            raise TypeError(
                f"params must be in single or double precision, got {x.dtype} for {name!r}: third "
                "derivatives have no digit left in less"
            )
    return q


def _least_covariance(c: Tensor, g: Tensor, slack: Tensor, dt: float) -> Tensor:
    """Return the X >= 0 that keeps ``slack + dt (A + B X)`` at least 0, complementary to it.

    ``A_ij = <c_ij, g>``, ``(B X)_ij = (1/2) sum <c_ij, c_kl> X_kl``: the minimiser of a convex
    quadratic function over positive semi-definite matrices, by accelerated projected gradients.
    """
    m = len(c)
    rows = c.reshape(m * m, -1)
    quadratic = dt / 2 * rows @ rows.mT
    linear = (slack + dt * (c @ g)).reshape(-1)
    size = float(torch.linalg.matrix_norm(quadratic, 2))
    if size == 0.0:
        return torch.zeros_like(slack)
    if m == 1:
        return (-linear / quadratic[0, 0]).clamp_min(0.0).reshape(1, 1)
    x = y = torch.zeros_like(slack)
    momentum = 1.0
    for _ in range(_ITERATIONS):
        slope = (quadratic @ y.reshape(-1) + linear).reshape(m, m)
        values, vectors = torch.linalg.eigh(y - (slope + slope.mT) / (2 * size))
        new = (vectors * values.clamp_min(0.0)) @ vectors.mT
        move = new - x
        if float((move * (y - new)).sum()) > 0:
            # The momentum points uphill: without a restart it oscillates about the minimum.
            momentum = 1.0
        later = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        y, moved = new + (momentum - 1) / later * move, float(move.norm())
        x, momentum = new, later
        if moved <= 1e-12 * float(x.norm()):
            break
    return x
