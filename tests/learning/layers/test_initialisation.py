from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import dln_geometry as dln
from dln_geometry.learning.layers import DeepLinear, balanced_
from dln_geometry.testing import assert_close, assert_mean

F64 = torch.float64
WIDTHS = (6, 5, 7, 4)


def _linear(p):
    return nn.Linear(WIDTHS[p - 1], WIDTHS[p], dtype=F64)


def _parameter(p):
    # What stands there before does not matter, NaN included.
    return nn.Parameter(torch.full((WIDTHS[p], WIDTHS[p - 1]), math.nan, dtype=F64))


def _weights(thing):
    if isinstance(thing, nn.Module):
        return [w for w in thing.parameters() if w.ndim == 2]
    return [w.weight if isinstance(w, nn.Linear) else w for w in thing]


TARGETS = {
    "deep": lambda: DeepLinear(WIDTHS, dtype=F64),
    "sequential": lambda: nn.Sequential(_linear(1), _linear(2), _linear(3)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(_linear(1), nn.Identity()), DeepLinear(WIDTHS[1:], dtype=F64)
    ),
    "modules": lambda: nn.ModuleList([_linear(1), _linear(2), _linear(3)]),
    "list": lambda: [_linear(1), _linear(2), _linear(3)],
    "parameters": lambda: nn.ParameterList([_parameter(1), _parameter(2), _parameter(3)]),
    "tensors": lambda: tuple(_parameter(p).detach() for p in (1, 2, 3)),
    "mixed": lambda: [_linear(1), _parameter(2), _linear(3)],
}


@pytest.mark.parametrize("gauge", [None, "haar", "given"])
@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS.keys())
def test_fills_what_it_is_given(make, gauge, generator):
    thing = make()
    before = [id(w) for w in _weights(thing)]
    x = torch.randn(4, 6, generator=generator, dtype=F64)
    if gauge == "given":
        gauge = [torch.eye(5, dtype=F64).flip(0), torch.eye(7, 4, dtype=F64).flip(1)]
    assert balanced_(thing, end_to_end=x, gauge=gauge, generator=generator) is thing
    weights = _weights(thing)
    assert [id(w) for w in weights] == before
    assert bool(dln.is_balanced(weights))
    assert_close(dln.end_to_end(weights), x)
    if isinstance(thing, nn.Sequential | DeepLinear):
        v = torch.randn(3, 6, generator=generator, dtype=F64)
        assert_close(thing(v), v @ x.T)


def test_single_layer_and_numpy_targets(generator, rng):
    x = rng.standard_normal((4, 6))
    linear = balanced_(nn.Linear(6, 4, dtype=F64), end_to_end=x, scale=0.5)
    assert_close(linear.weight, 0.5 * x)
    assert not linear.bias.any()


def test_a_given_matrix_keeps_its_rank_and_can_be_cut(generator):
    a, b = (torch.randn(d, 2, generator=generator, dtype=F64) for d in (4, 6))
    weights = [torch.empty(2, 6, dtype=F64), torch.empty(4, 2, dtype=F64)]
    balanced_(weights, end_to_end=a @ b.T, generator=generator)
    assert_close(dln.end_to_end(weights), a @ b.T)
    x = torch.randn(4, 6, generator=generator, dtype=F64)
    with pytest.raises(ValueError, match="rank at most 2 .* got rank 4; rank=2"):
        balanced_(weights, end_to_end=x)
    balanced_(weights, end_to_end=x, rank=2, generator=generator)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    assert_close(dln.end_to_end(weights), (u[:, :2] * s[:2]) @ vh[:2])
    assert bool(dln.is_balanced(weights))
    # Rounding errors of a rank-deficient matrix are not blown up by the root.
    deep = [torch.empty(6, 6, dtype=F64) for _ in range(8)]
    y = torch.randn(6, 2, generator=generator, dtype=F64)
    balanced_(deep, end_to_end=y @ y.T, generator=generator)
    scale = float(torch.linalg.matrix_norm(deep[0], ord=2))
    assert int((torch.linalg.svdvals(deep[0]) > 1e3 * torch.finfo(F64).eps * scale).sum()) == 2


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)], ids=str)
@pytest.mark.parametrize("rank", [None, 2])
def test_gaussian_law(shape, rank, generator):
    m, n = shape
    k, scale, samples = min(shape), 1.3, 4000
    weights = [
        torch.empty(samples, 6, n, dtype=F64),
        torch.empty(samples, 7, 6, dtype=F64),
        torch.empty(samples, m, 7, dtype=F64),
    ]
    balanced_(weights, rank=rank, scale=scale, generator=generator)
    assert bool(dln.is_balanced(weights).all())
    x = dln.end_to_end(weights)
    variance = scale**2 / n
    assert_mean(x, torch.zeros(m, n))
    assert_mean(x.square(), torch.full((m, n), variance))
    assert_mean(x[:, 0, 0] * x[:, 1, 1], 0.0)
    assert_mean(x[:, 0, 0] * x[:, 0, 1], 0.0)
    assert_mean(x[:, 0, 0] * x[:, 1, 0], 0.0)
    s = torch.linalg.svdvals(x)
    if rank is None:
        assert_mean(x[:, 0, 1] ** 4, 3 * variance**2)
        # Independent entries: the fourth mixed moments factorise.
        assert_mean((x[:, 0, 0] * x[:, 1, 1]).square(), variance**2)
        assert_mean(s.pow(4).sum(-1), variance**2 * m * n * (m + n + 1))
    else:
        assert_close(s[:, rank:], torch.zeros(samples, k - rank), scale=scale)
        # X = Q Z with Z of r x max(m, n): a Wishart matrix of that size.
        wide, v = max(shape), variance * k / rank
        assert_mean(s.pow(4).sum(-1), v**2 * rank * wide * (rank + wide + 1))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)], ids=str)
