from __future__ import annotations

import torch

from dln_geometry.learning.noether import (
    charge_after,
    nesterov_direction,
    nesterov_products,
    pushes,
)
from dln_geometry.testing import assert_close

F64 = torch.float64


def gauge(x, y):
    """A bilinear map of two layers that is not symmetric: ``y_1 x_1^T - x_2^T y_2``."""
    return y[0] @ x[0].mT - x[1].mT @ y[1]


def draw(generator):
    return [torch.randn(shape, generator=generator, dtype=F64) for shape in ((3, 4), (2, 3))]


def mixed(*terms):
    """Return a linear combination of pairs of layers."""
    return [sum(c * x[k] for c, x in terms) for k in range(2)]


def a_step(generator, nesterov, b=0.7, k=0.3, lr=0.2):
    """Return q, v, d, v+, u and q+ of a step along the gradient of a function of ``q_2 q_1``."""
    q, v = draw(generator), draw(generator)
    slope = torch.randn(2, 4, generator=generator, dtype=F64)
    g = [q[1].mT @ slope, slope @ q[0].mT]
    assert_close(gauge(q, g), torch.zeros(3, 3), scale=10.0)
    d = mixed((1, g), (k, q))
    after = mixed((b, v), (1, d))
    u = mixed((1, d), (b, after)) if nesterov else after
    return q, v, d, after, u, mixed((1, q), (-lr, u))


def test_the_law_is_that_of_the_step_itself(generator):
    b, k, lr = 0.7, 0.3, 0.2
    for nesterov in (False, True):
        q, v, _, after, u, q_after = a_step(generator, nesterov, b, k, lr)
        c = gauge(q, q)
        p, push = pushes(k * c, gauge(q, v), b, nesterov)
        assert_close(p, gauge(q, after), scale=30.0)
        assert_close(push, gauge(q, u), scale=30.0)
        uu, uv = gauge(u, u), gauge(u, after)
        moved = charge_after(c, push, push.mT, lr * uu, lr)
        assert_close(moved, gauge(q_after, q_after), scale=30.0)
        assert_close(p - lr * uv, gauge(q_after, after), scale=30.0)


def test_products_and_direction_of_nesterovs_momentum(generator):
    b = 0.7
    _, v, d, after, u, _ = a_step(generator, True, b)
    for k in range(2):
        assert_close(nesterov_direction(v[k], after[k], b), u[k], scale=10.0)
        assert_close(nesterov_direction(None, after[k], b), (1 + b) * after[k])
    uu, uv = nesterov_products(gauge(d, d), gauge(d, after), gauge(after, after), b, lambda x: x.mT)
    assert_close(uu, gauge(u, u), scale=100.0)
    assert_close(uv, gauge(u, after), scale=100.0)
