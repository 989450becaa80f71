from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from dln_geometry.learning import functionalize
from dln_geometry.learning.collapse import batch_curvatures, lyapunov, noise_threshold
from dln_geometry.learning.mirror import Mirror
from dln_geometry.learning.symmetry import SymmetryError
from dln_geometry.testing import assert_close, assert_mean, assert_order

F64 = torch.float64


def _scalars(generator, mean=-0.2, spread=1.0, n=200):
    h = torch.randn(n, generator=generator, dtype=F64)
    return mean + spread * (h - h.mean()) / h.std()


def _walk(curvatures, lr, decay, momentum, steps, generator, walkers=400):
    """Return the growth rates of SGD's own iterates along the mirror, one batch a step."""
    k = curvatures.shape[-1]
    c = torch.randn(walkers, k, 1, generator=generator, dtype=F64)
    v = torch.zeros_like(c)
    log = torch.zeros(walkers, dtype=F64)
    for n in range(steps):
        h = curvatures[torch.randint(len(curvatures), (walkers,), generator=generator)]
        v = momentum * v + h @ c + decay * c
        c = c - lr * v
        if n < steps // 5:
            size = c.norm(dim=1, keepdim=True)
        else:
            size = c.norm(dim=1, keepdim=True)
            log += size[:, 0, 0].log()
        c, v = c / size, v / size
    return log / (steps - steps // 5)


def test_one_coordinate_is_the_mean_of_the_logarithms(generator):
    h = _scalars(generator)
    found = lyapunov(h, 0.3, weight_decay=0.1)
    rates = _walk(h.reshape(-1, 1, 1), 0.3, 0.1, 0.0, 400, generator)
    assert_mean(rates, found.exponent)
    assert found.standard_error == 0.0


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("k", [1, 3])
def test_matrices_and_momentum_against_the_walk_itself(k, momentum, generator):
    h = torch.randn(50, k, k, generator=generator, dtype=F64)
    h = (h + h.mT) / 2 - 0.3 * torch.eye(k, dtype=F64)
    found = lyapunov(h, 0.2, weight_decay=0.05, momentum=momentum, steps=1500, generator=generator)
    rates = _walk(h, 0.2, 0.05, momentum, 700, generator)
    error = math.hypot(found.standard_error, float(rates.std()) / math.sqrt(len(rates)))
    assert abs(float(rates.mean()) - found.exponent) < 4 * error
    assert found.collapses == (found.exponent < 0)


def test_commuting_matrices_grow_along_their_most_expanding_direction(generator):
    q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=F64)).Q
    diagonals = torch.stack([_scalars(generator, mean, 0.8) for mean in (0.4, -0.1, 0.9)], -1)
    h = (q * diagonals.unsqueeze(-2)) @ q.mT
    found = lyapunov(h, 0.4, steps=3000, generator=generator)
    exact = [lyapunov(diagonals[:, i], 0.4).exponent for i in range(3)]
    assert abs(found.exponent - max(exact)) < 4 * found.standard_error + 1e-3


def test_small_noise_has_the_printed_threshold(generator):
    # a = h + gamma with a small mean: eta_c -> -2 E[a] / E[a^2].
    base = _scalars(generator, mean=0.0, n=50)
    means = [-0.1 / 2**j for j in range(5)]
    off = []
    for mean in means:
        a = base + mean
        exact = noise_threshold(a - 0.05, weight_decay=0.05)
        printed = -2 * float(a.mean()) / float(a.square().mean())
        off.append(abs(exact / printed - 1))
    assert_order([-m for m in means], off, 1, tol=0.3, at_least=True)
    assert off[-1] < 0.02


def test_the_threshold_separates_collapse_from_escape(generator):
    h = _scalars(generator)
    critical = noise_threshold(h, weight_decay=0.05)
    assert_close(lyapunov(h, critical, weight_decay=0.05).exponent, 0.0, scale=1.0, ops=1e4)
    for factor, sign in ((0.85, 1), (1.15, -1)):
        found = lyapunov(h, factor * critical, weight_decay=0.05)
        assert sign * found.exponent > 0
        # SGD itself: a hundred walks of iterates, without any normalisation.
        c = torch.full((100,), 1e-8, dtype=F64)
        for _ in range(3000):
            batch = h[torch.randint(len(h), (100,), generator=generator)]
            c = c - factor * critical * (batch + 0.05) * c
            c = c.clamp(-1e100, 1e100)
        assert sign * float(c.abs().log().median() - math.log(1e-8)) > 0


def test_thresholds_of_matrices(generator):
    diagonals = torch.stack([_scalars(generator, mean, 0.9) for mean in (-0.2, -0.1)], -1)
    exact = max(noise_threshold(diagonals[:, i]) for i in range(2))
    found = noise_threshold(torch.diag_embed(diagonals), steps=3000, generator=generator)
    assert abs(found / exact - 1) < 0.1
    stable = torch.diag_embed(diagonals.abs())
    assert noise_threshold(stable, generator=generator) == 0.0
    assert noise_threshold(-stable - 0.1 * torch.eye(2, dtype=F64), generator=generator) == math.inf


