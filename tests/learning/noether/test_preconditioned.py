"""Bregman charges of adaptive methods, from the states of torch's own optimisers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry import learning
from dln_geometry.testing import assert_close

F64 = torch.float64


def watched(kind, generator, steps=8, **options):
    """Yield parameters before a step, the step, D and the state of torch's optimiser."""
    torch.manual_seed(0)
    q = {k: torch.randn(s, generator=generator, dtype=F64) for k, s in SHAPES.items()}
    params = {k: nn.Parameter(x) for k, x in q.items()}
    optimizer = kind(params.values(), lr=0.05, **options)
    x, y = (torch.randn(9, n, generator=generator, dtype=F64) for n in (3, 2))
    for n in range(1, steps + 1):
        batch = torch.randint(9, (4,), generator=generator)
        out = x[batch] @ params["first"].mT @ params["second"].mT
        optimizer.zero_grad()
        (out - y[batch]).square().mean().backward()
        before = {k: p.detach().clone() for k, p in params.items()}
        optimizer.step()
        step = {k: p.detach() - before[k] for k, p in params.items()}
        yield n, before, step, {k: dict(optimizer.state[p]) for k, p in params.items()}


SHAPES = {"first": (4, 3), "second": (2, 4)}
GAUGE = learning.Gauge("first", "second")


def test_steps_of_rmsprop_have_none(generator):
    for _, q, step, state in watched(torch.optim.RMSprop, generator):
        d = {k: 1 / (s["square_avg"].sqrt() + 1e-8) for k, s in state.items()}
        found = learning.preconditioned_charge(GAUGE, q, step, d)
        size = float(learning.flatten({k: s / d[k] for k, s in step.items()}).norm())
        assert float(found.abs().max()) < 1e-12 * size * 10
        # In the Euclidean metric the same step breaks the symmetry.
        assert float(GAUGE.pair(q, step).abs().max()) > 1e-3


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_of_adam_have_that_of_the_moving_average(decay, generator):
    b, lr, last = 0.8, 0.05, None
    options = {"betas": (b, 0.9), "weight_decay": decay}
    for n, q, step, state in watched(torch.optim.Adam, generator, **options):
        d = {k: 1 / ((s["exp_avg_sq"] / (1 - 0.9**n)).sqrt() + 1e-8) for k, s in state.items()}
        charge = learning.preconditioned_charge(GAUGE, q, step, d)
        m = {k: s["exp_avg"].clone() for k, s in state.items()}
        pushed = (1 - b) * decay * GAUGE.conserved(q)
        if last is not None:
            old, old_m, old_step = last
            pushed = pushed + b * (old + GAUGE.pair(old_step, old_m))
        size = float(learning.flatten(m).norm() * learning.flatten(q).norm())
        assert_close(charge, -lr * pushed / (1 - b**n), ops=1000, scale=size)
        last = GAUGE.pair(q, m), m, step


def test_scalings_must_be_positive():
    q = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match="scaling must be positive"):
        learning.preconditioned_charge(learning.Scale("w"), q, q, {"w": torch.tensor([1.0, 0.0])})
