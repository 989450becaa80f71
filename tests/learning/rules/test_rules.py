from __future__ import annotations

import math

import pytest
import torch

from dln_geometry.learning.rules import Rule
from dln_geometry.testing import assert_close

F64 = torch.float64

OPTIONS = [
    {"lr": 0.11},
    {"lr": 0.07, "weight_decay": 0.3},
    {"lr": 0.07, "momentum": 0.85},
    {"lr": 0.07, "momentum": 0.85, "weight_decay": 0.03},
    {"lr": 0.07, "momentum": 0.85, "weight_decay": 0.03, "dampening": 0.4},
    {"lr": 0.07, "dampening": 0.4, "weight_decay": 0.03},
    {"lr": 0.07, "momentum": 0.6, "weight_decay": 0.03, "nesterov": True},
]


def _params(generator, dtype=F64):
    shapes = {"w": (3, 4), "b": (3,)}
    return {n: torch.randn(s, generator=generator, dtype=dtype) for n, s in shapes.items()}


def _loss(generator, dtype=F64):
    x = torch.randn(6, 4, generator=generator, dtype=dtype)

    def loss(p):
        return (x @ p["w"].T + p["b"]).tanh().square().mean() + p["w"].cos().sum() / 7

    return loss


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_are_those_of_torch_to_the_last_bit(options, dtype, generator):
    start, loss = _params(generator, dtype), _loss(generator, dtype)
    peers = {name: q.clone().requires_grad_() for name, q in start.items()}
    optimiser = torch.optim.SGD(peers.values(), foreach=False, **options)
    rule, params, state = Rule(**options), start, None
    for _ in range(12):
        optimiser.zero_grad()
        loss(peers).backward()
        optimiser.step()
        params, state = rule.step(loss, params, state)
        assert all(torch.equal(q, peers[name]) for name, q in params.items())
    for name, q in peers.items():
        buffer = optimiser.state[q].get("momentum_buffer")
        if buffer is not None:
            assert torch.equal(state[name], buffer)


def test_steps_are_pure_and_differentiable(generator):
    start, loss = _params(generator), _loss(generator)
    kept = {name: q.clone() for name, q in start.items()}
    rule = Rule(lr=0.1, momentum=0.7, weight_decay=0.2)
    _, state = rule.step(loss, start)
    kept_state = {name: v.clone() for name, v in state.items()}
    rule.step(loss, start, state)
    assert all(torch.equal(q, kept[name]) for name, q in start.items())
    assert all(torch.equal(v, kept_state[name]) for name, v in state.items())
    v = {n: torch.randn(q.shape, generator=generator, dtype=F64) for n, q in start.items()}
    moved = torch.func.jvp(lambda q: rule.step(loss, q)[0], (start,), (v,))[1]
    turned = torch.func.jvp(torch.func.grad(loss), (start,), (v,))[1]
    for name in start:
        assert_close(moved[name], v[name] - 0.1 * (turned[name] + 0.2 * v[name]))


@pytest.mark.parametrize("options", OPTIONS[1:], ids=str)
def test_root_is_the_rate_at_which_decay_alone_shrinks(options):
    rule = Rule(**options)
    if not rule.weight_decay:
        assert_close(rule.discrete_root, 1.0)
        return
    q, state = {"q": torch.ones((), dtype=F64)}, None
    for _ in range(600):
        before = q
        q, state = rule.update({"q": torch.zeros((), dtype=F64)}, q, state)
    assert_close(q["q"] / before["q"], rule.discrete_root, ops=1000)


@pytest.mark.parametrize("nesterov", [False, True])
def test_decay_oscillates_beyond_the_bound(nesterov):
    b, lr = 0.4, 0.5
    bound = ((1 - b) / (1 + b)) ** 2 if nesterov else (1 - math.sqrt(b)) ** 2
    for factor in (0.999, 1.001):
        rule = Rule(lr=lr, momentum=b, weight_decay=factor * bound / lr, nesterov=nesterov)
        q, state, signs = {"q": torch.ones((), dtype=F64)}, None, set()
        for _ in range(400):
            q, state = rule.update({"q": torch.zeros((), dtype=F64)}, q, state)
            signs.add(float(q["q"].sign()))
        assert rule.is_overdamped == (factor < 1) == (signs == {1.0})
    with pytest.raises(ValueError, match="beyond it the charge oscillates"):
        _ = rule.discrete_root


def test_mass_friction_and_dampening():
    rule = Rule(lr=0.3, momentum=0.8, dampening=0.25)
    assert_close([rule.time_step, rule.mass, rule.friction], [0.225, 0.2025, 0.2])
    assert Rule(lr=0.3, dampening=0.25).time_step == 0.3