def test_limits_of_one_coordinate():
    assert noise_threshold([0.5, -0.4]) == 0.0
    assert noise_threshold([-0.5, -0.4]) == math.inf
    assert noise_threshold([-0.5, -0.4], weight_decay=0.6) == 0.0
    # |1 + x| |1 - x / 2| = 1 at x = 1.
    assert_close(noise_threshold([-1.0, 0.5]), 1.0)
    # One pole among many: the root hides next to it.
    h = [-1.0] * 30 + [1.0]
    root = noise_threshold(h)
    assert 1 - 1e-8 < root <= 1
    assert lyapunov([1.0, -1.0], 1.0).exponent == -math.inf
    assert lyapunov([[[1.0]], [[-1.0]]], 1.0, momentum=0.0).exponent == -math.inf
    nothing = torch.stack([torch.eye(2), -torch.eye(2)])
    assert lyapunov(nothing, 1.0, steps=50).exponent == -math.inf


def _network(generator):
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
    x = torch.randn(12, 2, generator=generator, dtype=F64)
    y = torch.randn(12, 2, generator=generator, dtype=F64)
    loss, params = functionalize(net, functional.mse_loss, (x, y))
    batches = [loss.on((x[i : i + 3], y[i : i + 3])) for i in range(0, 12, 3)]
    mirror = Mirror.permutation(params, {"0.weight": 0, "0.bias": 0, "2.weight": 1}, 0, 2)
    return loss, batches, mirror, params


def test_curvatures_of_batches_add_up_to_that_of_the_whole(generator):
    loss, batches, mirror, params = _network(generator)
    h = batch_curvatures(batches, mirror, params)
    assert h.shape == (4, 5, 5)
    whole = batch_curvatures([loss], mirror, params)[0]
    assert_close(h.mean(0), whole)
    c = torch.randn(5, generator=generator, dtype=F64)
    along = batch_curvatures(batches, mirror, params, direction=c)
    assert_close(along, torch.einsum("i,bij,j->b", c, h, c) / c.square().sum())
    flat = Mirror(torch.eye(4, dtype=F64)[:, :2])
    quadratic = [lambda q, a=a: a * q.square().sum() for a in (1.0, 2.0)]
    direction = torch.tensor([0.0, 1.0], dtype=F64)
    q = torch.ones(4, dtype=F64)
    assert_close(batch_curvatures(quadratic, flat, q, direction=direction), [2.0, 4.0])


@pytest.mark.slow
def test_sgd_on_a_network_moves_at_the_rate_of_the_exponent(generator):
    _, batches, mirror, params = _network(generator)
    q = mirror.project(params)
    lr, decay = 1e-4, 0.5
    h = batch_curvatures(batches, mirror, q)
    # A short walk, on which the symmetric point hardly moves, against its own product.
    c = torch.randn(5, generator=generator, dtype=F64) * 1e-6
    order = torch.randint(4, (200,), generator=generator).tolist()
    predicted = c
    moved = mirror.shift(q, c)
    eye = torch.eye(5, dtype=F64)
    for i in order:
        gradient = torch.func.grad(batches[i])(moved)
        moved = {n: x - lr * (gradient[n] + decay * x) for n, x in moved.items()}
        predicted = predicted - lr * ((h[i] + decay * eye) @ predicted)
    change = (mirror.coordinates(moved) - c).norm()
    assert float((mirror.coordinates(moved) - predicted).norm()) < 0.05 * float(change)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lyapunov([[1.0]], 0.1), ValueError, r"shape \(n,\) or \(n, k, k\)"),
        (lambda: lyapunov([], 0.1), ValueError, r"shape \(n,\) or \(n, k, k\)"),
        (lambda: lyapunov([float("nan")], 0.1), ValueError, "curvatures must be finite"),
        (lambda: lyapunov([1.0], 0.0), ValueError, "lr must be positive"),
        (lambda: lyapunov([1.0], "a"), TypeError, "lr must be a real number"),
        (lambda: lyapunov([1.0], 0.1, momentum=1.0), ValueError, "momentum must be below 1"),
        (
            lambda: lyapunov([1.0], 0.1, weight_decay=-1.0),
            ValueError,
            "weight_decay must be non-negative",
        ),
        (lambda: lyapunov([[[1.0, 0], [0, 1]]], 0.1, steps=1), ValueError, "at least 2, got 1"),
        (lambda: lyapunov([[[1.0, 0], [0, 1]]], 0.1, steps=0.5), TypeError, "an integer"),
        (lambda: noise_threshold("a"), TypeError, "curvatures must be a real array"),
    ],
)
def test_bad_numbers(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_bad_losses(generator):
    _, batches, mirror, params = _network(generator)
    with pytest.raises(ValueError, match="losses must hold at least one, got none"):
        batch_curvatures([], mirror, params)
    with pytest.raises(ValueError, match="direction must be a vector of 5 coordinates"):
        batch_curvatures(batches, mirror, params, direction=torch.ones(4))
    with pytest.raises(SymmetryError, match="got the relative residual"):
        batch_curvatures([lambda q: q["0.bias"][0].exp()], mirror, params)
