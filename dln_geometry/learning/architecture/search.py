"""Find the symmetric groups of parameters that the architecture of a module has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import fx, nn
from torch.nn.parameter import is_lazy

from dln_geometry.learning.architecture.confirmation import confirmed
from dln_geometry.learning.architecture.groups import Part, SymmetricGroup
from dln_geometry.learning.architecture.layers import Layer, Network, weight_norm_of
from dln_geometry.learning.architecture.passages import Layout, has_hooks
from dln_geometry.learning.architecture.tracing import Traced, trace, untraceable
from dln_geometry.learning.architecture.walks import absorbed, readings
from dln_geometry.learning.layers import DeepLinear

__all__ = ["symmetries_of"]


def symmetries_of(
    module: nn.Module, example_input: Any = None, *, loss: str | None = None
) -> list[SymmetricGroup]:
    """Return the symmetric groups of parameters of a module.

    The data flow is read by ``torch.fx``. Then every layer is followed to all that reads it:

    - scale: weights before batch, instance, layer, group and RMS normalisation, through positively
      homogeneous operations (ReLU, pooling, dropout), and the directions of a weight norm;
    - translation: what a normalisation subtracts again, what a softmax does not see (the logits
      of the last layer, if `loss` says so), and the bias of the keys of an attention;
    - rescale: hidden units between two layers, through positively homogeneous operations;
      weights and biases of normalisations count as layers;
    - gauge: two layers with nothing nonlinear between them, also keys and queries and values and
      outputs of each head of ``nn.MultiheadAttention``, and the layers of a `DeepLinear`;
    - permutation: hidden units between two layers, through all that acts on each alike, and the
      heads of an attention.

    Each family stands in the list once: a gauge contains rescalings and permutations of its
    indices (`SymmetricGroup.diagonal`), which are not listed beside it.

    Parameters
    ----------
    module : Module
        In the mode in which it is trained: batch normalisation is symmetric in training mode
        only. It is not changed.
    example_input : Tensor or tuple, optional
        Positional arguments of the module. With them, numbers of dimensions are known, and every
        group is tried on the module: what its output contradicts is left out. Without them, inputs
        are taken to be batches (matrices for linear layers before ``BatchNorm1d``, ``GroupNorm``,
        ``Flatten`` or a softmax with ``dim=1``).
    loss : "cross_entropy" or None
        What the output goes into. Cross entropy does not see a common shift of all logits; the
        classes must be the channels of the last layer.

    Returns
    -------
    list of SymmetricGroup
        In the order of the layers. Parameters that are used twice (tied, or in a module that is
        called twice) or under hooks are in none.

    Raises
    ------
    TypeError
        If `module` is not a Module.
    ValueError
        If it has no parameters, or lazy ones, or the loss is unknown.

    Warns
    -----
    UserWarning
        If a module inside cannot be traced, since its path depends on values. Its children are
        read on their own, and what is found in them is kept if an example input confirms it.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> for group in symmetries_of(net, loss="cross_entropy"):
    ...     print(group.kind, group.units, group.names)
    rescale 8 ('0.weight', '0.bias', '2.weight')
    permutation 8 ('0.weight', '0.bias', '2.weight')
    translation 1 ('2.weight', '2.bias')
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if loss not in ("cross_entropy", None):
        raise ValueError(f'loss must be "cross_entropy" or None, got {loss!r}')
    named = dict(module.named_parameters())
    if not named:
        raise ValueError(f"module must have parameters, got a {type(module).__name__} without any")
    for name, p in named.items():
        if is_lazy(p):
            raise ValueError(
                f"module must have all its parameters, got {name!r} without a shape: call the "
                "module once"
            )
    example = example_input
    if example is not None and not isinstance(example, tuple):
        example = (example,)
    traced = trace(_readable(module), example)
    groups = list(_groups(traced, logits=loss == "cross_entropy"))
    groups = [_renamed(group, traced.root, module) for group in groups]
    if traced.opaque:
        names = ", ".join(repr(name) if name else "the module itself" for name in traced.opaque)
        warnings.warn(
            f"not everything could be traced: {names}; symmetries inside are "
            + ("missing: give an example_input" if example is None else "partly known"),
            UserWarning,
            stacklevel=2,
        )
        if example is not None:
            groups += _inside(traced, module)
    if example is not None:
        groups = confirmed(module, groups, example, logits=loss == "cross_entropy")
    return groups


