from __future__ import annotations

import pytest
import torch
from torch import nn

from dln_geometry.learning import symmetries_of
from tests.learning.architecture.routes import CE, by_graph, found
from tests.learning.networks import build


def test_attention_is_read_by_heads(generator):
    net, _ = build("attention", generator)
    groups = symmetries_of(net, loss=CE)
    name = "blocks.1.attention"
    inside = (f"{name}.in_proj_weight", f"{name}.in_proj_bias")
    assert {
        ("gauge", 2, inside),
        ("gauge", 2, (*inside, f"{name}.out_proj.weight")),
        ("permutation", 2, (*inside, f"{name}.out_proj.weight")),
        ("translation", 6, inside[1:]),
        ("translation", 1, (f"{name}.out_proj.weight", f"{name}.out_proj.bias")),
        ("rescale", 6, ("blocks.1.norm1.weight", "blocks.1.norm1.bias", inside[0])),
    } <= found(groups)
    # What feeds the residual stream is shifted, but not scaled.
    assert not [g for g in groups if g.kind == "scale"]


@pytest.mark.parametrize("same", [True, False])
def test_attention_with_its_options(same, generator):
    class Cross(nn.Module):
        def __init__(self, **options):
            super().__init__()
            sizes = {} if same else {"kdim": 5, "vdim": 3}
            self.attention = nn.MultiheadAttention(6, 3, batch_first=True, **sizes, **options)

        def forward(self, q, k, v):
            return self.attention(q, k, v)[0]

    shapes = [(2, 4, 6), (2, 7, 6 if same else 5), (2, 7, 6 if same else 3)]
    data = tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)

    def kinds(**options):
        with torch.random.fork_rng():
            net = Cross(**options).double()
        without = symmetries_of(net)
        assert without == by_graph(symmetries_of(net, data))
        return [g.kind for g in without]

    gauges = ["gauge", "gauge", "permutation"]
    assert kinds() == [*gauges, "translation"]
    assert kinds(bias=False) == gauges
    assert kinds(add_zero_attn=True) == gauges
    assert kinds(add_bias_kv=True) == []
    assert kinds(dropout=0.3) == ["gauge", "gauge", "translation"]
