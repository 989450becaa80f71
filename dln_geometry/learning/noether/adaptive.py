"""Normalised layers as RMSProp: gradient descent on scale-invariant parameters.

See Tanaka & Kunin, arXiv 2105.02716, section 5. The matching of the constants and the corrected
correspondence are this library's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dln_geometry.learning.noether.overdamped import (
    check_positive,
    decay_factor,
    growth,
    slow_amplitude,
    stationary_norm,
)
from dln_geometry.learning.rules import Rule, as_rule
from dln_geometry.support import as_flag, as_float_tensor, as_positive, broadcast_shapes


@dataclass(frozen=True)
class RMSPropState:
    """The state of the effective RMSProp between steps.

    `second_moment`, of shape (...), is G, the moving average of the squared gradient; `buffer`, of
    shape (..., d), the momentum W that the last step subtracted from the direction; `last`, of the
    same shape, ``ghat / sqrt(G)`` of the step before, for Nesterov's momentum; `boost` the weight
    of the next gradient, as the first one is not dampened.

    Examples
    --------
    >>> adaptive = dln.learning.as_rmsprop(dln.learning.Rule(lr=0.1, weight_decay=0.1))
    >>> state = adaptive.init(torch.tensor([0.6, 0.8]), 5.0)
    >>> isinstance(state, dln.learning.RMSPropState), state.buffer
    (True, tensor([0., 0.]))
    """

    second_moment: Tensor
    buffer: Tensor
    last: Tensor
    boost: float = 1.0


@dataclass(frozen=True)
class EffectiveRMSProp:
    r"""RMSProp on the unit sphere, as gradient descent acts on scale-invariant parameters.

    With ghat the gradient at the direction theta (of unit norm), a step is

    ``W+ = b' W + (1 - b') lr ghat / sqrt(G)``, ``theta+ = (theta - W+) / |theta - W+|``,
    ``G+ = rho G + (1 - rho) |W+|^2 G / lr^2``,

    and the norm of the parameters is ``r^2 = C sqrt(G)``. Without momentum the last term is
    ``|ghat|^2``, with momentum the square of the moving average of ghat: the two differ if the
    gradients change from step to step, as with minibatches.

    Parameters
    ----------
    lr : float
        Learning rate: about ``sqrt(2 eta k / (1 + b))`` for a rule of learning rate eta.
    rho : float
        Decay of the second moment.
    scale, momentum : float
        C and b'.
    lookahead : float
        a: Nesterov's momentum replaces the gradient term x by ``(1 + b) x - a x_last``; zero
        without it.
    drive : float
        The factor (1 + b) there, one without Nesterov's momentum.
    amplitude : float
        Factor by which the norm of the slow motion exceeds that of a start from rest.
    boost : float
        Weight of the first gradient: with dampening it is ``1 / (1 - dampening)``.

    Examples
    --------
    >>> rule = dln.learning.Rule(lr=0.1, weight_decay=0.1)
    >>> adaptive = dln.learning.as_rmsprop(rule)
    >>> isinstance(adaptive, dln.learning.EffectiveRMSProp), round(adaptive.rho, 3)
    (True, 0.961)
    """

    lr: float
    rho: float
    scale: float
    momentum: float = 0.0
    lookahead: float = 0.0
    drive: float = 1.0
    amplitude: float = 1.0
    boost: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "scale", "drive", "amplitude", "boost"):
            object.__setattr__(self, name, as_positive(getattr(self, name), name))
        for name in ("rho", "momentum", "lookahead"):
            number = as_positive(getattr(self, name), name, zero=True)
            if number >= 1:
                raise ValueError(f"{name} must lie in [0, 1), got {number}")
            object.__setattr__(self, name, number)

    def init(self, direction: Any, norm: Any) -> RMSPropState:
        """Return the state of a start from rest.

        `direction` is theta, of shape (..., d), with norm one; `norm` is r, of shape (...).
        """
        theta = as_float_tensor(direction, "direction")
        r = as_float_tensor(norm, "norm", dtype=theta.dtype, device=theta.device)
        check_positive(r, "norm")
        lengths = torch.linalg.vector_norm(theta, dim=-1) if theta.ndim else theta.abs()
        if theta.ndim == 0 or theta.numel() == 0 or bool((lengths - 1).abs().max() > 1e-3):
            raise ValueError(
                "direction must have shape (..., d) and norm one along its last axis, got shape "
                f"{tuple(theta.shape)} and norms up to "
                f"{float(lengths.max()) if lengths.numel() else 0.0:.3g}"
            )
        if r.ndim and broadcast_shapes(r.shape, lengths.shape) != lengths.shape:
            raise ValueError(f"norm must have shape {tuple(lengths.shape)}, got {tuple(r.shape)}")
        moment = ((self.amplitude * r) ** 4 / self.scale**2).expand(theta.shape[:-1])
        return RMSPropState(moment, torch.zeros_like(theta), torch.zeros_like(theta), self.boost)

    def norm(self, state: RMSPropState) -> Tensor:
        """Return the norm r of the parameters, ``r^2 = C sqrt(G)``."""
        return (self.scale * state.second_moment.sqrt()).sqrt()

    def step(
        self, direction: Tensor, gradient: Tensor, state: RMSPropState
    ) -> tuple[Tensor, RMSPropState]:
        """Return ``theta+`` and the state with ``G+`` and ``W+``.

        `direction` is theta, of shape (..., d), and `gradient` the gradient of the loss there.
        """
        if not isinstance(state, RMSPropState):
            raise TypeError(f"state must be an RMSPropState, got {type(state).__name__}")
        kind: Any = {"dtype": state.buffer.dtype, "device": state.buffer.device}
        direction = as_float_tensor(direction, "direction", **kind)
        gradient = as_float_tensor(gradient, "gradient", **kind)
        for name, x in (("direction", direction), ("gradient", gradient)):
            if x.shape != state.buffer.shape:
                shape = tuple(state.buffer.shape)
                raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
        scaled = gradient / state.second_moment.sqrt().unsqueeze(-1)
        push = scaled if self.lookahead == 0 else self.drive * scaled - self.lookahead * state.last
        rate = (1 - self.momentum) * self.lr * state.boost
        if self.lookahead:
            rate /= self.drive - self.lookahead
        buffer = self.momentum * state.buffer + rate * push
        moved = direction - buffer
        # The norm grows by the square of the move, in which momentum has averaged out the noise.
        square = state.second_moment * buffer.square().sum(-1) / self.lr**2
        after = self.rho * state.second_moment + (1 - self.rho) * square
        unit = moved / torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
        return unit, RMSPropState(after, buffer, scaled)


def as_rmsprop(rule: Rule, *, corrected: bool = True) -> EffectiveRMSProp:
    r"""Return the RMSProp by which a rule with weight decay moves scale-invariant parameters.

    As printed, ``rho = 1 - 4 eta k / (1 - b)``, ``lr = sqrt(2 eta k / (1 + b))``,
    ``C = sqrt(eta (1 + b) / (2 k)) / (1 - b)`` and no momentum: right to O(eta) along a run of
    fixed time. The corrected one follows from the substitution ``q = lambda_+^n p``, which turns
    weight decay exactly into growing learning rates, and is right to O(eta^2), direction and norm:

    ``rho = lambda_+^4``, ``b' = b / lambda_+^2``, ``C = r*^2 / |ghat|`` (`stationary_norm`),
    ``lr = eta / ((1 - b') lambda_+ C)``.

    Without weight decay the accumulator is AdaGrad's: see `overdamped_norm`. With
    ``corrected=False`` rho must be positive.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> rule = learning.Rule(lr=0.125, momentum=0.5, weight_decay=0.03)
    >>> adaptive = learning.as_rmsprop(rule, corrected=False)
    >>> print(f"{adaptive.rho:.4f} {adaptive.lr:.4f} {adaptive.scale:.4f}")
    0.9700 0.0707 3.5355
    """
    corrected = as_flag(corrected, "corrected")
    if not as_rule(rule).weight_decay:
        raise ValueError("weight_decay must be positive, got 0: there is no moving average")
    eta, b, k = rule.time_step, rule.momentum, rule.weight_decay
    root = decay_factor(rule, True)
    if not corrected:
        rho = 1 - 4 * eta * k / (1 - b)
        if not rho > 0:
            raise ValueError(
                "4 lr weight_decay must be below 1 - momentum for the printed correspondence, got "
                f"rho = {rho:g}"
            )
        sigma = growth(rule) * (1 - b) ** 3 / eta
        scale = math.sqrt(eta * sigma / (2 * k)) / (1 - b)
        return EffectiveRMSProp(eta / ((1 - b) * scale), rho, scale)
    scale, amplitude = stationary_norm(rule, 1.0) ** 2, slow_amplitude(rule)
    if not rule.nesterov:
        momentum, boost = b / root**2, rule.lr / eta
        lr = eta / ((1 - momentum) * root * scale)
        return EffectiveRMSProp(lr, root**4, scale, momentum, amplitude=amplitude, boost=boost)
    momentum = b * (1 - eta * k) / root**2
    drive, lookahead = 1 + b, b / root
    lr = eta * (drive - lookahead) / ((1 - momentum) * root * scale)
    return EffectiveRMSProp(lr, root**4, scale, momentum, lookahead, drive, amplitude)
