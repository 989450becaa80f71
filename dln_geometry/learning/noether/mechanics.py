"""The mechanics of a learning rule: kinetic energy, momentum, and the Euler-Lagrange equation.

A rule moves the parameters, to second order in the learning rate, by the Euler-Lagrange equation
of a Lagrangian with the kinetic energy

``T = D_h(q + m q', q) / m``,  ``D_h(x, y) = h(x) - h(y) - <grad h(y), x - y>``,

with the mass m and the potential h of the rule (``m/2 |q'|^2`` without one). With
``Delta = grad h(q + m q') - grad h(q)`` (``m q'``) and the force ``F = grad f + k q`` it reads

``d/dt Delta + (mu / m) Delta = (Delta - m hess h(q) q') / m - F``.

Nesterov's momentum adds the friction ``b lr dF/dt`` to F. See Tanaka & Kunin, arXiv 2105.02716,
section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    Tensors,
    as_finite,
    as_like,
    as_value,
    dot,
    gradient_and_value_of,
    gradient_of,
)
from dln_geometry.learning.rules import Rule, as_rule, hessian_inverse


def kinetic_energy(rule: Rule, params: Tensors, velocity: Tensors) -> Tensor:
    r"""Return the kinetic energy ``D_h(q + m q', q) / m``, which is ``m/2 |q'|^2`` without h.

    `params` is q, and `velocity` its rate of change q': on a slow trajectory -v, v the buffer.

    Examples
    --------
    >>> q, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    >>> dln.learning.kinetic_energy(dln.learning.Rule(lr=0.5), q, v)  # m/2 |q'|^2 with m = lr/2
    tensor(1.1250)
    """
    m = as_rule(rule).mass
    params, velocity = as_state(params, velocity)
    if rule.potential is None:
        return m / 2 * dot(velocity, velocity)
    ahead = {name: q + m * velocity[name] for name, q in params.items()}
    dual, here = gradient_and_value_of(rule.potential, "potential")(params)
    return (as_value(rule.potential(ahead), "potential") - here) / m - dot(dual, velocity)


def acceleration(rule: Rule, loss: Loss, params: Tensors, velocity: Tensors) -> Parameters:
    r"""Return q'' of the Euler-Lagrange equation of a rule.

    ``m hess h(q + m q') q'' = (1 - mu)/m Delta - hess h(q + m q') q' - grad f - k q``, which is
    ``m q'' + mu q' + grad f + k q = 0`` without a potential, and with Nesterov's momentum has the
    further force ``-b lr (H q' + k q')``. With a potential the linear system is solved by
    conjugate gradients, and the result is not differentiable.

    Iterates of the rule are ``lr^2`` close to its solutions, after a time of ``lr / (1 - b)``; a
    rule with both a potential and momentum only ``lr`` close.

    Parameters as in `kinetic_energy`, with ``loss(params)``, a scalar tensor.

    Examples
    --------
    >>> half_square = lambda params: params["q"].square().sum() / 2
    >>> q, v = {"q": torch.tensor([1.0])}, {"q": torch.tensor([0.0])}
    >>> dln.learning.acceleration(dln.learning.Rule(lr=0.5), half_square, q, v)
    {'q': tensor([-4.])}
    """
    params, velocity = as_state(params, velocity)
    m, b, k = as_rule(rule).mass, rule.momentum, rule.weight_decay
    force = gradient_of(loss)(params)
    if rule.nesterov:
        turn = hessian_along(loss, params, velocity)
        drag = b * rule.time_step
        force = {n: f + drag * (turn[n] + k * velocity[n]) for n, f in force.items()}
    force = {name: -f - k * params[name] for name, f in force.items()}
    if rule.potential is None:
        return {n: (f - rule.friction * velocity[n]) / m for n, f in force.items()}
    delta = momentum(rule, params, velocity)
    ahead = {name: q + m * velocity[name] for name, q in params.items()}
    # Without the term ``-hess h q'`` the linear system is smaller, and solved more precisely.
    right = {name: f + b / m * delta[name] for name, f in force.items()}
    solved = hessian_inverse(rule.potential, ahead, right)
    return {name: (x - velocity[name]) / m for name, x in solved.items()}


def as_state(params: Tensors, velocity: Tensors) -> tuple[Parameters, Parameters]:
    """Return q and q' as dicts with the same keys and shapes, or refuse them."""
    params = as_finite(params)
    return params, as_like(velocity, params, "velocity", finite=True)


def momentum(rule: Rule, params: Tensors, velocity: Tensors) -> Parameters:
    """Return ``Delta = grad h(q + m q') - grad h(q)``."""
    m = rule.mass
    if rule.potential is None:
        return {name: m * v for name, v in velocity.items()}
    dual = gradient_of(rule.potential, "potential")
    ahead = dual({name: q + m * velocity[name] for name, q in params.items()})
    return {name: ahead[name] - y for name, y in dual(dict(params)).items()}


def hessian_along(f: Loss, params: Tensors, velocity: Tensors) -> Parameters:
    """Return ``hess f(q) q'``, in forward mode over reverse."""
    image = torch.func.jvp(gradient_of(f), (dict(params),), (dict(velocity),))[1]
    # The tangent of a number that Python multiplies comes out in double precision (torch 2.13).
    return {name: x.to(params[name].dtype) for name, x in image.items()}