def _readable(module: nn.Module) -> nn.Module:
    """Return a module whose graph calls the given one, if that is one of torch's own."""
    own = type(module).__module__.startswith("torch.nn") or type(module) is DeepLinear
    return nn.Sequential(module) if own and type(module) is not nn.Sequential else module


def _renamed(group: SymmetricGroup, inner: nn.Module, outer: nn.Module) -> SymmetricGroup:
    """Return the group with the names that its parameters have in another module."""
    names = {id(p): name for name, p in outer.named_parameters()}
    first, second = (
        tuple(replace(p, name=names[id(inner.get_parameter(p.name))]) for p in side)
        for side in (group.first, group.second)
    )
    return replace(group, first=first, second=second)


def _inside(traced: Traced, outer: nn.Module) -> Iterator[SymmetricGroup]:
    """Yield what the children of opaque modules have: guesses that must be confirmed."""
    todo = untraceable(traced)
    while todo:
        name, child = todo.pop(0)
        inner = trace(_readable(child))
        for group in _groups(inner, logits=False):
            through = tuple(f"{name}.{key}" for key in group.through)
            yield _renamed(replace(group, through=through), inner.root, outer)
        todo += [(f"{name}.{key}", m) for key, m in untraceable(inner)]


def _groups(traced: Traced, *, logits: bool) -> Iterator[SymmetricGroup]:
    network = Network.of(traced)
    layers: dict[fx.Node, Layer] = {}
    calls = [n for n in traced.graph.nodes if n.op in ("call_module", "call_function")]
    for node in calls:
        layer, value = network.layer(node), node
        if type(traced.module(node)) is nn.MultiheadAttention:
            layer, value = _attention_output(network, node)
        if layer is not None and value is not None:
            layers[value] = layer
    done: set[tuple[str, frozenset[Part]]] = set()
    for node in calls:
        yield from _of_module(network, node)
        if node not in layers:
            continue
        for group in _of_layer(network, node, layers, logits=logits):
            # Layers that a skip connection joins lead to the same group.
            key = group.kind, frozenset(group.parts)
            if key not in done:
                done.add(key)
                yield group


def _of_layer(
    network: Network, node: fx.Node, layers: Mapping[fx.Node, Layer], *, logits: bool
) -> Iterator[SymmetricGroup]:
    """Yield the groups that what follows a layer makes."""
    layer = layers[node]
    free_bias = False
    shifts = absorbed(network, node, layer, "shift", logits=logits)
    if shifts is not None:
        absorption, through = shifts
        parts = []
        if absorption.weight_units is not None and layer.additive:
            parts.append(layer.row_of(layer.weight, layer.out_axis, absorption.weight_units))
        if absorption.bias_units is not None and layer.bias is not None:
            parts.append(layer.row_of(layer.bias, 0, absorption.bias_units))
            free_bias = absorption.bias_units == layer.outputs
        for units in dict.fromkeys(p.units for p in parts):
            alike = tuple(p for p in parts if p.units == units)
            yield SymmetricGroup("translation", alike, (), through)
    scales = absorbed(network, node, layer, "positive", logits=False)
    if scales is not None and scales[0].scale_units is not None:
        absorption, through = scales
        # A bias that does nothing at all need not be scaled along.
        first = layer.rows(absorption.scale_units)[: 1 if free_bias else None]
        yield SymmetricGroup("scale", first, (), through, absorption.epsilon)
    mixed = readings(network, node, layer, "mixing", layers) if layer.dense else None
    if mixed is not None and mixed.dense:
        d = layer.outputs
        first, second = (
            tuple(replace(p, units=1, block=d) for p in side)
            for side in (layer.rows(), mixed.columns)
        )
        yield SymmetricGroup("gauge", first, second, tuple(mixed.through))
        return
    scaled = readings(network, node, layer, "positive", layers)
    if scaled is not None:
        rows = tuple(p for maker in scaled.makers.values() for p in maker.rows())
        yield SymmetricGroup("rescale", rows, tuple(scaled.columns), tuple(scaled.through))
    if network.is_norm(node) or layer.outputs == 1:
        # The weight of a normalisation is permuted with the layer before it.
        return
    permuted = readings(network, node, layer, "permute", layers)
    # The outputs of a grouped convolution read different inputs.
    if permuted is not None and all(m.dense or m.more for m in permuted.makers.values()):
        rows = tuple(
            p
            for maker in permuted.makers.values()
            for p in (*maker.rows(), *(maker.row_of(name, 0) for name in maker.more))
        )
        parts = (*rows, *permuted.carried, *permuted.columns)
        yield SymmetricGroup("permutation", parts, (), tuple(permuted.through))


