r"""Modified losses: what gradient descent, momentum and shuffled minibatches follow to first order.

Let iterates be those of a rule with momentum b, after the transient of the first steps. Expanded in
the learning rate, ``q_{n+1} - q_n - b (q_n - q_{n-1}) = -lr g`` becomes the gradient flow of
``f + c |grad f|^2`` in the time ``lr / (1 - b)`` of one step, ``c = lr (1 + b) / 4 (1 - b)^2``, or
with Nesterov's momentum ``c = lr (1 - b + 2 b^2) / 4 (1 - b)^2``.

Minibatches in random order, each once an epoch: a batch meets parameters that it did not move
itself, so that its Hessian and the fluctuation of the parameters are correlated. With m batches the
mean force gains ``lr S grad tr C``, ``C = (1/m) sum_k (g_k - g)(g_k - g)^T / 2``,

``S = sum_{j=1}^{m-1} (m - j) w_j / (m (m - 1))``,

``w_j = (1 - b^j) / (1 - b)`` the share of a gradient that has moved the parameters j steps later
(``(1 - b^{j+1}) / (1 - b)`` with Nesterov's momentum); S = 1/2 without momentum.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    as_finite,
    as_loss,
    batch_losses,
    combination,
    dot,
    gradient_and_value_of,
    with_exact_derivatives,
)
from dln_geometry.learning.rules import Rule
from dln_geometry.support import as_positive


def modified_loss(loss: Any, lr: float | Rule, *, batches: Iterable[Any] | None = None) -> Loss:
    r"""Return the loss whose gradient flow gradient descent follows: ``f + lr/4 |grad f|^2``.

    Its gradient is ``g + lr xi_0``: the equation of motion of order 0 is its gradient flow, and
    no higher one is the gradient flow of any loss. With a `Rule` it is the modified loss of its
    momentum and weight decay, with `batches` that of minibatches; the flow stays within O(lr^2) of
    the iterates (of their mean, at the ends of epochs). Any function here takes it as a loss:
    ``equation_of_motion(modified_loss(loss, rule), rule.lr, -1)`` is its gradient flow.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, or ``loss(params, batch)`` with batches; what `functionalize` returns is
        put on each batch.
    lr : float or Rule
        Learning rate, or a rule without a potential. A step of the rule takes the time
        ``rule.time_step / rule.friction`` of the flow: lr / (1 - momentum).
    batches : iterable, optional
        The minibatches of an epoch, of equal weights, which SGD takes in a new random order in
        each epoch: then ``f`` is their mean, and the trace of the covariance of their gradients is
        added with a factor, ``lr/4`` without momentum. (Batches drawn independently have no such
        term, but a diffusion of the size ``lr``.)

    Raises
    ------
    ValueError
        If the rule has a potential, or `batches` is empty.

    References
    ----------
    Barrett & Dherin, arXiv 2009.11162; Miyagawa, arXiv 2210.15898; Smith et al., arXiv 2101.12176
    (minibatches); Ghosh et al., arXiv 2302.00849 (heavy ball). Both together are derived here.

    Examples
    --------
    >>> from dln_geometry import learning
    >>> loss = lambda p: p["q"].square().sum() / 2
    >>> learning.modified_loss(loss, 0.4)({"q": torch.tensor([2.0])})
    tensor(2.4000)
    >>> learning.modified_loss(loss, learning.Rule(0.4, momentum=0.5))({"q": torch.tensor([2.0])})
    tensor(4.4000)
    >>> on_batch = lambda p, x: (p["q"] - x).square().sum() / 2
    >>> learning.modified_loss(on_batch, 0.4, batches=[-1.0, 1.0])({"q": torch.tensor([2.0])})
    tensor(3.)
    """
    if not isinstance(lr, Rule):
        lr = Rule(as_positive(lr, "lr"))
    if lr.potential is not None:
        raise ValueError("lr must be a rule without a potential, got one with a potential")
    found = [as_loss(loss)] if batches is None else batch_losses(loss, batches, "batches")
    parts = [with_exact_derivatives(f) for f in found]
    m, k = len(parts), lr.weight_decay
    squares, spread = _correction_factors(lr, m)

    def modified(params: Parameters) -> Tensor:
        q = as_finite(params)
        found = [gradient_and_value_of(f)(q) for f in parts]
        g = combination([(1 / m, own) for own, _ in found])
        value = sum(own for _, own in found) / m
        if spread:
            off = [combination([(1.0, own), (-1.0, g)]) for own, _ in found]
            value = value + spread / m * sum(dot(x, x) for x in off)
        if k:
            value = value + k / 2 * dot(q, q)
            g = combination([(1.0, g), (k, q)])
        return value + squares * dot(g, g)

    return modified


def _correction_factors(rule: Rule, m: int) -> tuple[float, float]:
    """Return the factors of ``|g|^2`` and of the mean ``|g_k - g|^2``."""
    h, b, late = rule.time_step, rule.momentum, int(rule.nesterov)
    inertia = 1 - b + 2 * b**2 if rule.nesterov else 1 + b
    squares = h * inertia / (4 * rule.friction**2)
    if m == 1:
        return squares, 0.0
    moved = sum((m - j) * (1 - b ** (j + late)) for j in range(1, m)) / rule.friction
    return squares, h / 2 * moved / (m * (m - 1))
