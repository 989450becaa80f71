from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

import dln_geometry as dln
from dln_geometry.learning.layers import EndToEndSGD
from dln_geometry.testing import assert_close, assert_order

F64 = torch.float64
SPECTRUM = (2.1, 1.2, 1.19, 0.4)


def _start(shape, rank, depth, generator, dtype=F64):
    spectrum = torch.tensor(SPECTRUM[:rank], dtype=dtype)
    options = {"spectrum": spectrum, "generator": generator, "dtype": dtype}
    return dln.Collapsed.random(shape, rank, depth, **options).point()


def _loss(shape, generator, dtype=F64):
    a, b = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return lambda x: (a * (x + b).sin()).sum()


def _layered_step(factors, loss, lr, decay=0.0):
    layers = [nn.Parameter(w.clone()) for w in factors]
    loss(dln.end_to_end(layers)).backward()
    torch.optim.SGD(layers, lr=lr, weight_decay=decay).step()
    return [w.detach() for w in layers]


def _step(x, loss, **options):
    p = nn.Parameter(x.clone())
    optimiser = EndToEndSGD([p], **options)
    loss(p).backward()
    optimiser.step()
    return p.detach()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(
    ("shape", "rank"), [((4, 4), 4), ((6, 4), 4), ((4, 7), 4), ((6, 5), 2), ((5, 7), 1)], ids=str
)
def test_one_step_is_one_step_of_the_layers(shape, rank, depth, decay, dtype, generator):
    point = _start(shape, rank, depth, generator, dtype)
    loss = _loss(shape, generator, dtype)
    widths = (shape[1], *[rank + p % 3 for p in range(depth - 1)], shape[0])
    factors = dln.balanced_factors(point, widths=widths, gauge="haar", generator=generator)
    expected = dln.end_to_end(_layered_step(factors, loss, 0.07, decay))
    actual = _step(point.matrix, loss, lr=0.07, depth=depth, weight_decay=decay)
    # Smallest singular values enter by their roots: relative errors grow by the condition.
    assert_close(actual, expected, ops=300, condition=SPECTRUM[0] / SPECTRUM[rank - 1])
    assert not torch.allclose(expected, point.matrix)


@pytest.mark.parametrize("rank", [4, 2])
@pytest.mark.parametrize("depth", [2, 4])
def test_many_steps_are_layers_balanced_before_each(depth, rank, generator):
    shape = (6, 4)
    point = _start(shape, rank, depth, generator)
    target = torch.randn(shape, generator=generator, dtype=F64)

    def loss(x):
        return 0.5 * (x - target).square().sum()

    factors = dln.balanced_factors(point)
    p = nn.Parameter(point.matrix)
    optimiser = EndToEndSGD([p], lr=0.02, depth=depth)
    for _ in range(20):
        factors = dln.balance(_layered_step(factors, loss, 0.02))
        optimiser.zero_grad()
        loss(p).backward()
        optimiser.step()
    assert_close(p, dln.end_to_end(factors), ops=1000, condition=SPECTRUM[0] / SPECTRUM[rank - 1])


def test_a_layer_of_full_rank_that_is_far_from_balance_is_another_matter(generator):
    # The same matrix from unbalanced layers takes another step: what the optimiser assumes.
    point = _start((4, 4), 4, 2, generator)
    loss = _loss((4, 4), generator)
    w1, w2 = dln.balanced_factors(point)
    other = dln.end_to_end(_layered_step([3 * w1, w2 / 3], loss, 0.07))
    assert float((_step(point.matrix, loss, lr=0.07, depth=2) - other).abs().max()) > 0.1


@pytest.mark.parametrize(("shape", "rank"), [((4, 4), 4), ((6, 4), 4), ((5, 7), 2)], ids=str)
@pytest.mark.parametrize("depth", [2.7, 3, 6.5, math.inf])
def test_every_depth_follows_its_gradient_flow_to_first_order(depth, shape, rank, generator):
    point = _start(shape, rank, depth, generator)
    loss = _loss(shape, generator)
    x = point.matrix.requires_grad_()
    (g,) = torch.autograd.grad(loss(x), x)
    decay = 0.6
    layers = 1.0 if math.isinf(depth) else depth
    velocity = -dln.cometric(point, g) - decay * layers * point.matrix
    steps = [0.02 / 2**k for k in range(5)]
    errors = [
        float(
            (
                _step(point.matrix, loss, lr=h, depth=depth, weight_decay=decay)
                - point.matrix
                - h * velocity
            ).norm()
        )
        for h in steps
    ]
    assert_order(steps, errors, 2)


