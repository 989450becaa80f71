from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dln_geometry.learning.functional import functionalize
from dln_geometry.learning.noether import DiscreteLaw, discrete_residual
from dln_geometry.learning.rules import Rule
from dln_geometry.learning.symmetry import (
    Gauge,
    Rescale,
    Rotation,
    Scale,
    Symmetry,
    SymmetryError,
    Translation,
    is_symmetric,
)
from dln_geometry.testing import assert_close
from tests.learning.noether.networks import attention, convolutions, perceptron

F64 = torch.float64

STEPS = 500
# Relative error allowed after that many steps, whatever the charge has shrunk to.

EXACT = 1e-12

RULES = [
    {"lr": 0.05, "weight_decay": 0.03},
    {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.03},
    {"lr": 0.05, "momentum": 0.8},
    {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.03, "dampening": 0.3},
    {"lr": 0.05, "momentum": 0.7, "weight_decay": 0.03, "nesterov": True},
]

SHAPES = {"w1": (4, 3), "b1": (4,), "w2": (5, 4), "t": (5,), "s": (6, 2), "z": (3, 2)}


def _random(shape, generator):
    return torch.randn(shape, generator=generator, dtype=F64)


def _batch(generator):
    """A loss that is another one in every step, with symmetries of every kind."""
    x, a, y = _random((8, 3), generator), _random((6, 2), generator), _random((2, 2), generator)
    labels = torch.randint(0, 5, (8,), generator=generator)

    def loss(p):
        out = (x @ p["w1"].T + p["b1"]) @ p["w2"].T + p["t"]
        cosines = (p["s"] * a).sum(0) / p["s"].norm(dim=0)
        return (
            functional.cross_entropy(out, labels)
            + cosines.sum()
            + (p["z"].T @ p["z"] - y @ y.T).square().mean()
        )

    return loss


def _rescaled(p, s):
    return {n: p[n] * torch.exp(s * sign) for n, sign in (("w1", 1), ("b1", 1), ("w2", -1))}


def _symmetries(generator):
    m, turn = _random((4, 4), generator), _random((3, 3), generator)
    return {
        "translation": Translation("t", torch.ones(5)),
        "translations": Translation("w2", axis=0),
        "scale": Scale("s"),
        "scale, units": Scale("s", axis=1),
        "rescale, units": Rescale(["w1", "b1"], "w2", axes=(0, 1)),
        "rotation": Rotation("z", turn - turn.T),
        "rotation, group": Rotation("z"),
        "gauge": Gauge(["w1", "b1"], "w2", m),
        "gauge, rotation": Gauge(["w1", "b1"], "w2", m - m.T),
        "gauge, group": Gauge(["w1", "b1"], "w2"),
        "one's own": Symmetry(_rescaled, degree=1),
    }


def _assert_exact(law, predicted, start, params, state):
    observed = law.observe(params, state)
    for name in ("conserved", "momentum", "transposed"):
        actual, expected = getattr(predicted, name), getattr(observed, name)
        size = max(float(start.conserved.abs().max()), float(expected.abs().max()), 1.0)
        error = float((actual - expected).abs().max())
        assert error < EXACT * size, (law.symmetry, name, error)


@pytest.mark.slow
@pytest.mark.parametrize("options", RULES, ids=str)
def test_laws_are_exact_for_every_minibatch(options, generator):
    params = {name: _random(shape, generator) for name, shape in SHAPES.items()}
    rule, state = Rule(**options), None
    laws = {name: DiscreteLaw(s, rule) for name, s in _symmetries(generator).items()}
    start = {n: law.observe(params, loss=_batch(generator)) for n, law in laws.items()}
    charges, worst = dict(start), 0.0
    for n in range(STEPS):
        after, kicked = rule.step(_batch(generator), params, state)
        for name, law in laws.items():
            charges[name] = law.step(charges[name], state, kicked)
            if n % 20 > 1:
                continue
            residual = discrete_residual(law.symmetry, rule, params, state, kicked)
            worst = max(worst, float(residual.abs().max()))
        params, state = after, kicked
    assert worst < EXACT
    for name, law in laws.items():
        _assert_exact(law, charges[name], start[name], params, state)


def test_laws_by_hand(generator):
    """The recursions as they stand in the literature's notation, from buffers not at rest."""
    q, v = {"s": _random((5,), generator)}, {"s": _random((5,), generator)}

    def loss(p):
        return p["s"][:3].sum() / p["s"].norm()

    eta, b, k = 0.07, 0.6, 0.2
    rule = Rule(lr=eta, momentum=b, weight_decay=k)
    before = float(q["s"] @ v["s"])
    after, kicked = rule.step(loss, q, v)
    p = b * before + k * q["s"].square().sum()
    assert_close(kicked["s"] @ q["s"], p)
    expected = q["s"].square().sum() - 2 * eta * p + eta**2 * kicked["s"].square().sum()
    assert_close(after["s"].square().sum(), expected)
    assert_close(DiscreteLaw(Scale("s"), rule).step(
        DiscreteLaw(Scale("s"), rule).observe(q, v), v, kicked
    ).conserved, expected)  # fmt: skip


