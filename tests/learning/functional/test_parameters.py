from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dln_geometry.learning.functional import flatten, functionalize, unflatten
from dln_geometry.testing import assert_close

F64 = torch.float64


def _initialised(module, generator, dtype=F64):
    module.to(dtype)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=dtype) / 2)
    return module


def _convolutions(generator):
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    return _initialised(model, generator), torch.randn(6, 2, 4, 4, generator=generator, dtype=F64)


def _perceptron(generator):
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Softplus(), nn.Linear(7, 3))
    return _initialised(model, generator), torch.randn(6, 5, generator=generator, dtype=F64)


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def _attention(generator):
    x = torch.randn(6, 4, 8, generator=generator, dtype=F64)
    return _initialised(_Attention(), generator), x


@pytest.fixture(params=[_convolutions, _perceptron, _attention], ids=["conv", "mlp", "attention"])
def problem(request, generator):
    model, x = request.param(generator)
    target = torch.randint(0, 3, (len(x),), generator=generator)
    return model, x, target


def _dot(a, b):
    return sum((x * b[name]).sum() for name, x in a.items())


def test_value_and_gradient_are_those_of_backward(problem):
    model, x, target = problem
    loss, params = functionalize(model, functional.cross_entropy, (x, target))
    assert list(params) == [name for name, _ in model.named_parameters()]
    assert not any(p.requires_grad for p in params.values())
    value = functional.cross_entropy(model(x), target)
    value.backward()
    gradient = torch.func.grad(loss)(params)
    assert_close(loss(params), value)
    for name, p in model.named_parameters():
        scale = max(float(p.grad.abs().max()), 1e-3)
        assert_close(gradient[name], p.grad, ops=1000, scale=scale)


def test_module_is_left_alone(problem):
    model, x, target = problem
    before = {name: t.clone() for name, t in model.state_dict().items()}
    loss, params = functionalize(model, functional.cross_entropy, (x, target))
    value = loss(params)
    torch.func.grad(loss)(params)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    # And the loss is of the module as it was.
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    model.eval()
    assert torch.equal(loss(params), value)


def test_derivatives_of_all_kinds_agree(problem, generator):
    """Third derivatives forwards, backwards and by finite differences; maps over the batch."""
    model, x, target = problem
    loss, params = functionalize(model, functional.cross_entropy, (x, target))
    v = {n: torch.randn(p.shape, generator=generator, dtype=F64) for n, p in params.items()}
    gradient = torch.func.grad(loss)

    def along(q):
        return torch.func.jvp(loss, (q,), (v,))[1]

    def twice(q):
        return torch.func.jvp(along, (q,), (v,))[1]

    assert_close(along(params), _dot(gradient(params), v), ops=1000, scale=10)
    backwards = torch.func.grad(lambda q: _dot(gradient(q), v))(params)
    forwards = torch.func.jvp(gradient, (params,), (v,))[1]
    scale = max(float(t.abs().max()) for t in backwards.values())
    for name in params:
        assert_close(forwards[name], backwards[name], ops=1000, scale=scale)
    third = torch.func.jvp(twice, (params,), (v,))[1]
    mixed = _dot(torch.func.grad(lambda q: _dot(torch.func.grad(along)(q), v))(params), v)
    assert_close(third, mixed, ops=1000, scale=max(abs(float(third)), scale))
    h = 1e-4
    after, before = (twice({n: p + sign * h * v[n] for n, p in params.items()}) for sign in (1, -1))
    assert float((after - before) / (2 * h) - third) == pytest.approx(
        0, abs=1e-4 * (1 + abs(float(third)))
    )
    many = {n: torch.stack([p, p + h * v[n]]) for n, p in params.items()}
    mapped = torch.func.vmap(loss)(many)
    assert_close(mapped[0], loss(params))
    assert_close(mapped[1], loss({n: p + h * v[n] for n, p in params.items()}))
    graph = {n: p.clone().requires_grad_() for n, p in params.items()}
    (first,) = torch.autograd.grad(loss(graph), [graph["head.weight" if "head.weight" in graph
        else next(iter(graph))]], create_graph=True)  # fmt: skip
    assert first.requires_grad


def test_other_batches(problem):
    model, x, target = problem
    loss, params = functionalize(model, functional.cross_entropy, (x, target))
    part = loss.on((x[:3], target[:3]))
    assert_close(part(params), functional.cross_entropy(model(x[:3]), target[:3]))


def test_batch_normalisation_in_both_modes(generator):
    model, x = _convolutions(generator)
    target = torch.randint(0, 3, (len(x),), generator=generator)
    model(x)
    for mode in (True, False):
        model.train(mode)
        loss, params = functionalize(model, functional.cross_entropy, (x, target))
        again = loss(params)
        assert torch.equal(loss(params), again)
        assert_close(again, functional.cross_entropy(model(x), target))


def test_tied_parametrised_and_frozen_parameters(generator):
    first, second = nn.Linear(4, 4, dtype=F64), nn.Linear(4, 4, dtype=F64)
    second.weight = first.weight
    third = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2, dtype=F64))
    third.bias.requires_grad_(False)
    model = nn.Sequential(first, nn.Tanh(), second, third)
    x = torch.randn(5, 4, generator=generator, dtype=F64)
    loss, params = functionalize(model, lambda y: y.square().sum(), x)
    assert set(params) == {
        "0.weight",
        "0.bias",
        "2.bias",
        "3.parametrizations.weight.original0",
        "3.parametrizations.weight.original1",
    }
    model(x).square().sum().backward()
    gradient = torch.func.grad(loss)(params)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert_close(gradient[name], p.grad, scale=max(float(p.grad.abs().max()), 1.0))


