"""Momentum of the layers behind a matrix, against the network itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dln_geometry as dln
from dln_geometry.learning import EndToEndSGD
from dln_geometry.testing import assert_close

F64 = torch.float64


def loss(x):
    a = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape).cos()
    return (a * (x + a).sin()).sum()


def started(shape, rank, depth, generator):
    spectrum = torch.tensor((2.1, 1.2, 1.19, 0.4)[:rank], dtype=F64)
    options = {"spectrum": spectrum, "generator": generator, "dtype": F64}
    return dln.Collapsed.random(shape, rank, depth, **options).point()


def stepped(optimizer, p, count):
    for _ in range(count):
        optimizer.zero_grad()
        loss(p).backward()
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.8, "nesterov"])
@pytest.mark.parametrize(
    ("shape", "rank", "depth"), [((6, 4), 4, 2), ((4, 5), 2, 3), ((4, 4), 4, 5)], ids=str
)
def test_steps_are_those_of_the_network(shape, rank, depth, momentum, generator, monkeypatch):
    point = started(shape, rank, depth, generator)
    widths = min(shape) + 1
    nesterov = momentum == "nesterov"
    options = {"lr": 0.03, "momentum": 0.8 if nesterov else momentum, "nesterov": nesterov}
    options["weight_decay"] = 0.1
    # Any balanced layers behind the matrix, of any gauge and larger widths.
    factors = dln.balanced_factors(point, widths=widths, gauge="haar", generator=generator)
    layers = [nn.Parameter(w.clone()) for w in factors]
    network = torch.optim.SGD(layers, **options)
    p = nn.Parameter(point.matrix)
    optimizer = EndToEndSGD([p], depth=depth, rebalance=momentum == 0.8, **options)
    for _ in range(12):
        network.zero_grad()
        loss(dln.end_to_end(layers)).backward()
        network.step()
    stepped(optimizer, p, 1)
    # By products alone from the second step on.
    monkeypatch.delattr(torch.linalg, "svd")
    stepped(optimizer, p, 11)
    assert_close(p.detach(), dln.end_to_end(layers).detach(), ops=1e4)


def test_states_continue_and_moves_from_outside_begin_anew(generator):
    p = nn.Parameter(started((4, 3), 3, 3, generator).matrix)
    bias = nn.Parameter(torch.ones(3, dtype=F64))
    optimizer = EndToEndSGD([p, bias], lr=0.05, depth=3, momentum=0.9)
    bias.grad = torch.ones(3, dtype=F64)
    stepped(optimizer, p, 3)
    q, other = nn.Parameter(p.detach().clone()), nn.Parameter(bias.detach().clone())
    again = EndToEndSGD([q, other], lr=0.5, depth=3)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    stepped(optimizer, p, 2)
    stepped(again, q, 2)
    assert torch.equal(p, q)
    with torch.no_grad():
        p.mul_(0.5)
    stepped(optimizer, p, 1)
    fresh = nn.Parameter(0.5 * q.detach())
    stepped(EndToEndSGD([fresh], lr=0.05, depth=3, momentum=0.9), fresh, 1)
    assert_close(p.detach(), fresh.detach(), ops=100)


def test_layers_of_half_precision_keep_what_their_product_rounds_away(generator):
    x = started((4, 3), 3, 2, generator).matrix
    p = nn.Parameter(x.bfloat16())
    optimizer = EndToEndSGD([p], lr=1e-5, depth=2, momentum=0.5)
    wide = nn.Parameter(p.detach().float())
    reference = EndToEndSGD([wide], lr=1e-5, depth=2, momentum=0.5)
    for k in range(300):
        for q, o in ((p, optimizer), (wide, reference)):
            q.grad = torch.ones_like(q)
            o.step()
        if k == 150:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = EndToEndSGD([p], lr=1e-5, depth=2, momentum=0.5)
            optimizer.load_state_dict(state)
    assert_close(
        torch.stack(optimizer.state[p]["layers"][:1])[0], reference.state[wide]["layers"][0]
    )
    assert torch.equal(p.detach(), wide.detach().bfloat16())


def test_biases_have_the_momentum_of_torch():
    p, q = (nn.Parameter(torch.linspace(0, 1, 5, dtype=F64)) for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.7, "nesterov": True, "weight_decay": 0.2}
    stepped(EndToEndSGD([p], depth=2, **options), p, 4)
    stepped(torch.optim.SGD([q], **options), q, 4)
    assert torch.equal(p, q)


def test_momentum_needs_layers_and_something_to_start_from():
    p = nn.Parameter(torch.eye(2))
    for depth in (2.5, float("inf")):
        with pytest.raises(ValueError, match="momentum must come with an integer depth"):
            EndToEndSGD([p], lr=0.1, depth=depth, momentum=0.5)
        with pytest.raises(ValueError, match="rebalance=False must come with an integer depth"):
            EndToEndSGD([p], lr=0.1, depth=depth, rebalance=False)
    with pytest.raises(TypeError, match="rebalance must be"):
        EndToEndSGD([p], lr=0.1, depth=2, rebalance="never")
    with pytest.raises(ValueError, match="nesterov must go with positive momentum"):
        EndToEndSGD([p], lr=0.1, depth=2, nesterov=True)
    zero = nn.Parameter(torch.zeros(2, 2))
    zero.grad = torch.ones(2, 2)
    optimizer = EndToEndSGD([zero], lr=0.1, depth=2, momentum=0.5)
    with pytest.warns(UserWarning, match="is zero, a fixed point"):
        optimizer.step()
    assert not zero.detach().any()


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_adam_on_layers_is_no_function_of_the_product(kind, generator):
    """Two bases of the hidden layer: gradient descent moves X alike, Adam does not."""
    point = started((4, 3), 3, 2, generator)
    ends = []
    for gauge in (None, "haar"):
        factors = dln.balanced_factors(point, gauge=gauge, generator=generator)
        layers = [nn.Parameter(w.clone()) for w in factors]
        optimizer = getattr(torch.optim, kind)(layers, lr=0.1)
        loss(dln.end_to_end(layers)).backward()
        optimizer.step()
        ends.append(dln.end_to_end(layers).detach())
    gap = float((ends[0] - ends[1]).norm() / (ends[0] - point.matrix).norm())
    assert (gap < 1e-12) if kind == "SGD" else (gap > 0.1)


@pytest.mark.parametrize("through_data", [False, True])
def test_a_move_from_outside_is_seen_however_it_is_made(through_data, generator):
    p = nn.Parameter(started((6, 4), 4, 3, generator).matrix)
    optimizer = EndToEndSGD([p], lr=0.05, depth=3, rebalance=False)
    stepped(optimizer, p, 3)
    kept = optimizer.state[p]["layers"]
    with torch.no_grad():
        (p.data if through_data else p)[2, 1] += 1e-6
    q = nn.Parameter(p.detach().clone())
    stepped(optimizer, p, 1)
    stepped(EndToEndSGD([q], lr=0.05, depth=3, rebalance=False), q, 1)
    assert_close(p.detach(), q.detach(), ops=100)
    assert not torch.equal(optimizer.state[p]["layers"][0], kept[0])
