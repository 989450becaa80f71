"""The moments in continuous time, when friction has overcome inertia."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.closed_forms.layers import as_moments, as_rule
from dln_geometry.learning.noether import decay_factor, growth
from dln_geometry.learning.rules import Rule
from dln_geometry.support import as_float_tensor

__all__ = ["overdamped_moments"]


def overdamped_moments(
    moments: Sequence[Any],
    kinetic: Sequence[Any],
    times: Any,
    rule: Rule,
    *,
    corrected: bool = True,
) -> tuple[Tensor, ...]:
    """Return the moments from the history of the gradients.

    ``G(t) = e^{-c t} G(0) + (2 m / mu^3) int_0^t e^{-c (t - s)} K(s) ds`` with mass m, friction mu
    and K the moments of the gradients D of the loss. As printed ``c = 2 k / mu``, with an error of
    the order of the learning rate; corrected ``c = -(2/lr) log lambda_+``, with the factor
    ``lambda_+`` by which a step shrinks a parameter, an error of its square. With momentum time
    begins behind the transient of the start, which decays like b^n. Nesterov's momentum has the
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
        Learning rule.
    corrected : bool
        The corrected exponent or the printed one.

    Returns
    -------
    tuple of Tensor
        ``G_p`` at the times, shape (T, d_p, d_p).

    Raises
    ------
    TypeError
        If an argument is not of its kind.
    ValueError
        If the rule is not overdamped or has a potential; if times do not increase from 0, or
        shapes do not fit.

    References
    ----------
    Tanaka & Kunin, arXiv 2105.02716 (overdamped charges; the exponent is corrected here).

    Examples
    --------
    >>> rule = Rule(lr=0.1, weight_decay=1.0)
    >>> (g,) = overdamped_moments([[[1.0]]], [torch.zeros(2, 1, 1)], [0.0, 0.1], rule)
    >>> g[-1].round(decimals=4)  # (1 - lr k)^2
    tensor([[0.8100]])
    """
    start, forces, rule = as_moments(moments), as_moments(kinetic, "kinetic"), as_rule(rule)
    if not isinstance(corrected, bool):
        raise TypeError(f"corrected must be True or False, got {corrected!r}")
    rule.check_overdamped()
    t = as_float_tensor(times, "times", dtype=torch.float64).tolist()
    if not isinstance(t, list) or not t or t[0] != 0 or any(b <= a for a, b in pairwise(t)):
        raise ValueError("times must increase from 0, and be a vector of shape (T,)")
    if len(start) != len(forces):
        raise ValueError(
            f"kinetic must hold one tensor per moment, {len(start)}, got {len(forces)}"
        )
    for p, (g, k) in enumerate(zip(start, forces, strict=True)):
        if tuple(k.shape) != (len(t), *g.shape):
            raise ValueError(
                f"kinetic[{p}] must have shape {(len(t), *g.shape)}, got {tuple(k.shape)}"
            )
    rate = -2.0 * math.log(decay_factor(rule, corrected)) / rule.time_step
    strength = growth(rule)
    paths = [[g] for g in start]
    for n in range(len(t) - 1):
        h = t[n + 1] - t[n]
        early, late = _weights(rate * h)
        for path, k in zip(paths, forces, strict=True):
            source = strength * h * (early * k[n] + late * k[n + 1])
            path.append(math.exp(-rate * h) * path[-1] + source)
    return tuple(torch.stack(path) for path in paths)


def _weights(x: float) -> tuple[float, float]:
    """Return the weights of the ends in ``int_0^1 e^{-x (1 - s)} K(s) ds`` of a linear K."""
    if x < 0.1:
        # sum (-x)^n / (n + 2)!, which the closed form loses to cancellation.
        late, whole, term = 0.0, 0.0, 1.0
        for n in range(12):
            whole += term / math.factorial(n + 1)
            late += term / math.factorial(n + 2)
            term *= -x
        return whole - late, late
    whole = -math.expm1(-x) / x
    late = (1.0 - whole) / x
    return whole - late, late
