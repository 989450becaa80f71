from __future__ import annotations

import pytest
import torch

from dln_geometry import learning
from dln_geometry.learning.motion import top_eigenpairs

F64 = torch.float64


X = torch.linspace(-1, 1, 12, dtype=F64)


def network(p):
    """Return the loss of a tanh network on a smooth function."""
    hidden = torch.tanh(X[:, None] * p["u"] + p["c"])
    return (hidden @ p["w"] - torch.sin(3 * X)).square().mean() / 2


def started():
    g = torch.Generator().manual_seed(3)
    return {k: 0.7 * torch.randn(5, generator=g, dtype=F64) for k in ("u", "c", "w")}


RULES = {
    "plain": {"lr": 0.5},
    "dampened": {"lr": 0.5, "momentum": 0.3, "dampening": 0.2, "weight_decay": 0.01},
    "nesterov": {"lr": 0.25, "momentum": 0.4, "nesterov": True},
}


@pytest.mark.parametrize("name", RULES)
def test_averages_of_iterates_follow_it_past_the_edge(name):
    """Centre, variance and loss of real iterates, averaged over many periods, within 3 per cent."""
    rule = learning.Rule(**RULES[name])
    # Where the curvature along a is at the edge.
    edge = rule.edge / 2 - 1

    def valley(p):
        """Return a loss that steepens along b, which is pulled past the edge of stability."""
        return p["a"].square() * (1 + p["b"]) + 0.1 * (p["b"] - edge - 0.3).square()

    start = {k: torch.tensor(x, dtype=F64) for k, x in (("a", 0.3), ("b", edge - 0.1))}
    path = learning.central_flow(valley, rule)(start, 40, substeps=2, save_every=20)
    params = {k: torch.nn.Parameter(x.clone()) for k, x in start.items()}
    options = {k: x for k, x in RULES[name].items() if k != "lr"}
    optimizer = torch.optim.SGD(params.values(), rule.lr, **options)
    points, losses = [], []
    for n in range(800):
        optimizer.zero_grad()
        value = valley(params)
        value.backward()
        if n >= 200:
            points.append(learning.flatten(params).detach().clone())
            penalty = rule.weight_decay / 2 * points[-1].square().sum()
            losses.append(value.detach() + penalty)
        optimizer.step()
    points, losses = torch.stack(points), torch.stack(losses)
    # Gradient flow would go on to edge + 0.3.
    assert path.sharpness[-1] == pytest.approx(rule.edge + rule.weight_decay, rel=1e-2)
    assert (learning.flatten(path.params[-1]) - points.mean(0)).abs().max() < 0.03
    assert path.covariance[-1, 0, 0] == pytest.approx(float(points[:, 0].square().mean()), rel=3e-2)
    assert path.average_loss[-1] == pytest.approx(float(losses.mean()), rel=3e-2)


@pytest.mark.slow
def test_a_network_with_two_modes_at_the_edge_stays_on_it_on_average():
    """Iterates averaged over 80 steps: within a quarter of their distance from gradient flow."""
    x = torch.linspace(-1, 1, 16, dtype=F64)
    target = torch.stack([torch.sin(3 * x), torch.cos(4 * x)], 1)

    def loss(p):
        out = torch.tanh(x[:, None] * p["u"] + p["c"]) @ p["w"]
        return (out - target).square().sum(1).mean() / 2

    g = torch.Generator().manual_seed(0)
    start = {k: torch.randn(6, generator=g, dtype=F64) for k in ("u", "c")}
    start["w"] = torch.randn(6, 2, generator=g, dtype=F64) / 2
    lr, steps = 0.85, 160

    def descend(h, count):
        q, points, values = start, [], []
        for _ in range(count):
            g, value = torch.func.grad_and_value(loss)(q)
            points.append(learning.flatten(q))
            values.append(value)
            q = {k: v - h * g[k] for k, v in q.items()}
        return torch.stack(points), torch.stack(values)

    path = learning.central_flow(loss, lr, modes=2)(start, steps, substeps=2, save_every=steps)
    points, values = descend(lr, steps + 40)
    mean, average = points[-80:].mean(0), values[-80:].mean()
    # Euler steps of a sixth: gradient flow, which does not oscillate.
    smooth = descend(lr / 6, 6 * steps + 1)[0][-1]
    away = (learning.flatten(path.params[-1]) - mean).norm()
    assert away < 0.25 * (smooth - mean).norm()
    assert float(path.average_loss[-1]) == pytest.approx(float(average), rel=0.08)
    assert float(average) > 1.5 * float(loss(learning.unflatten(smooth, start)))
    assert torch.allclose(path.sharpness[-1] * lr / 2, torch.ones(2, dtype=F64), rtol=2e-2)


