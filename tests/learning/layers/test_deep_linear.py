from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import dln_geometry as dln
from dln_geometry.learning.layers import DeepLinear
from dln_geometry.testing import assert_close

# Layers one after the other are cheaper through the bottleneck at every number of inputs; the
# wide ones are multiplied out from three inputs on.
WIDTHS = {"bottleneck": (6, 2, 5), "wide": (3, 8, 7, 4), "single": (3, 4)}
F64 = torch.float64


def _with_bias(layer, generator):
    with torch.no_grad():
        layer.bias.copy_(torch.randn(layer.out_features, generator=generator, dtype=F64))
    return layer


@pytest.mark.parametrize("batch", [(), (1,), (2, 3, 5), (0,)], ids=str)
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS.keys())
def test_forward_is_the_linear_map_of_the_product(widths, batch, generator):
    layer = _with_bias(DeepLinear(widths, dtype=F64, generator=generator), generator)
    x = torch.randn(*batch, widths[0], generator=generator, dtype=F64)
    w = torch.eye(widths[0], dtype=F64)
    for factor in layer.factors():
        w = factor @ w
    y = layer(x)
    assert y.shape == (*batch, widths[-1])
    assert_close(layer.end_to_end(), w)
    if y.numel():
        assert_close(y, functional.linear(x, w, layer.bias))