def test_between_one_and_two_layers_the_step_is_the_flow_itself(generator):
    point = _start((6, 4), 2, 1.4, generator)
    loss = _loss((6, 4), generator)
    x = point.matrix.requires_grad_()
    (g,) = torch.autograd.grad(loss(x), x)
    moved = _step(point.matrix, loss, lr=0.1, depth=1.4, weight_decay=0.6)
    assert_close(moved, point.matrix * (1 - 0.1 * 0.6 * 1.4) - 0.1 * dln.cometric(point, g))


def test_integer_depths_tend_to_the_infinite_one(generator):
    point = _start((4, 4), 4, math.inf, generator)
    loss = _loss((4, 4), generator)
    h = 0.01
    limit = _step(point.matrix, loss, lr=h, depth=math.inf)
    depths = [32, 64, 128, 256]
    moved = [_step(point.matrix, loss, lr=h / n, depth=n) for n in depths]
    # Sixteen factors are not infinitely many: the second-order terms differ by a sixteenth.
    gap = float((moved[-1] - limit).norm())
    assert gap < float((limit - point.matrix).norm()) * 0.02
    differences = [float((a - b).norm()) for a, b in pairwise(moved)]
    assert differences[0] > 1.8 * differences[1] > 1.8**2 * differences[2]


def test_infinite_depth_keeps_range_and_corange(generator):
    point = _start((5, 7), 2, math.inf, generator)
    moved = _step(point.matrix, _loss((5, 7), generator), lr=0.1, depth=math.inf)
    inside = point.u @ point.u.mT @ moved @ point.vh.mT @ point.vh
    assert_close(moved, inside)
    assert not torch.allclose(moved, point.matrix)


def test_rank_is_kept_by_integer_depths_only_above_one(generator):
    point = _start((6, 5), 2, 4, generator)
    loss = _loss((6, 5), generator)
    x = point.matrix
    for _ in range(10):
        x = _step(x, loss, lr=0.05, depth=4)
    s = torch.linalg.svdvals(x)
    assert_close(s[2:], torch.zeros(3), scale=s[0].item())
    assert float(torch.linalg.svdvals(_step(x, loss, lr=0.05, depth=1))[2]) > 0.01


def test_kernels_of_convolutions_are_followed_by_pointwise_ones(generator):
    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=F64)

    kernel, images, target = random(3, 2, 3, 3), random(4, 2, 6, 6), random(4, 3, 4, 4)
    depth, lr, decay = 3, 0.01, 0.2
    w1, *rest = dln.balanced_factors(dln.EndToEnd.of(kernel.flatten(1), depth))
    layers = [nn.Parameter(w1.reshape(-1, 2, 3, 3))]
    layers += [nn.Parameter(w[..., None, None].clone()) for w in rest]
    y = images
    for w in layers:
        y = functional.conv2d(y, w)
    (y - target).square().mean().backward()
    torch.optim.SGD(layers, lr=lr, weight_decay=decay).step()
    expected = dln.end_to_end([w.detach().flatten(1) for w in layers]).reshape(kernel.shape)
    actual = _step(
        kernel,
        lambda k: (functional.conv2d(images, k) - target).square().mean(),
        lr=lr,
        depth=depth,
        weight_decay=decay,
    )
    assert_close(actual, expected, ops=300)


def test_groups_biases_and_closure(generator):
    linear, plain = (nn.Linear(4, 3, dtype=F64) for _ in range(2))
    x, y = (torch.randn(20, d, generator=generator, dtype=F64) for d in (4, 3))
    deep = [w.clone() for w in dln.balanced_factors(dln.EndToEnd.of(linear.weight.detach(), 3))]
    bias, other = linear.bias.detach().clone(), copy.deepcopy(plain)
    optimiser = EndToEndSGD(
        [
            {"params": linear.parameters(), "depth": 3},
            {"params": plain.parameters(), "depth": 1, "lr": 0.5, "weight_decay": 0.1},
            {"params": [nn.Parameter(torch.ones(2, 2))]},  # never gets a gradient
        ],
        lr=0.1,
        depth=2,
    )

    def closure():
        optimiser.zero_grad()
        loss = (linear(x) - y).square().mean() + (plain(x) - y).square().mean()
        loss.backward()
        return loss

    first = optimiser.step(closure)
    layers = [nn.Parameter(w) for w in (*deep, bias)]
    (functional.linear(x, dln.end_to_end(layers[:3]), layers[3]) - y).square().mean().backward()
    torch.optim.SGD(layers, lr=0.1).step()
    assert_close(linear.weight, dln.end_to_end(layers[:3]))
    assert_close(linear.bias, layers[3])
    (other(x) - y).square().mean().backward()
    torch.optim.SGD(other.parameters(), lr=0.5, weight_decay=0.1).step()
    assert_close(plain.weight, other.weight)
    assert_close(plain.bias, other.bias)
    assert torch.equal(optimiser.param_groups[2]["params"][0], torch.ones(2, 2))
    assert optimiser.step(closure) < first