def test_orthogonal_law(shape, generator):
    m, n = shape
    samples = 2000
    weights = [
        torch.empty(samples, 4, n, dtype=F64),
        torch.empty(samples, m, 4, dtype=F64),
    ]
    balanced_(weights, distribution="orthogonal", scale=0.7, generator=generator)
    x = dln.end_to_end(weights)
    assert_close(torch.linalg.svdvals(x), torch.full((samples, 3), 0.7, dtype=F64))
    assert_mean(x, torch.zeros(m, n))
    assert_mean(x.square(), torch.full((m, n), 0.7**2 * 3 / (m * n)))
    balanced_(weights, distribution="orthogonal", rank=2, generator=generator)
    x = dln.end_to_end(weights)
    expected = torch.tensor([1.0, 1.0, 0.0], dtype=F64).expand(samples, 3)
    assert_close(torch.linalg.svdvals(x), expected)


def test_haar_gauge_mixes_the_hidden_layer_and_the_canonical_does_not(generator):
    weights = [torch.empty(6, 4, dtype=F64), torch.empty(4, 6, dtype=F64)]
    balanced_(weights, rank=2, gauge=None, generator=generator)
    assert not weights[0][2:].any()
    balanced_(weights, rank=2, generator=generator)
    assert bool((weights[0] != 0).all())


def test_is_reproducible_by_a_generator_a_seed_or_the_global_one(generator):
    state, seed = torch.get_rng_state(), generator.get_state()
    a, b = ([torch.empty(5, 5) for _ in range(3)] for _ in range(2))
    balanced_(a, generator=generator)
    balanced_(b, generator=generator.set_state(seed))
    assert all(torch.equal(v, w) for v, w in zip(a, b, strict=True))
    balanced_(b, generator=5)
    assert not torch.equal(a[0], b[0])
    balanced_(a, generator=5)
    assert torch.equal(a[0], b[0])
    assert torch.equal(state, torch.get_rng_state())
    with torch.random.fork_rng():
        for weights in a, b:
            torch.manual_seed(3)
            balanced_(weights)
            balanced_(weights, end_to_end=torch.eye(5))
    assert all(torch.equal(v, w) for v, w in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_other_precisions(dtype, generator):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).to(dtype)
    x = torch.randn(4, 6, generator=generator)
    balanced_(model, end_to_end=x, generator=generator)
    weights = [w.detach() for w in _weights(model)]
    assert all(w.dtype == dtype for w in weights)
    eps = torch.finfo(dtype).eps
    assert bool(dln.is_balanced(weights, rtol=200 * eps))
    scale = math.prod(float(torch.linalg.matrix_norm(w.float())) for w in weights)
    error = float((dln.end_to_end(weights) - x).abs().max())
    assert error <= 10 * eps * scale


def test_gradients_and_flags_survive():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2).requires_grad_(False))
    model(torch.ones(3)).sum().backward()
    balanced_(model)
    assert model[0].weight.is_leaf
    assert model[0].weight.grad is not None
    assert not model[1].weight.requires_grad


def test_meta_weights_stay_unfilled():
    weights = [torch.empty(3, 4, device="meta"), torch.empty(2, 3, device="meta")]
    assert balanced_(weights) is weights


def _tied():
    w = torch.empty(3, 3)
    return [w, w]