@pytest.mark.parametrize("options", RULES[1:], ids=str)
def test_translations_need_no_buffers(options, generator):
    """``c_{n+1} = (1 + b - eta k) c_n - b c_{n-1}``, and the like with Nesterov's momentum."""
    rule = Rule(**options)
    params, state, path = {"t": _random((5,), generator)}, None, []
    for _ in range(30):
        target = int(torch.randint(0, 5, (), generator=generator))
        path.append(params["t"].sum())
        params, state = rule.step(
            lambda p, target=target: torch.logsumexp(p["t"], 0) - p["t"][target], params, state
        )
    b, decay = rule.momentum, rule.time_step * rule.weight_decay
    z = 1 - decay if rule.nesterov else 1
    first = (1 + b) * z if rule.nesterov else 1 + b - decay
    for n in range(2, 30):
        assert_close(path[n], first * path[n - 1] - b * z * path[n - 2], scale=10)


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_rotation_charge_shrinks_by_the_momentum_whatever_the_decay(decay, generator):
    rule = Rule(lr=0.005, momentum=0.9, weight_decay=decay)
    params, state = {"z": _random((3, 2), generator)}, {"z": _random((3, 2), generator)}
    symmetry = Rotation("z")
    start = symmetry.pair(params, state)
    y = _random((2, 2), generator)
    for n in range(1, 20):
        params, state = rule.step(lambda p: (p["z"].T @ p["z"] - y).square().sum(), params, state)
        assert_close(symmetry.pair(params, state), 0.9**n * start, scale=10)


@pytest.mark.parametrize("options", RULES, ids=str)
def test_residual_for_any_symmetry_and_mirror_descent(options, generator):
    """A nonlinear action, and the charge of the step in the dual of a convex function."""

    def action(p, s):
        q = p["q"]
        return {"q": torch.stack([q[0] * torch.exp(-s), q[1] + s, q[2]])}

    def loss(p):
        q = p["q"]
        return (q[0] * q[1].exp() - 2).square() + q[2].cos()

    def potential(p):
        return p["q"].cosh().sum() + p["q"].sum().square() / 3

    symmetry, rule = Symmetry(action), Rule(**options, potential=potential)
    params, state = {"q": _random((3,), generator)}, None
    dual = torch.func.grad(potential)
    for _ in range(20):
        after, kicked = rule.step(loss, params, state)
        residual = discrete_residual(symmetry, rule, params, state, kicked)
        assert_close(residual, 0.0, scale=30)
        broken = discrete_residual(Scale("q"), rule, params, state, kicked)
        factor = 1 - rule.dampening if state is not None else 1
        slope = (torch.func.grad(loss)(params)["q"] * params["q"]).sum()
        assert_close(broken, factor * slope, scale=30)
        if not rule.nesterov:
            moved = {"q": dual(after)["q"] - dual(params)["q"]}
            step = -rule.lr * symmetry.pair(params, kicked)
            assert_close(symmetry.pair(params, moved), step, scale=30)
        params, state = after, kicked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "options"),
    [(perceptron, RULES[4]), (convolutions, RULES[1]), (attention, RULES[1])],
    ids=["layer norm", "batch norm", "attention"],
)
def test_laws_are_exact_on_real_networks(network, options, generator):
    model, shape, symmetries = network(generator)
    model.to(F64)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(_random(p.shape, generator) / 2)
    data = [
        (_random(shape, generator), torch.randint(0, 4, shape[:1], generator=generator))
        for _ in range(8)
    ]
    loss, params = functionalize(model, functional.cross_entropy, data[0])
    rule, state = Rule(**options), None
    laws = [DiscreteLaw(symmetry, rule) for symmetry in symmetries]
    start = [law.observe(params, loss=loss) for law in laws]
    charges = list(start)
    for n in range(STEPS):
        params, kicked = rule.step(loss.on(data[n % 8]), params, state)
        charges = [law.step(c, state, kicked) for law, c in zip(laws, charges, strict=True)]
        state = kicked
    for law, c, first in zip(laws, charges, start, strict=True):
        _assert_exact(law, c, first, params, state)


def test_torch_optimiser_obeys_the_law_in_single_precision(generator):
    """The layers as users have them: float32, an eps in the normalisation, torch's own loop."""
    model, shape, _ = perceptron(generator)
    model[1].eps = 1e-5
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8, weight_decay=0.03)
    symmetry = Rescale(["3.weight", "3.bias"], "5.weight", axes=(0, 1))
    law = DiscreteLaw(symmetry, Rule(lr=0.05, momentum=0.8, weight_decay=0.03))
    charges, state = law.observe(dict(model.named_parameters())), None
    size = float(charges.conserved.detach().abs().max())
    for _ in range(50):
        x = torch.randn(shape, generator=generator)
        labels = torch.randint(0, 4, shape[:1], generator=generator)
        optimiser.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimiser.step()
        after = {
            n: optimiser.state[p]["momentum_buffer"].clone() for n, p in model.named_parameters()
        }
        charges, state = law.step(charges, state, after), after
    observed = law.observe(dict(model.named_parameters()), state)
    assert_close(charges.conserved, observed.conserved, ops=300, scale=size)


def test_bad_input_is_refused(generator):
    params = {"s": _random((4,), generator)}
    rule = Rule(lr=0.1, momentum=0.5)
    with pytest.raises(ValueError, match="degree 1 or 0"):
        DiscreteLaw(Symmetry(lambda p, s: p), rule)
    with pytest.raises(ValueError, match="no potential"):
        DiscreteLaw(Scale("s"), Rule(lr=0.1, potential=lambda p: p["s"].square().sum()))
    law = DiscreteLaw(Scale("s"), rule)

    def loss(p):
        return p["s"].square().sum()

    with pytest.raises(SymmetryError, match="symmetry Scale") as caught:
        law.observe(params, loss=loss)
    assert caught.value.residual > 0.1
    assert not is_symmetric(loss, Scale("s"), params)
    assert law.observe(params, loss=loss, rtol=10).momentum == 0