def test_several_modes_stay_below_the_bound():
    """Three valleys that steepen at different rates; their variances are known in closed form."""
    rates = torch.tensor([1.0, 0.7, 0.4], dtype=F64)

    def loss(p):
        return (p["a"].square() * (1 + rates * p["b"])).sum() - p["b"]

    start = {"a": torch.full((3,), 1e-4, dtype=F64), "b": torch.zeros((), dtype=F64)}
    path = learning.central_flow(loss, 0.5, modes=2)(start, 30, substeps=2)
    assert path.sharpness[-1, 0] == pytest.approx(4.0, rel=1e-6)
    assert path.sharpness.max() <= 4.0 * (1 + 1e-6)
    # Only the first valley reaches the bound: its variance balances the force on b.
    assert path.covariance[-1, 0, 0] == pytest.approx(1.0, rel=1e-3)
    assert path.average_loss[-1] > path.loss[-1]


def test_equal_modes_share_the_force():
    def loss(p):
        return (p["a"].square() * (1 + p["b"])).sum() - p["b"]

    start = {"a": torch.full((2,), 1e-4, dtype=F64), "b": torch.zeros((), dtype=F64)}
    path = learning.central_flow(loss, 0.5, modes=2)(start, 30, substeps=2)
    assert path.sharpness[-1].tolist() == pytest.approx([4.0, 4.0], rel=1e-6)
    assert float(path.covariance[-1].trace()) == pytest.approx(1.0, rel=1e-3)


def test_below_the_edge_it_is_gradient_flow():
    start = started()
    g = torch.func.grad(network)(start)
    velocity = learning.central_flow(network, 1e-3).velocity(start)
    for name in g:
        assert torch.allclose(velocity[name], -1e-3 * g[name])


@pytest.mark.parametrize("count", [1, 3])
def test_eigenpairs_of_large_networks_are_those_of_the_matrix(count, generator):
    n = 300
    a = torch.randn(n, n, generator=generator, dtype=F64)
    a = a + a.mT
    values, vectors = top_eigenpairs(lambda v: a @ v, torch.zeros(n, dtype=F64), count)
    expected = torch.linalg.eigvalsh(a).flip(0)[:count]
    assert torch.allclose(values, expected, rtol=1e-9)
    assert torch.allclose(a @ vectors, vectors * values, atol=1e-4)


def test_half_precision_is_refused_by_the_flow_and_not_by_the_spectrum():
    p = {k: torch.tensor(x, dtype=torch.bfloat16) for k, x in (("a", 2.0), ("b", 0.1))}

    def loss(q):
        return (q["a"] * q["b"] - 1).square()

    for call in (lambda flow: flow(p, 2), lambda flow: flow.velocity(p)):
        with pytest.raises(TypeError, match="single or double precision"):
            call(learning.central_flow(loss, 0.1))
    flow = learning.central_flow(loss, 0.1)
    with pytest.raises(TypeError, match="must return real numbers, got 'x'"):
        flow({k: x.double() for k, x in p.items()}, 2, observe={"name": lambda q: "x"})
    with pytest.raises(ValueError, match="rtol must be positive"):
        learning.hessian_spectrum(loss, p, rtol=-1.0)
    double = {k: x.double() for k, x in p.items()}
    found, exact = (learning.hessian_spectrum(loss, q).top for q in (p, double))
    assert found.dtype == torch.bfloat16
    assert float(found) == pytest.approx(float(exact), rel=0.05)