@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS.keys())
def test_gradients_both_ways_round(widths, batch, generator):
    layer = _with_bias(DeepLinear(widths, dtype=F64, generator=generator), generator)
    x = torch.randn(batch, widths[0], generator=generator, dtype=F64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def f(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, (x, *layer.parameters()))
    assert torch.autograd.gradcheck(
        lambda *w: functional.linear(x.detach(), dln.end_to_end(w)), layer.factors()
    )


def test_the_order_of_evaluation_follows_the_number_of_inputs(generator, monkeypatch):
    calls = []
    layer = DeepLinear((3, 8, 7, 4), generator=generator)
    monkeypatch.setattr(layer, "end_to_end", lambda: calls.append(1) or torch.zeros(4, 3))
    layer(torch.ones(1, 3))
    assert not calls
    layer(torch.ones(100, 3))
    assert calls


def test_starts_balanced_with_the_rank_and_scale_asked_for(generator):
    layer = DeepLinear(
        (6, 4, 5),
        rank=3,
        scale=1.7,
        distribution="orthogonal",
        dtype=F64,
        generator=generator,
    )
    before = layer.end_to_end().detach()
    assert bool(dln.is_balanced(layer.factors()))
    expected = torch.tensor([1.7] * 3 + [0.0] * 2, dtype=F64)
    assert_close(torch.linalg.svdvals(before), expected)
    for g in layer.moments():
        assert_close(g, torch.zeros_like(g), scale=1.7)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(1.0)
    layer.reset_parameters(generator)
    after = layer.end_to_end().detach()
    assert_close(torch.linalg.svdvals(after), expected)
    assert not torch.allclose(before, after)
    assert not layer.bias.any()


def test_is_reproducible_by_a_generator_a_seed_or_the_global_one(generator):
    state, seed = torch.get_rng_state(), generator.get_state()
    first = DeepLinear((4, 3, 5), generator=generator)
    second = DeepLinear((4, 3, 5), generator=generator.set_state(seed))
    assert torch.equal(first.end_to_end(), second.end_to_end())
    third = [DeepLinear((4, 3, 5), generator=s).end_to_end() for s in (7, 7, 8)]
    assert torch.equal(third[0], third[1])
    assert not torch.equal(third[0], third[2])
    DeepLinear.from_linear(first.collapse(), 3, gauge="haar", generator=2)
    DeepLinear.from_linear(first.collapse(), 3)
    assert torch.equal(state, torch.get_rng_state())
    with torch.random.fork_rng():
        drawn = []
        for _ in range(2):
            torch.manual_seed(3)
            drawn.append([DeepLinear((4, 3, 5)).end_to_end() for _ in range(2)])
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_copies_pickles_and_state(generator):
    layer = DeepLinear((4, 3, 5), generator=generator).eval()
    assert set(layer.state_dict()) == {"weights.0", "weights.1", "bias"}
    assert list(DeepLinear((4, 5), bias=False).state_dict()) == ["weights.0"]
    x = torch.randn(7, 4, generator=generator)
    loaded = DeepLinear((4, 3, 5))
    loaded.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(twin(x), layer(x))
        assert repr(twin) == "DeepLinear(widths=(4, 3, 5), bias=True)"
        assert twin.weights[0] is not layer.weights[0]
    assert (layer.in_features, layer.out_features, layer.depth) == (4, 5, 2)


def test_dtype_device_and_meta(generator):
    assert DeepLinear((3, 2), dtype=F64).double().weights[0].dtype == F64
    half = DeepLinear((3, 4, 2), dtype=torch.bfloat16, generator=generator)
    assert half(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    meta = DeepLinear((3, 4, 2), device="meta")
    assert meta.end_to_end().is_meta
    real = meta.to_empty(device="cpu")
    real.reset_parameters(generator)
    assert bool(dln.is_balanced(real.factors()))


@pytest.mark.parametrize("bias", [True, False])
def test_collapse_and_from_linear_keep_the_function(bias, generator):
    linear = nn.Linear(6, 4, bias=bias, dtype=F64, device="meta").to_empty(device="cpu").eval()
    with torch.no_grad():
        for p in linear.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
    before = linear.weight.detach().clone()
    x = torch.randn(5, 6, generator=generator, dtype=F64)
    cases = [
        (DeepLinear.from_linear(linear, 3), (6, 4, 4, 4)),
        (DeepLinear.from_linear(linear, 2, 9, gauge="haar", generator=generator), (6, 9, 4)),
        (DeepLinear.from_linear(linear, 3, (5, 7)), (6, 5, 7, 4)),
        (DeepLinear.from_linear(linear, 1), (6, 4)),
    ]
    for deep, widths in cases:
        assert deep.widths == widths
        assert bool(dln.is_balanced(deep.factors()))
        assert (deep.bias is not None) == bias
        assert not deep.training
        assert_close(deep(x), linear(x))
        flat = deep.collapse()
        assert type(flat) is nn.Linear
        assert not flat.training
        assert_close(flat(x), linear(x))
        with torch.no_grad():
            flat.weight.zero_()
            deep.weights[0].zero_()
    assert torch.equal(linear.weight, before)


def test_from_linear_takes_ranks_as_they_are(generator):
    linear = nn.Linear(6, 5, bias=False, dtype=F64, device="meta").to_empty(device="cpu")
    a, b = (torch.randn(d, 2, generator=generator, dtype=F64) for d in (5, 6))
    with torch.no_grad():
        linear.weight.copy_(a @ b.T)
    linear.requires_grad_(False)
    deep = DeepLinear.from_linear(linear, 4, 2)
    assert_close(deep.end_to_end(), a @ b.T)
    assert not any(p.requires_grad for p in deep.parameters())
    with pytest.raises(ValueError, match="must have rank at most 1 .* got rank 2"):
        DeepLinear.from_linear(linear, 4, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_collapse_in_half_precision_rounds_once(dtype, generator):
    deep = DeepLinear((9, 8, 8, 7), dtype=dtype, generator=generator)
    wide = dln.end_to_end(deep.factors())
    assert wide.dtype == torch.float32
    assert torch.equal(deep.collapse().weight, wide.to(dtype))


def test_trains_in_a_model(generator):
    truth = torch.randn(3, 6, generator=generator) / 3
    x = torch.randn(200, 6, generator=generator)
    model = nn.Sequential(
        DeepLinear((6, 5, 5), generator=generator),
        nn.Tanh(),
        DeepLinear((5, 4, 3), bias=False, generator=generator),
    )
    y = (x @ truth.T).tanh()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(300):
        optimiser.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    # The moments move by the square of the step alone, while the layers move by the step.
    moments = [g.detach() for layer in (model[0], model[2]) for g in layer.moments()]
    drift = max(float(torch.linalg.matrix_norm(g)) for g in moments)
    assert drift < 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"widths": 3}, TypeError, "widths must be a sequence"),
        ({"widths": (3,)}, ValueError, "widths must hold at least two"),
        ({"widths": (3, 0)}, ValueError, "widths must be positive"),
        ({"widths": (3, 2.0)}, TypeError, "widths must be integers"),
        ({"widths": (3, 2, 4), "rank": 3}, ValueError, "rank must lie between 1 and 2"),
        ({"widths": (3, 2, 4), "rank": 0}, ValueError, "rank must lie between 1 and 2"),
        ({"widths": (3, 2), "scale": 0}, ValueError, "scale must be positive"),
        ({"widths": (3, 2), "scale": math.nan}, ValueError, "scale must be positive"),
        ({"widths": (3, 2), "scale": "1"}, TypeError, "scale must be a real number"),
        (
            {"widths": (3, 2), "distribution": "uniform"},
            ValueError,
            'must be one of "gaussian", "orthogonal"',
        ),
        ({"widths": (3, 2), "dtype": torch.int64}, TypeError, "dtype must be a real floating"),
        ({"widths": (3, 2), "dtype": torch.complex64}, TypeError, "dtype must be a real"),
        ({"widths": (3, 2), "generator": "7"}, TypeError, "generator must be a torch.Generator"),
    ],
)
def test_bad_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        DeepLinear(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.ReLU(), 2), TypeError, "linear must be an nn.Linear, got ReLU"),
        ((torch.ones(2, 2), 2), TypeError, "linear must be an nn.Linear, got Tensor"),
        ((nn.Linear(3, 2), 0), ValueError, "depth must be a real number >= 1"),
        ((nn.Linear(3, 2), 2.5), ValueError, "depth must be a finite integer"),
        ((nn.Linear(3, 2), math.inf), ValueError, "depth must be a finite integer"),
        ((nn.Linear(3, 2), 3, (2,)), ValueError, "hidden must hold depth - 1 = 2 widths, got 1"),
        ((nn.Linear(3, 2), 3, 0), ValueError, "widths must be positive"),
        ((nn.Linear(3, 2), 3, 1.5), TypeError, "widths must be integers"),
    ],
)
def test_bad_from_linear(arguments, error, message):
    with pytest.raises(error, match=message):
        DeepLinear.from_linear(*arguments)
