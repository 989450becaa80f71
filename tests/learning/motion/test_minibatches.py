"""The centre of SGD on minibatches, against all sequences of batches and against many runs."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from dln_geometry import learning
from dln_geometry.testing import assert_close

F64 = torch.float64
RULES = {
    "plain": {"lr": 0.15},
    "heavy ball": {"lr": 0.05, "momentum": 0.6, "weight_decay": 0.1},
    "dampened": {"lr": 0.07, "momentum": 0.6, "dampening": 0.3, "weight_decay": 0.1},
    "nesterov": {"lr": 0.05, "momentum": 0.6, "weight_decay": 0.2, "nesterov": True},
}
SIGNS = [-1.0, 1.0]


@pytest.mark.parametrize("name", RULES)
def test_all_sequences_of_quadratic_batches_have_its_second_moments(name, generator):
    """With all modes nothing is left out: equal to rounding, at any size of the steps."""
    m, d, steps, rule = 2, 3, 5, learning.Rule(**RULES[name])
    root = torch.randn(m, d, d, generator=generator, dtype=F64)
    hessians = root @ root.mT + 0.3 * torch.eye(d, dtype=F64)
    centres = torch.randn(m, d, generator=generator, dtype=F64)
    start = {"q": torch.randn(d, generator=generator, dtype=F64)}

    def loss(p, k):
        off = p["q"] - centres[k]
        return off @ hessians[k] @ off / 2

    def penalised(p):
        return sum(loss(p, k) for k in range(m)) / m + rule.weight_decay * p["q"].square().sum() / 2

    path = learning.central_flow(loss, rule, d, batches=range(m))(start, steps, substeps=3)
    # Begun with slow buffers.
    share = rule.time_step / rule.lr / rule.friction
    buffer = {"q": share * torch.func.grad(penalised)(start)["q"]}
    ends = []
    for sequence in product(range(m), repeat=steps):
        q, v = start, buffer
        for k in sequence:
            q, v = rule.step(lambda p, k=k: loss(p, k), q, v)
        ends.append(q["q"])
    off = torch.stack(ends) - path.params[-1]["q"]
    u = torch.linalg.eigh(torch.func.hessian(penalised)(start)["q"]["q"])[1].flip(1)
    expected = u.mT @ (off.mT @ off / len(off)) @ u
    # Eigenvectors have no sign.
    assert_close(path.covariance[-1].abs(), expected.abs(), ops=1000)
    average = torch.stack([penalised({"q": q}) for q in ends]).mean()
    linear = torch.func.grad(penalised)(path.params[-1])["q"] @ off.mean(0)
    assert_close(path.average_loss[-1] + linear, average, ops=1000)


def noisy_valley(p, sign):
    """A loss that steepens along b, which is pulled past the edge, under noise along a."""
    return p["a"].square() * (1 + p["b"]) + 0.3 * sign * p["a"] + 0.1 * (p["b"] - 1.5).square()


def test_noise_holds_the_sharpness_below_the_edge():
    lr, steps = 0.5, 40
    start = {"a": torch.tensor(0.3, dtype=F64), "b": torch.tensor(0.7, dtype=F64)}
    flow = learning.central_flow(noisy_valley, lr, batches=SIGNS)
    path = flow(start, steps, substeps=2, save_every=steps)
    runs = {k: x.repeat(4000) for k, x in start.items()}
    g = torch.Generator().manual_seed(1)
    for _ in range(steps):
        signs = torch.randint(0, 2, (4000,), generator=g) * 2.0 - 1.0
        slopes = torch.func.vmap(torch.func.grad(noisy_valley))(runs, signs)
        runs = {k: x - lr * slopes[k] for k, x in runs.items()}
    # Without noise b ends at 1, where the curvature is 2 / lr.
    end = path.params[-1]
    assert float(end["b"]) == pytest.approx(float(runs["b"].mean()), rel=2e-2)
    assert float(path.sharpness[-1]) < 0.97 * 2 / lr
    square = float(runs["a"].square().mean())
    assert float(path.covariance[-1, 0, 0]) == pytest.approx(square, rel=6e-2)
    # There the force of the noise balances the pull.
    velocity = flow.velocity(end)
    assert abs(float(velocity["b"])) < 2e-3 < abs(float(flow.velocity(start)["b"]))


def test_means_of_many_runs_of_a_module_follow_it(generator):
    """Nearer to the mean over 256 runs than gradient flow, in all parameters and in the loss."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(12, 2, generator=generator, dtype=F64)
    y = torch.sin(3 * x[:, :1]) + 0.5 * torch.randn(12, 1, generator=generator, dtype=F64)
    batches = [(x[k::4], y[k::4]) for k in range(4)]
    loss, params = learning.functionalize(net, nn.functional.mse_loss, batches[0])
    rule, steps, count = learning.Rule(0.25, momentum=0.5), 25, 256
    path = learning.central_flow(loss, rule, 4, batches=batches)(
        params, steps, substeps=2, save_every=steps
    )
    data = tuple(torch.stack(z) for z in zip(*batches, strict=True))

    def on(p, x, y):
        return (torch.func.functional_call(net, p, (x,)) - y).square().mean()

    def mean(p):
        return torch.func.vmap(on, (None, 0, 0))(p, *data).mean()

    slope = torch.func.grad(mean)(params)
    q = {k: z.detach().repeat(count, *[1] * z.ndim) for k, z in params.items()}
    v = {k: z.repeat(count, *[1] * z.ndim) / rule.friction for k, z in slope.items()}
    for _ in range(steps):
        drawn = torch.randint(4, (count,), generator=generator)
        g = torch.func.vmap(torch.func.grad(on))(q, data[0][drawn], data[1][drawn])
        v = {k: rule.momentum * v[k] + g[k] for k in v}
        q = {k: q[k] - rule.lr * v[k] for k in q}
    smooth = params
    for _ in range(8 * steps):
        g = torch.func.grad(mean)(smooth)
        smooth = {k: z - rule.lr / rule.friction / 8 * g[k] for k, z in smooth.items()}
    centre = learning.flatten({k: z.mean(0) for k, z in q.items()})
    away = [float((learning.flatten(p) - centre).norm()) for p in (path.params[-1], smooth)]
    value = float(torch.func.vmap(mean)(q).mean())
    assert away[0] < 0.5 * away[1]
    assert abs(float(path.average_loss[-1]) - value) < 0.3 * abs(float(mean(smooth)) - value)