def _of_module(network: Network, node: fx.Node) -> Iterator[SymmetricGroup]:
    """Yield the groups inside one module."""
    module: Any = network.traced.module(node)
    if module is None or has_hooks(module):
        return
    axis = weight_norm_of(module)
    direction = network.name(node, "parametrizations.weight.original1")
    if direction is not None and hasattr(module.parametrizations.weight, "original1"):
        tensor = network.traced.root.get_parameter(direction)
        if axis is not None and 0 <= axis < tensor.ndim:
            part = Part(direction, axis, tensor.shape[axis])
            yield SymmetricGroup("scale", (part,), (), (str(node.target),))
    if type(module) is DeepLinear:
        names = [network.name(node, f"weights.{p}") for p in range(module.depth)]
        for p, (before, after) in enumerate(pairwise(names)):
            if before is not None and after is not None:
                d = module.widths[p + 1]
                yield SymmetricGroup(
                    "gauge", (Part(before, 0, 1, d),), (Part(after, 1, 1, d),), (str(node.target),)
                )
    if type(module) is nn.MultiheadAttention:
        yield from _of_attention(network, node, module)


def _of_attention(
    network: Network, node: fx.Node, module: nn.MultiheadAttention
) -> Iterator[SymmetricGroup]:
    """Yield the gauges of the heads, their permutation, and the shift of the keys."""
    h, d, e = module.num_heads, module.head_dim, module.embed_dim
    if module.bias_k is not None or module.bias_v is not None:
        return
    if module._qkv_same_embed_dim:
        inside = network.name(node, "in_proj_weight")
        weights = [(inside, k * e) for k in range(3)]
    else:
        weights = [(network.name(node, f"{k}_proj_weight"), 0) for k in "qkv"]
    bias = None if module.in_proj_bias is None else network.name(node, "in_proj_bias")
    if any(name is None for name, _ in weights):
        return
    if module.in_proj_bias is not None and bias is None:
        return
    through = (str(node.target),)

    def rows(which: int, units: int, block: int) -> tuple[Part, ...]:
        name, start = weights[which]
        weight = Part(str(name), 0, units, block, start)
        return (weight,) if bias is None else (weight, Part(bias, 0, units, block, which * e))

    query, key, value = (rows(which, h, d) for which in range(3))
    yield SymmetricGroup("gauge", key, query, through)
    out = network.name(node, "out_proj.weight")
    if out is not None:
        heads = Part(out, 1, h, d)
        drops = module.training and module.dropout > 0
        # Its second output may show the heads one by one.
        output_alone = all(
            user.op == "call_function" and user.args == (node, 0)
            for user in network.traced.readers(node)
        )
        yield SymmetricGroup("gauge", value, (heads,), through)
        if h > 1 and not drops and output_alone:
            yield SymmetricGroup("permutation", (*query, *key, *value, heads), (), through)
    if bias is not None and not module.add_zero_attn:
        yield SymmetricGroup("translation", (Part(bias, 0, e, 1, e),), (), through)


def _attention_output(network: Network, node: fx.Node) -> tuple[Layer | None, fx.Node | None]:
    """Return the output projection of an attention as a layer, and the node of its value."""
    module = network.traced.module(node)
    users = network.traced.readers(node)
    if not isinstance(module, nn.MultiheadAttention) or has_hooks(module) or len(users) != 1:
        return None, None
    if users[0].op != "call_function" or users[0].args != (node, 0):
        return None, None
    weight = network.name(node, "out_proj.weight")
    bias = None if module.out_proj.bias is None else network.name(node, "out_proj.bias")
    if weight is None or (module.out_proj.bias is not None and bias is None):
        return None, None
    d = module.embed_dim
    return Layer(weight, bias, 0, d, Layout(), 1, d), users[0]