def _entropy(p):
    return sum((q * q.log() - q).sum() for q in p.values())


def _tangled(p):
    q = torch.cat([x.reshape(-1) for x in p.values()])
    return q.square().sum() / 2 + torch.logsumexp(2 * q, 0) + (q**4).sum() / 5


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_entropy_gives_exponentiated_gradients(dtype, generator):
    start = {name: q.exp() for name, q in _params(generator, dtype).items()}
    loss = _loss(generator, dtype)
    rule = Rule(lr=0.3, weight_decay=0.1, potential=_entropy)
    gradient = torch.func.grad(loss)(start)
    params, velocity = rule.step(loss, start)
    for name, q in start.items():
        assert_close(velocity[name], gradient[name] + 0.1 * q)
        assert_close(params[name], q * (-0.3 * velocity[name]).exp(), ops=300)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mirror_descent_steps_in_the_dual(options, generator):
    start, loss = _params(generator), _loss(generator)
    rule, plain = Rule(**options, potential=_tangled), Rule(**options)
    params, state, peer_state = start, None, None
    for _ in range(5):
        straight, peer_state = plain.step(loss, params, state)
        after, state = rule.step(loss, params, state)
        dual = torch.func.grad(_tangled)
        for name, y in dual(after).items():
            assert torch.equal(state[name], peer_state[name])
            assert_close(y - dual(params)[name], straight[name] - params[name], scale=10)
        params = after


def test_square_potential_is_plain_descent(generator):
    start, loss = _params(generator), _loss(generator)
    square = Rule(lr=0.2, potential=lambda p: sum(q.square().sum() for q in p.values()) / 2)
    for name, q in square.step(loss, start)[0].items():
        assert_close(q, Rule(lr=0.2).step(loss, start)[0][name], scale=5)


def test_bad_input_is_refused(generator):
    cases = [
        (ValueError, "lr must be positive and finite, got 0", {"lr": 0}),
        (TypeError, "lr must be a real number", {"lr": "fast"}),
        (ValueError, "lr must be positive and finite, got inf", {"lr": math.inf}),
        (ValueError, "momentum must lie in", {"lr": 1, "momentum": 1}),
        (ValueError, "dampening must lie in", {"lr": 1, "dampening": 1.5}),
        (ValueError, "dampening must be non-negative and finite", {"lr": 1, "dampening": -0.1}),
        (ValueError, "weight_decay must be non-negative and", {"lr": 1, "weight_decay": -1}),
        (ValueError, "nesterov must go with", {"lr": 1, "nesterov": True}),
        (TypeError, "nesterov must be True or False", {"lr": 1, "nesterov": 1}),
        (TypeError, "potential must be a function", {"lr": 1, "potential": 3}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            Rule(**options)
    start = {"q": torch.tensor([1.0, 2.0], dtype=F64)}

    def linear(p):
        return p["q"].sum()

    burg = Rule(lr=2.0, potential=lambda p: -p["q"].log().sum())
    with pytest.raises(ValueError, match="inside the range of the potential's gradient"):
        burg.step(lambda p: -linear(p), start)
    with pytest.raises(ValueError, match="strictly convex, got a linear"):
        Rule(lr=0.1, potential=linear).step(linear, start)
    saddle = Rule(lr=0.1, potential=lambda p: p["q"][0] ** 2 - p["q"][1] ** 2)
    with pytest.raises(ValueError, match="strictly convex"):
        saddle.step(linear, start)
    with pytest.raises(ValueError, match="smooth at the parameters"):
        burg.step(linear, {"q": torch.zeros(2, dtype=F64)})
    rule = Rule(lr=0.1, momentum=0.5)
    wrong = [
        (ValueError, "gradients must have the names", {"q": start["q"][:1]}, start, None),
        (ValueError, "gradients must have the names", {**start, "r": start["q"]}, start, None),
        (ValueError, "state must have the names", start, start, {"q": start["q"][:1]}),
        (ValueError, "params must hold at least one", start, {}, None),
        (
            TypeError,
            "real floating tensor, got torch.int64",
            start,
            {"q": torch.ones(2).long()},
            None,
        ),
    ]
    for error, message, gradients, params, state in wrong:
        with pytest.raises(error, match=message):
            rule.update(gradients, params, state)
    losses = [
        (TypeError, "loss must be a function of the parameters", 3),
        (TypeError, "loss must return a tensor, got float", lambda p: 1.0),
        (ValueError, "real scalar of shape", lambda p: p["q"]),
        (ValueError, "loss must depend on the parameters", lambda p: p["q"].detach().sum()),
    ]
    for error, message, loss in losses:
        with pytest.raises(error, match=message):
            rule.step(loss, start)