def test_what_is_refused():
    rule = learning.Rule(0.1, potential=lambda p: p["a"].square().sum())
    with pytest.raises(ValueError, match="without a potential"):
        learning.central_flow(noisy_valley, rule)
    with pytest.raises(ValueError, match="at least one minibatch"):
        learning.central_flow(noisy_valley, 0.1, batches=[])
    with pytest.raises(TypeError, match="batches must be an iterable"):
        learning.central_flow(noisy_valley, 0.1, batches=3)
    start = {"a": torch.tensor(0.3, dtype=F64), "b": torch.tensor(2.0, dtype=F64)}
    flow = learning.central_flow(noisy_valley, 0.5, batches=SIGNS)
    with pytest.raises(ValueError, match="beyond the edge"):
        flow.velocity(start)
    with pytest.raises(ValueError, match="loss must be finite|grow without bound"):
        learning.central_flow(noisy_valley, 50.0, batches=SIGNS)(start, 60)


def test_one_batch_is_the_whole_data():
    start = {"a": torch.tensor(0.3, dtype=F64), "b": torch.tensor(0.9, dtype=F64)}
    one = learning.central_flow(noisy_valley, 0.5, batches=[0.0]).velocity(start)
    whole = learning.central_flow(lambda p: noisy_valley(p, 0.0), 0.5).velocity(start)
    assert one == whole
