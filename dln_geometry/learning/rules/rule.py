"""Learning rules: gradient descent with momentum and weight decay, and mirror descent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    Tensors,
    as_like,
    as_loss,
    as_parameters,
    gradient_of,
)
from dln_geometry.learning.rules.legendre import legendre_inverse
from dln_geometry.support import as_flag, as_positive


@dataclass(frozen=True)
class Rule:
    r"""A learning rule: heavy ball or Nesterov momentum, weight decay, and a potential.

    With the gradient ``g = grad f(q)`` and the buffer v, a step is that of ``torch.optim.SGD``,

    ``d = g + k q``,  ``v+ = b v + (1 - dampening) d`` (``v+ = d`` in the first step),
    ``q+ = q - lr v+``, or with Nesterov's momentum ``q+ = q - lr (d + b v+)``,

    and with a potential h that of mirror descent: ``grad h(q+) = grad h(q) - lr v+``. Plain
    gradient descent is ``h = |q|^2 / 2``.

    Parameters
    ----------
    lr : float
        Learning rate, positive.
    momentum : float
        b, in [0, 1).
    weight_decay : float
        k, nonnegative: the coupled decay, gradient of ``k/2 |q|^2``.
    nesterov : bool
        Nesterov's momentum; needs positive momentum and no dampening.
    dampening : float
        In [0, 1). A rule with dampening is the rule with learning rate `time_step` and none, but
        for its first step.
    potential : callable, optional
        ``potential(params)``, a scalar: a strictly convex smooth function of the parameters.

    References
    ----------
    Tanaka & Kunin, arXiv 2105.02716 (mass and friction of a learning rule).

    Examples
    --------
    >>> import torch
    >>> rule = dln.learning.Rule(lr=0.5, momentum=0.5)
    >>> rule.mass, rule.friction
    (0.375, 0.5)
    >>> half_square = lambda params: params["q"].square().sum() / 2
    >>> params, state = rule.step(half_square, {"q": torch.tensor([1.0])})
    >>> params, state = rule.step(half_square, params, state)
    >>> params
    {'q': tensor([0.])}
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    potential: Loss | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "momentum", "weight_decay", "dampening"):
            value = as_positive(getattr(self, name), name, zero=name != "lr")
            if name in ("momentum", "dampening") and value >= 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "nesterov", as_flag(self.nesterov, "nesterov"))
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov must go with positive momentum and no dampening, got momentum "
                f"{self.momentum} and dampening {self.dampening}"
            )
        if self.potential is not None:
            as_loss(self.potential, "potential")

    @property
    def time_step(self) -> float:
        """Time that passes in one step, ``lr (1 - dampening)``; without momentum ``lr``."""
        return self.lr * (1 - self.dampening) if self.momentum else self.lr

    @property
    def mass(self) -> float:
        """Mass ``m = lr (1 + b) / 2`` in ``m q'' + mu q' + grad f + k q = 0``.

        Nesterov's momentum has the same mass, and a second friction ``b lr (H + k)`` with the
        Hessian H of the loss.
        """
        return self.time_step * (1 + self.momentum) / 2

    @property
    def friction(self) -> float:
        """Friction ``mu = 1 - b`` in ``m q'' + mu q' + grad f + k q = 0``."""
        return 1 - self.momentum

    @property
    def edge(self) -> float:
        """Curvature of the loss above which steps oscillate away from a minimum.

        With the decay k, ``2 (1 + b) / lr - k``, or with Nesterov's momentum
        ``2 (1 + b) / ((1 + 2 b) lr) - k``: a root of the step's polynomial is -1 there.
        """
        slack = 1 + 2 * self.momentum if self.nesterov else 1.0
        return 2 * (1 + self.momentum) / (slack * self.time_step) - self.weight_decay

    @property
    def is_overdamped(self) -> bool:
        """Whether weight decay makes charges decay without oscillation.

        ``lr k < (1 - sqrt b)^2``, and ``lr k < ((1 - b) / (1 + b))^2`` with Nesterov's momentum.
        """
        return self.time_step * self.weight_decay < self._bound()[1]

    def _bound(self) -> tuple[str, float]:
        """Return the bound on ``lr k`` above which charges oscillate, in words and numbers."""
        b = self.momentum
        if self.nesterov:
            return "((1 - momentum) / (1 + momentum))^2", ((1 - b) / (1 + b)) ** 2
        return "(1 - sqrt(momentum))^2", (1 - math.sqrt(b)) ** 2

    @property
    def discrete_root(self) -> float:
        """Factor by which weight decay alone shrinks a parameter in one step, after a transient.

        The larger root of ``l^2 - (1 + b - lr k) l + b = 0``, or with Nesterov's momentum of
        ``l^2 - (1 + b)(1 - lr k) l + b (1 - lr k) = 0``. Complex roots, of a rule that is not
        overdamped, raise a ValueError.
        """
        self.check_overdamped()
        b, product = self.momentum, self.time_step * self.weight_decay
        share = 1 - product if self.nesterov else 1.0
        half = (1 + b) * share / 2 if self.nesterov else (1 + b - product) / 2
        return half + math.sqrt(half**2 - b * share)

    def check_overdamped(self) -> None:
        """Refuse a rule under which charges oscillate (`ValueError`)."""
        if self.is_overdamped:
            return
        bound, value = self._bound()
        raise ValueError(
            f"lr * weight_decay must be below {bound} = {value:g}, got "
            f"{self.time_step * self.weight_decay:g}: beyond it the charge oscillates"
        )

    def step(
        self, loss: Loss, params: Tensors, state: Tensors | None = None
    ) -> tuple[Parameters, Parameters]:
        """Return ``q+`` and ``v+`` after one step; nothing is changed in place.

        As in ``torch.optim.SGD``, NaN is not looked for: a run that diverges shows it.

        Parameters
        ----------
        loss : callable
            ``loss(params)``, a scalar tensor.
        params : dict of str to Tensor
            The parameters q.
        state : dict of str to Tensor, optional
            The buffer v that the last step returned, `None` in the first.

        Raises
        ------
        ValueError
            If the step leaves the range of the potential's gradient.
        """
        return self.update(gradient_of(loss)(as_parameters(params)), params, state)

    def update(
        self, gradients: Tensors, params: Tensors, state: Tensors | None = None
    ) -> tuple[Parameters, Parameters]:
        """Return ``q+`` and ``v+`` as `step` does, from the gradients of the loss without decay."""
        params = as_parameters(params)
        gradients = as_like(gradients, params, "gradients")
        if state is not None:
            state = as_like(state, params, "state")
        velocity, direction = {}, {}
        for name, q in params.items():
            # The order of operations is torch.optim.SGD's: results agree to the last bit.
            d = gradients[name]
            if self.weight_decay:
                d = d.add(q, alpha=self.weight_decay)
            v = d
            if self.momentum and state is not None:
                v = state[name].mul(self.momentum).add(d, alpha=1 - self.dampening)
            velocity[name] = v
            direction[name] = d.add(v, alpha=self.momentum) if self.nesterov else v
        h = self.potential
        dual = params if h is None else gradient_of(h, "potential")(params)
        moved = {name: y.add(direction[name], alpha=-self.lr) for name, y in dual.items()}
        return moved if h is None else legendre_inverse(h, moved, params), velocity


def as_rule(rule: Any) -> Rule:
    """Return a learning rule; refuse anything else (`TypeError`)."""
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a Rule, got {type(rule).__name__}")
    return rule
