"""`DeepLinear` where torch's own modules and tools expect a linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry.learning import DeepLinear
from dln_geometry.testing import assert_close


def test_the_weight_is_the_product_and_cannot_be_set(generator):
    layer = DeepLinear((4, 3, 5), generator=generator)
    x = torch.randn(7, 4, generator=generator)
    assert_close(nn.functional.linear(x, layer.weight, layer.bias), layer(x))
    assert_close(layer.weight, layer.weights[1] @ layer.weights[0])
    (gradient,) = torch.autograd.grad(layer.weight.sum(), [layer.weights[0]])
    assert_close(gradient, layer.weights[1].sum(0)[:, None].expand(3, 4))
    assert set(layer.state_dict()) == {"weights.0", "weights.1", "bias"}
    for value in nn.Parameter(torch.zeros(5, 4)), torch.zeros(5, 4), None:
        with pytest.raises(AttributeError, match="weight must not be set, it is the product"):
            layer.weight = value
    # A tied embedding wants a parameter, and torch says so.
    with pytest.raises(TypeError, match="cannot assign .* as parameter 'weight'"):
        nn.Embedding(5, 4).weight = layer.weight


@pytest.mark.parametrize("bias", [True, False])
def test_transformer_layers_read_it_in_evaluation_mode(bias, generator):
    options = {"bias": bias, "generator": generator}
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, bias=bias)
    layer.linear1 = DeepLinear((8, 5, 16), **options)
    layer.linear2 = DeepLinear((16, 5, 8), **options)
    layer.self_attn.out_proj = DeepLinear((8, 6, 8), **options)
    x = torch.randn(3, 4, 8, generator=generator)
    layer.eval()
    plain = layer(x)
    with torch.no_grad():  # the fused path
        assert_close(layer(x), plain, ops=1000)
    linear = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, bias=bias).eval()
    linear.load_state_dict(layer.state_dict(), strict=False)
    linear.linear1, linear.linear2 = layer.linear1.collapse(), layer.linear2.collapse()
    linear.self_attn.out_proj = layer.self_attn.out_proj.collapse()
    assert_close(linear(x), plain, ops=1000)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("widths", [(8, 5, 8), (8, 20, 20, 8)])
def test_is_exported_with_a_batch_of_any_size(widths, strict, generator):
    layer = DeepLinear(widths, generator=generator)
    x, sizes = torch.randn(4, 3, 8, generator=generator), {0: torch.export.Dim("batch")}
    program = torch.export.export(layer, (x,), dynamic_shapes=(sizes,), strict=strict).module()
    for batch in (2, 4, 90):
        x = torch.randn(batch, 3, 8, generator=generator)
        assert_close(program(x), layer(x), ops=300)
