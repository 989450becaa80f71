from __future__ import annotations

import pytest
import torch

from dln_geometry import learning

F64 = torch.float64


def loss(params, batch):
    x, y = batch
    return (params["w"] @ (params["u"] @ x) - y).square().sum() / 2


def regression(generator, n=40, inputs=3, outputs=2):
    x = torch.randn(n, inputs, generator=generator, dtype=F64)
    teacher = torch.randn(outputs, inputs, generator=generator, dtype=F64)
    y = x @ teacher.mT + torch.randn(n, outputs, generator=generator, dtype=F64)
    return x, y


def gradients(params, data):
    return [torch.func.grad(loss)(params, b) for b in data]


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_the_law_of_balance_holds_unit_by_unit(decay, generator):
    data = list(zip(*regression(generator), strict=True))
    start = {
        "u": torch.randn(4, 3, generator=generator, dtype=F64),
        "w": torch.randn(2, 4, generator=generator, dtype=F64) * 3,
    }
    symmetry = learning.Rescale("u", "w", axes=(0, 1))
    lr = 0.1
    found = learning.noise_equilibrium(symmetry, loss, data, start, lr=lr, weight_decay=decay)
    q = found.params
    assert torch.allclose(q["w"] @ q["u"], start["w"] @ start["u"])
    g = gradients(q, data)
    pushed = sum(x["u"].square().sum(1) - x["w"].square().sum(0) for x in g) / len(g)
    charge = q["u"].square().sum(1) - q["w"].square().sum(0)
    off = lr * pushed - (2 * decay - lr * decay**2) * charge
    assert off.abs().max() < 1e-10 * lr * sum(x["w"].square().sum() for x in g)


def test_gauges_have_one_equilibrium_whatever_the_start(generator):
    data = list(zip(*regression(generator), strict=True))
    start = {
        "u": torch.randn(2, 3, generator=generator, dtype=F64),
        "w": torch.randn(2, 2, generator=generator, dtype=F64),
    }
    symmetry = learning.Gauge("u", "w")
    found = learning.noise_equilibrium(symmetry, loss, data, start)
    g = gradients(found.params, data)
    pushed = sum(x["u"] @ x["u"].mT - x["w"].mT @ x["w"] for x in g) / len(g)
    assert pushed.abs().max() < 1e-9 * sum(x["u"].square().sum() for x in g)


def test_long_runs_settle_there(generator):
    """Copies of u w x with label noise: SGD on single samples, against the point predicted."""
    copies, lr, steps = 256, 0.02, 6000
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=F64)
    y = torch.tensor([2.0, -1.0, 1.5], dtype=F64)
    u = torch.tensor([1.5, -0.2], dtype=F64).repeat(copies, 1)
    w = torch.full((copies,), 0.4, dtype=F64)
    total, count = torch.zeros(copies, dtype=F64), 0
    for n in range(steps):
        k = torch.randint(3, (copies,), generator=generator)
        xs, ys = x[k], y[k]
        h = (u * xs).sum(1)
        r = w * h - ys
        u, w = u - lr * (r * w)[:, None] * xs, w - lr * r * h
        if n >= steps // 2:
            total += u.square().sum(1) - w.square()
            count += 1
    params = {"u": u.mean(0)[None], "w": w.mean()[None, None]}
    data = list(zip(x, y[:, None], strict=True))
    found = learning.noise_equilibrium(learning.Rescale("u", "w"), loss, data, params, lr=lr)
    mean = total / count
    error = mean.std() / copies**0.5
    # Across the orbits the parameters fluctuate, by lr.
    assert abs(mean.mean() - found.charge) < 4 * error + 5 * lr * (u.square().sum(1).mean())


RULES = {
    "shuffled": {"lr": 0.03, "weight_decay": 0.05},
    "heavy ball": {"lr": 0.01, "momentum": 0.7, "weight_decay": 0.05},
    "dampened": {"lr": 0.02, "momentum": 0.6, "dampening": 0.4, "weight_decay": 0.05},
    "nesterov": {"lr": 0.01, "momentum": 0.6, "nesterov": True, "weight_decay": 0.05},
}


