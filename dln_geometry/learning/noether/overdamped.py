"""Charges in slow motion: their integral formulas, and the norm at which they settle.

After a transient of ``1 / (1 - b)`` steps the velocity follows the gradient, ``q' = -g / mu``, and
a quadratic charge ``c = <q, A q>`` obeys ``c' = -kappa c + Gamma <g, A g>``, with

``kappa = 2 k / mu`` as printed in the literature, or the exact ``-(2 / lr) ln lambda_+`` with
`Rule.discrete_root`, and
``Gamma = lr (1 + b) / (1 - b)^3``, or ``lr (1 - b + 2 b^2) / (1 - b)^3`` with Nesterov's momentum.

All functions refuse a rule with a potential, or one that lets charges oscillate (`ValueError`).
The printed formulas are those of Tanaka & Kunin, arXiv 2105.02716, section 5; the corrected
exponent is this library's.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.rules import Rule, as_rule
from dln_geometry.support import (
    as_flag,
    as_float_tensor,
    as_positive,
    broadcast_shapes,
    common_batch,
)


def overdamped_charge(
    rule: Rule, initial: Any, sources: Any, *, corrected: bool = True, from_rest: bool = True
) -> Tensor:
    r"""Return a quadratic charge before each step and at the end, shape (T + 1, ...).

    ``c(t) = e^{-kappa t} c_0 + Gamma int_0^t e^{-kappa (t-s)} <g, A g> ds``, from the gradients
    alone, by steps of the learning rate: ``c_{n+1} = e^{-kappa lr} c_n + lr Gamma <g_n, A g_n>``.
    Without momentum that is the exact law of gradient descent.

    Parameters
    ----------
    rule : Rule
        Without a potential.
    initial : Tensor, shape (...)
        The charge at the start, ``symmetry.conserved(params)``.
    sources : Tensor, shape (T, ...)
        ``<g, A g>`` at each step, ``symmetry.pair(g, g)`` of the gradient without decay. With
        minibatches replace g by ``(1 - b) v`` of a heavy ball's buffer v: momentum averages noise
        before it enters a charge.
    corrected : bool
        With the exponent ``-(2 / lr) ln lambda_+``, whose error is O(lr^2); the printed one,
        ``2 k / mu``, is off by O(lr) where there is weight decay.
    from_rest : bool
        Whether the run starts without velocity. Then the charge lags: the corrected formula
        multiplies the initial value, and so the first entry, by the amplitude of the slow mode.

    Examples
    --------
    >>> dln.learning.overdamped_charge(dln.learning.Rule(lr=0.5, weight_decay=0.5), 4.0, [8.0, 0.0])
    tensor([4.0000, 4.2500, 2.3906])
    """
    corrected, from_rest = as_flag(corrected, "corrected"), as_flag(from_rest, "from_rest")
    factor = decay_factor(rule, corrected) ** 2
    c, terms = _together(initial, "initial", sources, "sources")
    if corrected and from_rest:
        c = c * slow_amplitude(rule) ** 2
    return _averaged(c, terms, factor, rule.time_step * growth(rule))


def overdamped_norm(
    rule: Rule, norm: Any, gradients: Any, *, corrected: bool = True, from_rest: bool = True
) -> Tensor:
    r"""Return the norm of scale-invariant parameters before each step and at the end.

    ``r^4(t) = e^{-2 kappa t} r_0^4 + 2 Gamma int_0^t e^{-2 kappa (t-s)} |ghat|^2 ds``

    by steps of the learning rate, with ``ghat = r g`` the gradient at unit norm. Without decay it
    is the accumulator of AdaGrad, with decay the moving average of RMSProp.

    `norm`, of shape (...), is r at the start, positive; `gradients`, of shape (T, ...), holds
    ``|ghat|^2`` at each step, for minibatches with momentum the square of ``(1 - b) r v``. Other
    parameters as in `overdamped_charge`; the result has the shape (T + 1, ...).

    Examples
    --------
    >>> rule = dln.learning.Rule(lr=0.5, weight_decay=0.1)
    >>> dln.learning.overdamped_norm(rule, 2.0, [1.0, 1.0, 1.0])
    tensor([2.0000, 1.9180, 1.8424, 1.7731])
    """
    corrected, from_rest = as_flag(corrected, "corrected"), as_flag(from_rest, "from_rest")
    factor = decay_factor(rule, corrected) ** 4
    r, terms = _together(norm, "norm", gradients, "gradients")
    check_positive(r, "norm")
    if bool((terms < 0).any()):
        raise ValueError(f"gradients must be squares of norms, got {float(terms.min())}")
    if corrected and from_rest:
        r = r * slow_amplitude(rule)
    return _averaged(r**4, terms, factor, 2 * rule.time_step * growth(rule)) ** 0.25


def stationary_norm(rule: Rule, gradient: float) -> float:
    r"""Return the norm at which scale-invariant parameters settle.

    ``r*^4 = eta^2 |ghat|^2 / ((1 - b)^2 (1 - x^2))``, ``x = 1 - eta k / (1 + b)``.

    Exact without momentum if ``|ghat|`` is constant; with momentum if also the parameters turn in
    one plane. Then they turn by `stationary_angle` in every step, and
    ``r*^2 = eta |ghat| / ((1 - b) sin(angle))``; in general it is right to leading order in eta.

    The rule must have weight decay; `gradient` is ``|ghat|``, the gradient's norm at unit norm.

    Examples
    --------
    >>> dln.learning.stationary_norm(dln.learning.Rule(lr=0.5, weight_decay=0.4), 1.2)
    1.0
    """
    gradient = as_positive(gradient, "gradient")
    angle = stationary_angle(rule)
    b, eta = rule.momentum, rule.time_step
    cosine, sine = math.cos(angle), math.sin(angle)
    pull = (1 - b) * sine
    if rule.nesterov:
        pull = (1 - b * (1 - eta * rule.weight_decay)) * sine / (1 + b - b * cosine)
    return math.sqrt(eta * gradient / pull)


def stationary_angle(rule: Rule) -> float:
    r"""Return the angle by which settled scale-invariant parameters turn in every step.

    ``cos(angle) = 1 - eta k / (1 + b)``, about ``sqrt(2 eta k / (1 + b))``; with Nesterov's
    momentum the root near one of ``2 b x^2 - (1 + b)(1 + 2 b z) x + (1 + b)^2 z - b (1 - b z)``,
    ``z = 1 - eta k``. It does not depend on the loss. The rule must have weight decay.

    Examples
    --------
    >>> round(dln.learning.stationary_angle(dln.learning.Rule(lr=0.5, weight_decay=0.01)), 4)
    0.1
    """
    if not as_rule(rule).weight_decay:
        raise ValueError("weight_decay must be positive, got 0: nothing settles")
    decay_factor(rule, True)
    b, product = rule.momentum, rule.time_step * rule.weight_decay
    if not rule.nesterov:
        # 1 - cos = 2 sin^2(angle / 2): no cancellation.
        return 2 * math.asin(math.sqrt(product / (1 + b) / 2))
    z = 1 - product
    half = (1 + b) * (1 + 2 * b * z) / (4 * b)
    last = ((1 + b) ** 2 * z - b * (1 - b * z)) / (2 * b)
    return math.acos(last / (half + math.sqrt(half**2 - last)))


def _together(initial: Any, name: str, terms: Any, terms_name: str) -> tuple[Tensor, Tensor]:
    """Convert an initial value and one term a step to one dtype, the wider of the two."""
    steps = as_float_tensor(terms, terms_name)
    if steps.ndim == 0 or steps.numel() == 0:
        got = "a number" if steps.ndim == 0 else f"none, shape {tuple(steps.shape)}"
        raise ValueError(f"{terms_name} must have a first axis, one entry a step, got {got}")
    # A Python number has no dtype of its own: it is read in that of the terms.
    dtype = steps.dtype
    if hasattr(initial, "dtype"):
        dtype = torch.promote_types(as_float_tensor(initial, name).dtype, dtype)
    start = as_float_tensor(initial, name, dtype=dtype, device=steps.device)
    if start.numel() == 0:
        raise ValueError(f"{name} must hold at least one number, got shape {tuple(start.shape)}")
    common_batch(**{name: start.shape, terms_name: steps.shape[1:]})
    return start, steps.to(dtype)


def _averaged(start: Tensor, terms: Tensor, factor: float, gain: float) -> Tensor:
    """Return the path ``c_{n+1} = factor c_n + gain terms_n`` from `start`."""
    first = start.expand(broadcast_shapes(start.shape, terms.shape[1:]))
    steps = accumulate(terms.unbind(), lambda c, x: factor * c + gain * x, initial=first)
    return torch.stack(list(steps))


def decay_factor(rule: Rule, corrected: bool) -> float:
    """Return the factor by which weight decay shrinks a parameter in one step."""
    if as_rule(rule).potential is not None:
        raise ValueError("rule must have no potential, got one")
    root = rule.discrete_root
    return root if corrected else math.exp(-rule.time_step * rule.weight_decay / rule.friction)


def growth(rule: Rule) -> float:
    """Return Gamma in ``c' = -kappa c + Gamma <g, A g>``."""
    b = rule.momentum
    # Nesterov's friction b lr H acts on the charge through <A q, H q'> = -<A q', g>.
    sigma = 1 - b + 2 * b**2 if rule.nesterov else 1 + b
    return rule.time_step * sigma / (1 - b) ** 3


def slow_amplitude(rule: Rule) -> float:
    """Return the amplitude of the mode lambda_+^n in a decay that starts from rest at one."""
    b, k, root = rule.momentum, rule.weight_decay, rule.discrete_root
    first = 1 - rule.lr * k * (1 + b if rule.nesterov else 1)
    other = b * (1 - rule.time_step * k if rule.nesterov else 1) / root
    return (first - other) / (root - other)


def check_positive(x: Tensor, name: str) -> None:
    """Refuse a tensor with an entry that is not positive."""
    if not bool((x > 0).all()):
        raise ValueError(f"{name} must be positive, got {float(x.min())}")
