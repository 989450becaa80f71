"""Noether charges of learning: how a symmetry of the loss and a broken one of the kinetics move.

A rule moves the parameters, to second order in the learning rate, by the Euler-Lagrange equation
of a Lagrangian with the kinetic energy

``T = D_h(q + m q', q) / m``,  ``D_h(x, y) = h(x) - h(y) - <grad h(y), x - y>``,

with the mass m and the potential h of the rule (``m/2 |q'|^2`` without one). With
``Delta = grad h(q + m q') - grad h(q)`` (``m q'``) and the force ``F = grad f + k q`` it reads

``d/dt Delta + (mu / m) Delta = (Delta - m hess h(q) q') / m - F``.

Nesterov's momentum adds the friction ``b lr dF/dt`` to F.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dln_geometry.learning.legendre import hessian_inverse
from dln_geometry.learning.parameters import Parameters
from dln_geometry.learning.rules import Rule
from dln_geometry.learning.symmetry.symmetries import Symmetry

__all__ = [
    "acceleration",
    "charge",
    "charge_rate",
    "kinetic_asymmetry",
    "kinetic_energy",
    "noether_residual",
]


def kinetic_energy(
    rule: Rule, params: Mapping[str, Tensor], velocity: Mapping[str, Tensor]
) -> Tensor:
    r"""Return the kinetic energy ``D_h(q + m q', q) / m``, which is ``m/2 |q'|^2`` without h.

    Parameters
    ----------
    rule : Rule
        Its mass and potential.
    params, velocity : dict of str to Tensor
        q, and its rate of change q'. In units of the learning rate: -v of a slow trajectory.

    References
    ----------
    Tanaka & Kunin, arXiv 2105.02716, section 4.
    """
    m = rule.mass
    if rule.potential is None:
        return m / 2 * _dot(velocity, velocity)
    ahead = {name: q + m * velocity[name] for name, q in params.items()}
    dual, here = torch.func.grad_and_value(rule.potential)(dict(params))
    return (rule.potential(ahead) - here) / m - _dot(dual, velocity)


def kinetic_asymmetry(
    symmetry: Symmetry,
    rule: Rule,
    params: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
) -> Tensor:
    r"""Return the rate at which a symmetry of the loss changes the kinetic energy.

    ``d/ds T(Q(q, s), d/dt Q(q, s)) = <Delta, dQ'> + <Delta - m hess h(q) q', dQ> / m``,

    with dQ' the rate of change of the generator along q'. Without a potential it is
    ``m <q', dQ'>``: zero for translations and rotations, ``m |q'|^2`` for scale.

    Parameters
    ----------
    symmetry : Symmetry
        A symmetry or a family.
    rule : Rule
        Its mass and potential.
    params, velocity : dict of str to Tensor
        q and q'.

    Returns
    -------
    Tensor
        One number for each entry of s.

    References
    ----------
    Tanaka & Kunin, arXiv 2105.02716, section 4 (kinetic symmetry breaking).

    Examples
    --------
    >>> from dln_geometry.learning.symmetry.actions import Scale
    >>> q, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    >>> kinetic_asymmetry(Scale("w"), Rule(lr=0.5), q, v)
    tensor(2.2500)
    """
    delta = _momentum(rule, params, velocity)
    result = _along_path(symmetry, params, velocity, delta)
    if rule.potential is None:
        return result
    curved = _hessian(rule.potential, params, velocity)
    excess = {name: d / rule.mass - curved[name] for name, d in delta.items()}
    return result + symmetry.pair(params, excess)


def charge(
    symmetry: Symmetry,
    rule: Rule,
    params: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
) -> Tensor:
    r"""Return the Noether charge ``<grad h(q + m q') - grad h(q), dQ>``.

    Without a potential it is ``m <q', dQ>``.

    Parameters
    ----------
    symmetry : Symmetry
        A symmetry or a family.
    rule : Rule
        Its mass and potential.
    params, velocity : dict of str to Tensor
        q and q'.

    Returns
    -------
    Tensor
        One charge for each entry of s.

    References
    ----------
    Tanaka & Kunin, arXiv 2105.02716, section 4.

    Examples
    --------
    >>> from dln_geometry.learning.symmetry.actions import Scale
    >>> q, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    >>> charge(Scale("w"), Rule(lr=0.5), q, v)
    tensor(0.7500)
    """
    return symmetry.pair(params, _momentum(rule, params, velocity))


def charge_rate(
    symmetry: Symmetry,
    rule: Rule,
    params: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
    *,
    loss: Callable[[Parameters], Tensor] | None = None,
) -> Tensor:
    r"""Return the rate of change of a charge C that a symmetry of the loss dictates.

    ``dC/dt = -(mu / m) C + d/ds T - k <q, dQ>``

    Nesterov's momentum adds ``b lr (<grad f, dQ'> - k <q', dQ>)``, the one term that needs the
    loss.

    Parameters
    ----------
    symmetry : Symmetry
        A symmetry or a family, of the loss.
    rule : Rule
        The learning rule.
    params, velocity : dict of str to Tensor
        q and q'.
    loss : callable, optional
        ``loss(params)``, needed with Nesterov's momentum only.

    Raises
    ------
    ValueError
        If the rule has Nesterov's momentum and there is no loss.

    References
    ----------
    Tanaka & Kunin, arXiv 2105.02716, section 4 (Noether's learning dynamics).
    """
    rate = (
        kinetic_asymmetry(symmetry, rule, params, velocity)
        - rule.friction / rule.mass * charge(symmetry, rule, params, velocity)
        - rule.weight_decay * symmetry.conserved(params)
    )
    if not rule.nesterov:
        return rate
    if loss is None:
        raise ValueError("loss must be given with Nesterov's momentum, got None")
    gradient = torch.func.grad(loss)(dict(params))
    drag = _along_path(symmetry, params, velocity, gradient) - rule.weight_decay * symmetry.pair(
        params, velocity
    )
    return rate + rule.momentum * rule.time_step * drag


def acceleration(
    rule: Rule,
    loss: Callable[[Parameters], Tensor],
    params: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
) -> Parameters:
    r"""Return q'' of the Euler-Lagrange equation of a rule.

    ``m hess h(q + m q') q'' = (1 - mu)/m Delta - hess h(q + m q') q' - grad f - k q``, which is
    ``m q'' + mu q' + grad f + k q = 0`` without a potential, and with Nesterov's momentum has the
    further force ``-b lr (H q' + k q')``. With a potential the linear system is solved by
    conjugate gradients, and the result is not differentiable.

    Iterates of the rule are ``lr^2`` close to its solutions, after a time of ``lr / (1 - b)``; a
    rule with both a potential and momentum only ``lr`` close.

    Parameters
    ----------
    rule : Rule
        The learning rule.
    loss : callable
        ``loss(params)``, a scalar tensor.
    params, velocity : dict of str to Tensor
        q and q'.

    References
    ----------
    Tanaka & Kunin, arXiv 2105.02716, section 4.

    Examples
    --------
    >>> half_square = lambda params: params["q"].square().sum() / 2
    >>> q, v = {"q": torch.tensor([1.0])}, {"q": torch.tensor([0.0])}
    >>> acceleration(Rule(lr=0.5), half_square, q, v)
    {'q': tensor([-4.])}
    """
    params, velocity = dict(params), dict(velocity)
    m, b, k = rule.mass, rule.momentum, rule.weight_decay
    force = torch.func.grad(loss)(params)
    if rule.nesterov:
        turn = _hessian(loss, params, velocity)
        drag = b * rule.time_step
        force = {n: f + drag * (turn[n] + k * velocity[n]) for n, f in force.items()}
    force = {name: -f - k * params[name] for name, f in force.items()}
    if rule.potential is None:
        return {n: (f - rule.friction * velocity[n]) / m for n, f in force.items()}
    delta = _momentum(rule, params, velocity)
    ahead = {name: q + m * velocity[name] for name, q in params.items()}
    # What the Hessian multiplies is taken out of the system, which is then solved more precisely.
    right = {name: f + b / m * delta[name] for name, f in force.items()}
    solved = hessian_inverse(rule.potential, ahead, right)
    return {name: (x - velocity[name]) / m for name, x in solved.items()}


def noether_residual(
    symmetry: Symmetry,
    rule: Rule,
    loss: Callable[[Parameters], Tensor],
    params: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
) -> Tensor:
    r"""Return by how much the motion of a charge is not what the symmetry dictates.

    The charge moves with q, q' and the `acceleration` of the rule on this loss; from its rate of
    change is taken `charge_rate`. The difference is rounding for a symmetry of the loss, and
    ``-<grad f, dQ>`` otherwise (and some more with Nesterov's momentum).

    Parameters
    ----------
    symmetry : Symmetry
        A symmetry or a family.
    rule : Rule
        The learning rule.
    loss : callable
        ``loss(params)``, a scalar tensor.
    params, velocity : dict of str to Tensor
        q and q'.

    Returns
    -------
    Tensor
        One number for each entry of s.

    Examples
    --------
    >>> from dln_geometry.learning.symmetry.actions import Scale
    >>> loss = lambda params: params["w"].sum()
    >>> q, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    >>> noether_residual(Scale("w"), Rule(lr=0.5), loss, q, v)
    tensor(-3.)
    """
    params, velocity = dict(params), dict(velocity)
    rate = torch.func.jvp(
        lambda q, v: charge(symmetry, rule, q, v),
        (params, velocity),
        (velocity, acceleration(rule, loss, params, velocity)),
    )[1]
    return rate - charge_rate(symmetry, rule, params, velocity, loss=loss)


def _momentum(
    rule: Rule, params: Mapping[str, Tensor], velocity: Mapping[str, Tensor]
) -> Parameters:
    """Return ``Delta = grad h(q + m q') - grad h(q)``."""
    m = rule.mass
    if rule.potential is None:
        return {name: m * v for name, v in velocity.items()}
    dual = torch.func.grad(rule.potential)
    ahead = dual({name: q + m * velocity[name] for name, q in params.items()})
    return {name: ahead[name] - y for name, y in dual(dict(params)).items()}


def _along_path(
    symmetry: Symmetry,
    params: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
    covector: Mapping[str, Tensor],
) -> Tensor:
    """Return ``<covector, dQ'>``, the generator changing along the velocity."""
    return torch.func.jvp(lambda q: symmetry.pair(q, covector), (dict(params),), (dict(velocity),))[
        1
    ]


def _hessian(
    f: Callable[[Parameters], Tensor],
    params: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
) -> Parameters:
    return torch.func.jvp(torch.func.grad(f), (dict(params),), (dict(velocity),))[1]


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([(x * b[name]).sum() for name, x in a.items()]).sum()
