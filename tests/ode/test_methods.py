from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dln_geometry.ode import (
    METHODS,
    RODAS,
    Chebyshev,
    coefficients,
    integrate,
    stage_number,
)
from dln_geometry.testing import assert_close, assert_order
from tests.ode.routes import (
    START,
    Decay,
    fixed_steps,
    pendulum,
    pendulum_exact,
    relative_error,
)


@pytest.mark.parametrize("name", METHODS)
def test_tableau_meets_its_order_conditions(name):
    method = METHODS[name]
    s = len(method.b)
    a = np.zeros((s, s))
    for i, row in enumerate(method.a):
        a[i, :i] = row
    b, c = np.array(method.b), np.array(method.c)
    assert_close(a.sum(1), c, ops=100)

    def trees(order):
        """Yield pairs (weights over the stages, product over the tree) of bushes on tall stems."""
        for stem in range(order):
            leaves = order - stem - 1
            vector, density = c**leaves, leaves + 1
            for k in range(stem):
                vector, density = a @ vector, density * (leaves + 2 + k)
            yield vector, 1 / density

    scale = np.abs(a).sum(1).max()
    for order in range(1, method.order + 1):
        for vector, value in trees(order):
            assert_close(b @ vector, value, ops=300, scale=scale)
    assert any(abs(b @ v - x) > 1e-6 for v, x in trees(method.order + 1))
    # The estimate of the highest order among the rows, as the combination of two rows is.
    for row, order in zip(method.e, (method.error_order if name != "rk8" else 5, 3), strict=False):
        for q in range(1, order + 1):
            for vector, _ in trees(q):
                assert_close(np.array(row) @ vector, 0.0, ops=300, scale=scale)
        assert any(abs(np.array(row) @ v) > 1e-6 for v, _ in trees(order + 1))


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        ("rk3", (40, 80, 160, 320, 640)),
        ("rk5", (8, 16, 32, 64, 128)),
        # Four halvings at order 8 would span more than the digits there are.
        ("rk8", (3, 4, 5, 6, 8, 10, 12)),
        (RODAS, (8, 12, 16, 24, 32, 48)),
        (Chebyshev(2), (40, 80, 160, 320, 640)),
        (Chebyshev(5), (40, 80, 160, 320, 640)),
        (Chebyshev(12), (40, 80, 160, 320, 640)),
    ],
)
def test_fixed_steps_converge_at_the_declared_order(method, counts):
    t_end = 2.0
    exact = pendulum_exact(t_end)
    errors = [
        relative_error(fixed_steps(pendulum, START, t_end, n, method)[0], exact) for n in counts
    ]
    order = METHODS[method].order if isinstance(method, str) else method.order
    assert_order([t_end / n for n in counts], errors, order)


@pytest.mark.parametrize("stages", [2, 3, 8, 50, 300])
def test_chebyshev_stages_hold_the_spectral_radius_they_are_chosen_for(stages):
    """On y' = -z y one step multiplies by 1 - z + z^2/2 + O(z^3), at most by one up to the end."""
    reach = (stages**2 - 1) / 1.54
    assert stage_number(0.999 * reach) <= stages
    z = torch.linspace(0, reach, 4001, dtype=torch.float64)[:, None]
    factors = fixed_steps(Decay(z), torch.ones_like(z), 1.0, 1, Chebyshev(stages))
    assert float(factors.abs().max()) <= 1 + 1e-12
    if stages > 2:
        # Damped: strictly inside away from zero.
        assert float(factors[z > 3].abs().max()) < 0.97
    k = coefficients(stages)
    assert_close(k.c[-1], 1.0, ops=300)
    small = [2.0**-k for k in range(3, 9)]
    lam = torch.ones(1, 1, dtype=torch.float64)
    steps = [fixed_steps(Decay(lam), lam, h, 1, Chebyshev(stages)).item() for h in small]
    assert_order(small, [abs(y - math.exp(-h)) for y, h in zip(steps, small, strict=True)], 3)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("method", ["rk3", "rk5", "rk8"])
def test_states_in_pieces_move_as_whole_ones(method, batch, monkeypatch):
    n, sizes = 2**16 + 77, (40_000, 12_500, 12_500, 613)
    rates = torch.linspace(0.1, 2.0, n, dtype=torch.float64)
    y0 = torch.linspace(1.0, 3.0, batch * n, dtype=torch.float64).view(batch, n)

    def run():
        field = lambda t, y, out: (torch.mul(y, -rates, out=out), None)[1]  # noqa: E731
        return integrate(field, y0, t_end=0.3, rtol=1e-5, method=method, blocks=sizes)

    pieces = run()
    monkeypatch.setattr("dln_geometry.ode.methods.runge_kutta.pieces_of", lambda *_: [])
    whole = run()
    assert pieces.stats["evaluations"] == whole.stats["evaluations"]
    assert_close(pieces.y, whole.y, ops=1000)
    assert_close(pieces.y, y0 * torch.exp(-0.3 * rates), ops=1e12)
