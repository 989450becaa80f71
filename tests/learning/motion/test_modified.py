"""Modified losses against iterates: orders of the error, over halvings of the learning rate."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from dln_geometry import learning
from dln_geometry.ode import integrate
from dln_geometry.testing import assert_close, assert_order

F64 = torch.float64
RATES = [0.1 * 0.5**k for k in range(4)]
RULES = {
    "plain": {},
    "heavy ball": {"momentum": 0.6, "weight_decay": 0.3},
    "nesterov": {"momentum": 0.6, "nesterov": True, "weight_decay": 0.3},
    "dampened": {"momentum": 0.4, "dampening": 0.3},
}


def curved(p, batch):
    """Return the loss of two tanh units on one batch."""
    x, y = batch
    hidden = torch.tanh(x * p["u"] + p["c"])
    return ((hidden * p["w"]).sum(-1) - y).square().mean() / 2


def data(generator, m, n=4):
    xs = torch.randn(m, n, 1, generator=generator, dtype=F64)
    return [(x, torch.sin(2 * x[:, 0]) + 0.3 * k) for k, x in enumerate(xs)]


def started(generator):
    return {k: torch.randn(2, generator=generator, dtype=F64) for k in ("u", "c", "w")}


def flow(loss, params, t):
    """Follow the gradient flow of a loss, through the equation of motion."""
    field = learning.equation_of_motion(loss, 1.0, -1).field(params)
    y = learning.flatten(params)[None]
    return integrate(field, y, t_end=t, rtol=1e-8, atol=1e-11).y[0]


@pytest.mark.parametrize("name", RULES)
def test_momentum_follows_its_modified_loss_to_second_order(name, generator):
    q, (batch,) = started(generator), data(generator, 1)

    def loss(p):
        return curved(p, batch)

    errors = []
    for h in RATES:
        rule = learning.Rule(h, **RULES[name])
        # From the buffer of the slow motion: only then is there no transient of the order lr.
        whole = learning.modified_loss(loss, rule)

        def decayed(p, k=rule.weight_decay):
            return loss(p) + k / 2 * learning.flatten(p).square().sum()

        g = torch.func.grad(decayed)(q)
        share = (1 - rule.dampening) / rule.friction
        p, v = q, {k: share * x for k, x in g.items()}
        steps = round(0.8 / h)
        for _ in range(steps):
            p, v = rule.step(loss, p, v)
        t = steps * rule.time_step / rule.friction
        end = learning.flatten(p)
        errors.append(float((flow(whole, q, t) - end).norm()))
    assert_order(RATES, errors, 2, tol=0.25)
    assert float((flow(decayed, q, t) - end).norm()) > 5 * errors[-1]


def by_hand(generator, m):
    batches = data(generator, m)
    return curved, started(generator), batches, [lambda p, b=b: curved(p, b) for b in batches]


def a_module(generator, m):
    """A network of torch with four parameters, and batches as a loader gives them."""
    torch.manual_seed(4)
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU(), torch.nn.Linear(2, 1))
    batches = [
        tuple(2 * torch.randn(4, n, generator=generator, dtype=F64) for n in (2, 1))
        for _ in range(m)
    ]
    loss, params = learning.functionalize(net.double(), torch.nn.functional.mse_loss, batches[0])
    return loss, params, batches, [loss.on(b) for b in batches]


@pytest.mark.parametrize("kind", [by_hand, a_module])
def test_an_epoch_of_shuffled_batches_has_the_covariance_of_gradients(kind, generator):
    """The mean over all orders after one epoch, on a loss that is not quadratic."""
    m = 3
    loss, q, batches, parts = kind(generator, m)

    def mean(p):
        return sum(f(p) for f in parts) / m

    gradients = [torch.func.grad(f) for f in parts]
    errors = []
    rates = [0.08 * 0.5**k for k in range(4)]
    for h in rates:
        ends = []
        for order in permutations(range(m)):
            p = q
            for k in order:
                g = gradients[k](p)
                p = {n: x - h * g[n] for n, x in p.items()}
            ends.append(learning.flatten(p))
        end = torch.stack(ends).mean(0)
        modified = learning.modified_loss(loss, h, batches=batches)
        errors.append(float((flow(modified, q, m * h) - end).norm()))
    assert_order(rates, errors, 3, tol=0.25)
    full = learning.modified_loss(mean, h)
    assert float((flow(full, q, m * h) - end).norm()) > 5 * errors[-1]


@pytest.mark.parametrize("name", ["plain", "heavy ball", "nesterov"])
def test_many_epochs_with_momentum_follow_it_to_second_order(name, generator):
    """Quadratic batches: an epoch is affine, and its mean over all orders known exactly."""
    m, d = 3, 2
    root = torch.randn(m, d, d, generator=generator, dtype=F64)
    hessians = root @ root.mT + 0.3 * torch.eye(d, dtype=F64)
    centres = torch.randn(m, d, generator=generator, dtype=F64)
    q = torch.randn(d, generator=generator, dtype=F64)

    def loss(p, k):
        off = p["q"] - centres[k]
        return off @ hessians[k] @ off / 2

    errors = []
    for h in RATES:
        rule = learning.Rule(h / 4, **RULES[name])

        def step(state, k, rule=rule):
            p, v = rule.step(lambda p: loss(p, k), {"q": state[:d]}, {"q": state[d:]})
            return torch.cat([p["q"], v["q"]])

        def epoch(state):
            ends = []
            for order in permutations(range(m)):
                end = state
                for k in order:
                    end = step(end, k)
                ends.append(end)
            return torch.stack(ends).mean(0)

        def mean(p):
            return sum(loss(p, k) for k in range(m)) / m

        slow = torch.func.grad(mean)({"q": q})["q"] + rule.weight_decay * q
        state = torch.cat([q, slow / rule.friction])
        epochs = round(0.6 / h)
        zero = torch.zeros(2 * d, dtype=F64)
        matrix, shift = torch.func.jacrev(epoch)(zero), epoch(zero)
        for _ in range(epochs):
            state = matrix @ state + shift
        t = epochs * m * rule.lr / rule.friction
        modified = learning.modified_loss(loss, rule, batches=range(m))
        errors.append(float((flow(modified, {"q": q}, t) - state[:d]).norm()))
    assert_order(RATES, errors, 2, tol=0.3)
    full = learning.modified_loss(mean, rule)
    assert float((flow(full, {"q": q}, t) - state[:d]).norm()) > 5 * errors[-1]


def test_modules_are_put_on_each_batch(generator):
    net = torch.nn.Linear(3, 1).double()
    batches = [
        tuple(torch.randn(4, n, generator=generator, dtype=F64) for n in (3, 1)) for _ in range(2)
    ]
    loss, params = learning.functionalize(net, torch.nn.functional.mse_loss, batches[0])
    found = learning.modified_loss(loss, 0.2, batches=batches)(params)
    gradients = [torch.func.grad(loss.on(b))(params) for b in batches]
    squares = sum(learning.flatten(g).square().sum() for g in gradients)
    mean = sum(loss.on(b)(params) for b in batches) / 2
    # Smith et al.: lr / 4 of the mean square of the gradients of the batches.
    assert_close(found, mean + 0.2 / 8 * squares, ops=300)


def test_wrong_rules_and_batches_are_refused():
    def loss(p):
        return p["q"].square().sum()

    rule = learning.Rule(0.1, potential=loss)
    with pytest.raises(ValueError, match="without a potential"):
        learning.modified_loss(loss, rule)
    with pytest.raises(ValueError, match="at least one minibatch"):
        learning.modified_loss(loss, 0.1, batches=[])
    with pytest.raises(TypeError, match="batches must be an iterable"):
        learning.modified_loss(loss, 0.1, batches=3)