def test_data_in_every_form(generator):
    bilinear = _initialised(nn.Bilinear(2, 3, 1), generator)
    a, b = (torch.randn(4, n, generator=generator, dtype=F64) for n in (2, 3))
    y = torch.randn(4, 1, generator=generator, dtype=F64)
    expected = functional.mse_loss(bilinear(a, b), y)
    keywords = {"input1": a.numpy(), "input2": b}
    for inputs in ((a, b), keywords):
        loss, params = functionalize(bilinear, functional.mse_loss, (inputs, y.numpy()))
        assert_close(loss(params), expected)
    loss, params = functionalize(bilinear, lambda out: out.mean(), keywords)
    assert_close(loss(params), bilinear(a, b).mean())


def test_vectors_and_back(generator):
    params = {
        "w": torch.randn(2, 3, generator=generator, dtype=F64),
        "b": torch.randn((), generator=generator, dtype=F64),
    }
    vector = flatten(params)
    assert vector.shape == (7,)
    back = unflatten(vector, params)
    assert all(torch.equal(back[name], p) for name, p in params.items())
    with pytest.raises(ValueError, match=r"shape \(7,\), got \(6,\)"):
        unflatten(vector[1:], params)
    with pytest.raises(ValueError, match="at least one"):
        flatten({})


def test_bad_input_is_refused(generator):
    x, y = torch.ones(3, 2), torch.ones(3, 2)
    layer, mse = nn.Linear(2, 2), functional.mse_loss
    cases = [
        (TypeError, "module must be a torch.nn.Module", "layer", mse, (x, y)),
        (TypeError, "loss_fn must be callable", layer, 3, (x, y)),
        (ValueError, "must have parameters", nn.ReLU(), mse, (x, y)),
        (ValueError, "without a shape", nn.LazyLinear(2), mse, (x, y)),
        (ValueError, "on the meta device", nn.Linear(2, 2, device="meta"), mse, (x, y)),
        (ValueError, "scalar of shape \\(\\), got shape \\(3, 2\\)", layer, torch.sub, (x, y)),
        (ValueError, "got a constant", layer, lambda out: out.detach().sum(), x),
        (ValueError, "real floating number", layer, lambda out: out.argmax(), x),
        (TypeError, "must return a tensor", layer, lambda out: 1.0, x),
        (ValueError, "must be finite", layer, lambda out: out.sum() * torch.inf, x),
        (ValueError, "random numbers", nn.Sequential(layer, nn.Dropout()), mse, (x, y)),
        (ValueError, "data must be", layer, mse, ()),
        (ValueError, "per channel", nn.Sequential(layer, nn.BatchNorm1d(2)), mse, (x[:1], y[:1])),
        (
            ValueError,
            "per instance",
            nn.Sequential(nn.Conv1d(3, 3, 2), nn.InstanceNorm1d(3)),
            lambda out: out.sum(),
            x.expand(2, 3, 2),
        ),
    ]
    state = torch.get_rng_state()
    for error, message, module, loss_fn, data in cases:
        with pytest.raises(error, match=message):
            functionalize(module, loss_fn, data)
    assert torch.equal(torch.get_rng_state(), state)
    spectral = nn.utils.parametrizations.spectral_norm(layer)
    with pytest.raises(ValueError, match="change of 'parametrizations.weight.0._[uv]'"):
        functionalize(spectral, mse, (x, y))
    loss, params = functionalize(spectral.eval(), mse, (x, y))
    with pytest.raises(ValueError, match="no 'bias'"):
        loss({name: p for name, p in params.items() if name != "bias"})
    with pytest.raises(ValueError, match="'more'"):
        loss({**params, "more": x})


_LAYERS = {
    "layer": lambda: nn.LayerNorm((3, 4)),
    "group": lambda: nn.GroupNorm(2, 6),
    "root mean square": lambda: nn.RMSNorm(4),
    "batch": lambda: nn.BatchNorm2d(6),
    "batch, no parameters": lambda: nn.BatchNorm2d(6, affine=False),
    "instance": lambda: nn.InstanceNorm2d(6, affine=True),
    "instance, tracking": lambda: nn.InstanceNorm2d(6, track_running_stats=True),
    "weight": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 2)),
    "weight, whole": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 2), dim=None),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", _LAYERS)
def test_normalisations_have_right_derivatives(name, training, generator):
    """Torch's own second derivatives are wrong for some of them, third ones for nearly all."""
    model = _initialised(nn.Sequential(nn.Conv2d(1, 6, 1), _LAYERS[name]()), generator)
    x = torch.randn(5, 1, 3, 4, generator=generator, dtype=F64)
    model(x)
    model.train(training)
    loss, params = functionalize(model, lambda out: (out - 1).tanh().square().sum(), x)
    assert_close(loss(params), (model(x) - 1).tanh().square().sum())
    v = {n: torch.randn(p.shape, generator=generator, dtype=F64) for n, p in params.items()}

    def backwards(f):
        return lambda q: _dot(torch.func.grad(f)(q), v)

    def forwards(f):
        return lambda q: torch.func.jvp(f, (q,), (v,))[1]

    # Nine points of the line: the error of the third difference is of sixth order.
    h = 2e-3
    line = [loss({n: p + k * h * v[n] for n, p in params.items()}) for k in range(-4, 5)]
    third = [-7 / 240, 3 / 10, -169 / 120, 61 / 30, 0, -61 / 30, 169 / 120, -3 / 10, 7 / 240]
    expected = sum(c * f for c, f in zip(third, line, strict=True)) / h**3
    first = backwards(loss)
    for inner in (backwards(first), forwards(first), backwards(forwards(loss))):
        for outer in (backwards(inner), forwards(inner)):
            error = abs(float(outer(params) - expected))
            assert error < 1e-3 * (1 + abs(float(expected)))
