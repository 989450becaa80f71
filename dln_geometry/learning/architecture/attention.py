"""The symmetries of ``nn.MultiheadAttention``, and its output projection as a layer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from dln_geometry.learning.architecture.groups import SymmetricGroup
from dln_geometry.learning.architecture.layers import Layer
from dln_geometry.learning.architecture.parts import Part
from dln_geometry.learning.architecture.passages import Layout, has_hooks
from dln_geometry.learning.architecture.tracing import TracedNetwork


def attention_groups(
    network: TracedNetwork, node: fx.Node, module: nn.MultiheadAttention
) -> Iterator[SymmetricGroup]:
    """Yield the gauges of the heads, their permutation, and the shift of the keys."""
    h, d, e = module.num_heads, module.head_dim, module.embed_dim
    if module.bias_k is not None or module.bias_v is not None:
        return
    if module._qkv_same_embed_dim:
        inside = network.parameter(node, "in_proj_weight")
        weights = [(inside, k * e) for k in range(3)]
    else:
        weights = [(network.parameter(node, f"{k}_proj_weight"), 0) for k in "qkv"]
    bias = network.parameter(node, "in_proj_bias")
    if any(name is None for name, _ in weights) or (module.in_proj_bias is not None and not bias):
        return
    through = (str(node.target),)

    def rows(which: int, units: int, block: int) -> tuple[Part, ...]:
        name, start = weights[which]
        weight = Part(str(name), 0, units, block, start)
        return (weight,) if bias is None else (weight, Part(bias, 0, units, block, which * e))

    query, key, value = (rows(which, h, d) for which in range(3))
    yield SymmetricGroup("gauge", key, query, through)
    out = network.parameter(node, "out_proj.weight")
    if out is not None:
        heads = Part(out, 1, h, d)
        drops = module.training and module.dropout > 0
        # The second output, the attention weights, may show the heads one by one.
        output_alone = all(_is_output(user, node) for user in network.readers(node))
        yield SymmetricGroup("gauge", value, (heads,), through)
        if h > 1 and not drops and output_alone:
            parts = (*query, *key, *value, heads)
            yield SymmetricGroup("permutation", parts, (), through, reading=(heads,))
    if bias is not None and not module.add_zero_attn:
        yield SymmetricGroup("translation", (Part(bias, 0, e, 1, e),), (), through)


def output_projection(
    network: TracedNetwork, node: fx.Node, module: nn.MultiheadAttention
) -> tuple[Layer | None, fx.Node]:
    """Return the output projection of an attention as a layer, and the node of its value."""
    users = network.readers(node)
    if has_hooks(module) or len(users) != 1 or not _is_output(users[0], node):
        return None, node
    weight = network.parameter(node, "out_proj.weight")
    bias = network.parameter(node, "out_proj.bias")
    if weight is None or (module.out_proj.bias is not None and bias is None):
        return None, node
    d = module.embed_dim
    return Layer(weight, bias, 0, d, Layout(), 1, d), users[0]


def _is_output(user: fx.Node, node: fx.Node) -> bool:
    """Tell whether an operation takes the first of the two outputs of an attention."""
    return user.op == "call_function" and user.args == (node, 0)
