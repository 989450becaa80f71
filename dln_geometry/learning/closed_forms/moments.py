"""Exact laws of the moments: how every step of SGD changes them, minibatches included.

``G_p = W_{p+1}^T W_{p+1} - W_p W_p^T``; ``K_p(V)`` is the same of matrices V shaped like the
layers. The gradients ``D_p`` of a loss of the end-to-end matrix satisfy Noether's identity
``D_p W_p^T = W_{p+1}^T D_{p+1}``: the moments are charges of the bilinear map `layers.cross`, and
move by the law of `learning.noether.momentum_law`. The laws hold for rules without a potential, and
are exact in every step, whatever the loss of X and the minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.geometry.points import layer_moments
from dln_geometry.learning.closed_forms.layers import (
    Layers,
    as_euclidean_rule,
    as_moments,
    as_velocities,
    cross,
)
from dln_geometry.learning.noether import (
    charge_after,
    decay_factor,
    growth,
    nesterov_direction,
    pushes,
)
from dln_geometry.learning.rules import Rule
from dln_geometry.support import as_flag, as_float_tensor, shown


def balance_step(moments: Sequence[Any], gradients: Sequence[Any], rule: Rule) -> Layers:
    """Return the moments after one step of SGD: ``G_p+ = (1 - lr k)^2 G_p + lr^2 K_p(D)``.

    Parameters
    ----------
    moments : sequence of array_like
        ``G_1, ..., G_{N-1}`` before the step.
    gradients : sequence of array_like
        ``D_1, ..., D_N``: the gradients ``df/dW_p`` of the minibatch, without weight decay.
    rule : Rule
        Learning rate and weight decay k; no momentum (see `momentum_balance_step`).

    Examples
    --------
    >>> from dln_geometry import learning
    >>> rule = learning.Rule(lr=0.1, weight_decay=1.0)
    >>> learning.balance_step([[[5.0]]], [[[3.0]], [[2.0]]], rule)
    (tensor([[4.]]),)
    """
    g, rule = as_moments(moments), as_euclidean_rule(rule)
    if rule.momentum:
        raise ValueError(
            f"rule must have no momentum, got {rule.momentum}: momentum_balance_step is the law "
            "with momentum"
        )
    kinetic = layer_moments(as_velocities(gradients, "gradients", g))
    lr, k = rule.lr, rule.weight_decay
    # The law with ``U = k G`` and ``B(d, d) = K + k^2 G``.
    pairs = zip(g, kinetic, strict=True)
    return tuple(charge_after(x, k * x, k * x, lr * (y + k**2 * x), lr) for x, y in pairs)


@dataclass(frozen=True)
class MomentState:
    """Moments, with the cross terms and buffers from which momentum continues.

    `moments` are the ``G_p``; `cross` the ``W_{p+1}^T v_{p+1} - v_p W_p^T`` with the momentum
    buffers v, `None` before the first step; `velocities` the last buffers, for Nesterov's momentum.

    Examples
    --------
    >>> state = dln.learning.closed_forms.MomentState((torch.tensor([[5.0]]),))
    >>> state.moments, state.cross
    ((tensor([[5.]]),), None)
    """

    moments: Layers
    cross: Layers | None = None
    velocities: Layers | None = None

    def __post_init__(self) -> None:
        # Shapes alone: one is made in every step.
        for name in ("moments", "cross", "velocities"):
            value = getattr(self, name)
            if value is None and name != "moments":
                continue
            if not isinstance(value, tuple) or not all(isinstance(x, Tensor) for x in value):
                raise TypeError(f"{name} must be a tuple of tensors, got {shown(value)}")
            count = len(self.moments) + (name == "velocities")
            if len(value) != count:
                raise ValueError(f"{name} must hold {count} tensors, got {len(value)}")


def momentum_balance_step(
    state: MomentState | Sequence[Any], velocities: Sequence[Any], rule: Rule
) -> MomentState:
    """Return the moments after one step of SGD with momentum, from its momentum buffers.

    Heavy ball: ``P_n = b (P_{n-1} - lr K(v_n)) + (1 - dampening) k G_n``,
    ``G_{n+1} = G_n - lr (P_n + P_n^T) + lr^2 K(v_{n+1})``. With Nesterov's momentum the layers
    move by ``u = (1 + b) v_{n+1} - b v_n``.

    Parameters
    ----------
    state : MomentState or sequence of array_like
        The result of the last step; the moments at the start.
    velocities : sequence of array_like
        The momentum buffers ``v_{n+1}`` of the layers after this step, as ``torch.optim.SGD``
        keeps them (``state[w]["momentum_buffer"]``), or `Rule.step` returns.
    rule : Rule
        With momentum (without, see `balance_step`).

    Examples
    --------
    >>> from dln_geometry import learning
    >>> rule = learning.Rule(lr=0.1, momentum=0.9)
    >>> learning.momentum_balance_step([[[5.0]]], [[[3.0]], [[2.0]]], rule).moments
    (tensor([[4.9500]]),)
    """
    rule = as_euclidean_rule(rule)
    if not rule.momentum:
        raise ValueError("rule must have momentum, got none: balance_step is the law without")
    if not isinstance(state, MomentState):
        state = MomentState(as_moments(state, "state"))
    g, lr, b = state.moments, rule.lr, rule.momentum
    v = as_velocities(velocities, "velocities", g)
    momenta, k = state.cross, rule.weight_decay * (1 - rule.dampening)
    if momenta is None:
        # The first step has no buffer, and is not dampened.
        momenta, k = tuple(torch.zeros_like(x) for x in g), rule.weight_decay
    u = v
    if rule.nesterov:
        old = state.velocities or (None,) * len(v)
        u = tuple(nesterov_direction(x, y, b) for x, y in zip(old, v, strict=True))
    squares = layer_moments(u)
    mixed = cross(u, v) if rule.nesterov else squares
    after, momenta_after = [], []
    for x, r, uu, uv in zip(g, momenta, squares, mixed, strict=True):
        p, push = pushes(k * x, r, b, rule.nesterov)
        after.append(charge_after(x, push, push.mT, lr * uu, lr))
        momenta_after.append(p - lr * uv)
    # Copies: an optimiser goes on writing into its buffers.
    kept = tuple(x.clone() for x in v) if rule.nesterov else None
    return MomentState(tuple(after), tuple(momenta_after), kept)


def stationary_moments(kinetic: Sequence[Any], rule: Rule) -> Layers:
    """Return the mean of the moments in the stationary state of SGD, from the mean of K.

    ``E[G] = lr^2 E[K(D)] / (1 - (1 - lr k)^2)``, D the gradients; with heavy-ball momentum
    ``E[G] = lr (1 + b) / (2 k) E[K(v)]``, v the momentum buffers. Both are means of the exact
    laws; over a finite time they hold up to terms of its two ends.

    Parameters
    ----------
    kinetic : sequence of array_like
        ``E[K_p]``: means over a stationary run of the moments of the gradients (of the minibatch,
        without weight decay), or with momentum of the buffers.
    rule : Rule
        With weight decay (without it the moments diffuse), ``lr k < 2 (1 + b)``, and neither
        dampening nor Nesterov's momentum.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> from dln_geometry.learning import closed_forms
    >>> closed_forms.stationary_moments([[[0.75]]], learning.Rule(lr=0.5, weight_decay=1.0))
    (tensor([[0.2500]]),)
    """
    k_mean, rule = as_moments(kinetic, "kinetic"), as_euclidean_rule(rule)
    lr, k, b = rule.lr, rule.weight_decay, rule.momentum
    if rule.nesterov or rule.dampening:
        raise ValueError("rule must be that of SGD or of the heavy ball, without dampening")
    if k == 0:
        raise ValueError("rule must have weight decay: without, the moments have no stationary law")
    if lr * k >= 2 * (1 + b):
        raise ValueError(f"lr * weight_decay must be below {2 * (1 + b):g}, got {lr * k:g}")
    factor = lr * (1 + b) / (2 * k) if b else lr / (k * (2 - lr * k))
    return tuple(factor * x for x in k_mean)


def overdamped_moments(
    moments: Sequence[Any],
    kinetic: Sequence[Any],
    times: Any,
    rule: Rule,
    *,
    corrected: bool = True,
) -> Layers:
    """Return the moments at given times from the history of the gradients, shape (T, d_p, d_p).

    ``G(t) = e^{-c t} G(0) + (2 m / mu^3) int_0^t e^{-c (t - s)} K(s) ds`` with mass m, friction mu
    and K the moments of the gradients D of the loss. As printed ``c = 2 k / mu``, with an error of
    the order of the learning rate; corrected ``c = -(2/lr) log lambda_+``, with the factor
    ``lambda_+`` by which a step shrinks a parameter, an error of its square. With momentum, time
    begins after the transient of the start, which decays like b^n. Nesterov's momentum has the
    factor ``lr (1 - b + 2 b^2) / (1 - b)^3`` in place of ``2 m / mu^3``.

    Parameters
    ----------
    moments : sequence of array_like
        ``G_p(0)``, of shape (d_p, d_p).
    kinetic : sequence of array_like
        ``K_p`` at the times, of shape (T, d_p, d_p); between them K is linear.
    times : array_like, shape (T,)
        Increasing, from 0. A step takes the time ``lr``.
    rule : Rule
        Overdamped.
    corrected : bool
        The corrected exponent or the printed one.

    References
    ----------
    Tanaka & Kunin, arXiv 2105.02716 (overdamped charges; the exponent is corrected here).

    Examples
    --------
    >>> from dln_geometry import learning
    >>> from dln_geometry.learning import closed_forms
    >>> rule = learning.Rule(lr=0.1, weight_decay=1.0)
    >>> (g,) = closed_forms.overdamped_moments([[[1.0]]], [torch.zeros(2, 1, 1)], [0.0, 0.1], rule)
    >>> g[-1].round(decimals=4)  # (1 - lr k)^2
    tensor([[0.8100]])
    """
    start, forces = as_moments(moments), as_moments(kinetic, "kinetic")
    factor = decay_factor(as_euclidean_rule(rule), as_flag(corrected, "corrected"))
    t = as_float_tensor(times, "times", dtype=torch.float64).tolist()
    if not isinstance(t, list) or not t or t[0] != 0 or any(b <= a for a, b in pairwise(t)):
        raise ValueError("times must increase from 0, and be a vector of shape (T,)")
    if len(start) != len(forces):
        raise ValueError(
            f"kinetic must hold one tensor per moment, {len(start)}, got {len(forces)}"
        )
    for p, (g, k) in enumerate(zip(start, forces, strict=True)):
        shape = (len(t), *g.shape)
        if k.shape != shape:
            raise ValueError(f"kinetic[{p}] must have shape {shape}, got {tuple(k.shape)}")
    rate, strength = -2.0 * math.log(factor) / rule.time_step, growth(rule)
    paths = [[g] for g in start]
    for n, (before, after) in enumerate(pairwise(t)):
        h = after - before
        early, late = _end_weights(rate * h)
        for path, k in zip(paths, forces, strict=True):
            source = strength * h * (early * k[n] + late * k[n + 1])
            path.append(math.exp(-rate * h) * path[-1] + source)
    return tuple(torch.stack(path) for path in paths)


def _end_weights(x: float) -> tuple[float, float]:
    """Return the weights of the ends in ``int_0^1 e^{-x (1 - s)} K(s) ds`` of a linear K."""
    if x < 0.1:
        # sum (-x)^n / (n + 2)!: the closed form loses digits by cancellation.
        late, whole, term = 0.0, 0.0, 1.0
        for n in range(12):
            whole += term / math.factorial(n + 1)
            late += term / math.factorial(n + 2)
            term *= -x
    else:
        whole = -math.expm1(-x) / x
        late = (1.0 - whole) / x
    return whole - late, late
