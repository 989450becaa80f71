from __future__ import annotations

import math

import pytest
import torch
from scipy import optimize
from torch import nn
from torch.nn import functional

from dln_geometry.learning import functionalize
from dln_geometry.learning.collapse import curvature, stability
from dln_geometry.learning.mirror import Mirror
from dln_geometry.learning.symmetry import SymmetryError
from dln_geometry.testing import assert_close
from tests.learning.mirror.routes import HIDDEN

F64 = torch.float64


def _mlp(generator, width=6, inputs=5, dtype=F64):
    net = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=dtype))
    x = torch.randn(40, inputs, generator=generator, dtype=dtype)
    y = torch.randn(40, 3, generator=generator, dtype=dtype)
    return functionalize(net, functional.mse_loss, (x, y))


def _lowest_dense(loss, mirror, q):
    """Return the lowest eigenvalue of O^T H O from the whole Hessian."""
    names = list(q)
    columns = mirror.embed(torch.eye(mirror.dimension, dtype=F64))
    zeros = {n: x.new_zeros(x.numel(), mirror.dimension) for n, x in q.items()}
    o = torch.cat([columns[n].flatten(1).mT if n in columns else zeros[n] for n in names])

    def flat_loss(v):
        pieces = v.split([q[n].numel() for n in names])
        return loss({n: p.reshape(q[n].shape) for n, p in zip(names, pieces, strict=True)})

    h = torch.autograd.functional.hessian(flat_loss, torch.cat([q[n].flatten() for n in names]))
    return torch.linalg.eigh(o.mT @ h @ o)


@pytest.mark.parametrize("inputs", [5, 60], ids=["dense", "iteration"])
@pytest.mark.parametrize("kind", ["permutation", "rescaling"])
def test_the_threshold_is_the_lowest_eigenvalue_of_the_block(kind, inputs, generator):
    loss, params = _mlp(generator, inputs=inputs)
    if kind == "permutation":
        mirror = Mirror.permutation(params, HIDDEN, 1, 4)
    else:
        mirror = Mirror.rescaling(params, HIDDEN, 3)
    found = stability(loss, mirror, params, generator=generator)
    values, vectors = _lowest_dense(loss, mirror, mirror.project(params))
    assert_close(found.threshold, -values[0], ops=1000, scale=values.abs().max())
    assert found.residual <= 1e-8 * float(values.abs().max())
    assert abs(abs(float(found.direction @ vectors[:, 0])) - 1) < 1e-8
    assert_close(found.defect, mirror.defect(params))
    assert found.is_stable(found.threshold + 1e-6)
    assert not found.is_stable(found.threshold - 1e-6)


def test_single_precision(generator):
    loss, params = _mlp(generator, inputs=60, dtype=torch.float32)
    mirror = Mirror.permutation(params, HIDDEN, 1, 4)
    found = stability(loss, mirror, params, generator=generator)
    h = torch.linalg.eigvalsh(curvature(loss, mirror, mirror.project(params)))
    assert_close(found.threshold, -h[0], ops=100, scale=h.abs().max())


def _minimum(loss, mirror, start, decay):
    """Return the optimum of the penalised loss on the symmetric set, by another optimiser."""
    shapes = {name: x.shape for name, x in start.items()}

    def as_params(v):
        pieces = torch.from_numpy(v).split([s.numel() for s in shapes.values()])
        q = {n: p.reshape(s) for (n, s), p in zip(shapes.items(), pieces, strict=True)}
        return mirror.project(q)

    def value(v):
        q = as_params(v)
        g, f = torch.func.grad_and_value(loss)(q)
        total = float(f) + decay / 2 * sum(float(x.square().sum()) for x in q.values())
        g = mirror.project({n: g[n] + decay * q[n] for n in q})
        return total, torch.cat([x.flatten() for x in g.values()]).numpy()

    v = torch.cat([x.flatten() for x in start.values()]).numpy()
    found = optimize.minimize(value, v, jac=True, method="BFGS", options={"gtol": 1e-9})
    return as_params(found.x)


@pytest.mark.slow
def test_two_neurons_collapse_just_above_the_threshold_and_not_just_below(generator):
    loss, params = _mlp(generator, width=3, inputs=2)
    mirror = Mirror.permutation(params, HIDDEN, 0, 1)
    points = {}

    def excess(decay):
        # The threshold is that of the optimum, which moves with the decay.
        start = next(reversed(points.values())) if points else params
        points[decay] = _minimum(loss, mirror, start, decay)
        return decay - stability(loss, mirror, points[decay]).threshold

    grid = [0.3, 0.1, 0.03, 0.01, 0.003, 0.001]
    upper = lower = grid[0]
    for lower in grid:
        if excess(lower) < 0:
            break
        upper = lower
    assert lower < upper
    critical = optimize.brentq(excess, lower, upper, rtol=1e-4)
    lr = 0.3
    gradient = torch.func.grad(loss)
    for factor in (0.95, 1.05):
        decay = factor * critical
        q = _minimum(loss, mirror, points[critical], decay)
        found = stability(loss, mirror, q)
        assert found.is_stable(decay) == (factor > 1)
        size = 1e-4
        q = mirror.shift(q, size * found.direction)
        # As many steps as the linear rate wants for a factor of three.
        steps = round(math.log(3) / (lr * abs(found.threshold - decay)))
        assert steps < 20000
        for _ in range(steps):
            g = gradient(q)
            q = {name: x - lr * (g[name] + decay * x) for name, x in q.items()}
        growth = float(mirror.coordinates(q).norm()) / size
        assert abs(growth - 3 ** (1 if factor < 1 else -1)) < 0.05 * growth