def _twice():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Sequential(layer))


class _Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class _Adapted(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class _Shifted(nn.Module):
    def forward(self, bias):
        return bias + 1


def _computed_bias():
    layer = nn.Linear(3, 3)
    nn.utils.parametrize.register_parametrization(layer, "bias", _Shifted())
    return nn.Sequential(layer)


def _inference():
    with torch.inference_mode():
        return nn.Linear(3, 3)


def _weight_norm():
    return nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))


@pytest.mark.parametrize(
    ("thing", "options", "error", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), {}, TypeError, "got ReLU at '1'"),
        (
            nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout())),
            {},
            TypeError,
            "layers must all be linear, got Dropout at '1.0'",
        ),
        (nn.Conv2d(3, 3, 1), {}, TypeError, "must be a DeepLinear.* got Conv2d"),
        (torch.empty(3, 3), {}, TypeError, "must be a DeepLinear.* got Tensor"),
        ("weights", {}, TypeError, "must be a DeepLinear.* got str"),
        ([np.ones((2, 2))], {}, TypeError, "got ndarray at '0'"),
        ([], {}, ValueError, "weights must hold at least one"),
        (nn.Sequential(nn.Identity()), {}, ValueError, "weights must hold at least one"),
        ([torch.empty(3)], {}, ValueError, r"weights\[0\] must be a non-empty matrix"),
        ([torch.empty(0, 3)], {}, ValueError, r"weights\[0\] must be a non-empty matrix"),
        ([torch.ones(3, 3, dtype=torch.int64)], {}, TypeError, "floating tensor, got torch.int64"),
        ([torch.ones(3, 3) * 1j], {}, TypeError, "floating tensor, got torch.complex64"),
        ([torch.empty(3, 4), torch.empty(2, 4)], {}, ValueError, "weights must chain"),
        ([torch.empty(2, 3, 4), torch.empty(2, 3)], {}, ValueError, "weights must chain"),
        (
            [torch.empty(3, 4), torch.empty(2, 3, dtype=F64)],
            {},
            ValueError,
            "share one dtype and device",
        ),
        (_tied(), {}, ValueError, "must be distinct tensors"),
        (_twice(), {}, ValueError, "must be distinct tensors .* got tied ones at 0 and 1"),
        (nn.ModuleList([nn.Linear(3, 3)] * 2), {}, ValueError, "must be distinct tensors"),
        ([torch.zeros(3).expand(3, 3)], {}, ValueError, "must be distinct .* at 0 and 0"),
        (_Residual(nn.Linear(3, 3)), {}, TypeError, "a forward pass of its own in _Residual"),
        ([_Adapted(3, 3)], {}, TypeError, "a forward pass of its own in _Adapted at '0'"),
        (_computed_bias(), {}, TypeError, "computed bias in .* at '0'"),
        (_inference(), {}, ValueError, r"weights\[0\] must be made outside torch.inference_mode"),
        (_weight_norm(), {}, TypeError, "computed weight in .* at '0'"),
        (nn.Linear(4, 3), {"rank": 4}, ValueError, "rank must lie between 1 and 3"),
        (nn.Linear(4, 3), {"rank": 1.0}, TypeError, "rank must be an integer"),
        (nn.Linear(4, 3), {"scale": -1.0}, ValueError, "scale must be positive and finite"),
        (nn.Linear(4, 3), {"scale": True}, TypeError, "scale must be a real number"),
        (nn.Linear(4, 3), {"distribution": "normal"}, ValueError, "distribution must be"),
        (nn.Linear(4, 3), {"generator": "0"}, TypeError, "generator must be"),
        (DeepLinear((4, 3, 3)), {"gauge": "free"}, ValueError, "gauge must be None"),
        (nn.Linear(4, 3), {"end_to_end": torch.ones(4, 3)}, ValueError, r"shape \(3, 4\)"),
        (nn.Linear(4, 3), {"end_to_end": torch.ones(4)}, ValueError, "end_to_end must have"),
        (nn.Linear(2, 1), {"end_to_end": [[1, math.nan]]}, ValueError, "end_to_end must be finite"),
        (nn.Linear(4, 3), {"end_to_end": "identity"}, TypeError, "end_to_end must be a real"),
        (nn.Linear(2, 1), {"end_to_end": [[1, 1]], "rank": 2}, ValueError, "rank must lie"),
    ],
)
def test_bad_input(thing, options, error, message):
    with pytest.raises(error, match=message):
        balanced_(thing, **options)


def test_lazy_layers_are_refused():
    layer = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="weights.0. must be initialised"):
        balanced_(layer)
