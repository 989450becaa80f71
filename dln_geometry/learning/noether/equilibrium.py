r"""Where the noise of SGD takes a symmetric loss along the orbits of its symmetry.

For the generator A of an exponential symmetry ``q -> e^{sA} q`` (A symmetric) the charge
``C = <q, A q>`` moves by the exact law ``C+ = (1 - eta k)^2 C + eta^2 <g, A g>`` of each step of
SGD. On the orbit ``q_s = e^{sA} q`` the gradients are ``e^{-sA} g``: C grows with s, and the mean
of ``<g, A g>`` falls, so that there is one point at most where the charge stands still on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.functional import (
    Parameters,
    as_finite,
    batch_losses,
    gradient_of,
)
from dln_geometry.learning.rules import Rule
from dln_geometry.learning.symmetry import Symmetry, SymmetryError, as_symmetry
from dln_geometry.support import as_positive

_STEPS, _LARGEST_STEP = 200, 1.0
# An epsilon inside a normalisation breaks its scale by less.
_BROKEN = 1e-2


@dataclass(frozen=True, eq=False)
class NoiseEquilibrium:
    """The point of an orbit where noise holds the charge; made by `noise_equilibrium`.

    Attributes
    ----------
    params : dict of str to Tensor
        The parameters there: the loss is that of the start.
    charge : Tensor
        ``symmetry.conserved(params)``, one for each entry of a family.
    residual : float
        ``|eta E<g, A g> - (2 k - eta k^2) C|`` over the size of its terms.

    Examples
    --------
    >>> loss = lambda p, batch: (p["u"] * p["w"] * batch[0] - batch[1]).square().mean()
    >>> data = [(torch.tensor(1.0), torch.tensor(2.0)), (torch.tensor(2.0), torch.tensor(1.0))]
    >>> start = {"u": torch.tensor([4.0]), "w": torch.tensor([1.0])}
    >>> found = dln.learning.noise_equilibrium(dln.learning.Rescale("u", "w"), loss, data, start)
    >>> found.params["u"].round(decimals=3)
    tensor([2.])
    """

    params: Parameters
    charge: Tensor
    residual: float


def noise_equilibrium(
    symmetry: Symmetry,
    loss: Any,
    data: Iterable[Any],
    params: Any,
    *,
    lr: float | Rule = 1.0,
    weight_decay: float = 0.0,
) -> NoiseEquilibrium:
    r"""Return the point of the orbit of `params` where SGD holds the charge of a symmetry.

    It solves ``(2 k - eta k^2) C = eta E<g, A g>`` on the orbit, the mean over the minibatches
    of `data`: without weight decay k the law of balance, ``E<g, A g> = 0``, whatever the learning
    rate eta. For rescaling ``(u, w) -> (e^s u, e^{-s} w)`` it says ``E|g_u|^2 = E|g_w|^2``. SGD
    drifts along the orbit to this point, slowly (by eta^2), while the loss moves it across.

    Momentum b, of either kind, adds up the noise of independent minibatches to that of a rate
    ``eta / (1 - b)``: this rate stands in place of eta, to first order in ``eta k / (1 - b)``. It
    moves no equilibrium without decay. Minibatches that come in random order, each once an epoch,
    have the same equilibrium; with momentum and decay only where an epoch is long against
    ``1 / (1 - b)`` steps.

    Parameters
    ----------
    symmetry : Symmetry
        With generators linear in the parameters (``degree=1``) and symmetric: rescalings, scales
        and gauges, one or a family.
    loss : callable
        ``loss(params, batch)``, or what `functionalize` returns, which is put on each batch; every
        batch must have the symmetry.
    data : iterable
        The minibatches that SGD draws, with equal weights.
    params : dict of str to Tensor
    lr, weight_decay : float
        Of SGD, the decay coupled as in torch; or in place of both a `Rule` without a potential.

    Raises
    ------
    SymmetryError
        If the loss of a minibatch lacks the symmetry.
    ValueError
        If the orbit has no such point (without weight decay, if only one side has gradients), or
        gradients or their squares are not finite.

    References
    ----------
    Ziyin et al., arXiv 2308.06671 (law of balance) and 2402.07193 (exponential symmetries).

    Examples
    --------
    Two layers of one number: noise brings 4 and 1 to the same size, with the same product.

    >>> def loss(p, batch):
    ...     return (p["u"] * p["w"] * batch[0] - batch[1]).square().sum()
    >>> data = [(1.0, 3.0), (2.0, 1.0)]
    >>> start = {"u": torch.tensor([4.0]), "w": torch.tensor([1.0])}
    >>> found = dln.learning.noise_equilibrium(dln.learning.Rescale("u", "w"), loss, data, start)
    >>> [round(float(x), 3) for x in found.params.values()]
    [2.0, 2.0]
    """
    as_symmetry(symmetry)
    if symmetry.degree != 1:
        raise ValueError(f"symmetry must have linear generators (degree 1), got {symmetry!r}")
    given, rule = as_finite(params), _as_rule(lr, weight_decay)
    k, lr = rule.weight_decay, rule.time_step / rule.friction
    decay = 2 * k - lr * k * k if not rule.momentum else (1 - rule.discrete_root**2) / lr
    given = {name: x.detach() for name, x in given.items()}
    # Refuses parameters without those that the symmetry moves.
    symmetry.conserved(given)
    found = [gradient_of(own)(given) for own in batch_losses(loss, data, "data")]
    # Squares need more digits than half precision has.
    q = {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in given.items()}
    g = {name: torch.stack([x[name] for x in found]).to(q[name]) for name in q}
    _check_gradients(symmetry, q, g)

    def terms(s: Tensor, q: Parameters, g: Parameters) -> tuple[Tensor, Tensor]:
        moved, turned = symmetry.action(q, s), pulled(g, s)
        noise = torch.func.vmap(lambda x: symmetry.pair(x, x))(turned).mean(0)
        return decay * symmetry.conserved(moved), lr * noise

    def pulled(g: Parameters, s: Tensor) -> Parameters:
        return torch.func.vmap(lambda x: symmetry.action(x, -s))(g)

    def off(s: Tensor, q: Parameters, g: Parameters) -> Tensor:
        held, pushed = terms(s, q, g)
        return held - pushed

    zero, relative = symmetry.zero(q), float("inf")
    eps = torch.finfo(zero.dtype).eps
    for _ in range(_STEPS):
        value = off(zero, q, g)
        size = _term_sizes(symmetry, q, g, decay, lr)
        relative = float((value.abs() / size).max()) if zero.numel() else 0.0
        if not math.isfinite(relative):
            raise ValueError(
                "params and their gradients must have finite squares, got an overflow: rescale "
                "them along the orbit"
            )
        if not relative > 100 * eps:
            break
        jacobian = torch.func.jacrev(lambda s, q=q, g=g: off(s, q, g))(zero)
        square = jacobian.reshape(value.numel(), value.numel())
        step = -torch.linalg.lstsq(square.double(), value.double().reshape(-1, 1)).solution
        s = step.reshape(zero.shape).to(zero)
        if s.ndim == 2 and s.shape[0] == s.shape[1]:
            s = (s + s.mT) / 2
        s = s / max(1.0, float(s.abs().max()) / _LARGEST_STEP)
        before = float(value.norm())
        while float(off(s, q, g).norm()) >= before and float(s.abs().max()) > eps:
            s = s / 2
        if float(s.abs().max()) <= eps:
            break
        q, g = symmetry.action(q, s), pulled(g, s)
    if relative > 10 * eps**0.5:
        reason = (
            "without weight decay both sides need gradients"
            if k == 0
            else "its end may be out of reach: parts that do not enter the loss shrink for ever"
        )
        raise ValueError(
            "data must hold the charge somewhere on the orbit, got gradients that push it one way "
            f"all along (residual {relative:.1e}): {reason}"
        )
    settled = {name: x.to(given[name]) for name, x in q.items()}
    return NoiseEquilibrium(settled, symmetry.conserved(q), relative)


def _as_rule(lr: Any, weight_decay: Any) -> Rule:
    """Return the rule with this rate and decay, or the one given in place of the rate."""
    if not isinstance(lr, Rule):
        return Rule(
            as_positive(lr, "lr"),
            weight_decay=as_positive(weight_decay, "weight_decay", zero=True),
        )
    if lr.potential is not None:
        raise ValueError("lr must be a rule without a potential, got one with a potential")
    if weight_decay != 0.0:
        raise ValueError(
            f"lr must be a number beside a weight decay, got a rule and weight_decay={weight_decay}"
        )
    return lr


def _check_gradients(symmetry: Symmetry, q: Parameters, g: Parameters) -> None:
    """Refuse batches whose gradients are not finite, or move along the orbit."""
    field = symmetry.generated(q, torch.ones_like(symmetry.zero(q)))
    for k in range(len(next(iter(g.values())))):
        own = {name: g[name][k] for name in field}
        if not all(bool(torch.isfinite(x).all()) for x in own.values()):
            raise ValueError(
                f"data must give finite gradients, got NaN or infinity from minibatch {k}"
            )
        along = abs(sum(float((own[n] * x).sum()) for n, x in field.items()))
        size = sum(float((own[n] * x).abs().sum()) for n, x in field.items())
        if along > _BROKEN * size:
            raise SymmetryError(
                f"loss must have the symmetry on each minibatch, got a slope along the orbit of "
                f"{along / size:.1e} of its terms from minibatch {k}",
                along / size,
            )


def _term_sizes(symmetry: Symmetry, q: Parameters, g: Parameters, decay: float, lr: float) -> float:
    """Return the size of the terms of the equation: squares of the parameters that it moves."""
    moving = symmetry.generated(q, torch.ones_like(symmetry.zero(q)))
    parameters = sum(float(q[n].square().sum()) for n in moving)
    gradients = sum(float(g[n].square().sum()) / len(g[n]) for n in moving)
    return decay * parameters + lr * gradients or 1.0
