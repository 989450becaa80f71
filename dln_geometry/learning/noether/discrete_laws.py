"""Exact laws of the charges under discrete steps: every step of SGD, minibatches included.

In continuous time they are those of Tanaka & Kunin, arXiv 2105.02716; the discrete laws are this
library's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dln_geometry.learning.functional import Loss, Tensors, as_finite, as_like, as_parameters
from dln_geometry.learning.noether.momentum_law import charge_after, nesterov_direction, pushes
from dln_geometry.learning.rules import Rule, as_rule
from dln_geometry.learning.symmetry import Symmetry, as_symmetry, check_symmetric


@dataclass(frozen=True)
class Charges:
    """The charges of a symmetry at one step, one entry for each of s.

    `conserved` is ``c = <q, dQ(q)>``, which gradient flow conserves; `momentum` is
    ``w = <v, dQ(q)>`` with the buffer v of the rule, zero before the first step; `transposed` is
    ``<v, A^T q>`` for a linear generator ``dQ = A q``: the momentum itself for translation, scale
    and rescale, its negative for rotations, its transpose for the gauge.

    Examples
    --------
    >>> law = dln.learning.DiscreteLaw(dln.learning.Scale("w"), dln.learning.Rule(lr=0.1))
    >>> charges = law.observe({"w": torch.tensor([3.0, 4.0])}, None)
    >>> charges.conserved, charges.momentum
    (tensor(25.), tensor(0.))
    """

    conserved: Tensor
    momentum: Tensor
    transposed: Tensor


@dataclass(frozen=True)
class DiscreteLaw:
    r"""The exact motion of the charges of a symmetry under the steps of a rule.

    Let v be the buffer of the rule before a step and v+ after it, k its decay, and u the direction
    of the step ``q+ = q - lr u``: ``u = v+``, or with Nesterov's momentum ``u = (1 + b) v+ - b v``.
    For a linear generator ``dQ = A q`` and ``c = <q, A q>``, ``w = <v, A q>``,

    ``P = b w + k c``,  ``U = P``, or with Nesterov's momentum ``U = k c + b P``,
    ``w+ = P - lr <v+, A u>``,  ``c+ = c - 2 lr U + lr^2 <u, A u>``

    (if A is not symmetric, U + U' replaces 2 U, with U' that of the transpose of A). For a
    constant generator, ``dQ = n``, ``c = <q, n>``: ``w+ = P``, ``c+ = c - lr U``.

    With dampening k is multiplied by (1 - dampening) from the second step on. Neither gradients
    nor parameters enter: charges follow from the buffers alone, whatever the batches were. A
    translation does not need even those, and a rotation has ``w+ = b w`` for heavy ball, with or
    without decay.

    The loss of every batch must have the symmetry (or family), with a `degree`, and the rule no
    potential; `discrete_residual` holds without degree, and with potential.

    Examples
    --------
    The norm of two weights before a normalisation, in one step of momentum and one more:

    >>> from dln_geometry import learning
    >>> rule, symmetry = learning.Rule(lr=0.5, momentum=0.5, weight_decay=0.1), learning.Scale("w")
    >>> angle = lambda params: params["w"][0] / params["w"].norm()
    >>> law = learning.DiscreteLaw(symmetry, rule)
    >>> q, state = {"w": torch.tensor([1.0, 1.0], dtype=torch.float64)}, None
    >>> charges = law.observe(q)
    >>> for _ in range(2):
    ...     q, after = rule.step(angle, q, state)
    ...     charges, state = law.step(charges, state, after), after
    >>> print(f"{charges.conserved:.12f} {q['w'].square().sum():.12f}")
    1.840479706719 1.840479706719
    """

    symmetry: Symmetry
    rule: Rule

    def __post_init__(self) -> None:
        as_symmetry(self.symmetry)
        as_rule(self.rule)
        if self.symmetry.degree is None:
            raise ValueError(
                "symmetry must have linear or constant generators (degree 1 or 0) for a closed "
                "law, got no degree"
            )
        if self.rule.potential is not None:
            raise ValueError("rule must have no potential for a closed law, got one")

    def observe(
        self,
        params: Tensors,
        state: Tensors | None = None,
        *,
        loss: Loss | None = None,
        rtol: float | None = None,
    ) -> Charges:
        """Return the charges as they are: to begin with, and to compare a prediction with.

        `state` is the buffer v that the last step returned, `None` before the first. A given loss
        must have the symmetry at `params` within `rtol`, as in `is_symmetric`: otherwise a
        `SymmetryError`, whose attribute `residual` says by how much it is broken.
        """
        if loss is not None:
            check_symmetric(loss, self.symmetry, params, rtol=rtol)
        params = as_finite(params)
        c, pair = self.symmetry.conserved(params), self.symmetry.pair
        if state is None:
            return Charges(c, torch.zeros_like(c), torch.zeros_like(c))
        state = as_like(state, params, "state", finite=True)
        w = pair(params, state)
        return Charges(c, w, w if self.symmetry.degree == 0 else pair(state, params))

    def step(self, charges: Charges, before: Tensors | None, after: Tensors) -> Charges:
        """Return the charges after a step, from those before it and the buffers v and v+.

        In the first step `before` is `None`.
        """
        if not isinstance(charges, Charges):
            raise TypeError(f"charges must be Charges, got {type(charges).__name__}")
        after = as_parameters(after, "after")
        if before is not None:
            before = as_like(before, after, "before")
        rule, pair, c = self.rule, self.symmetry.pair, charges.conserved
        lr, b = rule.lr, rule.momentum
        decay = _damped_decay(rule, before) * c
        p, push = pushes(decay, charges.momentum, b, rule.nesterov)
        if self.symmetry.degree == 0:
            return Charges(c - lr * push, p, p)
        p_transposed, push_transposed = pushes(decay, charges.transposed, b, rule.nesterov)
        if rule.nesterov:
            old = dict.fromkeys(after) if before is None else before
            u = {name: nesterov_direction(old[name], v, b) for name, v in after.items()}
            squares, mixed, mixed_transposed = pair(u, u), pair(u, after), pair(after, u)
        else:
            squares = mixed = mixed_transposed = pair(after, after)
        return Charges(
            charge_after(c, push, push_transposed, lr * squares, lr),
            p - lr * mixed,
            p_transposed - lr * mixed_transposed,
        )


def discrete_residual(
    symmetry: Symmetry, rule: Rule, params: Tensors, before: Tensors | None, after: Tensors
) -> Tensor:
    r"""Return by how much a step breaks a symmetry: ``<v+ - b v, dQ(q)> - k <q, dQ(q)>``.

    It equals ``<grad f, dQ>`` of the loss of the batch, without needing its gradient, and so
    vanishes if the loss has the symmetry. It holds for every symmetry, linear or not, and every
    rule: momentum, Nesterov's momentum, dampening, and mirror descent, where
    ``-lr <v+, dQ> = <grad h(q+) - grad h(q), dQ>`` is the charge of the step.

    `params` are the parameters q before the step, `before` and `after` the buffers v and v+; in
    the first step `before` is `None`. The result has one number for each entry of s.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> loss = lambda p: (p["w"] / p["w"].norm()).sum()
    >>> rule, q = learning.Rule(lr=0.5, momentum=0.9), {"w": torch.tensor([3.0, 4.0])}
    >>> after, buffer = rule.step(loss, q)
    >>> learning.discrete_residual(learning.Scale("w"), rule, q, None, buffer).abs() < 1e-6
    tensor(True)
    """
    symmetry, rule, params = as_symmetry(symmetry), as_rule(rule), as_finite(params)
    kick = as_like(after, params, "after", finite=True)
    k, b = _damped_decay(rule, before), rule.momentum
    if before is not None:
        before = as_like(before, params, "before", finite=True)
        kick = {name: v - b * before[name] for name, v in kick.items()} if b else kick
    return symmetry.pair(params, kick) - k * symmetry.conserved(params)


def preconditioned_charge(
    symmetry: Symmetry, params: Tensors, step: Tensors, scaling: Tensors
) -> Tensor:
    r"""Return the Bregman charge ``<s / D, dQ(q)>`` of a step s by a diagonal preconditioner D.

    In the potential ``h(q) = <q, q / D> / 2`` the step ``s = -lr D m`` of an adaptive method is one
    of mirror descent, ``grad h(q + s) - grad h(q) = -lr m``, and its charge is ``-lr <m, dQ(q)>``:
    zero, if m is the gradient of a symmetric loss (RMSprop, Adagrad), whatever D. With a moving
    average, ``m+ = b m + (1 - b) (g + k q)`` (Adam, before its correction of the bias), a linear
    symmetry has ``<m+, dQ(q+)> = b <m, dQ(q)> + b <m, dQ(s)> + (1 - b) k <q+, dQ(q+)>``. The
    charges ``<q, dQ(q)>`` themselves move: ``<s, dQ(q)>`` is the drift that `ChargeMonitor`
    reports under "preconditioner".

    Parameters
    ----------
    symmetry : Symmetry
    params, step, scaling : dict of str to Tensor
        The parameters q before the step, the step without decoupled decay, and D, for Adam
        ``1 / (sqrt(v / (1 - b2^n)) + eps)``.

    References
    ----------
    Tanaka & Kunin, arXiv 2105.02716 (Bregman form of charges).

    Examples
    --------
    >>> q, d = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([2.0, 0.5])}
    >>> g = {"w": torch.tensor([4.0, -3.0])}  # orthogonal to q, as of a loss of its direction
    >>> step = {"w": -0.1 * d["w"] * g["w"]}
    >>> scale = dln.learning.Scale("w")
    >>> dln.learning.preconditioned_charge(scale, q, step, d).abs() < 1e-6, scale.pair(q, step)
    (tensor(True), tensor(-1.8000))
    """
    params = as_finite(params)
    step = as_like(step, params, "step", finite=True)
    scaling = as_like(scaling, params, "scaling", finite=True)
    for name, d in scaling.items():
        if not bool((d > 0).all()):
            raise ValueError(f"scaling must be positive, got {float(d.min()):g} for {name!r}")
    turned = {name: s / scaling[name] for name, s in step.items()}
    return as_symmetry(symmetry).pair(params, turned)


def _damped_decay(rule: Rule, before: Tensors | None) -> float:
    """Return ``s k``, the decay as it enters the buffer: not dampened in the first step."""
    if before is None or not rule.momentum:
        return rule.weight_decay
    return rule.weight_decay * (1 - rule.dampening)
