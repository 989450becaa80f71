"""Exact laws of the moments: what every step of SGD does to them, minibatches included.

``G_p = W_{p+1}^T W_{p+1} - W_p W_p^T``; ``K_p(V)`` is the same of matrices V shaped like the
layers. The gradients ``D_p`` of a loss of the end-to-end matrix satisfy Noether's identity
``D_p W_p^T = W_{p+1}^T D_{p+1}``, so that a step along them changes the moments at second order
in the learning rate alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dln_geometry.geometry.points import layer_moments
from dln_geometry.learning.closed_forms.layers import as_moments, as_rule, as_velocities, cross
from dln_geometry.learning.rules import Rule

__all__ = ["MomentState", "balance_step", "momentum_balance_step", "stationary_moments"]


def balance_step(
    moments: Sequence[Any], gradients: Sequence[Any], rule: Rule
) -> tuple[Tensor, ...]:
    """Return the moments after one step of SGD: ``G_p+ = (1 - lr k)^2 G_p + lr^2 K_p(D)``.

    It is exact in every step, whatever the loss of X and the minibatch.

    Parameters
    ----------
    moments : sequence of array_like
        ``G_1, ..., G_{N-1}`` before the step.
    gradients : sequence of array_like
        ``D_1, ..., D_N``: the gradients ``df/dW_p`` of the minibatch, without weight decay.
    rule : Rule
        Learning rate and weight decay k; no momentum.

    Returns
    -------
    tuple of Tensor
        ``G_1, ..., G_{N-1}`` after the step.

    Raises
    ------
    TypeError
        If an argument is not of its kind.
    ValueError
        If the rule has momentum (see `momentum_balance_step`) or a potential, or shapes do not
        fit.

    Examples
    --------
    >>> balance_step([[[5.0]]], [[[3.0]], [[2.0]]], Rule(lr=0.1, weight_decay=1.0))
    (tensor([[4.]]),)
    """
    g, rule = as_moments(moments), as_rule(rule)
    if rule.momentum:
        raise ValueError(
            f"rule must have no momentum, got {rule.momentum}: momentum_balance_step is the law "
            "with momentum"
        )
    d = as_velocities(gradients, "gradients", [x.shape[-1] for x in g])
    shrink = (1 - rule.lr * rule.weight_decay) ** 2
    return tuple(x * shrink + rule.lr**2 * k for x, k in zip(g, layer_moments(d), strict=True))


@dataclass(frozen=True)
class MomentState:
    """Moments and what momentum has to know beside them.

    Parameters
    ----------
    moments : tuple of Tensor
        ``G_p``.
    cross : tuple of Tensor, optional
        ``W_{p+1}^T v_{p+1} - v_p W_p^T`` with the momentum buffers v; `None` before the first step.
    velocities : tuple of Tensor, optional
        The buffers of the last step: Nesterov's momentum alone needs them.
    """

    moments: tuple[Tensor, ...]
    cross: tuple[Tensor, ...] | None = None
    velocities: tuple[Tensor, ...] | None = None


def momentum_balance_step(
    state: MomentState | Sequence[Any], velocities: Sequence[Any], rule: Rule
) -> MomentState:
    """Return the moments after one step of SGD with momentum, from its momentum buffers.

    Heavy ball: ``P_n = b (P_{n-1} - lr K(v_n)) + (1 - dampening) k G_n``,
    ``G_{n+1} = G_n - lr (P_n + P_n^T) + lr^2 K(v_{n+1})``. With Nesterov's momentum the layers
    move by ``u = (1 + b) v_{n+1} - b v_n``. Exact in every step, minibatches included.

    Parameters
    ----------
    state : MomentState or sequence of array_like
        What the last step returned; the moments at the start.
    velocities : sequence of array_like
        The momentum buffers ``v_{n+1}`` of the layers after this step, as ``torch.optim.SGD``
        keeps them (``state[w]["momentum_buffer"]``), or `Rule.step` returns.
    rule : Rule
        The learning rule.

    Raises
    ------
    TypeError
        If an argument is not of its kind.
    ValueError
        If the rule has no momentum (there are no buffers: see `balance_step`) or a potential, or
        shapes do not fit.

    Examples
    --------
    >>> momentum_balance_step([[[5.0]]], [[[3.0]], [[2.0]]], Rule(lr=0.1, momentum=0.9)).moments
    (tensor([[4.9500]]),)
    """
    rule = as_rule(rule)
    if not rule.momentum:
        raise ValueError("rule must have momentum, got none: balance_step is the law without")
    if not isinstance(state, MomentState):
        state = MomentState(as_moments(state, "state"))
    g, lr, b, k = state.moments, rule.lr, rule.momentum, rule.weight_decay
    v = as_velocities(velocities, "velocities", [x.shape[-1] for x in g])
    if state.cross is None:
        # The first step has no buffer, and is not damped.
        p = tuple(k * x for x in g)
    else:
        p = tuple(b * c + (1 - rule.dampening) * k * x for c, x in zip(state.cross, g, strict=True))
    if not rule.nesterov:
        second = layer_moments(v)
        after = tuple(x - lr * (q + q.mT) + lr**2 * s for x, q, s in zip(g, p, second, strict=True))
        return MomentState(after, tuple(q - lr * s for q, s in zip(p, second, strict=True)))
    last = state.velocities
    u = tuple((1 + b) * new for new in v)
    if last is not None:
        u = tuple(x - b * old for x, old in zip(u, last, strict=True))
    first = tuple(k * x + b * q for x, q in zip(g, p, strict=True))
    after = tuple(
        x - lr * (q + q.mT) + lr**2 * s for x, q, s in zip(g, first, layer_moments(u), strict=True)
    )
    mixed = tuple(q - lr * s for q, s in zip(p, cross(u, v), strict=True))
    # Copies: an optimiser goes on writing into its buffers.
    return MomentState(after, mixed, tuple(x.clone() for x in v))


def stationary_moments(kinetic: Sequence[Any], rule: Rule) -> tuple[Tensor, ...]:
    """Return the mean of the moments in the stationary state of SGD, from the mean of K.

    ``E[G] = lr^2 E[K(D)] / (1 - (1 - lr k)^2)``, D the gradients; with heavy-ball momentum
    ``E[G] = lr (1 + b) / (2 k) E[K(v)]``, v the momentum buffers. Both follow from the exact laws
    by taking means, and hold over time up to what stands at the two ends of it.

    Parameters
    ----------
    kinetic : sequence of array_like
        ``E[K_p]``: means over a stationary run of the moments of the gradients (of the minibatch,
        without weight decay), or with momentum of the buffers.
    rule : Rule
        With weight decay; without, moments diffuse and have no stationary state.

    Raises
    ------
    TypeError
        If an argument is not of its kind.
    ValueError
        If there is no weight decay, or ``lr k >= 2``, or the rule has a potential, dampening or
        Nesterov's momentum.

    Examples
    --------
    >>> stationary_moments([[[0.75]]], Rule(lr=0.5, weight_decay=1.0))
    (tensor([[0.2500]]),)
    """
    k_mean, rule = as_moments(kinetic, "kinetic"), as_rule(rule)
    lr, k, b = rule.lr, rule.weight_decay, rule.momentum
    if rule.nesterov or rule.dampening:
        raise ValueError("rule must be that of SGD or of the heavy ball, without dampening")
    if k == 0:
        raise ValueError("rule must have weight decay: without, the moments have no stationary law")
    if lr * k >= 2 * (1 + b):
        raise ValueError(f"lr * weight_decay must be below {2 * (1 + b):g}, got {lr * k:g}")
    if b:
        return tuple(lr * (1 + b) / (2 * k) * x for x in k_mean)
    return tuple(lr / (k * (2 - lr * k)) * x for x in k_mean)
