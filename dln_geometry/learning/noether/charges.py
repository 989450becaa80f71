"""Noether charges of learning: a symmetry of the loss that the kinetic energy may break.

The charge of a symmetry with the generator dQ is ``C = <Delta, dQ>`` with the momentum Delta of
the rule (see `learning.noether.mechanics`). The symmetry of the loss dictates how it moves, by
friction, weight decay and the asymmetry of the kinetic energy. The functions share the arguments
of `charge`, and return one number for each entry of the symmetry's s. See Tanaka & Kunin, arXiv
2105.02716, section 4.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dln_geometry.learning.functional import Loss, Tensors, gradient_of
from dln_geometry.learning.noether.mechanics import acceleration, as_state, hessian_along, momentum
from dln_geometry.learning.rules import Rule, as_rule
from dln_geometry.learning.symmetry import Symmetry, as_symmetry


def charge(symmetry: Symmetry, rule: Rule, params: Tensors, velocity: Tensors) -> Tensor:
    r"""Return the Noether charge ``<grad h(q + m q') - grad h(q), dQ>``.

    Without a potential it is ``m <q', dQ>``. The symmetry may be a family; `rule` has the mass m
    and the potential h; `params` is q, and `velocity` is q'.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> q, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    >>> learning.charge(learning.Scale("w"), learning.Rule(lr=0.5), q, v)
    tensor(0.7500)
    """
    symmetry, rule = as_symmetry(symmetry), as_rule(rule)
    params, velocity = as_state(params, velocity)
    return symmetry.pair(params, momentum(rule, params, velocity))


def kinetic_asymmetry(symmetry: Symmetry, rule: Rule, params: Tensors, velocity: Tensors) -> Tensor:
    r"""Return the rate at which a symmetry of the loss changes the kinetic energy.

    ``d/ds T(Q(q, s), d/dt Q(q, s)) = <Delta, dQ'> + <Delta - m hess h(q) q', dQ> / m``,

    with dQ' the rate of change of the generator along q'. Without a potential it is
    ``m <q', dQ'>``: zero for translations and rotations, ``m |q'|^2`` for scale.

    Parameters as in `charge`.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> q, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    >>> learning.kinetic_asymmetry(learning.Scale("w"), learning.Rule(lr=0.5), q, v)
    tensor(2.2500)
    """
    symmetry, rule = as_symmetry(symmetry), as_rule(rule)
    params, velocity = as_state(params, velocity)
    delta = momentum(rule, params, velocity)
    result = _along_path(symmetry, params, velocity, delta)
    if rule.potential is None:
        return result
    curved = hessian_along(rule.potential, params, velocity)
    excess = {name: d / rule.mass - curved[name] for name, d in delta.items()}
    return result + symmetry.pair(params, excess)


def charge_rate(
    symmetry: Symmetry, rule: Rule, params: Tensors, velocity: Tensors, *, loss: Loss | None = None
) -> Tensor:
    r"""Return the rate of change of a charge C that a symmetry of the loss dictates.

    ``dC/dt = -(mu / m) C + d/ds T - k <q, dQ>``

    Nesterov's momentum adds ``b lr (<grad f, dQ'> - k <q', dQ>)``, the one term that needs
    ``loss(params)``. Other parameters as in `charge`.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> q, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    >>> learning.charge_rate(learning.Scale("w"), learning.Rule(lr=0.5), q, v)
    tensor(-0.7500)
    """
    symmetry, rule = as_symmetry(symmetry), as_rule(rule)
    params, velocity = as_state(params, velocity)
    rate = (
        kinetic_asymmetry(symmetry, rule, params, velocity)
        - rule.friction / rule.mass * charge(symmetry, rule, params, velocity)
        - rule.weight_decay * symmetry.conserved(params)
    )
    if not rule.nesterov:
        return rate
    if loss is None:
        raise ValueError("loss must be given with Nesterov's momentum, got None")
    turning = _along_path(symmetry, params, velocity, gradient_of(loss)(params))
    drag = turning - rule.weight_decay * symmetry.pair(params, velocity)
    return rate + rule.momentum * rule.time_step * drag


def noether_residual(
    symmetry: Symmetry, rule: Rule, loss: Loss, params: Tensors, velocity: Tensors
) -> Tensor:
    r"""Return the rate of a charge under the `acceleration` of the rule, minus `charge_rate`.

    It is rounding for a symmetry of the loss, and ``-<grad f, dQ>`` otherwise (and some more with
    Nesterov's momentum). Parameters as in `charge`, with ``loss(params)``, a scalar tensor.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> loss = lambda params: params["w"].sum()
    >>> q, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    >>> learning.noether_residual(learning.Scale("w"), learning.Rule(lr=0.5), loss, q, v)
    tensor(-3.)
    """
    symmetry, rule = as_symmetry(symmetry), as_rule(rule)
    params, velocity = as_state(params, velocity)
    motion = velocity, acceleration(rule, loss, params, velocity)
    rate = torch.func.jvp(partial(charge, symmetry, rule), (params, velocity), motion)[1]
    expected = charge_rate(symmetry, rule, params, velocity, loss=loss)
    return rate.to(expected.dtype) - expected


def _along_path(symmetry: Symmetry, params: Tensors, velocity: Tensors, dual: Tensors) -> Tensor:
    """Return ``<dual, dQ'>`` with the derivative of the generator along the velocity."""
    state = (dict(params),), (dict(velocity),)
    changing = torch.func.jvp(lambda q: symmetry.pair(q, dual), *state)[1]
    return changing.to(next(iter(params.values())).dtype)