def test_state_dict_and_scheduler(generator):
    p = nn.Parameter(torch.randn(3, 3, generator=generator))
    optimiser = EndToEndSGD([p], lr=0.1, depth=math.inf, weight_decay=0.2)
    twin = EndToEndSGD([nn.Parameter(p.detach().clone())], lr=1.0, depth=2)
    twin.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    group = twin.param_groups[0]
    assert (group["lr"], group["depth"], group["weight_decay"]) == (0.1, math.inf, 0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 1, gamma=0.0)
    p.grad = torch.ones(3, 3)
    optimiser.step()
    scheduler.step()
    before = p.detach().clone()
    optimiser.step()
    # Without a step the matrix comes back from its own decomposition.
    assert_close(p, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rounds_once(dtype, generator):
    x = torch.randn(5, 4, generator=generator).to(dtype)
    g = torch.randn(5, 4, generator=generator).to(dtype)
    half, single = nn.Parameter(x), nn.Parameter(x.float())
    half.grad, single.grad = g, g.float()
    for p in (half, single):
        EndToEndSGD([p], lr=0.1, depth=3).step()
    assert half.dtype == dtype
    assert_close(half, single, ops=1)


@pytest.mark.parametrize("depth", [1.4, 2, 3.5, 6, math.inf])
def test_zero_is_a_fixed_point_and_says_so(depth):
    p = nn.Parameter(torch.zeros(3, 2))
    p.grad = torch.ones(3, 2)
    with pytest.warns(
        UserWarning, match=r"shape \(3, 2\) is zero, a fixed point at depth"
    ) as caught:
        EndToEndSGD([p], lr=0.1, depth=depth).step()
    assert caught[0].filename == __file__
    assert torch.equal(p, torch.zeros(3, 2))


def test_at_depth_one_zero_moves():
    p = nn.Parameter(torch.zeros(3, 2))
    p.grad = torch.ones(3, 2)
    EndToEndSGD([p], lr=0.5, depth=1).step()
    assert torch.equal(p, torch.full((3, 2), -0.5))


@pytest.mark.parametrize("depth", [1.4, 2, 3.5, 6, math.inf])
def test_tiny_and_huge_singular_values_stay_finite(depth, generator):
    for spectrum in ((1e12, 1.0, 1e-3), (1.0, 1e-14, 0.0), (1e-30, 1e-31, 1e-32)):
        point = dln.Collapsed.random(
            (3, 4), 3, 2, spectrum=spectrum, generator=generator, dtype=F64
        )
        g = torch.randn(3, 4, generator=generator, dtype=F64)
        p = nn.Parameter(point.matrix)
        p.grad = g
        EndToEndSGD([p], lr=1e-3, depth=depth).step()
        assert bool(torch.isfinite(p).all())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"depth": 0.5}, ValueError, "depth must be a real number >= 1"),
        ({"depth": math.nan}, ValueError, "depth must be a real number >= 1"),
        ({"depth": "deep"}, TypeError, "depth must be a real number >= 1"),
        ({"lr": -0.1}, ValueError, "lr must be non-negative and finite"),
        ({"lr": math.inf}, ValueError, "lr must be non-negative and finite"),
        ({"lr": "fast"}, TypeError, "lr must be a real number"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be non-negative"),
    ],
)
def test_bad_options(options, error, message):
    p = nn.Parameter(torch.ones(2, 2))
    good = {"lr": 0.1, "depth": 2, **options}
    with pytest.raises(error, match=message):
        EndToEndSGD([p], **good)
    with pytest.raises(error, match=message):
        EndToEndSGD([{"params": [p], **good}], lr=0.1, depth=2)
    optimiser = EndToEndSGD([p], lr=0.1, depth=2)
    optimiser.param_groups[0].update(options)
    with pytest.raises(error, match=message):
        optimiser.step()


def test_bad_parameters_and_gradients():
    with pytest.raises(
        TypeError, match="params must be real floating tensors, got torch.complex64"
    ):
        EndToEndSGD([nn.Parameter(torch.ones(2, 2) * 1j)], lr=0.1, depth=2)
    with pytest.raises(ValueError, match="params must hold at least one tensor, got none"):
        EndToEndSGD([], lr=0.1, depth=2)
    p = nn.Parameter(torch.eye(2))
    optimiser = EndToEndSGD([p], lr=0.1, depth=2)
    p.grad = torch.tensor([[1.0, math.nan], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"gradients must be finite.* shape \(2, 2\).* lr=0.1"):
        optimiser.step()
    p.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(TypeError, match="gradients must be dense"):
        optimiser.step()
    p.grad = torch.ones(2, 2)
    with torch.no_grad():
        p.fill_(math.inf)
    with pytest.raises(ValueError, match="parameters must be finite"):
        optimiser.step()
