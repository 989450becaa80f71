"""Distance of gradient descent from its flow to leading order, and learning rates that bound it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    Tensors,
    as_finite,
    as_like,
    as_parameters,
    combination,
    norm,
)
from dln_geometry.learning.motion.series import counter_terms
from dln_geometry.learning.motion.spectrum import hessian_product, sharpness
from dln_geometry.support import as_count, as_positive


def discretization_error(loss: Loss, lr: float, order: int) -> Callable[[Tensors], Parameters]:
    """Return the map from parameters to the error of one step, flow minus gradient descent.

    ``q(lr) - q_1 = lr^(order + 3) xi_{order + 1}`` to leading order, for the equation of motion of
    this order from the same point (Miyagawa, arXiv 2210.15898). Parameters as in
    `equation_of_motion`.

    Examples
    --------
    >>> loss = lambda p: p["q"].square().sum() / 2
    >>> dln.learning.discretization_error(loss, 0.1, -1)({"q": torch.tensor([1.0])})
    {'q': tensor([0.0050])}
    >>> round(float(torch.tensor(-0.1).exp() - 0.9), 4)
    0.0048
    """
    lr, order = as_positive(lr, "lr"), as_count(order, "order", -1)
    terms = counter_terms(loss, order + 1)
    return lambda params: combination([(lr ** (order + 3), terms(params)[-1])])


def accumulated_error(
    loss: Loss, lr: float, order: int, iterates: Iterable[Tensors]
) -> Iterator[Parameters]:
    """Yield the errors e_1, e_2, ... of the flow along the iterates of gradient descent.

    ``e_{n+1} = (I - lr H(q_n)) e_n + lr^(order + 3) xi_{order + 1}(q_n)``, ``e_0 = 0``: to leading
    order, ``e_n = q(n lr) - q_n`` for the flow q(t) of the equation of motion of this order from
    ``q_0``. Other parameters as in `equation_of_motion`.

    Parameters
    ----------
    iterates : iterable of dicts
        ``q_0, q_1, ...`` of gradient descent; each ``q_n`` yields ``e_{n+1}``.

    Examples
    --------
    >>> loss = lambda p: p["q"].square().sum() / 2
    >>> path = [{"q": torch.tensor([0.9**n])} for n in range(3)]
    >>> [round(float(e["q"]), 5) for e in dln.learning.accumulated_error(loss, 0.1, -1, path)]
    [0.005, 0.009, 0.01215]
    """
    source = discretization_error(loss, lr, order)
    if not isinstance(iterates, Iterable) or isinstance(iterates, Mapping | str | Tensor):
        raise TypeError(f"iterates must be an iterable of dicts, got {type(iterates).__name__}")

    # An inner generator: the call itself refuses wrong arguments, before the first error.
    def errors() -> Iterator[Parameters]:
        error: Parameters | None = None
        for n, point in enumerate(iterates):
            q = as_parameters(point, f"iterates[{n}]")
            if error is None:
                error = source(q)
            else:
                q = as_like(q, error, f"iterates[{n}]")
                image = hessian_product(loss, q)(error)
                error = combination([(1.0, error), (-lr, image), (1.0, source(q))])
            yield error

    return errors()


def max_learning_rate(
    loss: Loss,
    params: Tensors,
    eps: float,
    order: int,
    *,
    generator: torch.Generator | int | None = None,
) -> float:
    """Return the largest learning rate whose error in one step is at most `eps` at `params`.

    ``min( (eps / |xi_{order + 1}|)^{1 / (order + 3)}, 1 / lambda_max )``: the first makes the
    leading error of the equation of motion of this order equal to `eps`; beyond the second
    (infinite if ``lambda_max <= 0``) the equation does not exist. Other parameters as in
    `equation_of_motion`.

    Parameters
    ----------
    eps : float
        Euclidean norm of the error allowed.

    Examples
    --------
    >>> loss = lambda p: p["q"].square().sum() / 2
    >>> round(dln.learning.max_learning_rate(loss, {"q": torch.tensor([1.0])}, 0.005, -1), 4)
    0.1
    """
    eps, order = as_positive(eps, "eps"), as_count(order, "order", -1)
    params = as_finite(params)
    size = float(norm(counter_terms(loss, order + 1)(params)[-1]).detach())
    if not math.isfinite(size):
        raise ValueError(f"the counter terms must be finite, got |xi_{order + 1}| = {size}")
    top = float(sharpness(loss, params, generator=generator).detach())
    accuracy = (eps / size) ** (1 / (order + 3)) if size > 0 else math.inf
    return min(accuracy, 1 / top if top > 0 else math.inf)