def test_the_distance_grows_at_the_predicted_rate(generator):
    loss, params = _mlp(generator, width=4, inputs=60)
    mirror = Mirror.permutation(params, HIDDEN, 2, 0)
    q = mirror.project(params)
    found = stability(loss, mirror, q, generator=generator)
    decay, lr = 0.3 * abs(found.threshold), 1e-3
    nearby = mirror.shift(q, 1e-5 * found.direction)
    gradient = torch.func.grad(loss)(nearby)
    after = {n: x - lr * (gradient[n] + decay * x) for n, x in nearby.items()}
    # The mirrored coordinates move by the block alone, whatever the rest does.
    expected = (1 + lr * (found.threshold - decay)) * 1e-5 * found.direction
    assert float((mirror.coordinates(after) - expected).norm()) < 1e-8 * 1e-5


def test_the_pointwise_threshold_is_where_the_penalised_losses_cross(generator):
    loss, params = _mlp(generator)
    mirror = Mirror.permutation(params, HIDDEN, 1, 4)
    found = stability(loss, mirror, params)

    def penalised(q, gamma):
        return loss(q) + gamma / 2 * sum(x.square().sum() for x in q.values())

    symmetric = mirror.project(params)
    for factor, better in ((0.99, False), (1.01, True)):
        # Weight decay that is negative has a meaning here too.
        gamma = found.pointwise * (factor if found.pointwise > 0 else 2 - factor)
        assert bool(penalised(symmetric, gamma) < penalised(params, gamma)) == better
    assert stability(loss, mirror, symmetric).pointwise is None


@pytest.mark.parametrize(("depth", "layer"), [(2, 1), (3, 1), (3, 2), (4, 2)])
def test_a_dead_direction_of_a_chain_has_the_threshold_in_closed_form(depth, layer, generator):
    widths = (5, *[4] * (depth - 1), 3)
    q = {
        f"w{p}": torch.randn(widths[p], widths[p - 1], generator=generator, dtype=F64)
        for p in range(1, depth + 1)
    }
    a = torch.randn(3, 5, generator=generator, dtype=F64)
    end = {}

    def outer(x):
        return (x - a).sin().square().sum()

    def loss(q):
        x = q["w1"]
        for p in range(2, depth + 1):
            x = q[f"w{p}"] @ x
        end["x"] = x
        return outer(x)

    n = torch.randn(4, generator=generator, dtype=F64)
    mirror = Mirror.gauge(q, f"w{layer}", f"w{layer + 1}", n)
    dead = mirror.project(q)
    loss(dead)
    slope = torch.func.grad(outer)(end["x"])
    before = torch.eye(5, dtype=F64)
    for p in range(1, layer):
        before = dead[f"w{p}"] @ before
    after = torch.eye(3, dtype=F64)
    for p in range(depth, layer + 1, -1):
        after = after @ dead[f"w{p}"]
    # theory: gamma > sigma_max(W_{N..p+2}^T E' W_{p-1..1}^T).
    expected = torch.linalg.matrix_norm(after.mT @ slope @ before.mT, 2)
    assert_close(stability(loss, mirror, q).threshold, expected, ops=1000)


def test_a_loss_that_is_linear_along_the_mirror_has_no_curvature():
    def loss(q):
        return (q[0] * q[1]).square() + 0 * q.sum()

    q = torch.tensor([1.0, 2.0], dtype=F64)
    assert stability(loss, Mirror([[1.0], [0.0]]), q).threshold == -8.0

    def flat(q):
        return q[1].square() + 0 * q[0]

    assert stability(flat, Mirror([[1.0], [0.0]]), q).threshold == 0.0


def test_bad_input(generator):
    with pytest.raises(TypeError, match="mirror must be a Mirror, got int"):
        stability(lambda q: q.sum(), 3, torch.ones(2))
    loss, params = _mlp(generator)
    with pytest.raises(SymmetryError, match="got the relative residual"):
        stability(loss, Mirror.rotation(params, HIDDEN, torch.ones(6)), params)
    mirror = Mirror.permutation(params, HIDDEN, 1, 4)
    with pytest.raises(ValueError, match="real scalar of shape"):
        stability(lambda q: q["0.bias"], mirror, params)
    with pytest.raises(ValueError, match="params must hold '0.weight'"):
        stability(loss, mirror, {"0.bias": params["0.bias"]})

    def root(q):
        return q.abs().pow(1.5).sum()

    with pytest.raises(ValueError, match="must have finite second derivatives"):
        curvature(root, Mirror([[1.0]]), torch.zeros(1))