@pytest.mark.parametrize("name", RULES)
def test_long_runs_with_decay_and_momentum_settle_there(name, generator):
    """``u w`` with label noise: decay pulls the charge to zero, noise of unequal sides away."""
    rule, copies, steps = learning.Rule(**RULES[name]), 128, 2000
    x = torch.tensor([[0.5, 1.5], [-0.4, 1.2], [1.0, 0.7], [0.6, -1.0]], dtype=F64)
    y = torch.tensor([3.0, -2.5, 2.0, -2.0], dtype=F64)
    q = {
        "u": torch.tensor([0.9, 0.2], dtype=F64).repeat(copies, 1),
        "w": torch.full((copies,), 0.9, dtype=F64),
    }
    v, mean, order = None, torch.zeros(copies, dtype=F64), torch.zeros(0)
    centre = {n: torch.zeros_like(z) for n, z in q.items()}
    for n in range(steps):
        if name != "shuffled":
            k = torch.randint(4, (copies,), generator=generator)
        else:
            if n % 4 == 0:
                order = torch.rand(copies, 4, generator=generator).argsort(1)
            k = order[:, n % 4]
        h = (q["u"] * x[k]).sum(1)
        r = q["w"] * h - y[k]
        q, v = rule.update({"u": (r * q["w"])[:, None] * x[k], "w": r * h}, q, v)
        if n >= steps // 2:
            mean += (q["u"].square().sum(1) - q["w"].square()) / (steps - steps // 2)
            centre = {m: c + q[m] / (steps - steps // 2) for m, c in centre.items()}
    params = {"u": centre["u"].mean(0)[None], "w": centre["w"].mean()[None, None]}
    data = list(zip(x, y[:, None], strict=True))
    symmetry = learning.Rescale("u", "w")
    found = learning.noise_equilibrium(symmetry, loss, data, params, lr=rule)
    error = mean.std() / copies**0.5
    rate = rule.time_step / rule.friction
    assert abs(mean.mean() - found.charge) < 4 * error + 1.5 * rate * params["u"].square().sum()
    # Far from what the bare rate says.
    if rule.momentum and not rule.dampening:
        bare = learning.noise_equilibrium(
            symmetry, loss, data, params, lr=rule.lr, weight_decay=rule.weight_decay
        )
        assert abs(bare.charge - found.charge) > 2 * abs(mean.mean() - found.charge)


def test_exponential_symmetries_of_other_weights_and_half_precision(generator):
    """``u^2 w``: C = u^2 - 2 w^2 stands still where E[g_u^2] = 2 E[g_w^2]."""
    symmetry = learning.Symmetry(
        lambda p, s: {"u": p["u"] * torch.exp(s), "w": p["w"] * torch.exp(-2 * s)}, degree=1
    )

    def product(p, batch):
        return (p["u"] ** 2 * p["w"] * batch[0] - batch[1]).square()

    data = list(torch.randn(9, 2, generator=generator, dtype=F64))
    start = {"u": torch.tensor(1.7, dtype=F64), "w": torch.tensor(0.3, dtype=F64)}
    q = learning.noise_equilibrium(symmetry, product, data, start).params
    assert torch.allclose(q["u"] ** 2 * q["w"], start["u"] ** 2 * start["w"])
    g = [torch.func.grad(product)(q, b) for b in data]
    pushed = sum(x["u"] ** 2 - 2 * x["w"] ** 2 for x in g)
    assert abs(pushed) < 1e-12 * sum(x["u"] ** 2 for x in g)
    half = {n: x.bfloat16() for n, x in start.items()}
    found = learning.noise_equilibrium(symmetry, product, [b.bfloat16() for b in data], half)
    assert found.params["u"].dtype == torch.bfloat16
    assert found.residual < 1e-6
    assert abs(float(found.params["u"]) / float(q["u"]) - 1) < 0.1


def test_no_equilibrium_is_said(generator):
    def one_sided(params, batch):
        return (params["u"].detach() * params["w"] * batch).sum()

    def normalised(params, batch):
        return (params["u"] / params["u"].norm() * batch).sum()

    params = {"u": torch.ones(1, dtype=F64), "w": torch.ones(1, dtype=F64)}
    rescale, one = learning.Rescale("u", "w"), [torch.tensor(1.0)]
    with pytest.raises(learning.SymmetryError, match="slope along the orbit of 1.0"):
        learning.noise_equilibrium(rescale, one_sided, one, params)
    pair = {"u": torch.ones(2, dtype=F64), "w": torch.ones(1, dtype=F64)}
    with pytest.raises(ValueError, match="push it one way"):
        learning.noise_equilibrium(
            learning.Scale("u"), normalised, [torch.tensor([1.0, 2.0], dtype=F64)], pair
        )
    with pytest.raises(ValueError, match="degree 1"):
        learning.noise_equilibrium(learning.Translation("u", axis=0), loss, [], params)
    with pytest.raises(ValueError, match="got none"):
        learning.noise_equilibrium(rescale, loss, [], params)
    with pytest.raises(ValueError, match="'w'"):
        learning.noise_equilibrium(rescale, loss, one, {"u": params["u"]})
    rule = learning.Rule(0.1, momentum=0.9)
    with pytest.raises(ValueError, match="a rule and weight_decay=0.1"):
        learning.noise_equilibrium(rescale, loss, one, params, lr=rule, weight_decay=0.1)


def test_numbers_that_are_not_finite_are_named(generator):
    start = {
        "u": torch.randn(4, 3, generator=generator, dtype=F64),
        "w": torch.randn(2, 4, generator=generator, dtype=F64),
    }
    symmetry = learning.Rescale("u", "w", axes=(0, 1))
    data = list(zip(*regression(generator, n=3), strict=True))
    spoiled = [*data, (data[0][0] * float("nan"), data[0][1])]
    with pytest.raises(ValueError, match="NaN or infinity from minibatch 3"):
        learning.noise_equilibrium(symmetry, loss, spoiled, start)
    large = {"u": start["u"] * 1e160, "w": start["w"] * 1e-160}
    with pytest.raises(ValueError, match="must have finite squares, got an overflow"):
        learning.noise_equilibrium(symmetry, loss, data, large)
