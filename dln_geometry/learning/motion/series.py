r"""Counter terms: the power series of the vector field whose flow gradient descent follows.

Gradient descent ``q_{n+1} = q_n - eta g(q_n)`` passes through the points ``q(n eta)`` of a flow

``q' = F = -g - eta xi,  xi = xi_0 + eta xi_1 + eta^2 xi_2 + ...``,

a formal series in the learning rate, fixed by ``(e^{eta D} - 1) q = -eta g``, ``D = F . grad``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dln_geometry.learning.functional import (
    Loss,
    Parameters,
    Tensors,
    as_finite,
    combination,
    gradient_of,
    with_exact_derivatives,
)
from dln_geometry.learning.motion.spectrum import hessian_product
from dln_geometry.support import as_count


def counter_terms(loss: Loss, order: int) -> Callable[[Tensors], list[Parameters]]:
    r"""Return the map from parameters to the counter terms ``[xi_0, ..., xi_order]``.

    With the gradient g, the Hessian H and the third derivative T of the loss (Miyagawa, arXiv
    2210.15898),

    ``xi_0 = H g / 2``, ``xi_1 = H^2 g / 3 + T[g, g] / 12``,
    ``xi_2 = H^3 g / 4 + H T[g, g] / 12 + T[g, H g] / 12``;

    adjoints of the pair ``(g, H g)``, without forming H or T:
    ``xi_2 = K*(K*(H g, g), H g) / 12`` where ``K*(a, b) = H a + T[g, b] + H^2 b``. Above order 2
    they are the Taylor coefficients, in the learning rate, of the series of differences in
    `equation_of_motion_from_iterates`, and the time grows like ``(a + 2) 2^(a + 1)`` gradients;
    order a of the differences themselves costs a gradients.

    Parameters
    ----------
    loss : callable
        ``loss(params)``, a scalar tensor that depends on `params`, ``order + 2`` times
        differentiable. Normalisations are computed by their definitions: torch's third derivatives
        of them are wrong.
    order : int
        At least 0.

    Returns
    -------
    callable
        ``counter_terms(loss, order)(params)`` is a list of ``order + 1`` dicts like `params`.
        ``torch.func`` can differentiate and map it.

    Examples
    --------
    >>> loss = lambda p: p["q"].square().sum()  # g = 2 q, H = 2
    >>> dln.learning.counter_terms(loss, 2)({"q": torch.tensor([3.0])})
    [{'q': tensor([6.])}, {'q': tensor([8.])}, {'q': tensor([12.])}]
    """
    order, loss = as_count(order, "order", 0), with_exact_derivatives(loss)
    forms = _closed_forms if order <= 2 else _taylor_forms
    return lambda params: forms(loss, as_finite(params), order)


def closed_motion(loss: Loss, lr: float, order: int) -> Callable[[Parameters], Parameters]:
    """Return ``F = -g - lr xi_0 - ... - lr^(order + 1) xi_order`` as a map of parameters.

    Order -1 is gradient flow. Up to order 2 the terms share their adjoints, which saves one product
    with the Hessian over `counter_terms`.
    """
    loss = with_exact_derivatives(loss)

    def motion(params: Parameters) -> Parameters:
        if order < 0:
            return combination([(-1.0, gradient_of(loss)(params))])
        if order == 0:
            g, u = _gradient_and_image(loss)(params)
            return combination([(-1.0, g), (-lr / 2, u)])
        if order > 2:
            terms = [gradient_of(loss)(params), *_taylor_forms(loss, params, order)]
            return combination([(-(lr**a), xi) for a, xi in enumerate(terms)])
        (g, u), pull = torch.func.vjp(_gradient_and_image(loss), params)[:2]
        if order == 1:
            (last,) = pull((combination([(3 * lr**2, u)]), combination([(lr**2, g)])))
        else:
            (w,) = pull((u, g))
            # lr^2 (w + 2 H u) + lr^3 K*(w, u), with both products in one backward pass.
            (last,) = pull((combination([(lr**3, w), (2 * lr**2, u)]), combination([(lr**3, u)])))
            last = combination([(1.0, last), (lr**2, w)])
        return combination([(-1.0, g), (-lr / 2, u), (-1 / 12, last)])

    return motion


def difference_weights(count: int) -> list[float]:
    """Return w with ``sum_{j=1}^J (-1)^{j+1}/j Delta^j q = sum_n w_n (q_{n+1} - q_n)``."""
    return [
        sum((-1) ** n / j * math.comb(j - 1, n) for j in range(n + 1, count + 1))
        for n in range(count)
    ]


def _gradient_and_image(loss: Loss) -> Callable[[Parameters], tuple[Parameters, Parameters]]:
    """Return ``q -> (g, H g)``, whose adjoint is ``K*(a, b) = H a + T[g, b] + H^2 b``."""

    def both(q: Parameters) -> tuple[Parameters, Parameters]:
        g, pull = torch.func.vjp(gradient_of(loss), q)[:2]
        return g, pull(g)[0]

    return both


def _closed_forms(loss: Loss, params: Parameters, order: int) -> list[Parameters]:
    if order == 0:
        return [combination([(0.5, _gradient_and_image(loss)(params)[1])])]
    (g, u), pull = torch.func.vjp(_gradient_and_image(loss), params)[:2]
    xi_0 = combination([(0.5, u)])
    if order == 1:
        return [xi_0, combination([(1 / 12, pull((combination([(3.0, u)]), g))[0])])]
    # w = T[g, g] + 2 H^2 g, the gradient of <g, H g>.
    (w,) = pull((u, g))
    # The graph of the gradient alone gives H u in half the time of an adjoint of the pair.
    xi_1 = combination([(1 / 12, w), (1 / 6, hessian_product(loss, params)(u))])
    return [xi_0, xi_1, combination([(1 / 12, pull((w, u))[0])])]


def _taylor_forms(loss: Loss, params: Parameters, order: int) -> list[Parameters]:
    """Take the Taylor coefficients of ``F(eta) = -sum_n w_n g(q_n(eta))`` at eta = 0.

    ``q_n(eta)`` are the iterates from `params`. The j-th difference of their gradients is
    ``O(eta^j)``, so that the first ``order + 2`` give all coefficients up to the order.
    """
    gradient = gradient_of(loss)
    weights = difference_weights(order + 2)

    def motion(eta: Tensor) -> list[Parameters]:
        q, terms = params, []
        for n, weight in enumerate(weights):
            if n:
                q = {name: x - eta * terms[-1][1][name] for name, x in q.items()}
            terms.append((-weight, gradient(q)))
        return [combination(terms)]

    def with_derivative(f: Callable[[Tensor], list[Parameters]]) -> Callable:
        def extended(eta: Tensor) -> list[Parameters]:
            values, slopes = torch.func.jvp(f, (eta,), (torch.ones_like(eta),))[:2]
            return [*values, slopes[-1]]

        return extended

    taylor = motion
    for _ in range(order + 1):
        taylor = with_derivative(taylor)
    first = next(iter(params.values()))
    derivatives = taylor(torch.zeros((), dtype=first.dtype, device=first.device))
    terms = [combination([(-1.0 / math.factorial(k), derivatives[k])]) for k in range(1, order + 2)]
    # Tangents of products with Python numbers come out in double precision (torch 2.13).
    return [{name: x.to(params[name].dtype) for name, x in xi.items()} for xi in terms]
