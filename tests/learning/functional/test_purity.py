"""What `functionalize` refuses at once, and embeddings, which it computes by definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dln_geometry.learning import functionalize, hessian_product, sharpness
from dln_geometry.testing import assert_close

F64 = torch.float64


def _square(y):
    return y.square().mean()


class _Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.inner, self.outer, self.reentrant = nn.Linear(3, 4), nn.Linear(4, 2), reentrant

    def forward(self, x):
        return self.outer(checkpoint(self.inner, x, use_reentrant=self.reentrant))


class _Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        self.weight.detach().add_(1.0)
        return x * self.weight


def _one_memory():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight.data = net[0].weight.data
    return net


def _inference():
    with torch.inference_mode():
        return nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: _Checkpointed(False), TypeError, "torch.func can differentiate, got checkpoint"),
        (lambda: _Checkpointed(True), TypeError, "torch.func can differentiate, got checkpoint"),
        (_Counting, ValueError, "must not change its parameters, got a change of 'weight'"),
        (_one_memory, ValueError, "one nn.Parameter, got '0.weight' and '1.weight'"),
        (_inference, ValueError, "made outside torch.inference_mode, got 'weight' made inside"),
        (lambda: nn.Linear(4, 2), ValueError, "must accept the data, got RuntimeError: mat1"),
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_modules_without_a_pure_loss_are_refused_at_once(make, error, message):
    with pytest.raises(error, match=message):
        functionalize(make(), _square, torch.ones(5, 3))


def test_inference_mode(generator):
    with torch.inference_mode(), pytest.raises(ValueError, match="outside torch.inference_mode"):
        functionalize(nn.Linear(3, 2), _square, torch.ones(5, 3))
    with torch.inference_mode():
        x = torch.ones(5, 3)
    loss, params = functionalize(nn.Linear(3, 2), _square, x)
    assert torch.func.grad(loss)(params)["weight"].isfinite().all()
    with torch.inference_mode():
        assert sharpness(loss, params) > 0


@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_that_change_their_weight_are_refused(layer):
    net = nn.Sequential(layer(5, 3, max_norm=1.0), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="got an embedding with max_norm at '0'"):
        functionalize(net, _square, torch.tensor([[0, 1]]))


BAGS = [
    {"mode": mode, "padding_idx": padding, "sparse": sparse}
    for mode in ("sum", "mean")
    for padding in (None, 2, -1)
    for sparse in (False, True)
]


@pytest.mark.parametrize("options", BAGS)
@pytest.mark.parametrize("offsets", [False, True])
def test_bags_are_torchs_with_all_derivatives(options, offsets, generator):
    bag = nn.EmbeddingBag(6, 3, dtype=F64, include_last_offset=offsets, **options)
    index = torch.randint(6, (4, 5), generator=generator)
    # The second bag is empty.
    data = (index.flatten(), torch.tensor([0, 3, 3, 17, 20])) if offsets else (index,)
    weights = torch.randn(3, generator=generator, dtype=F64)

    def value(y):
        return (y.sin() @ weights).square().sum()

    loss, params = functionalize(bag, value, (data,))
    assert_close(loss(params), value(bag(*data)))
    (own,) = torch.autograd.grad(value(bag(*data)), [bag.weight])
    gradient = torch.func.grad(loss)(params)["weight"]
    assert_close(gradient, own.to_dense() if own.is_sparse else own)
    v = {"weight": torch.randn(6, 3, generator=generator, dtype=F64)}
    h = 1e-5
    ends = [
        torch.func.grad(loss)({"weight": params["weight"] + s * h * v["weight"]})["weight"]
        for s in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * h)
    found = hessian_product(loss, params)(v)["weight"]
    assert float((found - slope).norm()) < 1e-7 * float(slope.norm())


@pytest.mark.parametrize("sparse", [False, True])
def test_embeddings_have_dense_gradients_and_fixed_padding(sparse, generator):
    net = nn.Sequential(nn.Embedding(6, 3, padding_idx=-2, sparse=sparse, dtype=F64), nn.Tanh())
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(6, 3, generator=generator, dtype=F64))
    index = torch.tensor([[0, 4, 1], [4, 5, 0]])
    loss, params = functionalize(net, _square, index)
    (own,) = torch.autograd.grad(_square(net(index)), [net[0].weight])
    gradient = torch.func.grad(loss)(params)["0.weight"]
    assert_close(gradient, own.to_dense() if sparse else own)
    v = {"0.weight": torch.randn(6, 3, generator=generator, dtype=F64)}
    image = hessian_product(loss, params)(v)["0.weight"]
    forward = torch.func.jvp(torch.func.grad(loss), (params,), (v,))[1]["0.weight"]
    assert_close(image, forward)
    assert not image[4].any()
    assert image[0].all()
    assert sharpness(loss, params) > 0


def test_frequencies_do_not_scale_the_derivative(generator):
    net = nn.Embedding(4, 2, scale_grad_by_freq=True, dtype=F64)
    loss, params = functionalize(net, _square, torch.tensor([1, 1, 3]))
    plain = nn.Embedding.from_pretrained(net.weight.detach(), freeze=False)
    (own,) = torch.autograd.grad(_square(plain(torch.tensor([1, 1, 3]))), [plain.weight])
    assert_close(torch.func.grad(loss)(params)["weight"], own)
